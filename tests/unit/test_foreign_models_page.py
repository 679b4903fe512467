"""docs/foreign-models.md tells the truth: its examples load, its tables name what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from node.manifest import (
    PLACEHOLDERS,
    Command,
    CommandManifest,
    read_manifest,
)

PAGE = (Path(__file__).parents[2] / "docs" / "foreign-models.md").read_text()
EXAMPLES = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]


def test_the_complete_example_is_a_model(tmp_path: Path) -> None:
    """Whoever copies it into a folder of that name has a manifest that loads."""
    folder = tmp_path / EXAMPLES[0]["name"]
    folder.mkdir()
    (folder / "model.toml").write_text(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
    assert isinstance(read_manifest(folder), CommandManifest)


@pytest.mark.parametrize("number", range(1, 4))
def test_every_other_example_is_a_command(number: int) -> None:
    """nnU-Net, MONAI and a container."""
    assert len(EXAMPLES) == 4
    assert set(EXAMPLES[number]) == {"command"}
    Command.model_validate(EXAMPLES[number]["command"])


def test_the_tables_name_every_field_and_placeholder() -> None:
    """A field that is not documented does not exist for a site."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]*)`", row)}
    assert named == set(Command.model_fields) | {f"{{{name}}}" for name in PLACEHOLDERS}
