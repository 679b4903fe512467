"""What a newer result replaces: the objects that each destination has taken of earlier ones.

Late instances make a new job, whose results have UIDs of their own. Without a word to the
destination, both would stand in the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from node.jobs import Job
from node.kinds import ResultKind
from node.pipeline.delivery import read_deliveries
from node.pipeline.outbound import Outgoing, outgoing

#: What an earlier result, or the page that said why there was none, keeps of its delivery.
OF_DELIVERY = ("results", "plan", "delivery")

Replacements = Mapping[str, Sequence[Outgoing]]


def replaced_by(job: Job, jobs: Iterable[Job]) -> Replacements:
    """Destination → objects of earlier results that it has taken and was not told to reject.

    Earlier is what knew fewer instances of the series and ran the same model.
    """
    earlier = [_delivered(one) for one in jobs if _is_earlier(one, job)]
    told = [uid for one in earlier for uid in _rejected_by(one)]
    found: dict[str, list[Outgoing]] = {}
    for one in earlier:
        for name, delivery in read_deliveries(one).items():
            if name in one.facts["plan"]:
                found.setdefault(name, []).extend(
                    taken
                    for taken in outgoing(one, name)
                    if taken.name in delivery.accepted
                    and taken.kind is not ResultKind.REJECTION
                    and (name, taken.sop_instance_uid) not in told
                )
    return {name: objects for name, objects in found.items() if objects}


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
        and "plan" in _delivered(other).facts
    )


def _delivered(job: Job) -> Job:
    """The job as it was when it delivered: one that explained itself has begun anew since."""
    return replace(job, facts={**job.facts.get("told", {}), **job.facts})


def _rejected_by(job: Job) -> Iterable[tuple[str, str]]:
    """(destination, SOP Instance UID) of what the job's own notes have rejected."""
    for name, delivery in read_deliveries(job).items():
        if name not in job.facts["plan"]:
            continue
        notes = [one for one in outgoing(job, name) if one.kind is ResultKind.REJECTION]
        if any(note.name in delivery.accepted for note in notes):
            for instances in job.facts.get("replaces", {}).get(name, {}).values():
                yield from ((name, uid) for uid in instances)
