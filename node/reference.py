"""A model's reference vector: a tiny series, and what the author's machine found in it.

``reference/input.npz`` holds ``array``, ``affine`` and ``spacing_mm`` of a :class:`Volume`, or
``array`` and, if known, ``toward`` and ``pixel_spacing_mm`` of a :class:`Radiograph`;
``reference/expected.npz`` the ``labels``. Every runtime is held against it, on every machine.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from node.errors import ModelFault
from node.manifest import RadiographManifest, WithWeights
from node.sdk import Radiograph, Volume

REFERENCE_NAME = "reference"
INPUT_NAME = "input.npz"
EXPECTED_NAME = "expected.npz"

Labels = npt.NDArray[np.uint8]

_UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)
_SEAL = "`segnode models seal` writes it with the weights that lie there."


@dataclass(frozen=True)
class Reference:
    """A small input and its labels, uint8, shape (slices, rows, columns)."""

    case: Volume | Radiograph
    labels: Labels


def read_reference(folder: Path, manifest: WithWeights) -> Reference:
    """The reference vector of a model's folder.

    Raises
    ------
    ModelFault
        A file is missing, damaged, or lacks an array; or the shapes differ.
    """
    case = read_case(folder, manifest)
    try:
        with np.load(folder / REFERENCE_NAME / EXPECTED_NAME, allow_pickle=False) as file:
            labels: Labels = file["labels"]
    except _UNREADABLE as error:
        raise _unreadable(folder, EXPECTED_NAME, error) from error
    shape = case.array.shape if isinstance(case, Volume) else (1, *case.array.shape)
    if labels.shape != shape:
        raise ModelFault(
            f"Model {folder.name}: {REFERENCE_NAME}/{EXPECTED_NAME} has the shape {labels.shape}, "
            f"{INPUT_NAME} has {shape}",
            remedy=_SEAL,
        )
    return Reference(case, labels)


def read_case(folder: Path, manifest: WithWeights) -> Volume | Radiograph:
    """The input of the reference vector, without its labels.

    Raises
    ------
    ModelFault
        The file is missing, damaged, or lacks an array.
    """
    try:
        with np.load(folder / REFERENCE_NAME / INPUT_NAME, allow_pickle=False) as file:
            return _radiograph(file) if isinstance(manifest, RadiographManifest) else _volume(file)
    except _UNREADABLE as error:
        raise _unreadable(folder, INPUT_NAME, error) from error


def write_reference(folder: Path, reference: Reference) -> None:
    """Keep a case, without its identifiers, and its labels in a model's folder."""
    place = folder / REFERENCE_NAME
    place.mkdir(exist_ok=True)
    case = reference.case
    arrays: dict[str, Any] = {"array": case.array}
    if isinstance(case, Volume):
        arrays |= {"affine": case.affine, "spacing_mm": np.array(case.spacing_mm)}
    else:
        if case.toward is not None:
            arrays["toward"] = np.array(case.toward)
        if case.pixel_spacing_mm is not None:
            arrays["pixel_spacing_mm"] = np.array(case.pixel_spacing_mm)
    np.savez_compressed(place / INPUT_NAME, **arrays)
    np.savez_compressed(place / EXPECTED_NAME, labels=reference.labels)


def agreement(one: Labels, other: Labels) -> float:
    """The smallest Dice coefficient of any label that is in either; 1 where both are empty."""
    dice = [1.0]
    for number in np.union1d(np.unique(one), np.unique(other)):
        if number:
            here, there = one == number, other == number
            dice.append(2.0 * int((here & there).sum()) / int(here.sum() + there.sum()))
    return min(dice)


def _unreadable(folder: Path, name: str, error: Exception) -> ModelFault:
    return ModelFault(
        f"Model {folder.name}: {REFERENCE_NAME}/{name} cannot be read ({type(error).__name__})",
        remedy=_SEAL,
    )


def _volume(file: Mapping[str, Any]) -> Volume:
    slices_mm, rows_mm, columns_mm = (float(value) for value in file["spacing_mm"])
    uids = tuple(f"2.25.{number}" for number in range(1, len(file["array"]) + 1))
    return Volume(file["array"], file["affine"], (slices_mm, rows_mm, columns_mm), uids)


def _radiograph(file: Mapping[str, Any]) -> Radiograph:
    toward = spacing_mm = None
    if "toward" in file:
        columns, rows = (str(value) for value in file["toward"])
        toward = columns, rows
    if "pixel_spacing_mm" in file:
        row_mm, column_mm = (float(value) for value in file["pixel_spacing_mm"])
        spacing_mm = row_mm, column_mm
    array = file["array"].astype(np.float32)
    return Radiograph(array, None, toward, spacing_mm, "2.25.1")
