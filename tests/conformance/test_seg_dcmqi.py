"""dcmqi, the reader behind 3D Slicer, finds our labels at our millimetres."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from tests.viewer.cases import CASES, SEGMENTS, Case, part10

SEGIMAGE2ITKIMAGE = Path(sys.executable).with_name("segimage2itkimage")


def read_by_dcmqi(segmentation: Dataset, folder: Path) -> list[tuple[str, Path]]:
    """Label and NRRD file of each segment that dcmqi reads."""
    file = folder / "seg.dcm"
    file.write_bytes(part10(segmentation))
    output = ["--outputDirectory", folder, "--prefix", "read", "--outputType", "nrrd"]
    subprocess.run(
        [SEGIMAGE2ITKIMAGE, "--inputDICOM", file, *output],
        check=True,
        capture_output=True,
        timeout=240,
    )
    described = json.loads((folder / "read-meta.json").read_text())["segmentAttributes"]
    segments = [segment for group in described for segment in group]
    return [
        (segment["SegmentLabel"], folder / f"read-{segment['labelID']}.nrrd")
        for segment in segments
    ]


def points_in_nrrd(file: Path, value: int | None = None) -> npt.NDArray[np.float64]:
    """LPS millimetres, shape (n, 3), of the voxels that are not 0, or have one ``value``.

    The format is text, an empty line, the data: https://teem.sourceforge.net/nrrd/format.html
    """
    text, data = file.read_bytes().split(b"\n\n", 1)
    fields = dict(line.split(": ", 1) for line in text.decode().splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    sizes = [int(size) for size in fields["sizes"].split()]
    values = gzip.decompress(data) if fields["encoding"] == "gzip" else data
    bytes_each = len(values) // int(np.prod(sizes))
    # The first axis is the fastest.
    labels = np.frombuffer(values, f"<u{bytes_each}").reshape(sizes[::-1]).transpose()
    axes = np.array([_vector(axis) for axis in fields["space directions"].split()])
    found = labels if value is None else labels == value
    points: npt.NDArray[np.float64] = np.argwhere(found) @ axes + _vector(fields["space origin"])
    return points


def points_of_truth(case: Case, number: int) -> npt.NDArray[np.float64]:
    """LPS millimetres, shape (n, 3), of the voxels of one segment (PS3.3 C.7.6.2.1.1).

    ITK's images have right angles only, so dcmqi straightens the stack of a tilted gantry: it goes
    on along the normal from the first slice that has a mask.
    """
    found = []
    cosines = np.array(case.source[0].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    first = np.array(case.source[case.labels.any(axis=(1, 2)).argmax()].ImagePositionPatient, float)
    for header, plane in zip(case.source, case.labels, strict=True):
        rows, columns = np.nonzero(plane == number)
        corner = np.array(header.ImagePositionPatient, float)
        straight = first + normal * ((corner - first) @ normal)
        down_mm, across_mm = (float(value) for value in header.PixelSpacing)
        found.append(
            straight
            + np.outer(rows * down_mm, cosines[3:])
            + np.outer(columns * across_mm, cosines[:3])
        )
    return np.concatenate(found)


def _vector(text: str) -> npt.NDArray[np.float64]:
    return np.array([float(value) for value in text.strip("()").split(",")])


def _in_order(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sorted, by hundredths of a millimetre."""
    return points[np.lexsort(np.round(points, 2).T)]


@pytest.mark.parametrize("name", CASES)
def test_dcmqi_reads_the_same_labels_at_the_same_positions(name: str, tmp_path: Path) -> None:
    """Every voxel of every segment, and no other, in the patient's coordinates."""
    case = CASES[name]()
    read = read_by_dcmqi(case.segmentation(), tmp_path)
    assert [label for label, _ in read] == [segment.label for segment in SEGMENTS]
    files = sorted(tmp_path.glob("*.nrrd"))  # of a label map, one for all segments
    for segment, (_, file) in zip(SEGMENTS, read, strict=True):
        found = points_in_nrrd(file) if len(files) > 1 else points_in_nrrd(*files, segment.number)
        truth = points_of_truth(case, segment.number)
        assert len(found) == len(truth) > 500
        distances = np.linalg.norm(_in_order(found) - _in_order(truth), axis=1)
        assert distances.max() < 0.02
