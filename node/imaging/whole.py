"""Is a Part 10 stream whole, or was its writer cut off?

Readers take a stream that ends early for what it holds until then. Whoever keeps the first of two
instances with the same UID must know the difference, or half an instance shuts out the whole one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

#: PS3.5 7.1.2: these value representations have a length of four bytes, after two reserved ones.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
#: PS3.6: Pixel Data, Float Pixel Data, Double Float Pixel Data, Pixel Data Provider URL.
_PIXELS = frozenset({0x7FE00010, 0x7FE00008, 0x7FE00009, 0x00287FE0})


#: SOP Class, SOP Instance, Study Instance and Series Instance UID: Type 1 in every object.
_IDENTITY = frozenset({0x00080016, 0x00080018, 0x0020000D, 0x0020000E})


class _Short(Exception):
    """The stream ends before an element does."""


def is_whole(data: bytes) -> bool:
    """Whether every element is there to its end, and an image has its pixel data.

    The lengths of PS3.5 7.1 and 7.5 are followed to the last byte; values are not read. A stream
    that was cut between two elements after its pixel data counts as whole.
    """
    if data[128:132] != b"DICM":
        return False
    try:
        meta = _Walk(data, "<", explicit=True)
        values, start = meta.values(132, group=0x0002)
        syntax = values.get(0x00020010, "")
        if syntax == DeflatedExplicitVRLittleEndian:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data, start = inflater.decompress(data[start:]), 0
            if not inflater.eof:
                return False
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        walk = _Walk(data, order, explicit=syntax != ImplicitVRLittleEndian)
        values, _ = walk.values(start)
    except (_Short, zlib.error):
        return False
    if not values.keys() >= _IDENTITY:
        return False
    return not _is_image(values) or not _PIXELS.isdisjoint(values)


def _is_image(values: Mapping[int, str]) -> bool:
    name = UID(values[0x00080016]).name
    return 0x00280010 in values or "Image Storage" in name or "Segmentation Storage" in name


class _Walk:
    """Steps over the elements of a stream by their lengths."""

    def __init__(self, data: bytes, order: str, explicit: bool) -> None:
        self._data, self._explicit = data, explicit
        self._tag, self._short, self._long = (
            struct.Struct(order + form) for form in ("HH", "H", "I")
        )

    def values(self, at: int, group: int | None = None) -> tuple[dict[int, str], int]:
        """Tag → value, if it is a short one, of the elements from ``at``; and where they end.

        To the end of the stream, or of the group if one is given.
        """
        found: dict[int, str] = {}
        while at < len(self._data):
            tag = self._tag_at(at)
            if group is not None and tag >> 16 != group:
                break
            start, at = self._past_element(at, self._explicit)
            found[tag] = self._data[start : min(at, start + 64)].decode("latin-1").rstrip("\0 ")
        return found, at

    def _past_element(self, at: int, explicit: bool) -> tuple[int, int]:
        """Where its value begins, and where the next element does."""
        tag = self._tag_at(at)
        vr = self._bytes(at + 4, 2) if explicit and tag >> 16 != 0xFFFE else b""
        if not vr or vr in _LONG:
            length, value = self._length(at + (8 if vr else 4)), at + (12 if vr else 8)
        else:
            length, value = self._short.unpack(self._bytes(at + 6, 2))[0], at + 8
        if length == _UNDEFINED:
            # PS3.5 6.2.2 note 4: what is inside an unknown of undefined length is implicit.
            return value, self._past_items(value, explicit and vr != b"UN")
        self._bytes(value, length)
        return value, value + length

    def _past_items(self, at: int, explicit: bool) -> int:
        while (tag := self._tag_at(at)) != _SEQUENCE_END:
            length = self._length(at + 4)
            at += 8
            if tag != _ITEM:
                raise _Short
            if length != _UNDEFINED:
                self._bytes(at, length)
                at += length
                continue
            while self._tag_at(at) != _ITEM_END:
                _, at = self._past_element(at, explicit)
            at += 8
        self._bytes(at, 8)
        return at + 8

    def _tag_at(self, at: int) -> int:
        group, element = self._tag.unpack(self._bytes(at, 4))
        return int(group << 16 | element)

    def _length(self, at: int) -> int:
        return int(self._long.unpack(self._bytes(at, 4))[0])

    def _bytes(self, at: int, count: int) -> memoryview | bytes:
        if at + count > len(self._data):
            raise _Short
        return self._data[at : at + count] if count <= 8 else b""
