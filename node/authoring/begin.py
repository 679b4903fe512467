"""`segnode models new`: a folder to begin with, made of a model that works."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from node.authoring.check import CARD_NAME, UNFINISHED
from node.errors import ModelFault, NotPossible
from node.manifest import MANIFEST_NAME, CommandManifest, read_manifest
from node.packages import find_models

_NAME = re.compile(r"[a-z][a-z0-9_]{1,31}")
_NO_HASH = "0" * 64

_CARD = """\
# {name} 0.1.0

What it finds, in what: {unfinished}. **Not a medical device.**

## Data

Which images, how many patients, who drew the labels, under which licences: {unfinished}

## Numbers

On whom it was measured; `segnode evaluate` prints them: {unfinished}

## Known failures

What it gets wrong, and on whom it was never tried: {unfinished}
"""


def begin_model(models_dir: Path, name: str, like: str) -> Path:
    """Make ``models_dir/name`` from the manifest, network and training recipe of ``like``.

    Everything runs: the network builds, the recipe trains. What cannot be inherited is left to
    make: weights, reference vector, metrics, card. :func:`check_model` names what is missing, and
    `segnode models seal` adds trained weights.

    Raises
    ------
    NotPossible
        The name is none for a model, or is taken.
    ModelFault
        ``like`` is no model of ours to begin with.
    """
    if not _NAME.fullmatch(name):
        raise NotPossible(
            f"{name!r} cannot name a model",
            remedy="Use 2 to 32 of a-z, 0-9 and _, beginning with a letter.",
        )
    source, folder = models_dir / like, models_dir / name
    if isinstance(read_manifest(source), CommandManifest):
        raise ModelFault(
            f"Model {like} is a program", remedy="docs/foreign-models.md has examples to copy."
        )
    if folder.exists():
        raise NotPossible(f"{folder} exists", remedy="Choose another name, or remove it.")
    folder.mkdir()
    for path in sorted(source.glob("*.py")):
        shutil.copyfile(path, folder / path.name)
    text = (source / MANIFEST_NAME).read_text(encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(
        _manifest(text, name, _free_series_number(models_dir)), encoding="utf-8"
    )
    (folder / CARD_NAME).write_text(
        _CARD.format(name=name, unfinished=UNFINISHED), encoding="utf-8"
    )
    read_manifest(folder)
    return folder


def _free_series_number(models_dir: Path) -> int:
    """After those of all models that are there; each model has ten."""
    taken = [m.results.series_number for m in find_models(models_dir).values()]
    return (max(taken) // 10 + 1) * 10


def _manifest(text: str, name: str, series_number: int) -> str:
    """The manifest under another name: version, hash and metrics are not inherited."""
    for pattern, line in (
        (r"^name = .*$", f'name = "{name}"'),
        (r"^series_number = .*$", f"series_number = {series_number}"),
        (r"^version = .*$", 'version = "0.1.0"'),
        (r"^sha256 = .*$", f'sha256 = "{_NO_HASH}"'),
        (r"^training_data = .*$", f'training_data = "{UNFINISHED}"'),
    ):
        text = re.sub(pattern, line, text, count=1, flags=re.MULTILINE)
    return re.sub(r"\n(?:#[^\n]*\n)*\[metrics\]\n(?:(?!\[)[^\n]*\n?)*", "\n", text)
