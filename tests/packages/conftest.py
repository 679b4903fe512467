"""What the tests of models share: the models found, and one folder of exports for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.manifest import CommandManifest, read_manifest
from node.packages import make_export
from node.runtimes.exports import is_exported

MODELS = Path(__file__).parents[2] / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/model.toml"))


@pytest.fixture(scope="session")
def all_exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the exports of all models."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def folder() -> Path:
    """The model that a test is about; suites of every model override it."""
    return MODELS / "ct_lungs"


@pytest.fixture
def exports(all_exports: Path, folder: Path) -> Path:
    """A folder with the export of the model that a test is about, made once."""
    manifest = read_manifest(folder)
    assert not isinstance(manifest, CommandManifest)
    if not is_exported(all_exports, manifest):
        make_export(folder, manifest, all_exports)
    return all_exports
