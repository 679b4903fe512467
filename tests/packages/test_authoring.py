"""`segnode models new, seal, check, pack`: from a working model to one of one's own."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset

from node.authoring.archive import pack_model
from node.authoring.begin import begin_model
from node.authoring.check import check_model
from node.authoring.seal import seal_model
from node.errors import ModelFault, NodeError, NotPossible
from node.findings import Finding
from node.manifest import NetworkManifest, read_manifest
from node.packages import find_models
from node.reference import read_reference
from tests.packages.conftest import MODELS
from tests.phantoms import ct_series

SERIES = {"slices": 20, "rows": 160, "columns": 190, "spacing_mm": (6, 2, 2)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models with ct_lungs in it, free to be spoiled."""
    place = tmp_path / "models"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(MODELS / "ct_lungs", place / "ct_lungs", ignore=unwanted)
    return place


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A folder with a chest phantom in DICOM, and a file that is none."""
    place = tmp_path / "series"
    place.mkdir()
    (place / "notes.txt").write_text("no DICOM")
    chest: list[Dataset] = ct_series(**SERIES)
    for number, ds in enumerate(chest):
        dcmwrite(place / f"{number}.dcm", ds, enforce_file_format=True)
    return place


def found(folder: Path, exports: Path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in check_model(folder, exports)}


def finished(folder: Path) -> None:
    """What an author writes by hand."""
    for name in ("model.toml", "MODEL_CARD.md"):
        text = (folder / name).read_text()
        assert "(to be written)" in text
        (folder / name).write_text(text.replace("(to be written)", "a phantom"))


def test_a_shipped_model_passes_on_every_runtime(models: Path, exports: Path) -> None:
    """Nothing is wrong, and each runtime that is here was held against the reference vector."""
    checked = found(models / "ct_lungs", exports)
    assert {finding.level for finding in checked.values()} <= {"good", "note"}
    assert {"manifest", "card", "weights", "network", "torch f32", "openvino f32"} <= set(checked)


def test_new_then_seal_gives_a_folder_that_passes(
    models: Path, exports: Path, series: Path
) -> None:
    """What `new` leaves open is named by `check`; weights, reference and words close it."""
    folder = begin_model(models, "ct_other", "ct_lungs")
    checked = found(folder, exports)
    assert checked["manifest"].level == checked["card"].level == "wrong"
    assert "weights.safetensors cannot be read" in checked["model"].found
    assert "segnode models seal" in checked["model"].remedy
    finished(folder)
    seal_model(folder, models / "ct_lungs" / "weights.safetensors", series)
    checked = found(folder, exports)
    assert [one for one in checked.values() if one.level == "wrong"] == []
    manifest = read_manifest(folder)
    assert isinstance(manifest, NetworkManifest)
    assert (manifest.name, manifest.version, manifest.metrics) == ("ct_other", "0.1.0", {})
    assert "ct_lungs" not in (folder / "model.toml").read_text()
    numbers = {m.results.series_number // 10 for m in find_models(models).values()}
    assert len(numbers) == len(list(models.iterdir()))
    assert manifest.digest != read_manifest(models / "ct_lungs").digest


def test_sealing_keeps_the_input_and_finds_its_labels_anew(models: Path) -> None:
    """After a new training the same reference series is kept, with what the weights find now."""
    folder = models / "ct_lungs"
    before = (folder / "reference" / "input.npz").read_bytes()
    (folder / "reference" / "expected.npz").unlink()
    manifest = read_manifest(folder)
    assert isinstance(manifest, NetworkManifest)
    sealed = seal_model(folder, None, None)
    again = read_reference(folder, manifest)
    np.testing.assert_array_equal(again.labels, sealed.labels)
    with np.load(MODELS / "ct_lungs" / "reference" / "input.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(again.case.array, file["array"])
    assert len(before) < 500_000


def test_a_reference_is_thin_and_lies_where_the_series_lies(models: Path, tmp_path: Path) -> None:
    """Every n-th voxel is kept, and its position in the patient with it."""
    from node.authoring.seal import thinned
    from node.imaging.volume import volume_from_series

    whole = volume_from_series(
        ct_series(slices=60, rows=260, columns=300, spacing_mm=(2, 1.4, 1.3), center_mm=(5, 7, 9))
    )
    thin = thinned(whole)
    assert thin.array.shape == (20, 87, 100)
    assert thin.spacing_mm == pytest.approx((6, 4.2, 3.9))  # type: ignore[union-attr]
    index = np.array([3, 10, 20, 1])
    fine = np.array([9, 30, 60, 1])
    np.testing.assert_allclose(thin.affine @ index, whole.affine @ fine)  # type: ignore[union-attr]
    assert thin.array[3, 10, 20] == whole.array[9, 30, 60]


def test_a_reference_without_a_segment_is_refused(models: Path, tmp_path: Path) -> None:
    """A series in which the model finds nothing proves nothing."""
    place = tmp_path / "abdomen"
    place.mkdir()
    for number, ds in enumerate(ct_series(**SERIES, center_mm=(0, 0, -190))):
        dcmwrite(place / f"{number}.dcm", ds, enforce_file_format=True)
    with pytest.raises(ModelFault, match="Left lung is not found in the reference series"):
        seal_model(models / "ct_lungs", None, place)


@pytest.mark.parametrize(
    ("spoil", "subject", "words"),
    [
        (lambda f: (f / "model.toml").write_text("name = 3"), "manifest", "name"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"x"), "model", "SHA-256"),
        (lambda f: (f / "weights.pth").write_bytes(b"x"), "no pickle", r"weights\.pth"),
        (lambda f: (f / "MODEL_CARD.md").unlink(), "card", "cannot be read"),
        (lambda f: (f / "MODEL_CARD.md").write_text("# ct_lungs 9.9.9"), "card", "## Numbers"),
        (lambda f: shutil.rmtree(f / "reference"), "model", r"input\.npz cannot be read"),
        (
            lambda f: (f / "network.py").write_text("import os\nfrom node.edges import pacs\n"),
            "imports",
            r"imports node\.edges, os",
        ),
        (lambda f: spoil_labels(f), "torch f32", "Dice 0"),
    ],
)
def test_what_is_wrong_is_found_with_a_remedy(  # type: ignore[no-untyped-def]
    models: Path, exports: Path, spoil, subject: str, words: str
) -> None:
    """Each part of the contract is looked at, and told with what to do."""
    folder = models / "ct_lungs"
    spoil(folder)
    finding = found(folder, exports)[subject]
    assert finding.level == "wrong"
    assert re.search(words, finding.found)
    assert finding.remedy


def spoil_labels(folder: Path) -> None:
    path = folder / "reference" / "expected.npz"
    with np.load(path, allow_pickle=False) as file:
        labels = file["labels"]
    np.savez_compressed(path, labels=np.roll(labels, 20, axis=2))


@pytest.mark.parametrize(
    ("name", "like", "words"),
    [
        ("Ct-Spine", "ct_lungs", "cannot name a model"),
        ("ct_lungs", "ct_lungs", "exists"),
        ("ct_spine", "ct_absent", r"model\.toml cannot be read"),
    ],
)
def test_new_refuses_in_words(models: Path, name: str, like: str, words: str) -> None:
    """A bad name, a taken one, or nothing to begin with."""
    with pytest.raises((NotPossible, ModelFault), match=words):
        begin_model(models, name, like)


def test_packing_is_reproducible_and_unpacks_to_the_same_model(
    models: Path, tmp_path: Path
) -> None:
    """Other times, other leftovers: the same bytes; unpacked, the same digest and weights."""
    first = pack_model(models / "ct_lungs", tmp_path / "a")
    copy = shutil.copytree(models / "ct_lungs", tmp_path / "later" / "ct_lungs")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "network.pyc").write_bytes(b"x")
    (copy / ".hidden").write_text("x")
    second = pack_model(copy, tmp_path / "b")
    assert first.path.name == "ct_lungs-" + read_manifest(copy).version + ".tar"
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == hashlib.sha256(second.path.read_bytes()).hexdigest() == second.sha256
    with tarfile.open(first.path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / "ct_lungs"
    assert read_manifest(unpacked).digest == read_manifest(copy).digest
    assert (unpacked / "weights.safetensors").read_bytes() == (
        copy / "weights.safetensors"
    ).read_bytes()


def test_a_model_with_altered_weights_or_links_is_not_packed(models: Path, tmp_path: Path) -> None:
    """What `check` would refuse elsewhere is not published."""
    folder = models / "ct_lungs"
    (folder / "notes").symlink_to("/etc/hostname")
    with pytest.raises(NodeError, match="is a link"):
        pack_model(folder, tmp_path / "out")
    (folder / "notes").unlink()
    (folder / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(ModelFault, match="SHA-256"):
        pack_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
