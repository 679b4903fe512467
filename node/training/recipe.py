"""What a model's ``training.py`` gives: how its data are read, varied and shown to the network.

A recipe is a module with the names of :class:`Recipe`. It runs where models are made, never in the
node, so it may import more than ``network.py``: the node's own imaging, so that the network trains
on what it will see. Modules beside it are imported relatively: ``from .pseudo_labels import ...``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.manifest import NetworkManifest, RadiographManifest

RECIPE_NAME = "training.py"
RECORD_NAME = "training.json"
"""What a run writes of itself; the one that made the shipped weights lies in the model's folder."""

Manifest = NetworkManifest | RadiographManifest
"""Of a network that the node runs itself; what somebody else's program was trained on is theirs."""

Image = npt.NDArray[np.float32]
"""One network input, shape (channels, rows, columns)."""
Labels = npt.NDArray[np.uint8]
"""0 background, else a segment's number; 255 is not counted in the loss."""


@dataclass(frozen=True)
class Case:
    """One series (or one radiograph) with its labels, on the network's grid.

    Attributes
    ----------
    name
        A folder's or file's name. Reports call it by a number, unless the data are public.
    patient
        Cases of one patient are never on both sides of a split.
    planes
        float32, shape (slices, rows, columns); what the recipe varies: HU for CT.
    labels
        uint8, same shape.
    spacing_mm
        Of (slice, row, column).
    files
        What the case was read from, for its digest.
    """

    name: str
    patient: str
    planes: npt.NDArray[np.float32]
    labels: Labels
    spacing_mm: tuple[float, float, float]
    files: tuple[Path, ...] = ()

    def digest(self) -> str:
        """What tells the case from any other, whatever it is called."""
        return digest_of(self.files)


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, in order of their content: names do not count."""
    hashes = sorted(hashlib.sha256(path.read_bytes()).digest() for path in files)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train. Everything here is in the record of the run."""

    epochs: int
    samples_per_epoch: int
    batch: int
    """Samples per optimizer step, over all devices together."""
    rate: float
    """Highest learning rate of a one-cycle schedule."""
    validate_every: int = 1
    """At most so many epochs from one validation to the next; the last is validated."""
    validation_patients: tuple[str, ...] = ()
    """Held out by name ..."""
    validation_share: float = 0.2
    """... or, where none is named, this share of the patients, chosen by hash."""
    weight_decay: float = 1e-3
    average_decay: float = 0.99
    """Of the exponential moving average of the weights, which is what is kept."""


class Recipe(Protocol):
    """The names of a ``training.py``.

    For `segnode evaluate` it may also have ``examples(folders, manifest)``, which yields every
    labelled image as a :class:`node.training.examples.Example`, and ``stresses(example)``, which
    yields changed ones with what was changed.
    """

    PRESETS: Mapping[str, Settings]
    """At least ``default``, a full run."""

    def read_cases(self, data: Path, manifest: Manifest) -> Sequence[Case]:
        """Every labelled case below ``data``, in a fixed order."""
        ...

    def draw(
        self, case: Case, manifest: Manifest, rng: np.random.Generator
    ) -> tuple[Image, Labels]:
        """One varied training sample: network input and its labels (rows, columns).

        A function of its arguments alone: that is what makes a resumed run the same run.
        """
        ...

    def inputs(self, case: Case, manifest: Manifest) -> npt.NDArray[np.float32]:
        """What the node would show the network: (slices, channels, rows, columns)."""
        ...


def load_recipe(folder: Path) -> Recipe:
    """Import ``folder/training.py`` under a private name.

    Raises
    ------
    ModelFault
        There is none, it does not import, or it lacks a name.
    """
    path = folder / RECIPE_NAME
    if not path.is_file():
        raise ModelFault(
            f"Model {folder.name} has no {RECIPE_NAME}, so it cannot be trained here",
            remedy="Write one; docs/training.md says what it must hold.",
        )
    name = f"_segnode_recipe_{folder.name}"
    # A package, so that it can import what lies beside it, and nothing else can by accident.
    specification = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(folder)]
    )
    if specification is None or specification.loader is None:
        raise ModelFault(f"Model {folder.name}: {RECIPE_NAME} cannot be read")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except (ImportError, SyntaxError, AttributeError, TypeError) as error:
        del sys.modules[name]
        raise ModelFault(f"Model {folder.name}: {RECIPE_NAME} does not import: {error}") from error
    wanted = ("PRESETS", "read_cases", "draw", "inputs")
    missing = [name for name in wanted if not hasattr(module, name)]
    if missing:
        raise ModelFault(f"Model {folder.name}: {RECIPE_NAME} lacks {', '.join(missing)}")
    return cast(Recipe, module)
