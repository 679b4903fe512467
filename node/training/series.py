"""Series of DICOM below a folder, as training and evaluation read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.imaging.volume import volume_from_series
from node.sdk import Volume

Instance = tuple[Path, Dataset]
"""A file and its header."""

IMAGE_MODALITIES = frozenset({"CT", "MR"})


@dataclass(frozen=True)
class Series:
    """One series with its pixels.

    ``name`` is that of its folder; ``patient`` is PatientID, or the folder where that is empty.
    ``header`` is the first instance, for what scanner it was.
    """

    name: str
    patient: str
    volume: Volume
    header: Dataset
    files: tuple[Path, ...]


def read_series(data: Path) -> Iterator[Series]:
    """Every CT and MR series of two instances or more below ``data``, in order of their paths.

    A series lies in one folder; other objects beside it are passed over.

    Raises
    ------
    NodeError
        A series cannot be read as one volume.
    """
    for instances in find_series(data):
        if len(instances) > 1:
            yield series_of(instances)


def find_series(data: Path) -> list[list[Instance]]:
    """Paths and headers of all CT and MR instances with a place in the patient, by series."""
    found: dict[tuple[Path, str], list[Instance]] = defaultdict(list)
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        try:
            header: Dataset = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        if header.get("Modality") in IMAGE_MODALITIES and "SeriesInstanceUID" in header:
            found[path.parent, str(header.SeriesInstanceUID)].append((path, header))
    return list(found.values())


def series_of(instances: Sequence[Instance]) -> Series:
    """Read the pixels of one series."""
    files = tuple(path for path, _ in instances)
    header = instances[0][1]
    volume = volume_from_series([dcmread(path) for path in files])
    folder = files[0].parent.name
    return Series(folder, str(header.get("PatientID") or folder), volume, header, files)
