"""Which patients train a network and which judge it. Patients are split, never slices."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from node.errors import UnsuitableInput
from node.training.recipe import Case


@dataclass(frozen=True)
class Split:
    """Two lists of cases that share no patient."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]


def split_by_patient(
    cases: Sequence[Case], held_out: Collection[str] = (), share: float = 0.2
) -> Split:
    """Hold out the named patients, or ``share`` of all of them.

    The share is chosen by the hash of each patient's name: it depends on no seed and no order. With
    more patients the share is of more, and a patient near its border may change sides: name the
    patients where a comparison must outlast the data.

    Raises
    ------
    UnsuitableInput
        A named patient is not there, or one of the two sides would be empty.
    """
    patients = sorted({case.patient for case in cases}, key=_rank)
    unknown = set(held_out) - set(patients)
    if unknown:
        raise UnsuitableInput(
            f"{len(unknown)} of the patients to hold out are not in the data",
            remedy="Correct validation_patients in the recipe, or the folder given as --data.",
        )
    chosen = set(held_out) or set(patients[: max(1, round(share * len(patients)))])
    split = Split(
        tuple(case for case in cases if case.patient not in chosen),
        tuple(case for case in cases if case.patient in chosen),
    )
    if not split.training or not split.validation:
        raise UnsuitableInput(
            f"{len(patients)} patient(s) cannot be split into training and validation",
            remedy="Give data of two patients or more.",
        )
    return split


def _rank(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()
