"""The pipeline: eight steps that take a series from the PACS and bring a segmentation back.

Read this first. Each step is one function of the same name in the module of the same name: data
in, data out, everything outside given as an argument (``node.ports``). ``node.wiring`` gives them
the real outside; ``run.run_step`` runs one of them under a lease of the ledger.

This module imports no step, because a compute worker has the packages of ``infer`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from node.jobs import StepName


@dataclass(frozen=True)
class Step:
    """One step: the question it answers, the queue its work runs on, how often it is tried."""

    name: StepName
    queue: Literal["io", "cpu", "gpu"]
    does: str
    max_attempts: int = 5


STEPS: tuple[Step, ...] = (
    Step(StepName.RECEIVE, "io", "Is the series complete and readable, and is it ours?"),
    Step(StepName.ROUTE, "io", "Which models want it? One job each."),
    Step(StepName.DEIDENTIFY, "cpu", "Take the patient out; the crosswalk goes into the vault."),
    Step(StepName.INFER, "gpu", "Volume to label map, where nobody knows the patient."),
    Step(StepName.ENCODE, "cpu", "Label map to DICOM SEG, still pseudonymous."),
    Step(StepName.REIDENTIFY, "cpu", "Put the patient back in; the gate checks every reference."),
    # A PACS may be down for a night: with back-off, 100 tries are a day and a half.
    Step(StepName.DELIVER, "io", "Send the results to each destination.", max_attempts=100),
    Step(StepName.CONFIRM, "io", "Has the destination proven that it keeps them?", 100),
)

BY_NAME: Mapping[StepName, Step] = {step.name: step for step in STEPS}
