"""A recipe without data: discs, drawn. KILL_AFTER_DRAWS ends the process as the kernel would."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from node.manifest import NetworkManifest
from node.training.recipe import Case, Image, Labels, Settings

SIZE = 32
PRESETS = {
    "default": Settings(epochs=4, samples_per_epoch=24, batch=4, rate=2e-2, validate_every=1),
}

_drawn = count(1)


def read_cases(data: Path, manifest: NetworkManifest) -> Sequence[Case]:
    """A case per line of ``cases.txt``: patient and name, which is that of its file."""
    lines = (data / "cases.txt").read_text().split("\n")
    found = [line.split() for line in lines if line]
    return [_case(patient, name, data / name) for patient, name in found]


def draw(case: Case, manifest: NetworkManifest, rng: np.random.Generator) -> tuple[Image, Labels]:
    """One slice, noisy."""
    if next(_drawn) == int(os.environ.get("KILL_AFTER_DRAWS", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    index = int(rng.integers(len(case.planes)))
    noise = rng.normal(0, 0.2, case.planes.shape[1:])
    return (case.planes[index] + noise).astype(np.float32)[None], case.labels[index]


def inputs(case: Case, manifest: NetworkManifest) -> npt.NDArray[np.float32]:
    """The slices as they are."""
    return case.planes[:, None]


def _case(patient: str, name: str, file: Path) -> Case:
    rng = np.random.default_rng(list(name.encode()))
    rows, columns = np.indices((SIZE, SIZE))
    labels = np.zeros((4, SIZE, SIZE), np.uint8)
    for plane in labels:
        row, column = rng.uniform(8, SIZE - 8, 2)
        plane[np.hypot(rows - row, columns - column) < rng.uniform(4, 9)] = 1
    return Case(name, patient, labels.astype(np.float32), labels, (2.0, 1.0, 1.0), (file,))
