"""Has a destination proven that it keeps what it accepted? Storage commitment, or else a query."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from node import log
from node.errors import DeliveryRefused, LeaseLost, NotYetProven, PacsUnavailable, Unavailable
from node.jobs import Job
from node.pipeline.delivery import DAY_S, GIVE_UP_S, Delivery
from node.pipeline.outbound import Outgoing, outgoing
from node.pipeline.run import back_off_s
from node.ports import CommitmentReport, Pacs, StorageCommitment

#: How long the first look waits for a report that is usually there within a second.
_PATIENCE_S = 3.0
#: After so many looks without a report, a query may prove it instead.
_LOOKS_BEFORE_QUERY = 3
#: So often a report of failure is not believed at once: some PACS answer before they have stored.
_LOOKS_BEFORE_BELIEVING = 3
#: After so many looks, about four minutes, what a query does not find is sent once more.
_LOOKS_BEFORE_SENDING_AGAIN = 8
_MOST_SENT_AGAIN = 2
#: A PACS that has not reported for a day is asked again; the first transaction still counts.
_ASK_AGAIN_S = DAY_S
_MOST_TRANSACTIONS = 5

_REPORT_AWAITED = "its report on storage commitment is awaited"


@dataclass(frozen=True)
class Prover:
    """Asks destinations for proof.

    Parameters
    ----------
    commits
        Destinations that are asked for storage commitment (PS3.4 Annex J).
    study_instance_uid
        The original study of a job, from the vault: queries need it.
    """

    destinations: Mapping[str, Pacs]
    commitment: StorageCommitment
    commits: frozenset[str]
    study_instance_uid: Callable[[Job], str]
    clock: Callable[[], float] = time.time

    def prove(
        self, job: Job, name: str, delivery: Delivery, keep: Callable[[Delivery], object]
    ) -> Delivery:
        """An accepted delivery after one look for proof.

        Confirmed; or still accepted, with the time of the next look; or waiting, because the
        destination does not keep what it accepted and it is to be sent again; or given up.

        Parameters
        ----------
        keep
            Is told of a storage commitment transaction as soon as there is one: it survives
            whatever happens while its report is waited for.
        """
        objects = outgoing(job, name)
        delivery = replace(delivery, looks=delivery.looks + 1)
        try:
            if name in self.commits and delivery.commits:
                delivery = self._asked(name, objects, delivery)
                keep(delivery)
                report = self._report(delivery)
                if report.status == "success":
                    return self._confirmed(job, name, delivery, "storage commitment")
                if report.status == "failure":
                    return self._failed(name, objects, delivery, report)
            if delivery.transactions and delivery.looks <= _LOOKS_BEFORE_QUERY:
                return self._not_yet(name, delivery, _REPORT_AWAITED)
            return self._queried(job, name, objects, delivery)
        except LeaseLost:
            raise
        except Unavailable as error:
            return self._not_yet(name, delivery, str(error), type(error).__name__)

    def _asked(self, name: str, objects: Sequence[Outgoing], delivery: Delivery) -> Delivery:
        """With a transaction that somebody knows, if the destination takes one now."""
        now = self.clock()
        if delivery.transactions:
            newest, asked_at = delivery.transactions[-1]
            known = self.commitment.commitment(newest).status != "lost"
            if known and now - asked_at < _ASK_AGAIN_S:
                return delivery
        pairs = [(one.sop_class_uid, one.sop_instance_uid) for one in objects]
        try:
            made = self.commitment.request_commitment(name, pairs)
        except DeliveryRefused as error:  # it offers none: a query has to do
            log.get().info("no storage commitment", destination=name, error=type(error).__name__)
            return replace(delivery, commits=False)
        except PacsUnavailable:
            return delivery
        kept = (*delivery.transactions, (made, now))[-_MOST_TRANSACTIONS:]
        return replace(delivery, transactions=kept)

    def _report(self, delivery: Delivery) -> CommitmentReport:
        """What is known now; at the first look, what comes within a moment.

        A report may come to a transaction that Orthanc has forgotten meanwhile, so all are looked
        at, the newest first.
        """
        deadline = time.monotonic() + (_PATIENCE_S if delivery.looks == 1 else 0.0)
        while True:
            for uid, _ in reversed(delivery.transactions):
                report = self.commitment.commitment(uid)
                if report.status in ("success", "failure"):
                    return report
            if not delivery.transactions or time.monotonic() >= deadline:
                return CommitmentReport("pending")
            time.sleep(0.1)

    def _failed(
        self,
        name: str,
        objects: Sequence[Outgoing],
        delivery: Delivery,
        report: CommitmentReport,
    ) -> Delivery:
        """The destination says itself that it does not keep what it accepted."""
        failed = set(report.failed_sop_instance_uids)
        lost = [one.name for one in objects if one.sop_instance_uid in failed or not failed]
        what = f"it reports that it does not keep {len(lost)} of {len(objects)} objects"
        if delivery.looks <= _LOOKS_BEFORE_BELIEVING:
            return self._not_yet(name, replace(delivery, transactions=()), what)
        log.get().warning("not kept", destination=name, instances=len(lost))
        if delivery.sent_again < _MOST_SENT_AGAIN:
            return delivery.send_again(lost)
        return delivery.send_again(lost).refuse(
            f"{name} accepted the results {_MOST_SENT_AGAIN + 1} times, and {what}",
            f"Look into the storage of {name}, then retry the job: it sends them again.",
        )

    def _queried(
        self, job: Job, name: str, objects: Sequence[Outgoing], delivery: Delivery
    ) -> Delivery:
        pending = bool(delivery.transactions)
        try:
            missing = self._missing(job, name, objects)
        except DeliveryRefused as error:
            if pending:
                return self._not_yet(name, delivery, _REPORT_AWAITED)
            if name in self.commits and delivery.commits:
                return self._not_yet(
                    name, delivery, "it takes no request for storage commitment now"
                )
            return replace(
                delivery, given_up=True, next_try_at=None, error=type(error).__name__,
                cause=f"{name} accepted the results and can prove nothing: no storage commitment, "
                f"and of queries: {error}",
                remedy=f"Let {name} answer storage commitment or queries (C-FIND, QIDO-RS) of the "
                "node, then retry the job.",
            )  # fmt: skip
        if not missing:
            return self._confirmed(job, name, delivery, "query")
        found = f"its query finds {len(objects) - len(missing)} of {len(objects)} objects"
        if delivery.looks < _LOOKS_BEFORE_SENDING_AGAIN:
            return self._not_yet(name, delivery, found)
        if delivery.sent_again < _MOST_SENT_AGAIN:
            log.get().warning("sent again", destination=name, instances=len(missing))
            return delivery.send_again(missing)
        if pending:
            return self._not_yet(name, delivery, found)
        return replace(
            delivery, given_up=True, next_try_at=None, error=NotYetProven.__name__,
            cause=f"{name} accepted the results {_MOST_SENT_AGAIN + 1} times, and {found}",
            remedy=f"Look into the storage of {name}, then retry the job.",
        )  # fmt: skip

    def _missing(self, job: Job, name: str, objects: Sequence[Outgoing]) -> list[str]:
        """Names of the objects that the destination's query does not list."""
        study = self.study_instance_uid(job)
        held = {
            series: self.destinations[name].find_instances(study, series)
            for series in {one.series_instance_uid for one in objects}
        }
        return [
            one.name for one in objects if one.sop_instance_uid not in held[one.series_instance_uid]
        ]

    def _not_yet(
        self, name: str, delivery: Delivery, what: str, error: str = NotYetProven.__name__
    ) -> Delivery:
        now = self.clock()
        cause = f"{name} accepted the results and has not proven it: {what}"
        remedy = NotYetProven.default_remedy
        since = delivery.tried_since(now)
        over = now - since > GIVE_UP_S
        if over:
            cause += f"; given up after {GIVE_UP_S / DAY_S:.0f} days"
            remedy = f"Look into storage commitment and queries of {name}, then retry the job."
        at = None if over else now + back_off_s(delivery.looks)
        return replace(
            delivery, since=since, given_up=over, next_try_at=at, cause=cause, remedy=remedy,
            error=error,
        )  # fmt: skip

    def _confirmed(self, job: Job, name: str, delivery: Delivery, proof: str) -> Delivery:
        log.get().info("confirmed", job_id=job.id, destination=name, outcome=proof)
        return delivery.confirm(proof, self.clock())
