"""A wrong manifest stops the start and names its field."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.errors import ModelFault
from node.manifest import read_manifest
from node.packages import find_models

CT_LUNGS = Path(__file__).parents[2] / "models" / "ct_lungs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights: reading a manifest opens none."""
    copy = tmp_path / "ct_lungs"
    copy.mkdir()
    for name in ("model.toml", "network.py"):
        shutil.copy(CT_LUNGS / name, copy)
    return copy


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "ct_lungs"', 'name = "ct_liver"', "name is ct_liver, not the folder's name"),
        ('name = "ct_lungs"', "", "name: Field required"),
        ("in_plane_size = 256", "in_plane_size = 250", r"preprocessing\.in_plane_size: .*32"),
        ("context_slices = 3", "context_slices = 4", "preprocessing: .*odd"),
        ("window_hu = [-1000, 400]", "window_hu = [400, -1000]", "lowest before highest"),
        ("slice_spacing_mm = [0.4, 6.0]", "slice_spacing_mm = [6.0, 0.4]", "smallest before"),
        ("number = 2", "number = 3", "segments: .*1, 2, 3"),
        ("rgb = [86, 180, 233]", "rgb = [86, 180, 300]", r"segments\.0\.rgb\.2"),
        ('value = "44029006"', 'value = ""', r"segments\.0\.type\.value"),
        ("min_slices = 10", 'min_slices = "ten"', r"input\.min_slices"),
        ("min_slices = 10", "min_slices = 10\nmin_slice = 9", r"input\.min_slice: Extra"),
        ('sha256 = "', 'sha256 = "x', r"weights\.sha256"),
        ("[weights]", "[weights", "is not TOML"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, old: str, new: str, message: str) -> None:
    """The message says which field of which model, so that it can be found and corrected."""
    path = folder / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ModelFault, match=rf"Model ct_lungs: .*{message}"):
        read_manifest(folder)


def test_one_bad_model_stops_the_start(folder: Path) -> None:
    """find_models does not leave a broken model out silently."""
    assert set(find_models(folder.parent)) == {"ct_lungs"}
    (folder / "model.toml").write_text("")
    with pytest.raises(ModelFault, match="ct_lungs"):
        find_models(folder.parent)


def test_a_missing_models_folder_is_told(tmp_path: Path) -> None:
    """No models folder is a wrong setting, not an empty list."""
    with pytest.raises(ModelFault, match="folder of models does not exist"):
        find_models(tmp_path / "absent")


def test_folders_without_a_manifest_are_no_models(folder: Path) -> None:
    """A README or a work folder beside the models does no harm."""
    (folder.parent / "notes").mkdir()
    (folder.parent / "README.md").write_text("")
    assert set(find_models(folder.parent)) == {"ct_lungs"}
