"""How data elements are written as bytes (PS3.5 7)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from anonymizer.errors import Unreadable

UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset(str(vr) for vr in EXPLICIT_VR_LENGTH_32)
VRS = frozenset(str(vr) for vr in STANDARD_VR)
# Width of one word of a binary VR, for the byte order (PS3.5 7.3).
WORD_BYTES = {"US": 2, "SS": 2, "OW": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4}
WORD_BYTES |= {"FD": 8, "OD": 8, "SV": 8, "UV": 8, "OV": 8}


class Element(NamedTuple):
    """One data element: little endian value bytes, or the items of a sequence."""

    tag: int
    vr: str
    value: bytes | list[list[Element]]


def encode_elements(elements: Iterable[Element], *, implicit: bool) -> bytes:
    """Elements in tag order, little endian, sequences and items with explicit lengths."""
    parts: list[bytes] = []
    for tag, vr, value in sorted(elements, key=lambda element: element.tag):
        if isinstance(value, list):
            vr = "SQ"
            value = b"".join(_item(encode_elements(item, implicit=implicit)) for item in value)
        elif len(value) % 2:
            value += b"\0" if vr in ("UI", "OB", "UN") else b" "
        parts.append(element_header(tag, vr, len(value), implicit))
        parts.append(value)
    return b"".join(parts)


def element_header(tag: int, vr: str, length: int, implicit: bool) -> bytes:
    """Tag, VR and length of one element, little endian."""
    group, number = tag >> 16, tag & 0xFFFF
    if implicit:
        return struct.pack("<HHL", group, number, length)
    if vr in LONG_VRS:
        return struct.pack("<HH2sHL", group, number, vr.encode(), 0, length)
    if length > 0xFFFF:  # PS3.5 6.2.2 note 5: too long for its VR in explicit form
        return struct.pack("<HH2sHL", group, number, b"UN", 0, length)
    return struct.pack("<HH2sH", group, number, vr.encode(), length)


def _item(body: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body


def swapped(value: bytes, width: int) -> bytes:
    """``value`` with the bytes of every word of ``width`` bytes in the other order."""
    if len(value) % width:
        raise Unreadable("A binary value is not a whole number of words")
    swapped = bytearray(len(value))
    for offset in range(width):
        swapped[offset::width] = value[width - 1 - offset :: width]
    return bytes(swapped)
