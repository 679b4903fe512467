"""`segnode pacs check`: what a destination is, what it takes, and which profile fits it.

Nothing is stored there: DIMSE says in the negotiation what it takes (PS3.8 9.3.3), and DICOMweb
says nothing before something is sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.errors import NodeError, NotPossible
from node.findings import Finding
from node.kinds import CHOOSABLE, ResultKind
from node.settings import DicomPeer, DicomWebPeer
from node.wiring import Hospital

ASKED = (*CHOOSABLE, ResultKind.LABELMAP)
#: What the node's results are in, and what PS3.5 10.1 makes everybody take.
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


@dataclass(frozen=True)
class DestinationCheck:
    """What was found of one destination.

    ``taken`` is kind → name of transfer syntax → accepted; empty where nobody can say. ``proposed``
    is the profile that fits; empty where none can be proposed.
    """

    findings: tuple[Finding, ...]
    taken: Mapping[ResultKind, Mapping[str, bool]] = field(default_factory=dict)
    proposed: tuple[ResultKind, ...] = ()


def peer_named(hospital: Hospital, name: str) -> DicomPeer | DicomWebPeer:
    """One peer of the settings.

    Raises
    ------
    NotPossible
        There is no peer of that name.
    """
    peers = {peer.name: peer for peer in hospital.settings.peers}
    if name not in peers:
        raise NotPossible(
            f"There is no peer {name!r}",
            remedy=f"Peers in segnode.toml: {', '.join(peers) or 'none'}.",
        )
    return peers[name]


def check_destination(hospital: Hospital, name: str) -> DestinationCheck:
    """Ask one destination.

    Raises
    ------
    NotPossible
        There is no peer of that name.
    """
    peer = peer_named(hospital, name)
    findings = [echoed(hospital, name), _encrypted(hospital, peer)]
    if findings[0].level == "wrong":
        return DestinationCheck(tuple(findings))
    if isinstance(peer, DicomWebPeer):
        return DestinationCheck((*findings, _UNKNOWN))
    answer = hospital.dicom(peer).negotiate([kind.sop_class_uid for kind in ASKED], SYNTAXES)
    taken = {
        kind: {syntax.name: answer.storage[kind.sop_class_uid, syntax] for syntax in SYNTAXES}
        for kind in ASKED
    }
    accepted = [kind for kind in ASKED if any(taken[kind].values())]
    findings += [
        _offered(
            "Query (C-FIND)",
            answer.study_root_find,
            "proof of delivery, and whether a series has arrived whole",
        ),
        _offered("Retrieve (C-MOVE)", answer.study_root_move, "instances that did not arrive"),
        _offered("Storage commitment", answer.storage_commitment, "the strongest proof"),
        *_profile(peer, accepted),
    ]
    asks = segmentations_asked(peer)
    return DestinationCheck(
        tuple(findings), taken, proposed_profile(accepted, all(one in accepted for one in asks))
    )


def segmentations_asked(peer: DicomPeer) -> tuple[ResultKind, ...]:
    """Which Segmentations a peer may get: a label map only where its settings ask for one."""
    by_type = {
        "binary": (ResultKind.SEG,),
        "labelmap": (ResultKind.LABELMAP,),
        "auto": (ResultKind.SEG, ResultKind.LABELMAP),
    }
    return by_type[peer.segmentation_type]


def proposed_profile(
    accepted: Collection[ResultKind], seg_is_taken: bool
) -> tuple[ResultKind, ...]:
    """The result once for every reader: on the images, for machines, and for people.

    Pictures take the place of a Segmentation that is not taken, a page that of a text.
    """
    wanted = []
    if seg_is_taken:
        wanted = [ResultKind.SEG, *({ResultKind.SR} & set(accepted))]
    elif ResultKind.CAPTURE in accepted:
        wanted.append(ResultKind.CAPTURE)
    for_people = (ResultKind.TEXT_SR, ResultKind.PDF)
    wanted += [kind for kind in for_people if kind in accepted][:1]
    if wanted and ResultKind.REJECTION in accepted:
        wanted.append(ResultKind.REJECTION)
    return tuple(wanted)


def echoed(hospital: Hospital, name: str) -> Finding:
    """Whether a peer answers at all."""
    try:
        hospital.destinations[name].echo()
    except NodeError as error:
        return Finding("wrong", f"peer {name}", str(error), error.remedy)
    return Finding("good", f"peer {name}", "answers")


_UNKNOWN = Finding(
    "note", "kinds of result", "DICOMweb does not say what it takes before something is stored",
    "Choose `results` from its conformance statement.",
)  # fmt: skip


def _encrypted(hospital: Hospital, peer: DicomPeer | DicomWebPeer) -> Finding:
    plain = Finding("note", "TLS", "not used: names and images travel as plain text")
    if isinstance(peer, DicomWebPeer):
        https = peer.url.startswith("https:")
        return Finding("good", "TLS", "used; its certificate is checked") if https else plain
    try:
        found = hospital.dicom(peer).encryption()
    except NodeError as error:
        return Finding("wrong", "TLS", str(error), error.remedy)
    if found is None:
        return plain
    until = f"{found.version}; its certificate is trusted, until {found.valid_until:%Y-%m-%d}"
    soon = found.valid_until - datetime.now(UTC) < timedelta(days=30)
    if soon:
        return Finding("note", "TLS", until, "It ends soon: have it renewed.")
    return Finding("good", "TLS", until)


def _offered(subject: str, offered: bool, use: str) -> Finding:
    if offered:
        return Finding("good", subject, f"offered: {use}")
    return Finding("note", subject, f"not offered; it would be {use}")


def _profile(peer: DicomPeer, accepted: Collection[ResultKind]) -> Iterator[Finding]:
    """Whether the peer takes what the settings say that it takes."""
    wanted = [kind for kind in peer.results if kind is not ResultKind.SEG]
    segs = segmentations_asked(peer) if ResultKind.SEG in peer.results else ()
    missing = [kind for kind in (*segs, *wanted) if kind not in accepted]
    if not missing:
        yield Finding("good", "results", f"all taken: {', '.join((*segs, *wanted))}")
    elif ResultKind.LABELMAP in missing and ResultKind.SEG in accepted:
        yield Finding(
            "wrong", "results", f"not taken: {', '.join(missing)}",
            'Set segmentation_type = "binary", or have the PACS accept Label Map Segmentation '
            f"Storage ({ResultKind.LABELMAP.sop_class_uid}).",
        )  # fmt: skip
    elif set(missing) <= set(segs) and ResultKind.CAPTURE in accepted:
        yield Finding("note", "results", f"no {missing[0]} is taken: it gets captures instead")
    else:
        yield Finding(
            "wrong", "results", f"not taken: {', '.join(missing)}",
            "Use the profile below, or have the PACS accept the SOP class from this AE title.",
        )  # fmt: skip
