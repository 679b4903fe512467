"""Confirm: has every destination proven that it keeps the results? Only then is data purged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node import log
from node.errors import DeliveryRefused, NodeError, NotYetProven
from node.jobs import Done, Explained, Job, NotYet, unsuitable
from node.pipeline.outbound import Outgoing, outbound_record, outgoing
from node.pipeline.working_data import purge
from node.ports import Artifacts, Pacs, SealedRecords, StorageCommitment

#: How long one try waits for a report that is usually there within a second.
_PATIENCE_S = 3.0
#: After so many tries without a report, a query has to do.
_TRIES_BEFORE_QUERY = 3


def confirm(
    job: Job,
    *,
    vault: SealedRecords,
    artifacts: Artifacts,
    destinations: Mapping[str, Pacs],
    commitment: StorageCommitment,
    commits: frozenset[str],
    study_instance_uid: Callable[[Job], str],
) -> Done | NotYet | Explained:
    """Ask each destination for proof: storage commitment (PS3.4 J), or else a query.

    Parameters
    ----------
    commits
        Destinations that are asked for storage commitment.
    study_instance_uid
        The original study of a job, from the vault: queries need it.

    Facts
    -----
    ``proofs``: destination → ``{"by": "storage commitment" | "query"}``.
    ``transactions``: destination → id of the storage commitment transaction asked for.

    Raises
    ------
    DeliveryRefused
        A destination reports that it does not keep what it accepted.
    """
    proofs: dict[str, Any] = dict(job.facts.get("proofs", {}))
    transactions: dict[str, str] = dict(job.facts.get("transactions", {}))
    names = list(job.facts["deliveries"])
    for name in names:
        if name in proofs:
            continue
        objects = outgoing(job, name)
        if name in commits and _committed(name, objects, transactions, commitment):
            proofs[name] = {"by": "storage commitment"}
            continue
        no_report = name not in transactions or job.attempt > _TRIES_BEFORE_QUERY
        if no_report and _found(destinations[name], study_instance_uid(job), objects):
            proofs[name] = {"by": "query"}
    facts = {"proofs": proofs, "transactions": transactions}
    missing = [name for name in names if name not in proofs]
    if missing:
        reason = NotYetProven(f"{', '.join(missing)} accepted the results and has not proven it")
        return NotYet(reason, facts)
    for name, proof in proofs.items():
        log.get().info("confirmed", job_id=job.id, destination=name, outcome=proof["by"])
    _purge(job, vault, artifacts)
    if why := unsuitable(job):
        return Explained(why, tuple(names))
    return Done(facts)


def _committed(
    name: str,
    objects: Sequence[Outgoing],
    transactions: dict[str, str],
    commitment: StorageCommitment,
) -> bool:
    if name not in transactions:
        pairs = [(one.sop_class_uid, one.sop_instance_uid) for one in objects]
        try:
            transactions[name] = commitment.request_commitment(name, pairs)
        except NodeError as error:  # it offers none: the query has to do
            log.get().info("no storage commitment", destination=name, error=type(error).__name__)
            return False
    deadline = time.monotonic() + _PATIENCE_S
    report = commitment.commitment(transactions[name])
    while report.status == "pending" and time.monotonic() < deadline:
        time.sleep(0.1)
        report = commitment.commitment(transactions[name])
    if report.status == "failure":
        raise DeliveryRefused(
            f"{name} reports that it does not keep {len(report.failed_sop_instance_uids)} "
            f"of {len(objects)} objects that it accepted",
            remedy=f"Look into the storage of {name}, then retry the job: it sends them again.",
        )
    if report.status == "lost":  # Orthanc restarted: ask again next time
        del transactions[name]
    return report.status == "success"


def _found(destination: Pacs, study_instance_uid: str, objects: Sequence[Outgoing]) -> bool:
    wanted: dict[str, set[str]] = {}
    for one in objects:
        wanted.setdefault(one.series_instance_uid, set()).add(one.sop_instance_uid)
    return all(
        uids <= destination.find_instances(study_instance_uid, series)
        for series, uids in wanted.items()
    )


def _purge(job: Job, vault: SealedRecords, artifacts: Artifacts) -> None:
    """Free the working data; the picture stays for the console, the crosswalk for later objects."""
    for one in outgoing(job):
        vault.delete(job.facts["study"], outbound_record(job, one.name))
    purge(job.id, artifacts)
