"""Receive: is the series readable, and is it ours to process?

Orthanc answered success, so every instance is on disk; the quiet timer of the changes feed has
said that no more are coming. What is learned here is where the series came from.
"""

from __future__ import annotations

from pydicom import Dataset

from node import PRODUCT
from node.errors import NoMatchingModel, Rejected
from node.jobs import Done, Job
from node.pipeline.headers import read_header
from node.ports import Instances


def receive(job: Job, *, instances: Instances) -> Done:
    """Note who sent the series, and stop what was made by this node or cannot be read.

    Facts
    -----
    ``sender``: the calling AE title, absent for STOW-RS. ``received_over``: DicomProtocol, RestApi
    or WebDav, as Orthanc says. ``instances``: how many.

    Raises
    ------
    Rejected
        The series is no longer in Orthanc.
    DamagedInstance
        Orthanc keeps bytes that are no DICOM object.
    NoMatchingModel
        The series is a result of this node that a PACS routed back.
    """
    kept = set(instances.instances_of_series(job.series_id))
    gone = len(set(job.instance_ids) - kept)
    if gone:
        raise Rejected(
            f"{gone} of {len(job.instance_ids)} instances are no longer in Orthanc",
            remedy="Send the series again.",
        )
    first = job.instance_ids[0]
    header = read_header(instances.instance_header(first))
    if _made_here(header):
        raise NoMatchingModel(
            "The series is a result of this node that was sent back to it",
            remedy="Exclude this node's results from the auto-routing rule of the PACS.",
        )
    noted = instances.metadata(first)
    facts = {"received_over": noted.get("Origin", ""), "instances": len(job.instance_ids)}
    if noted.get("RemoteAET"):
        facts["sender"] = noted["RemoteAET"]
    return Done(facts)


def _made_here(header: Dataset) -> bool:
    equipment = header.get("ContributingEquipmentSequence") or []
    return any(item.get("Manufacturer") == PRODUCT for item in equipment)
