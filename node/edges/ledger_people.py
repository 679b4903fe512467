"""What a person does in the ledger: retry, cancel, ask for a model, pause and resume."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from node.edges.database import upsert
from node.edges.ledger_lookups import Lookups
from node.edges.ledger_moves import for_wish, plain_wish, set_of
from node.edges.ledger_tables import ARRIVALS, JOBS, PAUSES, job_of
from node.errors import NoMatchingModel, NotPossible
from node.jobs import BY_HAND, Event, Job, State, StepName, Wish
from node.pipeline.delivery import hurried, resumed
from node.pipeline.outbound import lasting

DESTINATION = "destination:"
_ENDED = (State.REJECTED, State.FAILED, State.CANCELED, State.SUPERSEDED)


@dataclass(frozen=True)
class Pause:
    """A queue (``queue:cpu``) or destination (``destination:archive``) that stands still."""

    name: str
    since: float
    who: str


class People(Lookups):
    """A person's decisions. Each raises NotPossible where a job's state does not allow it."""

    def retry(self, job_id: str, facts: Mapping[str, Any] | None = None) -> Job:
        """Start the step at which a job stopped once more, with fresh attempts and more facts.

        After ``deliver`` only what is not confirmed is sent again (``node.pipeline.delivery``). A
        series that is held as incomplete is processed as it is.
        """

        def changes(job: Job) -> Mapping[str, Any]:
            waits = job.state is State.WAITING
            step, known = (job.step, hurried(job)) if waits else resumed(job)
            as_it_is = {"process_incomplete": True} if job.state is State.INCOMPLETE else {}
            kept = {**known, **as_it_is, **(facts or {})}
            # That the destinations were told why says nothing of how this try will end.
            kept.pop("explained", None)
            return {"step": step, "facts": kept, "cause": "", "remedy": ""}

        return self._decide(self.find(job_id).id, Event.RETRY, changes)

    def cancel(self, job_id: str) -> Job:
        """Stop a job; what was received stays in Orthanc."""
        told = {
            "cause": "Canceled by a person",
            "remedy": "Retry the job to go on where it stopped.",
        }
        return self._decide(job_id, Event.CANCEL, lambda _: told)

    def request(
        self, series_id: str, study_id: str, instance_ids: Sequence[str], wish: Wish
    ) -> Job:
        """The job of these instances and this model, made now if there is none: a person asked.

        One that ended without a result begins anew. A rule's job stays the rule's and goes where
        the rule says, unless no rule wants the series any more: then it is the person's own.

        Raises
        ------
        NotPossible
            The series is still arriving.
        """
        asked = for_wish(
            Job(
                uuid.uuid4().hex, series_id, study_id, tuple(sorted(instance_ids)),
                facts={"wish": plain_wish(wish)},
            ),
            wish,
        )  # fmt: skip
        arriving = sa.select(ARRIVALS.c.series_id).where(
            ARRIVALS.c.series_id == series_id, ARRIVALS.c.quiet.is_(False)
        )
        same = sa.select(JOBS).where(
            JOBS.c.series_id == series_id,
            JOBS.c.instance_set == set_of(asked),
            JOBS.c.model_digest == wish.model_digest,
        )
        with self.moves(study_id) as moves:
            if moves.tx.scalar(arriving) is not None:
                raise NotPossible(
                    "The series is still arriving", remedy="Ask again when it has been quiet."
                )
            known = [job_of(row._mapping) for row in moves.tx.execute(same)]
            if not known:
                return moves.insert(asked)
            found = min(known, key=lambda job: job.state in _ENDED)
            if found.state not in _ENDED:
                return found
            changes: dict[str, Any] = {"facts": lasting(found)}
            if found.rule == BY_HAND or found.error == NoMatchingModel.__name__:
                changes["facts"] |= asked.facts
                changes["destinations"] = asked.destinations
            again = moves.happen(
                found, Event.ARRIVED_AGAIN, step=StepName.RECEIVE, **changes,
                next_try_at=None, cause="", remedy="", error="",
            )  # fmt: skip
            return again or found

    def pause(self, name: str) -> None:
        """Start nothing more of a queue, or send nothing more to a destination."""
        with self.database.transaction() as tx:
            since = {"since": self.database.clock(), "who": self.who}
            upsert(tx, PAUSES, {"name": name}, since)

    def resume(self, name: str) -> None:
        """Go on; what waited for a paused destination is due at once."""
        with self.database.transaction() as tx:
            tx.execute(sa.delete(PAUSES).where(PAUSES.c.name == name))
            if name.startswith(DESTINATION):
                _hurry(tx, name.removeprefix(DESTINATION), self.database.clock())

    def pauses(self) -> list[Pause]:
        """Everything that stands still."""
        with self.database.transaction() as tx:
            rows = tx.execute(sa.select(PAUSES).order_by(PAUSES.c.name))
            return [Pause(row.name, row.since, row.who) for row in rows]

    def paused(self) -> frozenset[str]:
        """Names of the destinations that a person has paused."""
        names = (pause.name for pause in self.pauses())
        return frozenset(n.removeprefix(DESTINATION) for n in names if n.startswith(DESTINATION))

    def _decide(
        self, job_id: str, event: Event, changes: Callable[[Job], Mapping[str, Any]]
    ) -> Job:
        known = self.job(job_id)
        if known is None:
            raise NotPossible(f"There is no job {job_id}; `segnode jobs` lists them.")
        with self.moves(known.study_id) as moves:
            job = moves.job(job_id) or known
            changed = moves.happen(job, event, error="", next_try_at=None, **changes(job))
            if changed is None:
                raise NotPossible(f"A job that is {job.state} cannot be changed by {event}.")
            return changed


def _hurry(tx: Connection, destination: str, now: float) -> None:
    """What waits for this destination is due at once; for others it goes on waiting."""
    waiting = sa.select(JOBS.c.id, JOBS.c.facts).where(
        JOBS.c.state == State.WAITING, JOBS.c.step.in_([StepName.DELIVER, StepName.CONFIRM])
    )
    in_turn = waiting.order_by(JOBS.c.created_at, JOBS.c.id)
    for row in tx.execute(in_turn.with_for_update()).all():
        delivery = dict(row.facts.get("delivery", {}))
        if destination not in delivery:
            continue
        delivery[destination] = {**delivery[destination], "since": None, "next_try_at": None}
        facts = {**row.facts, "delivery": delivery}
        tx.execute(
            sa.update(JOBS).where(JOBS.c.id == row.id).values(facts=facts, next_try_at=now)
        )  # fmt: skip
