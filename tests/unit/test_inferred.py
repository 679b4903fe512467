"""What the compute zone has left is held against the job's instances before it is unpacked."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from node.edges.artifacts import FolderArtifacts
from node.edges.bundles import FolderBundle
from node.errors import DamagedArtifact, ModelFault
from node.pipeline.inferred import read_label_map, read_measurements
from node.pipeline.working_data import LABEL_MAP_FILE, MEASUREMENTS_FILE
from node.results.measurements import SegmentMeasurements

ROWS, COLUMNS = 40, 32
UIDS = [f"2.25.{number}" for number in range(1, 4)]
LABELS = np.random.default_rng(1).integers(0, 255, (3, ROWS, COLUMNS), np.uint8)
NAMES = {"labels": LABELS, "sop_instance_uids": np.array(UIDS)}


def instances() -> list[Dataset]:
    """Three slices, the last one first, and an instance that is no image."""
    made = []
    for uid in reversed(UIDS):
        made.append(Dataset())
        made[-1].SOPInstanceUID, made[-1].Rows, made[-1].Columns = uid, ROWS, COLUMNS
    made.append(Dataset())
    made[-1].SOPInstanceUID = "2.25.9"
    return made


def left(folder: Path, **files: bytes) -> FolderBundle:
    """A bundle as somebody may leave it who knows how bundles are made."""
    names = {"label_map": LABEL_MAP_FILE, "measurements": MEASUREMENTS_FILE}
    artifacts = FolderArtifacts(folder)
    with artifacts.writing("job/label_map") as bundle:
        for name, data in files.items():
            bundle.add(names[name], data)
    return artifacts.bundle("job/label_map", bundle.digest)


def packed(how: int = zipfile.ZIP_DEFLATED, **arrays: Any) -> bytes:
    """An ``.npz`` of arrays, or of bytes in their place."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as file:
        for name, array in arrays.items():
            one = io.BytesIO()
            if not isinstance(array, bytes):
                np.save(one, array)
            file.writestr(f"{name}.npy", array if isinstance(array, bytes) else one.getvalue())
    return stream.getvalue()


def claiming(shape: tuple[int, ...], kind: str) -> bytes:
    """An array's header with nothing after it."""
    stream = io.BytesIO()
    header = {"shape": shape, "fortran_order": False, "descr": kind}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_a_model_leaves_is_read(tmp_path: Path, save: Any) -> None:
    """As numpy writes it, though its values do not compress at all."""
    stream = io.BytesIO()
    save(stream, **NAMES)
    labels, sources = read_label_map(left(tmp_path, label_map=stream.getvalue()), instances())
    assert np.array_equal(labels, LABELS)
    assert [str(one.SOPInstanceUID) for one in sources] == UIDS


@pytest.mark.parametrize(
    "label_map",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\5\6" + bytes(18), id="without arrays"),
        pytest.param(packed(labels=LABELS), id="of no instances"),
        pytest.param(packed(**{**NAMES, "labels": claiming((3, 2**20, 2**20), "|u1")}), id="huge"),
        pytest.param(packed(**{**NAMES, "labels": claiming((3, ROWS, COLUMNS), "|u1")}), id="cut"),
        pytest.param(packed(**{**NAMES, "labels": LABELS[:2]}), id="of fewer slices"),
        pytest.param(packed(**{**NAMES, "labels": LABELS.astype(np.float64)}), id="of numbers"),
        pytest.param(packed(**{**NAMES, "labels": LABELS.astype(object)}), id="of objects"),
        pytest.param(
            packed(**{**NAMES, "sop_instance_uids": claiming((3,), "<U99999999")}), id="long UIDs"
        ),
        pytest.param(
            packed(**{**NAMES, "sop_instance_uids": claiming((2**40,), "<U64")}), id="many UIDs"
        ),
        pytest.param(
            packed(**{**NAMES, "sop_instance_uids": np.array([*UIDS[:2], "2.25.4"])}), id="others'"
        ),
        pytest.param(
            packed(**{**NAMES, "sop_instance_uids": np.array([*UIDS[:2], UIDS[0]])}), id="twice"
        ),
        pytest.param(
            packed(**{**NAMES, "sop_instance_uids": np.array([*UIDS[:2], "2.25.9"])}), id="no image"
        ),
        pytest.param(packed(zipfile.ZIP_BZIP2, **NAMES), id="packed otherwise"),
        pytest.param(packed(0, **NAMES, **{f"{n}": b"" for n in range(100)}), id="many files"),
    ],
)
def test_what_is_no_label_map_of_the_instances_is_refused(tmp_path: Path, label_map: bytes) -> None:
    """A defect of the model or worse, told as that and not as one of the node."""
    with pytest.raises(ModelFault, match="no label map of this series"):
        read_label_map(left(tmp_path, label_map=label_map), instances())


def test_a_file_larger_than_any_label_map_of_the_instances_is_not_loaded(tmp_path: Path) -> None:
    """Its digest is right: whoever left it has stated it."""
    bundle = left(tmp_path, label_map=bytes(200_000), measurements=bytes(2**20 + 1))
    with pytest.raises(DamagedArtifact):
        read_label_map(bundle, instances())
    with pytest.raises(DamagedArtifact):
        read_measurements(bundle)


def test_measurements_are_numbers(tmp_path: Path) -> None:
    """Words would go into reports."""
    lung = {"number": 1, "volume_ml": 12.5, "first_slice": 0, "mean": None}
    good = json.dumps({"segments": [lung]}).encode()
    assert read_measurements(left(tmp_path, measurements=good)) == [
        SegmentMeasurements(1, 12.5, first_slice=0)
    ]
    entries: list[Any] = [
        {**lung, "mean": "of whom"}, {**lung, "mean": float("nan")}, {**lung, "mean": [1]},
        {**lung, "whose": 1}, {"number": 1}, "1", None,
    ]  # fmt: skip
    documents = [json.dumps({"segments": [entry]}).encode() for entry in entries]
    for document in (*documents, b"", b"[]", b"{}", b"[" * 100_000, b"\xff"):
        with pytest.raises(ModelFault, match="no measurement of this series"):
            read_measurements(left(tmp_path, measurements=document))
