"""Series of DICOM below a folder, as training and evaluation read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.imaging.volume import volume_from_series
from node.sdk import Volume

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
    """Every CT and MR series of two instances or more below ``data``, by path of its first file.

    One series may lie in one folder only; other objects beside it are passed over.
    """
    found: dict[tuple[Path, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        try:
            header: Dataset = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        if header.get("Modality") in IMAGE_MODALITIES and "ImagePositionPatient" in header:
            found[path.parent, str(header.SeriesInstanceUID)].append((path, header))
    for (folder, _), instances in found.items():
        if len(instances) < 2:
            continue
        files = tuple(path for path, _ in instances)
        header = instances[0][1]
        volume = volume_from_series([dcmread(path) for path in files])
        patient = str(header.get("PatientID") or folder.name)
        yield Series(folder.name, patient, volume, header, files)
