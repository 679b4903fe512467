"""Confirm: has every destination proven that it keeps the results? Only then is data purged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node import log
from node.errors import DeliveryRefused, NodeError, NotYetProven
from node.jobs import Done, Job, NotYet
from node.pipeline.outbound import (
    Result,
    destinations_of,
    outbound_record,
    results_of,
)
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
    senders: Mapping[str, str],
    commitment: StorageCommitment,
    commits: frozenset[str],
    study_instance_uid: Callable[[Job], str],
) -> Done | NotYet:
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
    results = results_of(job)
    proofs: dict[str, Any] = dict(job.facts.get("proofs", {}))
    transactions: dict[str, str] = dict(job.facts.get("transactions", {}))
    names = destinations_of(job, senders)
    for name in names:
        if name in proofs:
            continue
        if name in commits and _committed(name, results, transactions, commitment):
            proofs[name] = {"by": "storage commitment"}
            continue
        no_report = name not in transactions or job.attempt > _TRIES_BEFORE_QUERY
        if no_report and _found(destinations[name], study_instance_uid(job), results):
            proofs[name] = {"by": "query"}
    facts = {"proofs": proofs, "transactions": transactions}
    missing = [name for name in names if name not in proofs]
    if missing:
        reason = NotYetProven(f"{', '.join(missing)} accepted the results and has not proven it")
        return NotYet(reason, facts)
    for name, proof in proofs.items():
        log.get().info("confirmed", job_id=job.id, destination=name, outcome=proof["by"])
    _purge(job, results, vault, artifacts)
    return Done(facts)


def _committed(
    name: str,
    results: Sequence[Result],
    transactions: dict[str, str],
    commitment: StorageCommitment,
) -> bool:
    if name not in transactions:
        pairs = [(result.sop_class_uid, result.sop_instance_uid) for result in results]
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
            f"of {len(results)} objects that it accepted",
            remedy=f"Look into the storage of {name}, then retry the job: it sends them again.",
        )
    if report.status == "lost":  # Orthanc restarted: ask again next time
        del transactions[name]
    return report.status == "success"


def _found(destination: Pacs, study_instance_uid: str, results: Sequence[Result]) -> bool:
    return all(
        result.sop_instance_uid
        in destination.find_instances(study_instance_uid, result.series_instance_uid)
        for result in results
    )


def _purge(job: Job, results: Sequence[Result], vault: SealedRecords, artifacts: Artifacts) -> None:
    """Free the working data; the picture stays for the console, the crosswalk for later objects."""
    for result in results:
        vault.delete(job.facts["study"], outbound_record(job, result))
    for folder in ("instances", "results"):
        artifacts.delete(f"{job.id}/{folder}/")
    artifacts.delete(f"{job.id}/label_map.npz")
