"""What the last steps share: what goes out, where to, and its records in the vault."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from node.errors import DeliveryRefused
from node.jobs import Job
from node.kinds import ResultKind
from node.pipeline.delivery import (
    Delivery,
    DeliveryState,
    delivery_facts,
    read_deliveries,
    refused_by_plan,
)
from node.pipeline.working_data import RESULT_KEY
from node.ports import SealedNames


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
    """The objects of one kind: one series. Its UIDs are made here, so they identify nobody.

    ``destination``: who alone gets it; empty for what everybody can get. ``first``: the number of
    the first object among those of its kind.
    """

    kind: ResultKind
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]
    destination: str = ""
    first: int = 1


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
) -> tuple[Plan, dict[str, DeliveryRefused]]:
    """Which kinds each of the job's destinations gets, and who can get nothing.

    A destination that has refused the Segmentation gets Secondary Captures instead of it, and
    nothing that refers to it.

    Parameters
    ----------
    senders
        AE title → name, of every peer that can take results.
    possible
        The kinds that can be made of this job's images.

    Raises
    ------
    DeliveryRefused
        No destination can get anything: it takes none of the possible kinds, or is no peer.
    """
    deliveries = read_deliveries(job)
    plan: dict[str, dict[ResultKind, int]] = {}
    nothing: dict[str, DeliveryRefused] = {}
    for destination in job.destinations:
        try:
            name = _peer_of(job, destination, senders)
            instead = name in deliveries and bool(deliveries[name].fallback)
            plan[name] = _kinds_for(name, profiles, possible, instead=instead)
        except DeliveryRefused as error:
            nothing[destination] = error
    if not plan:
        raise next(iter(nothing.values()))
    return plan, nothing


def _kinds_for(
    name: str,
    profiles: Mapping[str, Profile],
    possible: Collection[ResultKind],
    *,
    instead: bool,
) -> dict[ResultKind, int]:
    if name not in profiles:
        raise DeliveryRefused(
            f"There is no peer {name}",
            remedy="Give the peer that name in segnode.toml, then retry the job.",
        )
    profile = profiles[name]
    wanted: Collection[ResultKind] = profile.kinds
    if instead:
        wanted = {k for k in wanted if not k.wants_segmentation} | {ResultKind.CAPTURE}
    kinds = [kind for kind in ResultKind if kind in wanted and kind in possible]
    if not kinds:
        raise DeliveryRefused(
            f"{name} takes {', '.join(profile.kinds)}: nothing of that is made by this model of "
            "these images",
            remedy=f"Add one of {', '.join(possible)} to `results` of peer {name}.",
        )
    return {kind: profile.capture_every if kind is ResultKind.CAPTURE else 1 for kind in kinds}


def to_make(plan: Plan) -> Mapping[ResultKind, int]:
    """All kinds that somebody gets, and every how manyth instance has to be made of each."""
    kinds = {kind for wanted in plan.values() for kind in wanted}
    return {
        kind: math.gcd(*(wanted[kind] for wanted in plan.values() if kind in wanted))
        for kind in ResultKind
        if kind in kinds
    }


def facts_of(
    job: Job, plan: Plan, nothing: Mapping[str, DeliveryRefused], results: Sequence[Result]
) -> dict[str, Any]:
    """What is known of the job's results from ``encode`` on.

    ``results``: what was made. ``plan``: what of it each destination gets (kind → every nth).
    ``delivery``: how far each is; who can get nothing has been refused from the beginning.
    ``left``: what a destination has of an earlier plan and does not get by this one.
    """
    made = to_make(plan)
    facts: dict[str, Any] = {
        "results": [asdict(result) for result in results],
        "plan": {
            name: {str(kind): every // made[kind] for kind, every in wanted.items()}
            for name, wanted in plan.items()
        },
    }
    now, taken = replace(job, facts=facts), taken_by(job)
    deliveries = {name: _as_now(job, now, name, taken.get(name, ())) for name in plan}
    deliveries |= {name: refused_by_plan(error) for name, error in nothing.items()}
    left = {}
    for name, objects in taken.items():
        known = {one.sop_instance_uid for one in outgoing(now, name)} if name in plan else set()
        left[name] = [one for one in objects if one.sop_instance_uid not in known]
    return {**facts, **delivery_facts(deliveries), "left": _as_results(left)}


def _as_now(before: Job, now: Job, name: str, taken: Sequence[Outgoing]) -> Delivery:
    """What is known of a destination, by the names that its objects have now.

    They are numbered anew with every plan, and keep their UIDs.
    """
    known = read_deliveries(before).get(name, Delivery())
    names = {one.sop_instance_uid: one.name for one in outgoing(now, name)}
    accepted = {
        names[one.sop_instance_uid]: known.accepted[one.name]
        for one in taken
        if one.sop_instance_uid in names and one.name in known.accepted
    }
    again = [names[one.sop_instance_uid] for one in taken if one.sop_instance_uid in names]
    may_hold = tuple(one for one in again if one not in accepted)
    known = replace(known, accepted=accepted, may_hold=may_hold, failed={})
    some_are_new = len(accepted) < len(names) and known.state is not DeliveryState.WAITING
    return known.reopen() if some_are_new else known


def taken_by(job: Job) -> dict[str, list[Outgoing]]:
    """Destination → every object of the job that it has taken, or may have.

    Also what is no part of the job's results any more.
    """
    found: dict[str, list[Outgoing]] = {}
    for result in (Result(**plain) for plain in job.facts.get("left", ())):
        found.setdefault(result.destination, []).extend(_objects(result))
    for name, one in read_deliveries(job).items():
        if name in job.facts.get("plan", {}):
            sent = {*one.accepted, *one.may_hold}
            found.setdefault(name, []).extend(o for o in outgoing(job, name) if o.name in sent)
    return {name: objects for name, objects in found.items() if objects}


def lasting(job: Job) -> dict[str, Any]:
    """The facts that outlive a job's new beginning: what its objects were, and are, known by."""
    left = _as_results(taken_by(job))
    known = {RESULT_KEY: job.facts[RESULT_KEY]} if RESULT_KEY in job.facts else {}
    return {**known, "left": left} if left else known


def _as_results(objects: Mapping[str, Sequence[Outgoing]]) -> list[dict[str, Any]]:
    """Each destination's objects, a line for each series."""
    series: dict[tuple[str, ResultKind, str, str], list[str]] = {}
    for name, of_it in objects.items():
        for one in of_it:
            which = (name, one.kind, one.sop_class_uid, one.series_instance_uid)
            series.setdefault(which, []).append(one.sop_instance_uid)
    return [
        asdict(Result(kind, sop_class, uid, tuple(instances), name))
        for (name, kind, sop_class, uid), instances in series.items()
    ]


def outgoing(job: Job, destination: str | None = None) -> list[Outgoing]:
    """Every object that ``encode`` made of the job, or those that one destination gets."""
    found = []
    for result in (Result(**plain) for plain in job.facts["results"]):
        instances = _objects(result)
        if destination is None:
            found += instances
        elif result.destination in ("", destination):
            every = job.facts["plan"][destination].get(result.kind)
            found += instances[::every] if every else []
    return found


def _objects(result: Result) -> list[Outgoing]:
    kind = ResultKind(result.kind)
    return [
        Outgoing(
            object_name(kind, number), kind, result.sop_class_uid, result.series_instance_uid, uid
        )
        for number, uid in enumerate(result.sop_instance_uids, start=result.first)
    ]


def object_name(kind: ResultKind, number: int) -> str:
    """What the file and the record of a job's object are called.

    The compute zone can list the files, so a destination has a number there and no name.
    """
    return f"{kind}-{number:04}" if kind is ResultKind.CAPTURE or number > 1 else str(kind)


def outbound_record(job: Job, name: str) -> str:
    """The vault's record type that holds a re-identified object until it is proven delivered."""
    return f"outbound-{job.id}-{name}"


def unseal(job: Job, vault: SealedNames) -> None:
    """Remove the re-identified objects, also of kinds that a destination refused."""
    study = job.facts["study"]
    for record in vault.names(study):
        if record.startswith(outbound_record(job, "")):
            vault.delete(study, record)


def _peer_of(job: Job, destination: str, senders: Mapping[str, str]) -> str:
    """The name of the peer; ``sender`` becomes the peer that sent the study.

    Raises
    ------
    DeliveryRefused
        The results go to the sender, and the sender is no peer that can take them.
    """
    if destination != "sender":
        return destination
    ae_title = job.facts.get("sender", "")
    if ae_title in senders:
        return senders[ae_title]
    raise DeliveryRefused(
        "The results go back to the sender, and the study came "
        + (f"from AE title {ae_title}, which is no peer" if ae_title else "over HTTP"),
        remedy="Name the destinations in the rule, or add the sender to [[dicom_peers]].",
    )
