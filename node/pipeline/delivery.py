"""How far the results of a job have got at one destination. Each destination goes its own way.

::

                 all taken                    proven
    waiting ─────────────────► accepted ─────────────────► confirmed
       ▲  └──► refused            │
       └──────────────────────────┘ not kept: sent again

    waiting, accepted ──► replaced, once it has taken a newer job's rejection note

Kept as the fact ``delivery``: destination → plain JSON of :class:`Delivery`, without what is as it
was at the beginning. Nothing here comes from a patient: objects are known by their kind and number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from node.errors import DeliveryRefused, LeaseLost, NodeError, NotDelivered, PacsUnavailable
from node.jobs import Job, StepName, tried_since
from node.pipeline.run import back_off_s

DAY_S = 86_400.0
#: A PACS may be away for a long weekend, and report on commitment days later (PS3.4 J.1).
GIVE_UP_S = 7 * DAY_S
#: The longest that a destination is left alone, whatever it asks for (HTTP Retry-After).
_LONGEST_WAIT_S = 3600.0
#: How soon a paused destination is looked at again, should nobody say that it was resumed.
_PAUSED_S = 30.0


class DeliveryState(StrEnum):
    """What a destination has done with the results."""

    WAITING = "waiting"  #: it has not taken all of them yet
    ACCEPTED = "accepted"  #: it has taken all and proven nothing yet
    CONFIRMED = "confirmed"  #: it has proven that it keeps all
    REFUSED = "refused"  #: its answer will not change before a person has changed something
    REPLACED = "replaced"  #: a newer result takes their place: nothing more is sent or proven


#: Nothing is left to do.
_SETTLED = (DeliveryState.CONFIRMED, DeliveryState.REPLACED)


@dataclass(frozen=True)
class Delivery:
    """What is known of one destination.

    Parameters
    ----------
    accepted
        Name of an object → the warning that it was taken with, empty for plain success.
    failed
        Name of an object → how it was answered when it was last sent.
    may_hold
        Names of objects that were sent, and of which nobody knows whether it has them. Noted before
        they are sent: whoever replaces or stops the job must know of them.
    cause, remedy, error
        Why it waits, was refused or given up, and what a person can do; the error's class.
    tries, since, next_try_at
        How often in a row it did not get further, and since when (:func:`node.jobs.tried_since`);
        when it is tried again.
    given_up
        Nothing more is tried without a person.
    fallback
        How the Segmentation was refused; Secondary Captures go out instead.
    transactions
        Storage commitment: (transaction, when it was asked for), the newest last.
    commits
        False once the destination has said that it offers no storage commitment.
    looks, sent_again
        How often proof was looked for; how often it was sent again for want of it.
    proof
        ``storage commitment`` or ``query``.
    """

    state: DeliveryState = DeliveryState.WAITING
    accepted: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    may_hold: tuple[str, ...] = ()
    cause: str = ""
    remedy: str = ""
    error: str = ""
    tries: int = 0
    since: float | None = None
    next_try_at: float | None = None
    given_up: bool = False
    fallback: str = ""
    transactions: tuple[tuple[str, float], ...] = ()
    commits: bool = True
    looks: int = 0
    sent_again: int = 0
    accepted_at: float | None = None
    confirmed_at: float | None = None
    proof: str = ""

    @property
    def over(self) -> bool:
        """Nothing more happens to it without a person."""
        return self.given_up or self.state in (*_SETTLED, DeliveryState.REFUSED)

    def due(self, now: float) -> bool:
        """Something can be done now. A time far ahead is that of a clock that was set back."""
        return not self.over and (
            self.next_try_at is None or not now < self.next_try_at <= now + _LONGEST_WAIT_S
        )

    def tried_since(self, now: float) -> float:
        """Since when it has been tried in vain, if it is tried in vain now."""
        return tried_since(self.since or now, self.next_try_at or now, now)

    def sending(self, names: Iterable[str]) -> Delivery:
        """These objects are about to be sent."""
        return replace(self, may_hold=tuple(dict.fromkeys([*self.may_hold, *names])))

    def wait(self, error: NodeError, now: float) -> Delivery:
        """Try again later; give up after a week in which it took nothing."""
        tries, since = self.tries + 1, self.tried_since(now)
        delay_s = max(back_off_s(tries), getattr(error, "retry_after_s", None) or 0.0)
        given_up = now - since > GIVE_UP_S
        return replace(
            self,
            tries=tries,
            since=since,
            next_try_at=None if given_up else now + min(delay_s, _LONGEST_WAIT_S),
            given_up=given_up,
            cause=f"{error}; given up after {GIVE_UP_S / DAY_S:.0f} days"
            if given_up
            else str(error),
            remedy=_retry_after(error.remedy) if given_up else error.remedy,
            error=type(error).__name__,
        )

    def pause(self, name: str, now: float) -> Delivery:
        """A person has paused the destination: that is no failed try, and uses up no patience."""
        return replace(
            self, since=None, next_try_at=now + _PAUSED_S, error=PacsUnavailable.__name__,
            cause=f"{name} is paused by a person",
            remedy=f"`segnode pacs resume {name}` when it is ready.",
        )  # fmt: skip

    def refuse(self, cause: str, remedy: str) -> Delivery:
        """The destination will not have it."""
        return replace(
            self, state=DeliveryState.REFUSED, next_try_at=None, cause=cause,
            remedy=_retry_after(remedy), error=DeliveryRefused.__name__,
        )  # fmt: skip

    def accept(self, now: float) -> Delivery:
        """The destination has taken all that it gets."""
        return replace(
            self, state=DeliveryState.ACCEPTED, accepted_at=now, failed={}, cause="", remedy="",
            error="", tries=0, since=None, next_try_at=None, looks=0, transactions=(),
        )  # fmt: skip

    def confirm(self, proof: str, now: float) -> Delivery:
        """The destination has proven that it keeps all."""
        return replace(
            self, state=DeliveryState.CONFIRMED, proof=proof, confirmed_at=now, cause="",
            remedy="", error="", next_try_at=None, transactions=(),
        )  # fmt: skip

    def replaced(self) -> Delivery:
        """A newer result takes its place there; what it has may be hidden."""
        return replace(
            self, state=DeliveryState.REPLACED, next_try_at=None, remedy="", error="",
            cause="A newer result replaces this one", transactions=(),
        )  # fmt: skip

    def send_again(self, lost: Iterable[str]) -> Delivery:
        """These objects were taken and are not kept: back to waiting, at once."""
        gone = set(lost)
        kept = {name: said for name, said in self.accepted.items() if name not in gone}
        again = replace(self.sending(gone), accepted=kept, sent_again=self.sent_again + 1)
        return again.reopen()

    def reopen(self) -> Delivery:
        """It does not have all that it gets: back to waiting, at once."""
        return replace(
            self, state=DeliveryState.WAITING, accepted_at=None, confirmed_at=None, proof="",
            transactions=(), looks=0, tries=0, since=None, next_try_at=None,
        )  # fmt: skip

    def begin_anew(self) -> Delivery:
        """As a person's retry has it: what is confirmed stays, what was not taken is sent.

        What was taken and never proven is sent once more. Of pictures instead of a Segmentation
        the rest is sent, if some were: otherwise the Segmentation is offered again.
        """
        if self.state in _SETTLED:
            return self
        unproven = self.state is DeliveryState.ACCEPTED
        known = self.sending(self.accepted) if unproven else self
        some = self.accepted or self.may_hold
        return Delivery(
            accepted={} if unproven else self.accepted, may_hold=known.may_hold,
            fallback=self.fallback if some else "",
        )  # fmt: skip


Deliveries = Mapping[str, Delivery]


def read_deliveries(job: Job) -> dict[str, Delivery]:
    """Destination → how far it is, in the order of the plan; then who can get nothing."""
    stored = job.facts.get("delivery", {})
    names = [*job.facts.get("plan", {}), *stored]
    return {name: _read(stored.get(name, {})) for name in dict.fromkeys(names)}


def delivery_facts(deliveries: Deliveries) -> dict[str, Any]:
    """The fact ``delivery``."""
    return {"delivery": {name: _plain(one) for name, one in deliveries.items()}}


class Progress:
    """The deliveries of a running step, kept in the ledger as they change; safe between threads."""

    def __init__(self, job: Job, note: Callable[[Job, Mapping[str, Any]], bool]) -> None:
        self._job, self._note = job, note
        self._deliveries = read_deliveries(job)
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Delivery:
        return self._deliveries[name]

    def __setitem__(self, name: str, delivery: Delivery) -> None:
        with self._lock:
            self._deliveries[name] = delivery
            if not self._note(self._job, delivery_facts(self._deliveries)):
                raise LeaseLost("Another worker has taken this step over")

    @property
    def all(self) -> Deliveries:
        """Destination → delivery, as they are now."""
        return dict(self._deliveries)

    def replaced(self, names: Iterable[str]) -> None:
        """These get a newer result instead, or were told to reject this one."""
        for name in names:
            if name in self._deliveries and not self[name].over:
                self[name] = self[name].replaced()

    def due(self, now: float, paused: frozenset[str]) -> list[str]:
        """Who can go on now. Who was paused by a person is looked at again in a while."""
        found = []
        for name, delivery in self.all.items():
            if not delivery.due(now):
                continue
            if name in paused:
                self[name] = delivery.pause(name, now)
            else:
                found.append(name)
        return found

    def advance(self, names: Sequence[str], step: Callable[[str], None]) -> None:
        """Do ``step`` for each destination at the same time: one that hangs keeps nobody waiting.

        The first error that is not a destination's own is raised when all have ended.
        """
        if len(names) == 1:
            step(names[0])
        elif names:
            with ThreadPoolExecutor(len(names), thread_name_prefix="destination") as pool:
                for done in [pool.submit(step, name) for name in names]:
                    done.result()


def next_look_s(deliveries: Iterable[Delivery], now: float) -> float:
    """Seconds until the first of them is due."""
    return min(max(0.0, one.next_try_at - now) if one.next_try_at else 0.0 for one in deliveries)


def not_delivered(deliveries: Deliveries) -> NotDelivered:
    """Why a job cannot end confirmed: who does not keep its results."""
    missing = {
        name: one for name, one in deliveries.items() if one.over and one.state not in _SETTLED
    }
    kept = [name for name, one in deliveries.items() if one.state is DeliveryState.CONFIRMED]
    cause = "; ".join(dict.fromkeys(one.cause for one in missing.values()))
    if kept:
        cause += f". {', '.join(kept)} {'keeps' if len(kept) == 1 else 'keep'} the results"
    remedies = dict.fromkeys(one.remedy for one in missing.values())
    return NotDelivered(cause, remedy=" ".join(remedies))


def resumed(job: Job) -> tuple[StepName, dict[str, Any]]:
    """Where a person's retry of a stopped job begins, and the facts that it begins with.

    What a destination accepted and did not prove is sent again. The objects keep their UIDs, so
    none is doubled.
    """
    known, plan = read_deliveries(job), job.facts.get("plan", {})
    if not known:
        return job.step, dict(job.facts)
    begun = {name: one.begin_anew() for name, one in known.items() if name in plan}
    facts = {**job.facts, **delivery_facts(begun)}
    if job.step not in (StepName.DELIVER, StepName.CONFIRM):
        return job.step, facts
    # Who could get nothing, or refused the Segmentation, may have been corrected meanwhile.
    other = any(
        name not in plan or one.fallback != begun[name].fallback for name, one in known.items()
    )
    return StepName.ENCODE if other else StepName.DELIVER, facts


def hurried(job: Job) -> dict[str, Any]:
    """The facts of a waiting job that a person wants to go on now."""
    deliveries = read_deliveries(job)
    if not deliveries:
        return dict(job.facts)
    now = {name: replace(one, since=None, next_try_at=None) for name, one in deliveries.items()}
    return {**job.facts, **delivery_facts(now)}


def refused_by_plan(error: DeliveryRefused) -> Delivery:
    """A destination that can get nothing of what this job makes."""
    return Delivery().refuse(str(error), error.remedy)


def _retry_after(remedy: str) -> str:
    return remedy if "retry" in remedy else f"{remedy} Then retry the job."


def _plain(delivery: Delivery) -> dict[str, Any]:
    """Only what has changed: a job of three destinations is a few lines of JSON."""
    fresh = asdict(Delivery())
    return {name: value for name, value in asdict(delivery).items() if value != fresh[name]}


def _read(plain: Mapping[str, Any]) -> Delivery:
    known = {one.name for one in fields(Delivery)}
    values = {name: value for name, value in plain.items() if name in known}
    if "state" in values:
        values["state"] = DeliveryState(values["state"])
    if "may_hold" in values:
        values["may_hold"] = tuple(values["may_hold"])
    if "transactions" in values:
        values["transactions"] = tuple((uid, at) for uid, at in values["transactions"])
    return Delivery(**values)
