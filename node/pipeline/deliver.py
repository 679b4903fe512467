"""Deliver: send the results to each destination. Accepted is not yet confirmed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from node import log
from node.errors import DeliveryRefused, Unavailable
from node.jobs import Done, Job, NotYet, Redirect, StepName
from node.kinds import ResultKind
from node.pipeline.identity_errors import as_node_errors
from node.pipeline.outbound import Outgoing, outbound_record, outgoing
from node.ports import Pacs, SealedRecords, StoreStatus

#: How many objects are decrypted and sent at once: pictures of a long series would fill the memory.
_BATCH = 50


def deliver(
    job: Job, *, vault: SealedRecords, destinations: Mapping[str, Pacs]
) -> Done | NotYet | Redirect:
    """Send each destination its kinds of result, unless it has accepted them already.

    Destinations are independent: one that is down keeps only its own delivery waiting. One that
    refuses the Segmentation gets Secondary Captures instead: the job goes back to ``encode``.

    Facts
    -----
    ``accepted``: names of the destinations that have accepted all that they get.
    ``fallback``: destination → how it refused the Segmentation.

    Raises
    ------
    DeliveryRefused
        A destination answered with a status that a retry cannot change (PS3.4 B.2.3).
    IdentityUnsafe, Rejected
        The vault does not open, or the study's key was destroyed.
    """
    accepted = list(job.facts.get("accepted", ()))
    fallback = dict(job.facts.get("fallback", {}))
    down: Unavailable | None = None
    for name in job.facts["deliveries"]:
        if name in accepted:
            continue
        objects = outgoing(job, name)
        try:
            refused = _send(job, objects, vault, destinations[name])
        except Unavailable as error:
            down = error
            continue
        if refused is None:
            accepted.append(name)
            log.get().info("accepted", job_id=job.id, destination=name, instances=len(objects))
        elif refused[0].is_segmentation:
            fallback[name] = refused[1]
            log.get().warning("falls back to captures", job_id=job.id, destination=name)
        else:
            raise DeliveryRefused(
                f"{name} refused the {refused[0]}: {refused[1]}",
                remedy=f"Run `segnode pacs check {name}`, correct the destination, "
                "then retry the job.",
            )
    facts = {"accepted": accepted, "fallback": fallback}
    if fallback != job.facts.get("fallback", {}):
        for one in outgoing(job):  # made anew, and perhaps not all of them
            vault.delete(job.facts["study"], outbound_record(job, one.name))
        return Redirect(StepName.ENCODE, facts)
    return NotYet(down, facts) if down else Done(facts)


def _send(
    job: Job, objects: Sequence[Outgoing], vault: SealedRecords, destination: Pacs
) -> tuple[ResultKind, str] | None:
    """Send in order, kind by kind; the first kind that was refused, and how, or None."""
    for batch in _batches(objects):
        with as_node_errors():
            data = [vault.open(job.facts["study"], outbound_record(job, one.name)) for one in batch]
        for one, status in zip(batch, destination.store(data), strict=True):
            if not status.accepted:
                return one.kind, _in_words(status)
    return None


def _batches(objects: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    for kind in ResultKind:
        of_kind = [one for one in objects if one.kind is kind]
        for start in range(0, len(of_kind), _BATCH):
            yield of_kind[start : start + _BATCH]


def _in_words(status: StoreStatus) -> str:
    return f"status 0x{status.status:04X}, {status.meaning}"
