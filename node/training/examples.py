"""What an evaluation asks: an image as the node hands it to the model, and the right answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from node.manifest import Segment
from node.sdk import Radiograph, Volume
from node.training.labels import label_files
from node.training.recipe import Labels, digest_of
from node.training.series import Series, read_series


@dataclass(frozen=True)
class Example:
    """One image with its labels on its own grid.

    Attributes
    ----------
    labels
        uint8, (slices, rows, columns) of the image; a radiograph is one slice.
    spacing_mm
        Of (slice, row, column); ones where the image has none: distances are then pixels.
    scanner
        Who made it, and how: the group it is counted in.
    files
        Of the series, in any order: a program that is a model may want to read them itself.
    digest
        :func:`~node.training.recipe.digest_of` the files of the training case that it may have
        been: by this the record of a training knows it, whatever it is called.
    """

    name: str
    patient: str
    image: Volume | Radiograph
    labels: Labels
    spacing_mm: tuple[float, float, float]
    scanner: str
    files: tuple[Path, ...] = ()
    digest: str = ""


def volume_examples(data: Sequence[Path], segments: Sequence[Segment]) -> Iterator[Example]:
    """Every CT and MR series below the folders ``data`` for which labels lie there too."""
    found = label_files(*data)
    for series in (series for place in data for series in read_series(place)):
        labels = found.of(series, segments)
        if labels is not None:
            yield example_of(series, labels)


def example_of(series: Series, labels: Labels) -> Example:
    """A series with its labels."""
    volume = series.volume
    return Example(
        series.name,
        series.patient,
        volume,
        labels,
        volume.spacing_mm,
        scanner_of(series.header),
        series.files,
        digest_of(series.files),
    )


def scanner_of(header: Dataset) -> str:
    """Manufacturer, model, kernel, slice thickness; what is not there is left out."""
    kernel = header.get("ConvolutionKernel")
    parts = [
        header.get("Manufacturer"),
        header.get("ManufacturerModelName"),
        kernel if isinstance(kernel, str) or kernel is None else "/".join(map(str, kernel)),
        f"{float(header.SliceThickness):g} mm" if header.get("SliceThickness") else None,
    ]
    return " ".join(str(part).strip() for part in parts if part) or "not said"
