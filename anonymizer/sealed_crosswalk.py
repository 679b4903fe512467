"""A crosswalk in the vault: the header once per series, of each instance only what differs.

Two records, each named after what it holds: ``series-…`` has the original header, the pseudonym and
the rules, and is the same for every job of the series; ``instances-…`` has a row for each instance
and the UIDs and dates of all of them. Jobs over the same instances share both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from anonymizer.crosswalk import Crosswalk
from anonymizer.errors import VaultError
from anonymizer.part10 import decode_text

SERIES, INSTANCES = "series", "instances"
FORMAT_VERSION = 2
#: What a person may ask for a study by; each is found by the vault's blind index.
INDEXED: Mapping[str, int] = {
    "StudyInstanceUID": 0x0020000D,
    "PatientID": 0x00100020,
    "AccessionNumber": 0x00080050,
}


class CrosswalkVault(Protocol):
    """The part of :class:`anonymizer.vault.Vault` that keeps crosswalks."""

    def seal_once(self, study: str, kind: str, data: bytes) -> str:
        """Seal ``data`` under a name of its own, unless it is there."""

    def open(self, study: str, record_type: str) -> bytes:
        """What was sealed."""

    def remember(self, study: str, keyword: str, value: str) -> None:
        """Let the study be found by an original identifier."""


@dataclass(frozen=True)
class Sealed:
    """Where a crosswalk lies. Both names are pseudonymous."""

    study: str
    record: str


@dataclass(frozen=True)
class Opened:
    """A crosswalk, and the epoch of the pseudonym key that it was made with."""

    crosswalk: Crosswalk = field(repr=False)
    epoch: int


def seal_crosswalk(vault: CrosswalkVault, crosswalk: Crosswalk, *, epoch: int) -> Sealed:
    """Keep a crosswalk, and let its study be found by the original identifiers.

    Sealing the same again writes nothing.
    """
    study = crosswalk.pseudonymous_study_instance_uid
    for keyword, value in _identifiers(crosswalk).items():
        vault.remember(study, keyword, value)
    content = json.loads(crosswalk.to_bytes())
    instances, uids, dates = (content.pop(name) for name in ("instances", "uids", "dates"))
    series = vault.seal_once(study, SERIES, _json({**content, "epoch": epoch}))
    classes = sorted(set(instances.values()))
    rows = [
        [uid, classes.index(sop_class), uids.pop(uid, None)]
        for uid, sop_class in sorted(instances.items())
    ]
    differing = {
        "format": FORMAT_VERSION,
        "series": series,
        "sop_classes": classes,
        "instances": rows,
        "uids": uids,
        "dates": dates,
    }
    return Sealed(study, vault.seal_once(study, INSTANCES, _json(differing)))


def open_crosswalk(vault: CrosswalkVault, sealed: Sealed) -> Opened:
    """The crosswalk that :func:`seal_crosswalk` kept.

    Raises
    ------
    CrosswalkMissing, StudyDestroyed, VaultError
        As :meth:`anonymizer.vault.Vault.open` does.
    """
    differing = json.loads(vault.open(sealed.study, sealed.record))
    if differing["format"] != FORMAT_VERSION:
        raise VaultError("The crosswalk was written by another version of this software")
    content = json.loads(vault.open(sealed.study, differing["series"]))
    epoch = content.pop("epoch")
    instances, uids = {}, dict(differing["uids"])
    for uid, number, pseudonymous in differing["instances"]:
        instances[uid] = differing["sop_classes"][number]
        if pseudonymous is not None:
            uids[uid] = pseudonymous
    content |= {"instances": instances, "uids": uids, "dates": differing["dates"]}
    return Opened(Crosswalk.from_bytes(_json(content)), epoch)


def _identifiers(crosswalk: Crosswalk) -> dict[str, str]:
    """Keyword → original value, of what the header has of :data:`INDEXED`."""
    top = {element.tag: element for element in crosswalk.elements}
    character_set = top[0x00080005].value if 0x00080005 in top else b""
    found = {"StudyInstanceUID": crosswalk.study_instance_uid}
    for keyword, tag in INDEXED.items():
        element = top.get(tag)
        if element is not None and isinstance(element.value, bytes):
            terms = character_set if isinstance(character_set, bytes) else b""
            found.setdefault(keyword, decode_text(element.value, terms, element.vr))
    return found


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")
