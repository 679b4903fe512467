"""Retain Safe Private (PS3.15 E.3.10): the private attributes that may stay.

Only those of ``profiles/safe_private.json``, recognised by their private creator (PS3.5 7.8.1), and
only with the VR that is known for them and a value of that form. A creator stays where something
of its block does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from anonymizer.encoding import WORD_BYTES, Element
from anonymizer.profile import PrivateAttribute

_NUMBER = re.compile(rb"[ 0-9.+eE\\-]*\0?")
# Terms that vendors use; a CS value that is a word may be anybody's name.
_TERMS = frozenset(
    b"NONE DIRECTIONAL BMATRIX ISOTROPIC I P O M S AXIAL HELICAL SPIRAL SURVIEW".split()
)


def safe_private_elements(
    elements: Iterable[Element], safe: Mapping[PrivateAttribute, str]
) -> list[Element]:
    """The private elements of one data set, or item, that may stay, with their creators.

    An element of unknown VR (Implicit VR, or UN) takes the VR that is known for it.
    """
    if not safe:
        return []
    private = [element for element in elements if element.tag >> 16 & 1]
    creators = {
        element.tag: element
        for element in private
        if 0x10 <= element.tag & 0xFFFF <= 0xFF and isinstance(element.value, bytes)
    }
    kept: dict[int, Element] = {}
    for tag, vr, value in private:
        creator = creators.get(tag & 0xFFFF0000 | (tag & 0xFFFF) >> 8)
        if creator is None or not isinstance(value, bytes):
            continue
        name = bytes(creator.value).decode("latin-1").strip("\0 ")  # type: ignore[arg-type]
        known = safe.get(PrivateAttribute(name, tag >> 16, tag & 0xFF))
        if known is None or vr not in (known, "UN") or not _has_form(known, value):
            continue
        kept[creator.tag] = Element(creator.tag, "LO", name.encode("latin-1"))
        kept[tag] = Element(tag, known, value)
    return [kept[tag] for tag in sorted(kept)]


def _has_form(vr: str, value: bytes) -> bool:
    if vr in WORD_BYTES:
        return len(value) % WORD_BYTES[vr] == 0
    if vr == "CS":
        return all(term.strip(b"\0 ") in _TERMS for term in value.split(b"\\"))
    return vr in ("DS", "IS") and _NUMBER.fullmatch(value) is not None
