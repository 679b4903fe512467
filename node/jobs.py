"""A job: one series, one model, eight steps, and the table of what may happen to it.

The ledger stores jobs; nothing else decides. States map one to one onto the states of a Unified
Procedure Step (PS3.4 2026b CC.1.1), so that UPS-RS can be offered without a new state machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from node.errors import Unavailable


class StepName(StrEnum):
    """The eight steps, in order (``node.pipeline.STEPS`` says what each is for)."""

    RECEIVE = "receive"
    ROUTE = "route"
    DEIDENTIFY = "deidentify"
    INFER = "infer"
    ENCODE = "encode"
    REIDENTIFY = "reidentify"
    DELIVER = "deliver"
    CONFIRM = "confirm"

    @property
    def next(self) -> StepName | None:
        """The step after this one; None after the last."""
        steps = list(StepName)
        position = steps.index(self) + 1
        return steps[position] if position < len(steps) else None


#: What one kind of worker does (``node.pipeline``).
Queue = Literal["io", "pacs", "cpu", "gpu"]


@dataclass(frozen=True)
class Step:
    """One step: the question it answers, the queue its work runs on, and when it is given up.

    ``deadline_s``: a try that takes longer is taken for hung; its worker is killed.
    ``max_crashes``: so many tries die or hang, and the job fails. ``max_hangs``: or so many of them
    hang: a try that took too long will most likely do so again, a worker that died may have had bad
    luck.
    ``patience_s``: so long may something outside be missing, however often it was asked. Time in
    which nobody asks (the queue is paused or long, the node is off) does not count.
    """

    name: StepName
    queue: Queue
    does: str
    deadline_s: float = 1800.0
    max_crashes: int = 4
    max_hangs: int = 2
    patience_s: float = 7 * 86400.0


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: the next step may start now
    RUNNING = "running"  #: a worker holds the lease of a step
    WAITING = "waiting"  #: something outside did not answer; the next try has a time
    CONFIRMED = "confirmed"  #: every destination has proven that it holds the result
    REJECTED = "rejected"  #: can never succeed as it is; kept, with cause and remedy
    INCOMPLETE = "incomplete"  #: something is missing and has not come; a person may go on without
    QUARANTINED = "quarantined"  #: may not leave the node; a person decides
    FAILED = "failed"  #: patience ended, crashes, or a fault of ours; a person may retry
    CANCELED = "canceled"  #: a person stopped it
    SUPERSEDED = "superseded"  #: late instances made a newer job of the same series


class Priority(StrEnum):
    """Whose turn it is first, when there is more to do than can be done at once."""

    URGENT = "urgent"
    ROUTINE = "routine"
    OFF_PEAK = "off-peak"

    @property
    def head_start_s(self) -> float:
        """How much longer a routine job must have waited to go first.

        Time is all that is compared, so nothing waits for ever behind what is more urgent.
        """
        return {Priority.URGENT: 4 * 3600.0, Priority.OFF_PEAK: -12 * 3600.0}.get(self, 0.0)


class Event(StrEnum):
    """What can happen to a job."""

    OPEN = "open"  #: it begins to be
    CLAIM = "claim"
    STEP_DONE = "step done"
    LAST_STEP_DONE = "last step done"
    REDIRECT = "redirect"  #: goes on at another step: something else is made of the job
    EXPLAINED = "explained"  #: the destinations keep the document that says why there is no result
    UNAVAILABLE = "unavailable"
    ATTEMPTS_USED_UP = "attempts used up"  #: its worker died or hung, time and again
    PATIENCE_ENDED = "patience ended"  #: something outside has been missing for days
    REJECT = "reject"
    INCOMPLETE = "incomplete"
    QUARANTINE = "quarantine"
    FAULT = "fault"
    LEASE_RAN_OUT = "lease ran out"
    ARRIVED_AGAIN = "arrived again"  #: the same instances, and there is no result of them yet
    RETRY = "retry"
    CANCEL = "cancel"
    SUPERSEDE = "supersede"
    FREED = "working data freed"  #: the state stays: nobody needs the data any more
    DELETED = "received series deleted"  #: the state stays: kept for as long as the rules say
    LOST = "received instances lost"  #: the state stays: their files are gone


#: It goes on by itself.
OPEN = (State.QUEUED, State.RUNNING, State.WAITING)
_HELD = (State.REJECTED, State.INCOMPLETE, State.QUARANTINED, State.FAILED, State.CANCELED)

_ENDED_WITHOUT_RESULT = (State.REJECTED, State.FAILED, State.CANCELED, State.SUPERSEDED)

#: (state, event) → state. What is not here cannot happen. None: before the job is.
TRANSITIONS: Mapping[tuple[State | None, Event], State] = {
    (None, Event.OPEN): State.QUEUED,
    (State.QUEUED, Event.CLAIM): State.RUNNING,
    (State.WAITING, Event.CLAIM): State.RUNNING,
    (State.RUNNING, Event.STEP_DONE): State.QUEUED,
    (State.RUNNING, Event.LAST_STEP_DONE): State.CONFIRMED,
    (State.RUNNING, Event.REDIRECT): State.QUEUED,
    (State.RUNNING, Event.EXPLAINED): State.REJECTED,
    (State.RUNNING, Event.UNAVAILABLE): State.WAITING,
    (State.RUNNING, Event.ATTEMPTS_USED_UP): State.FAILED,
    (State.RUNNING, Event.PATIENCE_ENDED): State.FAILED,
    (State.RUNNING, Event.REJECT): State.REJECTED,
    (State.RUNNING, Event.INCOMPLETE): State.INCOMPLETE,
    (State.RUNNING, Event.QUARANTINE): State.QUARANTINED,
    (State.RUNNING, Event.FAULT): State.FAILED,
    (State.RUNNING, Event.LEASE_RAN_OUT): State.QUEUED,
    **{(state, Event.RETRY): State.QUEUED for state in (*_HELD, State.WAITING)},
    **{(state, Event.ARRIVED_AGAIN): State.QUEUED for state in _ENDED_WITHOUT_RESULT},
    **{(state, Event.CANCEL): State.CANCELED for state in (*OPEN, *_HELD[:-1])},
    **{(state, Event.SUPERSEDE): State.SUPERSEDED for state in (*OPEN, *_HELD)},
}

#: PS3.4 CC.1.1-2. A job that is held is in progress: something or a person still has to come.
UPS_STATES: Mapping[State, str] = {
    State.QUEUED: "SCHEDULED",
    State.RUNNING: "IN PROGRESS",
    State.WAITING: "IN PROGRESS",
    State.INCOMPLETE: "IN PROGRESS",
    State.QUARANTINED: "IN PROGRESS",
    State.CONFIRMED: "COMPLETED",
    State.REJECTED: "CANCELED",
    State.FAILED: "CANCELED",
    State.CANCELED: "CANCELED",
    State.SUPERSEDED: "CANCELED",
}


def after(state: State | None, event: Event) -> State | None:
    """The state that ``event`` leads to, or None when it cannot happen in ``state``."""
    return TRANSITIONS.get((state, event))


@dataclass(frozen=True)
class Job:
    """One series on its way through one model.

    ``series_id``, ``study_id`` and ``instance_ids`` are Orthanc's identifiers (SHA-1 hashes), never
    UIDs. ``facts`` is what finished steps leave for later ones: plain JSON, without any value from
    the patient (original UIDs included).

    ``attempt`` counts the tries of the present step; ``crashes`` those whose worker died or hung;
    ``step_since`` is when the step became due, later by what :func:`tried_since` adds. ``lease``
    counts the claims in the job's whole life: who holds an older one holds nothing.
    """

    id: str
    series_id: str
    study_id: str
    instance_ids: tuple[str, ...]
    step: StepName = StepName.RECEIVE
    state: State = State.QUEUED
    attempt: int = 0
    crashes: int = 0
    lease: int = 0
    priority: Priority = Priority.ROUTINE
    model: str = ""
    model_digest: str = ""
    rule: str = ""
    rule_version: str = ""
    destinations: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    cause: str = ""
    remedy: str = ""
    error: str = ""
    progress: float = 0.0
    created_at: float = 0.0
    updated_at: float = 0.0
    step_since: float = 0.0
    next_try_at: float | None = None

    @property
    def key(self) -> str:
        """What makes this job the same job: instances, model and rule (hexadecimal SHA-256)."""
        return job_key(self.series_id, self.instance_ids, self.model_digest, self.rule_version)

    @property
    def result_of(self) -> str:
        """What its result is made of: instances and model, whoever asked (hexadecimal SHA-256)."""
        return job_key(self.series_id, self.instance_ids, self.model_digest, "")


#: Who comes later than this has not been busy with something else for a moment.
_LATE_S = 60.0


def tried_since(since: float, due_at: float, now: float) -> float:
    """Since when something is tried in vain, if it was due at ``due_at`` and is tried ``now``.

    Where nobody came for it (paused, or the node was off), no patience is used up.
    """
    late_s = now - due_at
    return min(since + late_s, now) if late_s > _LATE_S else since


def job_key(
    series_id: str, instance_ids: Iterable[str], model_digest: str, rule_version: str
) -> str:
    """Hash what a job, or with an empty ``rule_version`` its result, depends on."""
    parts = [series_id, model_digest, rule_version, *sorted(instance_ids)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


#: The rule, and its version, of a job that a person asked for in the console.
BY_HAND = "by hand"


@dataclass(frozen=True)
class Wish:
    """A rule that wants a series: its model, and where the results go."""

    rule: str
    rule_version: str
    model: str
    model_digest: str
    destinations: tuple[str, ...]
    explain: bool = False  #: say so to the destinations when the series is not suitable
    priority: Priority = Priority.ROUTINE


@dataclass(frozen=True)
class Reason:
    """Why a job makes no result: the error's class, its cause and its remedy."""

    error: str
    cause: str
    remedy: str


def unsuitable(job: Job) -> Reason | None:
    """Why there is no result, if the job's result is a document that says so."""
    plain = job.facts.get("unsuitable")
    return Reason(**plain) if plain else None


@dataclass(frozen=True)
class Done:
    """The step is finished; ``facts`` are added to the job's."""

    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Routed:
    """Route is finished: the job takes the first wish, one new job is made of each other."""

    wishes: tuple[Wish, ...]


@dataclass(frozen=True)
class Redirect:
    """The job goes on at ``step``; ``facts`` are added to its own."""

    step: StepName
    facts: Mapping[str, Any] = field(default_factory=dict)
    cause: str = ""


@dataclass(frozen=True)
class Explained:
    """Nothing is left to do for a job without a result: the destinations were told why."""

    reason: Reason
    destinations: tuple[str, ...]


@dataclass(frozen=True)
class Superseded:
    """A newer result has replaced this one: nothing is left to do."""

    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HandedOver:
    """Another zone works on the step now; its message will finish it."""


@dataclass(frozen=True)
class NotYet:
    """The step has got somewhere (``facts``) and waits for something outside.

    With ``delay_s`` the step decides itself when it goes on and when it gives up. Without, it backs
    off and ends with the step's patience.
    """

    reason: Unavailable
    facts: Mapping[str, Any] = field(default_factory=dict)
    delay_s: float | None = None


Outcome = Done | Routed | Redirect | Explained | Superseded | HandedOver | NotYet


@dataclass(frozen=True)
class Attempt:
    """One try of one step, as the ledger remembers it."""

    step: StepName
    attempt: int
    started_at: float
    ended_at: float | None
    outcome: str
