"""What the last steps share: what goes out, where to, and its records in the vault."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from node.errors import DeliveryRefused
from node.jobs import Job
from node.kinds import ResultKind


@dataclass(frozen=True)
class Profile:
    """What a destination takes; of Secondary Captures every nth.

    ``segmentation_type``: the Segmentation is ``binary``, or a ``labelmap``, or with ``auto`` a
    label map only where the frames of a binary one would not begin at whole bytes.
    """

    kinds: tuple[ResultKind, ...] = (ResultKind.SEG,)
    capture_every: int = 1
    segmentation_type: Literal["binary", "labelmap", "auto"] = "binary"

    def of_columns(self, columns: int) -> Profile:
        """Its kinds for images so many columns wide."""
        if self.segmentation_type == "labelmap" or (
            self.segmentation_type == "auto" and columns % 8
        ):
            return replace(self, kinds=tuple(kind.as_labelmap() for kind in self.kinds))
        return self


#: Destination → kind → every nth instance of it goes there.
Plan = Mapping[str, Mapping[ResultKind, int]]


@dataclass(frozen=True)
class Result:
    """The objects of one kind: one series. Its UIDs are made here, so they identify nobody."""

    kind: ResultKind
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True)
class Outgoing:
    """One object that goes out; ``name`` is that of its file and its record."""

    name: str
    kind: ResultKind
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str


def plan_for(
    job: Job,
    profiles: Mapping[str, Profile],
    senders: Mapping[str, str],
    possible: Collection[ResultKind],
) -> Plan:
    """Which kinds each of the job's destinations gets.

    A destination that has refused the Segmentation (fact ``fallback``) gets Secondary Captures
    instead of it, and nothing that refers to it.

    Parameters
    ----------
    senders
        AE title → name, of every peer that can take results.
    possible
        The kinds that can be made of this job's images.

    Raises
    ------
    DeliveryRefused
        A destination takes none of the possible kinds, or is no peer.
    """
    plan = {}
    for name in destinations_of(job, senders):
        profile = profiles[name]
        wanted: Collection[ResultKind] = profile.kinds
        if name in job.facts.get("fallback", {}):
            wanted = {k for k in wanted if not k.wants_segmentation} | {ResultKind.CAPTURE}
        kinds = [kind for kind in ResultKind if kind in wanted and kind in possible]
        if not kinds:
            raise DeliveryRefused(
                f"{name} takes {', '.join(profile.kinds)}: nothing of that can be made of "
                "images without a place in the patient",
                remedy=f"Add one of {', '.join(possible)} to `results` of peer {name}.",
            )
        plan[name] = {
            kind: profile.capture_every if kind is ResultKind.CAPTURE else 1 for kind in kinds
        }
    return plan


def to_make(plan: Plan) -> Mapping[ResultKind, int]:
    """All kinds that somebody gets, and every how manyth instance has to be made of each."""
    kinds = {kind for wanted in plan.values() for kind in wanted}
    return {
        kind: math.gcd(*(wanted[kind] for wanted in plan.values() if kind in wanted))
        for kind in ResultKind
        if kind in kinds
    }


def facts_of(plan: Plan, results: Sequence[Result]) -> dict[str, Any]:
    """``results``: what was made. ``deliveries``: what of it each destination gets."""
    made = to_make(plan)
    return {
        "results": [asdict(result) for result in results],
        "deliveries": {
            name: {str(kind): every // made[kind] for kind, every in wanted.items()}
            for name, wanted in plan.items()
        },
    }


def outgoing(job: Job, destination: str | None = None) -> list[Outgoing]:
    """Every object that ``encode`` made of the job, or those that one destination gets."""
    found = []
    for result in (Result(**plain) for plain in job.facts["results"]):
        kind = ResultKind(result.kind)
        instances = [
            Outgoing(
                object_name(kind, number),
                kind,
                result.sop_class_uid,
                result.series_instance_uid,
                uid,
            )
            for number, uid in enumerate(result.sop_instance_uids, start=1)
        ]
        if destination is None:
            found += instances
        elif every := job.facts["deliveries"][destination].get(kind):
            found += instances[::every]
    return found


def object_name(kind: ResultKind, number: int) -> str:
    """What the file and the record of a job's object are called."""
    return f"{kind}-{number:04}" if kind is ResultKind.CAPTURE or number > 1 else str(kind)


def outbound_record(job: Job, name: str) -> str:
    """The vault's record type that holds a re-identified object until it is proven delivered."""
    return f"outbound-{job.id}-{name}"


def destinations_of(job: Job, senders: Mapping[str, str]) -> list[str]:
    """Names of the peers that the results go to; ``sender`` becomes the peer that sent the study.

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
