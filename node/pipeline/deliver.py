"""Deliver: send the results to each destination. Accepted is not yet confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node import log
from node.errors import DeliveryRefused, Unavailable
from node.jobs import Done, Job, NotYet
from node.pipeline.identity_errors import as_node_errors
from node.pipeline.outbound import destinations_of, outbound_record, results_of
from node.ports import Pacs, SealedRecords


def deliver(
    job: Job,
    *,
    vault: SealedRecords,
    destinations: Mapping[str, Pacs],
    senders: Mapping[str, str],
) -> Done | NotYet:
    """Send every result to every destination that has not accepted them yet.

    Destinations are independent: one that is down keeps only its own delivery waiting.

    Facts
    -----
    ``accepted``: names of the destinations that have accepted every result.

    Raises
    ------
    DeliveryRefused
        A destination answered with a status that a retry cannot change (PS3.4 B.2.3).
    IdentityUnsafe, Rejected
        The vault does not open, or the study's key was destroyed.
    """
    study = job.facts["study"]
    with as_node_errors():
        objects = [vault.open(study, outbound_record(job, result)) for result in results_of(job)]
    accepted = list(job.facts.get("accepted", ()))
    down: Unavailable | None = None
    for name in destinations_of(job, senders):
        if name in accepted:
            continue
        try:
            _send(name, destinations[name], objects)
        except Unavailable as error:
            down = error
            continue
        accepted.append(name)
        log.get().info("accepted", job_id=job.id, destination=name, instances=len(objects))
    facts = {"accepted": accepted}
    return NotYet(down, facts) if down else Done(facts)


def _send(name: str, destination: Pacs, objects: Sequence[bytes]) -> None:
    refused = [status for status in destination.store(objects) if not status.accepted]
    if refused:
        first = refused[0]
        raise DeliveryRefused(
            f"{name} refused {len(refused)} of {len(objects)} objects "
            f"with status 0x{first.status:04X}: {first.meaning}",
            remedy=f"Run `segnode pacs check {name}`, correct the destination, then retry the job.",
        )
