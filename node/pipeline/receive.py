"""Receive: is the series complete and readable, and is it ours to process?

Orthanc answered success, so every instance is on disk; the quiet timer of the changes feed has
said that no more are coming. What is learned here is where the series came from, and whether
anything of it is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset

from node import PRODUCT, log
from node.errors import Gone, Incomplete, NodeError, NoMatchingModel, NotAllArrived
from node.jobs import Done, Job, NotYet
from node.pipeline.completeness import (
    Level,
    Need,
    Sign,
    Verdict,
    pacs_count,
    signs_of,
    verdict,
)
from node.pipeline.headers import read_header, read_headers
from node.ports import Instances, Source

#: The series is looked at so often while it is waited for.
_LOOKS = 8


@dataclass(frozen=True)
class Patience:
    """How long the rest of a series is waited for: half of it before its source is asked."""

    seconds: float = 60.0
    clock: Callable[[], float] = time.time


_USUAL = Patience()


def receive(
    job: Job,
    *,
    instances: Instances,
    source_of: Callable[[str], Source | None] = lambda _: None,
    need: Callable[[Job, Sequence[Dataset]], Need] = lambda *_: Need.NOTHING,
    patience: Patience = _USUAL,
    sender_seen: Callable[[str], str] = lambda _: "",
) -> Done | NotYet:
    """Note who sent the series and how complete it is; stop what is not ours or cannot be read.

    Parameters
    ----------
    source_of
        AE title of the sender ("" for HTTP) → who can be asked how much of the series there is.
        By default nobody.
    need
        Job and headers of its series → what a gap means to the models that want it. By default
        nothing: a folder that a person has chosen holds what it holds.
    sender_seen
        Series → AE title that was seen when it arrived. Orthanc forgets it with its index.

    Facts
    -----
    ``sender``: the calling AE title, absent for STOW-RS. ``received_over``: DicomProtocol, RestApi
    or WebDav, as Orthanc says. ``instances``: how many.
    ``completeness``: :attr:`node.pipeline.completeness.Verdict.facts`.
    ``asked_source``: what came of asking for the missing instances, where they were asked for.

    Raises
    ------
    Gone
        Instances are no longer in Orthanc.
    DamagedInstance
        Orthanc keeps bytes that are no DICOM object.
    NoMatchingModel
        The series is a result of this node that a PACS routed back.
    Incomplete
        Something is missing that the model cannot do without, and it has not come.
    """
    kept = set(instances.instances_of_series(job.series_id))
    gone = len(set(job.instance_ids) - kept)
    if gone:
        raise Gone(f"{gone} of {len(job.instance_ids)} instances are no longer in Orthanc")
    header = read_header(instances.instance_header(job.instance_ids[0]))
    if _made_here(header):
        raise NoMatchingModel(
            "The series is a result of this node that was sent back to it",
            remedy="Exclude this node's results from the auto-routing rule of the PACS.",
        )
    facts = _origin(job, instances, sender_seen)
    headers = read_headers(instances, job.instance_ids)
    wanted = need(job, headers)
    asked = _Asked(source_of(facts.get("sender", "")) if wanted is not Need.NOTHING else None)
    found = verdict(len(headers), [asked.count(headers), *signs_of(headers)])
    facts["completeness"] = found.facts
    as_it_is = wanted is Need.NOTHING or job.facts.get("process_incomplete")
    if found.level is Level.COMPLETE or as_it_is:
        return Done(facts)
    return _waited_for(job, found, asked, wanted, facts, patience)


def _waited_for(
    job: Job,
    found: Verdict,
    asked: _Asked,
    wanted: Need,
    facts: Mapping[str, Any],
    patience: Patience,
) -> Done | NotYet:
    """Wait, ask the source, wait again; then go on, or hold."""
    # A series that was sent again after days is waited for anew.
    waited_s = patience.clock() - (job.step_since or job.created_at)
    told = before = str(job.facts.get("asked_source", ""))
    if not told and waited_s >= patience.seconds / 2:
        told = asked.for_what_is_missing()
    # A busy node may look late for the first time: what it has just asked for gets its chance.
    if waited_s < patience.seconds or told != before:
        reason = NotAllArrived(f"{found}{told and f'; {told}'}")
        delay_s = max(patience.seconds / _LOOKS, 0.1)
        return NotYet(reason, {**facts, "asked_source": told}, delay_s)
    if found.level is Level.INCOMPLETE and wanted is Need.HOLD:
        raise Incomplete(f"The series is {found}{told and f'; {told}'}")
    log.get().info("goes on although not complete", job_id=job.id)
    return Done({**facts, "asked_source": told})


class _Asked:
    """The source of a series, if there is one that answers."""

    def __init__(self, source: Source | None) -> None:
        self._source = source
        self._series = ("", "")
        self._missing: tuple[str, ...] = ()

    def count(self, headers: Sequence[Dataset]) -> Sign | None:
        """What it holds against what is here; None where nobody answers."""
        if self._source is None:
            return None
        name = self._source.name
        self._series = str(headers[0].StudyInstanceUID), str(headers[0].SeriesInstanceUID)
        counted = None
        try:
            holds = self._source.count_instances(*self._series)
            if holds == 0:  # a modality that keeps nothing, a PACS that has not stored it yet
                self._source = None
                return None
            counted = pacs_count(name, holds, len(headers))
            if counted and counted.complete:
                return counted
            held = self._source.find_instances(*self._series)
        except NodeError as error:  # it counts, and does not name them; or neither
            log.get().info("source does not answer", error=type(error).__name__)
            return counted
        have = {str(header.SOPInstanceUID) for header in headers}
        self._missing = tuple(sorted(held - have))
        return pacs_count(name, len(held), len(held & have))

    def for_what_is_missing(self) -> str:
        """Ask for it; in words, what came of that."""
        if self._source is None:
            return ""
        try:
            sent = self._source.send(*self._series, self._missing)
        except NodeError as error:
            return f"asked for it: {error}"
        return f"asked for it: {self._source.name} sent {sent}"


def _origin(job: Job, instances: Instances, sender_seen: Callable[[str], str]) -> dict[str, Any]:
    """Who sent the series; what the node fetched itself later came over HTTP, from nobody."""
    facts: dict[str, Any] = {"received_over": "", "instances": len(job.instance_ids)}
    for instance_id in job.instance_ids:
        noted = instances.metadata(instance_id)
        facts["received_over"] = facts["received_over"] or noted.get("Origin", "")
        if noted.get("RemoteAET"):
            return {**facts, "received_over": noted["Origin"], "sender": noted["RemoteAET"]}
    if sender := sender_seen(job.series_id):
        facts["sender"] = sender
    return facts


def _made_here(header: Dataset) -> bool:
    equipment = header.get("ContributingEquipmentSequence") or []
    return any(item.get("Manufacturer") == PRODUCT for item in equipment)
