"""Confirm: has every destination proven that it keeps the results? Only then is data purged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from node.errors import NotYetProven
from node.jobs import Done, Explained, Job, NotYet, Redirect, StepName, Superseded, unsuitable
from node.pipeline.delivery import (
    DeliveryState,
    Progress,
    delivery_facts,
    next_look_s,
    not_delivered,
)
from node.pipeline.outbound import unseal
from node.pipeline.proof import Prover
from node.pipeline.replaced import replaced_at
from node.pipeline.working_data import purge
from node.ports import Artifacts, SealedRecords


def confirm(
    job: Job,
    *,
    vault: SealedRecords,
    artifacts: Artifacts,
    prover: Prover,
    note: Callable[[Job, Mapping[str, Any]], bool],
    paused: Callable[[], frozenset[str]] = frozenset,
    jobs_of_series: Callable[[Job], Iterable[Job]] = lambda _: (),
    clock: Callable[[], float] = time.time,
) -> Done | NotYet | Redirect | Explained | Superseded:
    """Ask each destination for proof: storage commitment (PS3.4 Annex J), or else a query.

    A report that is awaited, for days if need be, uses up no attempts. What a destination does not
    keep is sent again: the job goes back to ``deliver``. One that was told by a newer job to reject
    the results (``jobs_of_series``) may hide them, and need not prove anything.

    Facts
    -----
    ``delivery``: :mod:`node.pipeline.delivery`.

    Raises
    ------
    NotDelivered
        All that can be proven is, and a destination does not keep the results.
    """
    progress = Progress(job, note)

    def prove(name: str) -> None:
        keep = partial(progress.__setitem__, name)
        if progress[name].state is DeliveryState.ACCEPTED:
            keep(prover.prove(job, name, progress[name], keep))

    progress.replaced(replaced_at(job, jobs_of_series(job)))
    progress.advance(progress.due(clock(), paused()), prove)
    deliveries = progress.all
    facts = delivery_facts(deliveries)
    missing = [one for one in deliveries.values() if not one.over]
    if any(one.state is DeliveryState.WAITING for one in missing):
        return Redirect(StepName.DELIVER, facts, "A destination does not keep what it accepted")
    if missing:
        causes = dict.fromkeys(one.cause for one in missing)
        reason = NotYetProven("; ".join(causes), remedy=missing[0].remedy or None)
        return NotYet(reason, facts, next_look_s(missing, clock()))
    states = {one.state for one in deliveries.values()}
    if states - {DeliveryState.CONFIRMED, DeliveryState.REPLACED}:
        raise not_delivered(deliveries)
    with suppress(OSError):  # proven is proven; what stays here is purged by the sweeper
        unseal(job, vault)
        purge(job.id, artifacts)
    if DeliveryState.REPLACED in states:
        return Superseded(facts)
    if why := unsuitable(job):
        return Explained(why, tuple(deliveries))
    return Done(facts)
