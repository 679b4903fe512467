"""Jobs as the console shows them: plain JSON, times in ISO 8601 UTC, no value from a patient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from node.errors import NoMatchingModel
from node.jobs import UPS_STATES, Attempt, Event, Job, State, StepName, after
from node.pipeline import STEPS
from node.pipeline.delivery import read_deliveries
from node.pipeline.outbound import outgoing
from node.pipeline.pixel_review import Review

#: How a person sorts jobs: what waits for something or someone, what goes on, what is over.
GROUPS = ("stuck", "running", "done")
_STUCK = (State.WAITING, State.REJECTED, State.INCOMPLETE, State.QUARANTINED, State.FAILED)
_RUNNING = (State.QUEUED, State.RUNNING)
_OPEN = (State.WAITING, *_RUNNING)

_STATE_NAMED = {str(state): state for state in State}

#: What a person may do to a job.
_ACTIONS = (Event.RETRY, Event.CANCEL)

#: Facts that help a person. The others are for later steps.
_SHOWN_FACTS = (
    "instances",
    "sender",
    "received_over",
    "completeness",
    "asked_source",
    "replaces",
    "explained",
    "left_out",
    "remarks",
    "images_released",
)


_STATES = {
    "stuck": _STUCK,
    "running": _RUNNING,
    "done": tuple(state for state in State if state not in (*_STUCK, *_RUNNING)),
}


def states_of(names: Collection[str]) -> tuple[set[State], bool | None]:
    """The states of groups and states, and whether series that no rule wants are among them.

    The latter as the ledger asks for it; KeyError when there is no such group or state.
    """
    states: set[State] = set()
    for name in names:
        states |= set(_STATES[name]) if name in GROUPS else {_STATE_NAMED[name]}
    if State.REJECTED in names:
        return states, None
    return states, "done" in names


def group_counts(counts: Mapping[State, int], unwanted: int) -> dict[str, int]:
    """How many jobs are in each group."""
    found = {name: sum(counts.get(state, 0) for state in _STATES[name]) for name in GROUPS}
    return {**found, "stuck": found["stuck"] - unwanted, "done": found["done"] + unwanted}


def group_of(job: Job) -> str:
    """``stuck``, ``running`` or ``done``. A series that no rule wants is done, not stuck."""
    if job.state is State.REJECTED and job.error == NoMatchingModel.__name__:
        return "done"
    if job.state in _STUCK:
        return "stuck"
    return "running" if job.state in _RUNNING else "done"


def steps_shown() -> list[dict[str, str]]:
    """The steps in order, each with the question it answers."""
    return [{"name": str(step.name), "does": step.does} for step in STEPS]


def job_shown(job: Job, now: float) -> dict[str, Any]:
    """One job. ``actions`` are the events that a person may cause in its present state."""
    return {
        "id": job.id,
        "series_id": job.series_id,
        "study_id": job.study_id,
        "model": job.model,
        "rule": job.rule,
        "priority": str(job.priority),
        "step": str(job.step),
        "step_number": list(StepName).index(job.step) + 1,
        "state": str(job.state),
        "group": group_of(job),
        "ups_state": UPS_STATES[job.state],
        "attempt": job.attempt,
        "progress": job.progress,
        "cause": job.cause,
        "remedy": job.remedy,
        "error": job.error,
        "next_try_at": iso(job.next_try_at),
        "next_try_in_s": None if job.next_try_at is None else max(0.0, job.next_try_at - now),
        "created_at": iso(job.created_at),
        "updated_at": iso(job.updated_at),
        "age_s": max(0.0, now - job.created_at),
        "destinations": list(job.destinations),
        "deliveries": deliveries_shown(job, now),
        "facts": {name: job.facts[name] for name in _SHOWN_FACTS if name in job.facts},
        "actions": [str(event) for event in _ACTIONS if after(job.state, event) is not None],
    }


def deliveries_shown(job: Job, now: float) -> list[dict[str, Any]]:
    """How far each destination is, one line each; none before there is something to deliver."""
    plan = job.facts.get("plan", {})
    return [
        {
            "destination": name,
            "state": str(one.state),
            "results": list(plan.get(name, {})),
            "objects": len(outgoing(job, name)) if name in plan else 0,
            "taken": len(one.accepted),
            "proof": one.proof,
            "confirmed_at": iso(one.confirmed_at),
            "cause": one.cause,
            "remedy": one.remedy,
            "next_try_in_s": None if one.over or job.state not in _OPEN
            else max(0.0, (one.next_try_at or now) - now),
            "given_up": one.given_up,
            "fallback": one.fallback,
            "warnings": sorted({said for said in one.accepted.values() if said}),
        }
        for name, one in read_deliveries(job).items()
    ]  # fmt: skip


def can_release(job: Job, review: Review) -> bool:
    """Whether the job is held for a person to look, and a person may say that it goes on."""
    held = job.state is State.QUARANTINED and job.step is StepName.DEIDENTIFY
    return held and review.releasable


def review_shown(job: Job, review: Review) -> dict[str, Any]:
    """The images that are held for their pixels. Positions of text, never a word of it."""
    return {
        "digest": review.digest,
        "can_release": can_release(job, review),
        "images": [
            {
                "reason": image.reason,
                "problem": image.problem,
                "frames": image.frames,
                "regions": [asdict(region) for region in image.regions],
            }
            for image in review.images
        ],
    }


def timings_shown(attempts: Sequence[Attempt], now: float) -> dict[str, Any]:
    """Every try, and what each step took in all; a try that still runs counts until ``now``."""
    tries = [
        {
            "step": str(one.step),
            "attempt": one.attempt,
            "started_at": iso(one.started_at),
            "ended_at": iso(one.ended_at),
            "seconds": round(_seconds(one, now), 3),
            "outcome": one.outcome,
        }
        for one in attempts
    ]
    steps = dict.fromkeys(one.step for one in attempts)
    timings = [
        {
            "step": str(step),
            "tries": sum(one.step is step for one in attempts),
            "seconds": round(sum(_seconds(one, now) for one in attempts if one.step is step), 3),
        }
        for step in steps
    ]
    return {"attempts": tries, "timings": timings}


def _seconds(attempt: Attempt, now: float) -> float:
    return max(0.0, (now if attempt.ended_at is None else attempt.ended_at) - attempt.started_at)


def iso(at: float | None) -> str | None:
    """ISO 8601 in UTC with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
