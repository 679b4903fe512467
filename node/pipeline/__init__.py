"""The pipeline: eight steps that take a series from the PACS and bring a segmentation back.

Read this first. Each step is one function of the same name in the module of the same name: data
in, data out, everything outside given as an argument (``node.ports``). ``node.wiring`` gives them
the real outside; ``run.run_next`` runs the most urgent one of a queue under a lease of the ledger.

A queue is what one kind of worker does: ``io`` asks Orthanc and decides, ``pacs`` talks to the
destinations and may have to wait for them, ``cpu`` computes, ``gpu`` is the compute zone.

This module imports no step, because a compute worker has the packages of ``infer`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from node.jobs import Step, StepName

STEPS: tuple[Step, ...] = (
    Step(StepName.RECEIVE, "io", "Is the series complete and readable, and is it ours?"),
    Step(StepName.ROUTE, "io", "Which models want it? One job each."),
    Step(StepName.DEIDENTIFY, "cpu", "Take the patient out; the crosswalk goes into the vault."),
    Step(StepName.INFER, "gpu", "Volume to label map, where nobody knows the patient.", 3600.0),
    Step(StepName.ENCODE, "cpu", "Label map to DICOM SEG, still pseudonymous."),
    Step(StepName.REIDENTIFY, "cpu", "Put the patient back in; the gate checks every reference."),
    Step(StepName.DELIVER, "pacs", "Send the results to each destination."),
    Step(StepName.CONFIRM, "pacs", "Has the destination proven that it keeps them?"),
)

BY_NAME: Mapping[StepName, Step] = {step.name: step for step in STEPS}

#: Queue → its steps, in the order of the pipeline.
QUEUES: Mapping[str, tuple[Step, ...]] = {
    queue: tuple(step for step in STEPS if step.queue == queue)
    for queue in dict.fromkeys(step.queue for step in STEPS)
}


def with_deadlines(deadlines_s: Mapping[str, float]) -> Mapping[StepName, Step]:
    """The steps by name, some with a deadline that the settings give them."""
    return {
        step.name: replace(step, deadline_s=deadlines_s.get(step.name, step.deadline_s))
        for step in STEPS
    }
