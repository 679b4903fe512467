"""Deliver: send the results to each destination. Accepted is not yet confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from node import log
from node.errors import DeliveryRefused, PacsUnavailable, Unavailable
from node.jobs import Done, Job, NotYet, Redirect, StepName
from node.kinds import ResultKind
from node.pipeline.delivery import (
    Deliveries,
    Delivery,
    DeliveryState,
    Progress,
    delivery_facts,
    next_look_s,
    not_delivered,
)
from node.pipeline.identity_errors import as_node_errors
from node.pipeline.outbound import Outgoing, outbound_record, outgoing
from node.pipeline.proof import Prover
from node.pipeline.replaced import has_newer, replaced_at
from node.ports import Answer, Pacs, SealedRecords, StoreStatus

#: How many objects are decrypted and sent at once: pictures of a long series would fill the memory.
_BATCH = 50
#: A destination that answers "processing failure" to the same object for an hour means no:
#: so long do so many tries take (``back_off_s``).
_TRIES_OF_A_FAILURE = 14

_NO_PEER = "Give the peer its old name in segnode.toml, or cancel the job and process it again."


def deliver(
    job: Job,
    *,
    vault: SealedRecords,
    destinations: Mapping[str, Pacs],
    prover: Prover,
    note: Callable[[Job, Mapping[str, Any]], bool],
    paused: Callable[[], frozenset[str]] = frozenset,
    jobs_of_series: Callable[[Job], Iterable[Job]] = lambda _: (),
    clock: Callable[[], float] = time.time,
) -> Done | NotYet | Redirect:
    """Send each destination its kinds of result, and of those only what it has not taken yet.

    Destinations are independent: they are sent to at the same time, each waits and is given up for
    itself, and where there are several each is asked for its proof as soon as it has taken all. One
    that refuses the Segmentation gets Secondary Captures: the job goes back to ``encode``.

    Parameters
    ----------
    note
        Keeps the fact in the ledger while the step runs, so that a killed worker costs one batch.
    paused
        Destinations that a person has paused.
    jobs_of_series
        All jobs of the job's series: a newer one may have told a destination to reject this one.
        Where a newer result is on its way, who has nothing of this one yet gets nothing of it, and
        who refuses its Segmentation no pictures.

    Facts
    -----
    ``delivery``: :mod:`node.pipeline.delivery`.

    Raises
    ------
    NotDelivered
        Every destination has refused the results, or was given up.
    IdentityUnsafe, Rejected
        The vault does not open, or the study's key was destroyed.
    """
    progress = Progress(job, note)
    several = len(job.facts["plan"]) > 1

    def go_on(name: str) -> None:
        keep = partial(progress.__setitem__, name)
        if progress[name].state is DeliveryState.WAITING:
            if name in destinations:
                keep(_sent(job, name, progress[name], vault, destinations[name], keep, clock))
            else:
                keep(progress[name].refuse(f"There is no peer {name} any more", _NO_PEER))
        if several and progress[name].state is DeliveryState.ACCEPTED:
            keep(prover.prove(job, name, progress[name], keep))

    series = list(jobs_of_series(job))
    progress.replaced(replaced_at(job, series))
    if has_newer(job, series):
        progress.replaced(_have_nothing(progress.all))
    if not _refused_the_segmentation(job, progress.all):
        progress.advance(progress.due(clock(), paused()), go_on)
    refused = _refused_the_segmentation(job, progress.all)
    if refused and has_newer(job, jobs_of_series(job)):
        progress.replaced(refused)  # no pictures of this one beside the newer result
        refused = []
    deliveries = progress.all
    if refused:
        return Redirect(StepName.ENCODE, delivery_facts(deliveries))
    waiting = [one for one in deliveries.values() if _waits(one)]
    if waiting:
        causes = dict.fromkeys(one.cause for one in waiting)
        reason = PacsUnavailable("; ".join(causes), remedy=waiting[0].remedy or None)
        open_ones = [one for one in deliveries.values() if not one.over]
        return NotYet(reason, delivery_facts(deliveries), next_look_s(open_ones, clock()))
    if not any(
        one.accepted_at or one.state is DeliveryState.REPLACED for one in deliveries.values()
    ):
        raise not_delivered(deliveries)
    return Done(delivery_facts(deliveries))


def _sent(
    job: Job,
    name: str,
    delivery: Delivery,
    vault: SealedRecords,
    destination: Pacs,
    keep: Callable[[Delivery], object],
    clock: Callable[[], float],
) -> Delivery:
    """The delivery after one try to send what the destination has not taken yet."""
    objects = outgoing(job, name)
    accepted, failed = dict(delivery.accepted), dict[str, str]()
    refused: list[tuple[Outgoing, StoreStatus]] = []
    later: list[StoreStatus] = []
    for batch in _batches([one for one in objects if one.name not in accepted]):
        with as_node_errors():
            data = [vault.open(job.facts["study"], outbound_record(job, one.name)) for one in batch]
        before, delivery = delivery, delivery.sending(one.name for one in batch)
        keep(delivery)
        try:
            statuses = destination.store(data)
        except Unavailable as error:
            sent = getattr(error, "sent", False)
            return (delivery if sent else before).wait(error, clock())
        except DeliveryRefused as error:
            return before.refuse(str(error), error.remedy)
        unsure = set(before.may_hold)
        for one, status in zip(batch, statuses, strict=True):
            if status.unsure:
                unsure.add(one.name)
            if status.accepted:
                accepted[one.name] = "" if status.answer is Answer.ACCEPTED else status.said
            else:
                failed[one.name] = status.said
                if _means_no(status, delivery):
                    refused.append((one, status))
                else:
                    later.append(status)
        if len(accepted) > len(delivery.accepted):
            delivery = replace(delivery, tries=0, since=None)
        may_hold = [one for one in delivery.may_hold if one in unsure and one not in accepted]
        delivery = replace(delivery, accepted=accepted, failed=failed, may_hold=tuple(may_hold))
        keep(delivery)
        if refused and refused[0][0].kind.is_segmentation:
            log.get().warning("falls back to captures", job_id=job.id, destination=name)
            return replace(delivery.reopen(), fallback=refused[0][1].said)
        if later:
            break
    if later:
        what = f"{name} has taken {len(accepted)} of {len(objects)} objects: {later[0].said}"
        return delivery.wait(PacsUnavailable(what), clock())
    if refused:
        one, status = refused[0]
        return delivery.refuse(
            f"{name} refused {len(refused)} of {len(objects)} objects, first the {one.kind}: "
            f"{status.said}",
            f"See `segnode pacs check {name}` and its log, and correct the destination.",
        )
    log.get().info("accepted", job_id=job.id, destination=name, instances=len(objects))
    return delivery.accept(clock())


def _means_no(status: StoreStatus, delivery: Delivery) -> bool:
    """A refusal, or a failure of this object alone that does not pass."""
    fails = status.answer is Answer.TRY_AGAIN and status.status is not None
    return status.answer is Answer.REFUSED or (fails and delivery.tries + 1 >= _TRIES_OF_A_FAILURE)


def _batches(objects: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Kind by kind: a refused Segmentation is known before anything that refers to it is sent."""
    for kind in ResultKind:
        of_kind = [one for one in objects if one.kind is kind]
        for start in range(0, len(of_kind), _BATCH):
            yield of_kind[start : start + _BATCH]


def _have_nothing(deliveries: Deliveries) -> list[str]:
    waiting = (name for name, one in deliveries.items() if _waits(one))
    return [n for n in waiting if not deliveries[n].accepted and not deliveries[n].may_hold]


def _waits(delivery: Delivery) -> bool:
    return delivery.state is DeliveryState.WAITING and not delivery.over


def _refused_the_segmentation(job: Job, deliveries: Deliveries) -> list[str]:
    """Destinations that are still to get it by the plan, which is old for them."""
    plan = job.facts["plan"]
    return [
        name
        for name in plan
        if deliveries[name].fallback
        and _waits(deliveries[name])
        and any(ResultKind(kind).is_segmentation for kind in plan[name])
    ]
