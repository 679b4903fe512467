"""What a newer result replaces: the objects that each destination has taken of earlier ones.

Late instances make a new job, whose results have UIDs of their own. Without a word to the
destination, both would stand in the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from node.jobs import OPEN, Job, State, StepName
from node.kinds import ResultKind
from node.pipeline.delivery import read_deliveries
from node.pipeline.outbound import Outgoing, outgoing, taken_by

Replacements = Mapping[str, Sequence[Outgoing]]


def replaced_by(job: Job, jobs: Iterable[Job]) -> Replacements:
    """Destination → objects of earlier results that it has, or will have, and need not keep.

    Earlier is what knew fewer instances of the series and ran the same model. What is just being
    sent counts as taken, and so does what may have arrived; what it was told to reject does not.
    """
    earlier = [one for one in jobs if _is_earlier(one, job)]
    told = {uid for one in earlier for uid in _rejected_by(one)}
    found: dict[str, dict[str, Outgoing]] = {}
    for one in earlier:
        for name, objects in (*taken_by(one).items(), *_going_out(one).items()):
            found.setdefault(name, {}).update(
                (each.sop_instance_uid, each)
                for each in objects
                if each.kind is not ResultKind.REJECTION
                and (name, each.sop_instance_uid) not in told
            )
    return {name: list(objects.values()) for name, objects in found.items() if objects}


def _going_out(job: Job) -> Mapping[str, Sequence[Outgoing]]:
    """Destination → all that it will get of the job. Who has nothing yet gets nothing any more."""
    if job.state not in OPEN or job.step not in (StepName.DELIVER, StepName.CONFIRM):
        return {}
    return {
        name: outgoing(job, name)
        for name, one in read_deliveries(job).items()
        if name in job.facts.get("plan", {}) and not one.over and (one.accepted or one.may_hold)
    }


def replaced_at(job: Job, jobs: Iterable[Job]) -> frozenset[str]:
    """Destinations that have taken a later job's note about this one."""
    own = {one.sop_instance_uid for one in outgoing(job)}
    return frozenset(
        name
        for later in jobs
        if _is_earlier(job, later)
        for name, uid in _rejected_by(later)
        if uid in own
    )


def has_newer(job: Job, jobs: Iterable[Job]) -> bool:
    """A later job of more instances is on its way, or there already."""
    return any(
        _is_earlier(job, replace(later, model=later.model or job.model))
        and later.state in (*OPEN, State.CONFIRMED)
        for later in jobs
    )


def replacement_facts(replacements: Replacements) -> dict[str, Any]:
    """``replaces``: destination → series → SOP Instance UIDs, all of them made here."""
    replaces: dict[str, dict[str, list[str]]] = {}
    for name, objects in replacements.items():
        for one in objects:
            series = replaces.setdefault(name, {})
            series.setdefault(one.series_instance_uid, []).append(one.sop_instance_uid)
    return {"replaces": replaces} if replaces else {}


def replaced_uids(job: Job) -> frozenset[str]:
    """Series and SOP Instance UIDs that the job's rejection notes may name."""
    found = set()
    for series in job.facts.get("replaces", {}).values():
        for series_instance_uid, instances in series.items():
            found |= {series_instance_uid, *instances}
    return frozenset(found)


def _is_earlier(other: Job, job: Job) -> bool:
    return (
        other.series_id == job.series_id
        and other.model == job.model
        and set(other.instance_ids) < set(job.instance_ids)
    )


def _rejected_by(job: Job) -> Iterable[tuple[str, str]]:
    """(destination, SOP Instance UID) of what the job's own notes have rejected."""
    for name, delivery in read_deliveries(job).items():
        if name not in job.facts.get("plan", {}):
            continue
        notes = [one for one in outgoing(job, name) if one.kind is ResultKind.REJECTION]
        if any(note.name in delivery.accepted for note in notes):
            for instances in job.facts.get("replaces", {}).get(name, {}).values():
                yield from ((name, uid) for uid in instances)
