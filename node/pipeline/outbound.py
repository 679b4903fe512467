"""What the last steps share: the records of a job in the vault, and where its results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node.errors import DeliveryRefused
from node.jobs import Job


@dataclass(frozen=True)
class Result:
    """One object that goes out. Its UIDs are made here, so they identify nobody."""

    name: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


def results_of(job: Job) -> list[Result]:
    """The results that ``encode`` made of the job."""
    return [Result(**plain) for plain in job.facts["results"]]


def outbound_record(job: Job, result: Result) -> str:
    """The vault's record type that holds a re-identified result until it is proven delivered."""
    return f"outbound-{job.id}-{result.name}"


def destinations_of(job: Job, senders: Mapping[str, str]) -> list[str]:
    """Names of the peers that the results go to; ``sender`` becomes the peer that sent the study.

    Parameters
    ----------
    senders
        AE title → name, of every peer that can take results.

    Raises
    ------
    DeliveryRefused
        The results go to the sender, and the sender is no peer that can take them.
    """
    names = []
    for destination in job.destinations:
        if destination != "sender":
            names.append(destination)
            continue
        ae_title = job.facts.get("sender", "")
        if ae_title not in senders:
            raise DeliveryRefused(
                "The results go back to the sender, and the study came "
                + (f"from AE title {ae_title}, which is no peer" if ae_title else "over HTTP"),
                remedy="Name the destinations in the rule, or add the sender to [[dicom_peers]].",
            )
        names.append(senders[ae_title])
    return list(dict.fromkeys(names))
