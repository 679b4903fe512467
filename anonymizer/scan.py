"""A second reader of data elements: little endian, as fast as Python allows, and easily offended.

It reads what almost every instance is: Explicit or Implicit VR Little Endian whose elements ascend,
whose VRs exist and whose lengths add up to the byte (PS3.5 7). Anything else is not read at all:
:class:`Irregular` sends it to pydicom, which knows the oddities. So a difference between the two
readers can only be one of speed, and the tests hold them together.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from pydicom.datadict import dictionary_VR

from anonymizer.encoding import LONG_VRS, UNDEFINED, VRS, Element

# Deeper than any IOD nests; what is nested deeper was not made by a scanner.
MAX_DEPTH = 32
PIXEL_REPRESENTATION = 0x00280103

_SHORT = {vr.encode(): vr for vr in VRS - LONG_VRS}
_LONG = {vr.encode(): vr for vr in LONG_VRS}
_VR_BYTES = frozenset({*_SHORT, *_LONG})
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_TAG = struct.Struct("<HH")
_LENGTH = struct.Struct("<L")
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD


class Irregular(Exception):
    """The bytes are not of the plain form that this reader reads."""


class Place(NamedTuple):
    """Where one top-level element stands in the bytes, header and value."""

    tag: int
    start: int
    end: int


class Scan(NamedTuple):
    """A data set up to its pixel data."""

    elements: list[Element]
    """In ascending order, without retired group lengths."""
    places: list[Place]
    """Of every top-level element, group lengths too, without a gap."""
    end: int
    """Where group 7FE0, or whatever follows it, begins."""


class Meta(NamedTuple):
    """The file meta information."""

    values: Mapping[int, bytes]
    places: list[Place]
    """Of every element of group 0002, without a gap; the first is after the DICM prefix."""
    end: int


def scan_meta(data: bytes) -> Meta:
    """Group 0002.

    Raises
    ------
    Irregular
        Not a Part 10 file in plain form (PS3.10 7.1).
    """
    if data[128:132] != b"DICM":
        raise Irregular
    position, size = 132, len(data)
    values: dict[int, bytes] = {}
    places: list[Place] = []
    while position + 8 <= size:
        begin = position
        group, number, raw_vr, length = _EXPLICIT.unpack_from(data, begin)
        if group != 2:
            break
        start = begin + 8
        if raw_vr in _LONG:
            if length or start + 4 > size:
                raise Irregular
            (length,) = _LENGTH.unpack_from(data, start)
            start += 4
        elif raw_vr not in _SHORT:
            raise Irregular
        position = start + length
        tag = group << 16 | number
        if position > size or tag in values:
            raise Irregular
        values[tag] = data[start:position]
        places.append(Place(tag, begin, position))
    return Meta(values, places, position)


def scan_dataset(data: bytes, position: int, *, implicit: bool) -> Scan:
    """The top-level elements from ``position`` up to group 7FE0.

    Raises
    ------
    Irregular
        Not in the plain form.
    """
    elements: list[Element] = []
    places: list[Place] = []
    size = len(data)
    previous = 0
    try:
        while position < size:
            group, number = _TAG.unpack_from(data, position)
            if group >= 0x7FE0:
                break
            tag = group << 16 | number
            if tag <= previous:
                raise Irregular
            previous = tag
            element, end = _element_at(data, position, size, implicit, 0)
            places.append(Place(tag, position, end))
            if number:
                elements.append(element)
            position = end
    except struct.error:
        raise Irregular from None
    return Scan(_settled(elements), places, position)


def scan_element(data: bytes, position: int, *, implicit: bool) -> tuple[Element, int]:
    """The top-level element at ``position`` and where the next begins.

    Its VR is the dictionary's where the data set is written without, a choice (``US or SS``)
    left open: :func:`settled_vr` makes it.

    Raises
    ------
    Irregular
        Not in the plain form.
    """
    try:
        return _element_at(data, position, len(data), implicit, 0)
    except struct.error:
        raise Irregular from None


def settled_vr(vr: str, pixel_representation: int) -> str:
    """One VR where the dictionary leaves a choice and the file (implicit VR) does not say."""
    if vr.startswith("US or SS"):
        return "SS" if pixel_representation == 1 else "US"
    return "OW"


@cache
def dictionary_vr(tag: int) -> str:
    """The VR of PS3.6, which may be a choice; UN for what it does not list."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _element_at(
    data: bytes, position: int, limit: int, implicit: bool, depth: int
) -> tuple[Element, int]:
    if implicit:
        group, number, length = _IMPLICIT.unpack_from(data, position)
        tag = group << 16 | number
        start = position + 8
        if length >= 0x4141 and data[position + 4 : position + 6] in _VR_BYTES:
            raise Irregular  # explicit VR where the transfer syntax says otherwise
        vr = dictionary_vr(tag)
    else:
        group, number, raw_vr, length = _EXPLICIT.unpack_from(data, position)
        tag = group << 16 | number
        start = position + 8
        vr = _SHORT.get(raw_vr, "")
        if not vr:
            vr = _LONG.get(raw_vr, "")
            if not vr or length:
                raise Irregular
            (length,) = _LENGTH.unpack_from(data, start)
            start += 4
        if vr == "UN" and not group & 1:
            vr = dictionary_vr(tag)  # PS3.5 6.2.2 note 2: UN keeps the real VR's encoding
            if vr == "SQ":
                raise Irregular  # its items are implicit VR: pydicom sorts that out
    if group == 0xFFFE:
        raise Irregular
    if vr == "SQ":
        items, end = _items(data, start, length, limit, implicit, depth + 1)
        return Element(tag, "SQ", items), end
    end = start + length
    if end > limit:  # an undefined length too
        raise Irregular
    return Element(tag, vr, data[start:end]), end


def _items(
    data: bytes, position: int, length: int, limit: int, implicit: bool, depth: int
) -> tuple[list[list[Element]], int]:
    """The items of a sequence whose value begins at ``position``, and where it ends."""
    if depth > MAX_DEPTH:
        raise Irregular
    end = limit if length == UNDEFINED else position + length
    if end > limit:
        raise Irregular
    items: list[list[Element]] = []
    while length == UNDEFINED or position < end:
        group, number, item_length = _IMPLICIT.unpack_from(data, position)
        tag = group << 16 | number
        position += 8
        if tag == _SEQUENCE_END and length == UNDEFINED and item_length == 0:
            return items, position
        if tag != _ITEM:
            raise Irregular
        item, position = _item(data, position, item_length, end, implicit, depth)
        items.append(item)
    if position != end:
        raise Irregular
    return items, position


def _item(
    data: bytes, position: int, length: int, limit: int, implicit: bool, depth: int
) -> tuple[list[Element], int]:
    end = limit if length == UNDEFINED else position + length
    if end > limit:
        raise Irregular
    elements: list[Element] = []
    previous = -1
    while length == UNDEFINED or position < end:
        group, number = _TAG.unpack_from(data, position)
        tag = group << 16 | number
        if tag == _ITEM_END and length == UNDEFINED:
            if data[position + 4 : position + 8] != b"\0\0\0\0":
                raise Irregular
            return _settled(elements), position + 8
        if tag <= previous:
            raise Irregular
        previous = tag
        element, position = _element_at(data, position, end, implicit, depth)
        if number:
            elements.append(element)
    if position != end:
        raise Irregular
    return _settled(elements), position


def _settled(elements: list[Element]) -> list[Element]:
    """``elements`` of one data set or item with every VR a single one."""
    representation = 0
    unsettled = False
    for element in elements:
        if element.tag == PIXEL_REPRESENTATION:
            representation = pixel_representation(element)
        if " or " in element.vr:
            unsettled = True
    if not unsettled:
        return elements
    return [
        Element(tag, settled_vr(vr, representation) if " or " in vr else vr, value)
        for tag, vr, value in elements
    ]


def pixel_representation(element: Element) -> int:
    """The number in a Pixel Representation (0028,0103) element."""
    if element.vr != "US" or not isinstance(element.value, bytes) or len(element.value) != 2:
        raise Irregular
    return int.from_bytes(element.value, "little")


def is_private_creator(tag: int) -> bool:
    """Whether ``tag`` reserves a block of private elements (PS3.5 7.8.1)."""
    return bool(tag >> 16 & 1) and 0x10 <= tag & 0xFFFF <= 0xFF
