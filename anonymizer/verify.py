"""The last look at what is about to leave, by other eyes than those that cleaned it.

The output is read again as bytes by a reader of its own, element by element and at every depth,
and each value is searched for this patient's identifiers (:mod:`anonymizer.identity` says what
matches). Every byte before the pixel data is part of an element header or of a searched value, or
the check fails.

What is not a hit: numbers in binary VRs; times; decimal and integer strings, unless a whole value
of 6 digits or more is the identifier, as written or as an integer; terms of a closed list such as
ORIGINAL or AXIAL; and the texts that this software wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydicom.datadict import dictionary_VR, keyword_for_tag

from anonymizer.closed_lists import CLOSED_LISTS
from anonymizer.encoding import LONG_VRS
from anonymizer.errors import ResidualIdentifier, Unreadable
from anonymizer.identity import Identifiers, date_pattern
from anonymizer.part10 import decode_text
from anonymizer.profile import PATIENT_ID, PATIENT_NAME, WRITTEN_TAGS

_BINARY_VRS = frozenset({"AT", "FD", "FL", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV"})
_BINARY_VRS |= frozenset({"UL", "US", "UV"})


class Value(NamedTuple):
    """One value found in the bytes: the tags that lead to it, its VR and its bytes."""

    path: tuple[int, ...]
    vr: str
    value: bytes


def verify_deidentified(data: bytes, identifiers: Identifiers, pseudonym: str) -> None:
    """Raise unless no identifier of the patient is left in ``data`` before its pixel data.

    Raises
    ------
    ResidualIdentifier
        Names the attribute in which an identifier was found.
    """
    if any(data[:128]):
        raise ResidualIdentifier("The preamble is not empty")
    _verify_values(values_before_pixels(data), identifiers, pseudonym)


def verify_elements(
    data: bytes, identifiers: Identifiers, pseudonym: str, *, implicit: bool
) -> None:
    """:func:`verify_deidentified` for whole top-level elements without a file around them.

    Their text is ASCII or UTF-8.
    """
    _verify_values(_top_level_values(data, 0, implicit), identifiers, pseudonym, b"ISO_IR 192")


def plain_texts(identifiers: Identifiers) -> tuple[bytes, ...]:
    """The identifiers as lower-case bytes, for :func:`may_hold`.

    One that holds another is left out: where the other is not found, neither is it.
    """
    held = (identifiers.names, identifiers.numbers, identifiers.uids, identifiers.dates)
    shortest: list[bytes] = []
    for text in sorted((text.lower().encode() for texts in held for text in texts), key=len):
        if not may_hold(text, shortest):
            shortest.append(text)
    return tuple(shortest)


def may_hold(data: bytes, texts: Iterable[bytes]) -> bool:
    """Whether any of ``texts`` stands anywhere in ``data``, whatever its case and place.

    No parsing, no exceptions: where nothing is found there is nothing written in ASCII. What is
    found may be chance (a short number inside a UID); :func:`verify_deidentified` knows.
    """
    lowered = data.lower()
    for text in texts:  # noqa: SIM110 - a generator costs more than the search
        if text in lowered:
            return True
    return False


def _verify_values(
    values: Iterable[Value], identifiers: Identifiers, pseudonym: str, character_set: bytes = b""
) -> None:
    shifted = date_pattern(identifiers.dates)
    pseudonyms = (pseudonym.encode("ascii"), pseudonym.encode("ascii") + b"^")
    for path, vr, value in values:
        if not value or vr in _BINARY_VRS or path[0] in WRITTEN_TAGS:
            continue
        tag = path[-1]
        if tag == 0x00080005:
            character_set = value
        if tag in (PATIENT_ID, PATIENT_NAME) and value.rstrip(b" ") in pseudonyms:
            continue
        is_date_free = vr in ("DS", "IS", "TM", "UI", "CS")
        for text in _texts(value, character_set, vr):
            if _is_identifying(tag, vr, text, identifiers) or (
                not is_date_free and shifted and shifted.search(text)
            ):
                raise ResidualIdentifier(f"An identifier of the patient is left in {_named(path)}")


def verify_fragments(pixel_data: bytes | memoryview, identifiers: Identifiers) -> None:
    """Raise if compressed pixel data carries an identifier as plain text.

    JPEG streams have comment and application segments (ISO/IEC 10918-1 B.2.4) that no DICOM rule
    sees. Only identifiers of 6 bytes or more are searched for: shorter ones occur by chance.

    Raises
    ------
    ResidualIdentifier
        An identifier stands in the compressed stream.
    """
    stream = bytes(pixel_data).lower()
    texts = identifiers.names | identifiers.numbers | identifiers.uids | identifiers.dates
    if any(len(text) >= 6 and text.encode("utf-8") in stream for text in texts):
        raise ResidualIdentifier("An identifier of the patient is left in PixelData's fragments")


def _is_identifying(tag: int, vr: str, text: str, identifiers: Identifiers) -> bool:
    parts = [part.strip("\0 ") for part in text.split("\\")]
    if vr == "UI":
        return any(part in identifiers.uids for part in parts)
    if vr in ("DA", "DT", "TM"):
        return False  # dates are compared as dates
    if vr in ("DS", "IS"):
        return any(map(identifiers.is_whole_number, parts))
    closed = CLOSED_LISTS.get(tag, frozenset())
    for part in parts:
        if part not in closed and identifiers.occurs_in(part):
            return True
    return any(len(uid) >= 10 and uid in text for uid in identifiers.uids)


def _texts(value: bytes, character_set: bytes, vr: str) -> Iterable[str]:
    """What the bytes say: as the character set reads them, and byte for byte."""
    if value.isascii() and b"\x1b" not in value:
        return (value.decode("ascii"),)
    return {decode_text(value, character_set, vr), value.decode("latin-1")}


def _named(path: tuple[int, ...]) -> str:
    names = [keyword_for_tag(tag) or f"{tag >> 16:04X},{tag & 0xFFFF:04X}" for tag in path]
    return " > ".join(names)


def values_before_pixels(data: bytes) -> Iterator[Value]:
    """Every value of a Part 10 file that :mod:`anonymizer.part10` wrote, up to group 7FE0.

    Written apart from the reader on purpose, and only for that form: little endian, all lengths
    explicit.
    """
    position = 132
    syntax = b""
    while data[position : position + 2] == b"\x02\0":
        tag, vr, start, end = _header_at(data, position, len(data), False)
        if tag == 0x00020010:
            syntax = data[start:end].rstrip(b"\0")
        yield from _values(data, (tag,), vr, start, end, False)
        position = end
    yield from _top_level_values(data, position, syntax == b"1.2.840.10008.1.2")


def _top_level_values(data: bytes, position: int, implicit: bool) -> Iterator[Value]:
    while position < len(data):
        tag, vr, start, end = _header_at(data, position, len(data), implicit)
        if tag >> 16 >= 0x7FE0:
            return
        yield from _values(data, (tag,), vr, start, end, implicit)
        position = end


def _values(
    data: bytes, path: tuple[int, ...], vr: str, start: int, end: int, implicit: bool
) -> Iterator[Value]:
    if vr != "SQ":
        yield Value(path, vr, data[start:end])
        return
    while start < end:
        group, number, length = struct.unpack_from("<HHL", data, start)
        start += 8
        item_end = start + length
        if (group, number) != (0xFFFE, 0xE000) or item_end > end:
            raise Unreadable("The output is not well formed inside a sequence")
        while start < item_end:
            tag, item_vr, value_start, value_end = _header_at(data, start, item_end, implicit)
            yield from _values(data, (*path, tag), item_vr, value_start, value_end, implicit)
            start = value_end


def _header_at(data: bytes, position: int, limit: int, implicit: bool) -> tuple[int, str, int, int]:
    """(tag, VR, start and end of the value) of the element at ``position``."""
    group, number, raw_vr, length = struct.unpack_from("<HH2sH", data, position)
    tag = group << 16 | number
    start = position + 8
    if implicit:
        (length,) = struct.unpack_from("<L", data, position + 4)
        vr = _dictionary_vr(tag)
    else:
        vr = raw_vr.decode("latin-1")
        if vr in LONG_VRS:
            (length,) = struct.unpack_from("<L", data, position + 8)
            start = position + 12
    if tag < 0x7FE00000 and start + length > limit:
        raise Unreadable("The output is not well formed")
    return tag, vr, start, start + length


def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"
