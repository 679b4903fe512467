"""What cases and patients are called in what a run leaves: numbers, unless the data are public.

A record, a report and a card are published with the weights, and PatientID or the name of a folder
may be anybody's. Which number is which case stands in a file of its own, for whoever has the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from node.training.recipe import Case
from node.training.split import Split

NAMES_FILE = "names_of_cases.json"
"""In the folder of a run; not to be published."""


@dataclass(frozen=True)
class Named:
    """A split whose cases and patients have numbers, and what stands behind these."""

    split: Split
    names: dict[str, dict[str, str]]
    """Case → the ``case`` and ``patient`` that it is."""
    patients: dict[str, str]
    """Patient → number."""


def numbered(split: Split) -> Named:
    """The same cases as ``case 1`` … of ``patient 1`` …, in the order of the split."""
    names: dict[str, dict[str, str]] = {}
    patients: dict[str, str] = {}

    def renamed(cases: Iterable[Case]) -> tuple[Case, ...]:
        made = []
        for case in cases:
            name = f"case {len(names) + 1}"
            names[name] = {"case": case.name, "patient": case.patient}
            patient = patients.setdefault(case.patient, f"patient {len(patients) + 1}")
            made.append(replace(case, name=name, patient=patient))
        return tuple(made)

    return Named(Split(renamed(split.training), renamed(split.validation)), names, patients)


def write_names(out: Path, names: dict[str, dict[str, str]]) -> None:
    """Keep what stands behind the numbers in the run's folder, for its owner only."""
    descriptor = os.open(out / NAMES_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(names, indent=1, ensure_ascii=False) + "\n")
