"""DICOM Part 10 bytes in, elements out; elements in, Part 10 bytes out (PS3.10 7, PS3.5 7).

Values stay the bytes that were received: nothing is decoded, so what is kept is kept exactly.
Everything is rebuilt on the way out: preamble, file meta information, every element header.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple, cast

from pydicom import config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, PN_DELIMS, STANDARD_VR, TEXT_VR_DELIMS

from anonymizer.errors import Unreadable, Unsupported

# Registered once for this software by the UUID method (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID = "2.25.262087190137184640731853270417386207837"
IMPLEMENTATION_VERSION_NAME = "SEGNODE_ANON_1"

# Extended offset tables and the three kinds of pixel data: the last elements of an instance that
# mean anything here. What follows (padding, digital signatures) is dropped.
PIXEL_TAGS = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010})
PIXEL_DATA = 0x7FE00010
SPECIFIC_CHARACTER_SET = 0x00080005
UNDEFINED = 0xFFFFFFFF
# A deflated instance is a few hundred times smaller at most; more is an attack (a "zip bomb").
MAX_INFLATED_BYTES = 1 << 31

LONG_VRS = frozenset(str(vr) for vr in EXPLICIT_VR_LENGTH_32)
VRS = frozenset(str(vr) for vr in STANDARD_VR)
# Width of one word of a binary VR, for the byte order (PS3.5 7.3).
WORD_BYTES = {"US": 2, "SS": 2, "OW": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4}
WORD_BYTES |= {"FD": 8, "OD": 8, "SV": 8, "UV": 8, "OV": 8}
# JPIP: deflated, and the pixels are on another server.
_UNREADABLE_SYNTAXES = frozenset({"1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
# What pydicom and the standard library raise on damaged input. Their messages quote values, so
# they are never passed on.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
          NotImplementedError, RecursionError, OverflowError, struct.error, zlib.error)  # fmt: skip


class Element(NamedTuple):
    """One data element: little endian value bytes, or the items of a sequence."""

    tag: int
    vr: str
    value: bytes | list[list[Element]]


@dataclass(frozen=True)
class Instance:
    """One DICOM instance taken apart. ``repr`` shows nothing of it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    elements: list[Element] = field(repr=False)
    pixel_data: bytes = field(repr=False)
    """The elements of group 7FE0 as they are written, header and all."""
    header: bytes = field(repr=False)
    """Part 10 bytes of everything before the pixel data, in the byte order received."""

    @property
    def is_implicit_vr(self) -> bool:
        """Whether the data set is written without VRs."""
        return self.transfer_syntax_uid == ImplicitVRLittleEndian


def read_instance(data: bytes, *, pixels_required: bool = True) -> Instance:
    """Take a Part 10 file apart.

    Big endian and deflated instances become Explicit VR Little Endian; every other transfer syntax
    stays, its pixel data untouched.

    Raises
    ------
    Unreadable
        Not DICOM, truncated, or malformed anywhere before the end of the pixel data.
    Unsupported
        A transfer syntax that cannot be read without decoding the pixels.
    """
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            return _read_instance(data, pixels_required)
    except DAMAGE:
        raise Unreadable("The bytes are not one complete DICOM Part 10 instance") from None


def _read_instance(data: bytes, pixels_required: bool) -> Instance:
    if data[128:132] != b"DICM":
        raise Unreadable("No DICM prefix: not a DICOM Part 10 file")
    file = BytesIO(data)
    file.seek(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = UID(str(meta[0x00020010].value))
    if syntax.is_private or syntax.type != "Transfer Syntax" or syntax in _UNREADABLE_SYNTAXES:
        raise Unsupported("The Transfer Syntax UID (0002,0010) is not one that can be read here")
    start = file.tell()
    if syntax == DeflatedExplicitVRLittleEndian:
        data, start = _inflate(data[start:]), 0
        file, syntax = BytesIO(data), ExplicitVRLittleEndian
    big_endian = syntax == ExplicitVRBigEndian
    implicit = syntax == ImplicitVRLittleEndian
    file.seek(start)
    dataset = read_dataset(
        file, implicit, not big_endian, stop_when=lambda tag, vr, length: tag >> 16 >= 0x7FE0
    )
    end = file.tell()
    elements = _elements(dataset)
    found = {element.tag: element.value for element in elements if element.tag < 0x00300000}
    bits_allocated = found.get(0x00280100, b"")
    pixel_data = _pixel_elements(data, end, implicit, big_endian, bits_allocated)
    if pixels_required and not pixel_data:
        raise Unreadable("The instance ends before its Pixel Data (7FE0,0010)")
    sop_class_uid, sop_instance_uid = (
        _ascii(found.get(tag, b"")) for tag in (0x00080016, 0x00080018)
    )
    if not sop_class_uid or not sop_instance_uid:
        raise Unreadable("No SOP Class UID (0008,0016) or SOP Instance UID (0008,0018)")
    return Instance(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian if big_endian else syntax,
        elements=elements,
        pixel_data=pixel_data,
        header=_header(data[start:end], syntax, sop_class_uid, sop_instance_uid),
    )


def read_header(header: bytes) -> list[Element]:
    """The elements of ``Instance.header``."""
    return read_instance(header, pixels_required=False).elements


def decode_text(value: bytes, character_set: bytes, vr: str) -> str:
    """Text as the SpecificCharacterSet value ``character_set`` reads it; never fails."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").rstrip("\0 ")
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            terms = [term.strip() for term in character_set.decode("ascii").split("\\")]
            encodings = convert_encodings(terms)
            delimiters = PN_DELIMS | TEXT_VR_DELIMS if vr == "PN" else TEXT_VR_DELIMS
            return decode_bytes(value, encodings, delimiters).rstrip("\0 ")
        except (LookupError, UnicodeError, ValueError):
            return value.decode("latin-1").rstrip("\0 ")


def write_instance(
    elements: Iterable[Element],
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    pixel_data: bytes = b"",
) -> bytes:
    """Part 10 bytes: zero preamble, fresh file meta information, elements, pixel data."""
    implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    body = encode_elements(elements, implicit=implicit)
    return _file_meta(transfer_syntax_uid, sop_class_uid, sop_instance_uid) + body + pixel_data


def encode_elements(elements: Iterable[Element], *, implicit: bool) -> bytes:
    """Elements in tag order, little endian, sequences and items with explicit lengths."""
    parts: list[bytes] = []
    for tag, vr, value in sorted(elements, key=lambda element: element.tag):
        if isinstance(value, list):
            vr = "SQ"
            value = b"".join(_item(encode_elements(item, implicit=implicit)) for item in value)
        elif len(value) % 2:
            value += b"\0" if vr in ("UI", "OB", "UN") else b" "
        parts.append(_element_header(tag, vr, len(value), implicit))
        parts.append(value)
    return b"".join(parts)


def _element_header(tag: int, vr: str, length: int, implicit: bool) -> bytes:
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


def _file_meta(syntax: str, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    body = encode_elements(
        [
            Element(0x00020001, "OB", b"\0\1"),
            Element(0x00020002, "UI", sop_class_uid.encode("ascii")),
            Element(0x00020003, "UI", sop_instance_uid.encode("ascii")),
            Element(0x00020010, "UI", syntax.encode("ascii")),
            Element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            Element(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        ],
        implicit=False,
    )
    length = encode_elements(
        [Element(0x00020000, "UL", struct.pack("<L", len(body)))], implicit=False
    )
    return bytes(128) + b"DICM" + length + body


def _header(dataset: bytes, syntax: UID, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        syntax = ExplicitVRLittleEndian
    return _file_meta(syntax, sop_class_uid, sop_instance_uid) + dataset


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, MAX_INFLATED_BYTES)
    if not inflater.eof:
        raise Unreadable("The deflated data set is cut short or larger than 2 GiB")
    return inflated


def _ascii(value: bytes | list[list[Element]]) -> str:
    return value.decode("ascii").strip("\0 ") if isinstance(value, bytes) else ""


def _elements(dataset: Dataset) -> list[Element]:
    """Every element with its VR, as little endian bytes, sequences opened."""
    return [
        _element(dataset, cast(int, tag), entry)
        for tag, entry in list(dataset.items())
        if tag & 0xFFFF  # retired group lengths would be wrong after any change
    ]


def _element(dataset: Dataset, tag: int, entry: DataElement | RawDataElement) -> Element:
    vr = entry.VR or _dictionary_vr(tag)
    if vr == "UN" and tag >> 16 & 1 == 0:
        vr = _dictionary_vr(tag)  # PS3.5 6.2.2 note 2: UN keeps the real VR's encoding
    if vr == "SQ":
        items = dataset[tag].value
        if items is None or isinstance(items, bytes | str):
            return Element(tag, "SQ", [])
        return Element(tag, "SQ", [_elements(item) for item in items])
    if not isinstance(entry, RawDataElement):
        return Element(tag, "UN", b"")  # undefined length without items: unknown content
    value = entry.value or b""
    if entry.length not in (len(value), UNDEFINED):
        raise Unreadable("An element is longer than the bytes that follow it")
    if vr not in VRS:
        vr = _settled_vr(vr, dataset) if " or " in vr else "UN"
    if not entry.is_little_endian and vr in WORD_BYTES:
        value = _swapped(value, WORD_BYTES[vr])
    return Element(tag, vr, value)


def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _settled_vr(vr: str, dataset: Dataset) -> str:
    """One VR where the dictionary leaves a choice and the file (implicit VR) does not say."""
    if vr.startswith("US or SS"):
        return "SS" if dataset.get("PixelRepresentation", 0) == 1 else "US"
    return "OW"


def _swapped(value: bytes, width: int) -> bytes:
    if len(value) % width:
        raise Unreadable("A binary value is not a whole number of words")
    swapped = bytearray(len(value))
    for offset in range(width):
        swapped[offset::width] = value[width - 1 - offset :: width]
    return bytes(swapped)


def _pixel_elements(
    data: bytes,
    position: int,
    implicit: bool,
    big_endian: bool,
    bits_allocated: bytes | Sequence[object],
) -> bytes:
    """The elements of group 7FE0 from ``position``, complete, without what follows them."""
    parts = []
    previous = 0
    while position < len(data):
        tag, vr, start, length = _read_header_at(data, position, implicit, big_endian)
        if tag == 0x7FE00000:  # retired group length
            position = start + length
            continue
        if tag not in PIXEL_TAGS or tag <= previous:
            break
        previous = tag
        end = _fragments_end(data, start) if length == UNDEFINED else start + length
        if end > len(data):
            raise Unreadable("Pixel Data (7FE0,0010) is cut short")
        if big_endian:
            parts.append(_little_endian_pixels(tag, vr, data[start:end], bits_allocated))
        else:
            parts.append(data[position:end])
        position = end
        if tag == PIXEL_DATA:
            return b"".join(parts)
    if parts:
        raise Unsupported("Float or double pixel data (7FE0,0008), (7FE0,0009)")
    return b""


def _read_header_at(
    data: bytes, position: int, implicit: bool, big_endian: bool
) -> tuple[int, str, int, int]:
    order = ">" if big_endian else "<"
    if implicit:
        group, number, length = struct.unpack_from(order + "HHL", data, position)
        return group << 16 | number, "OW", position + 8, length
    group, number, raw_vr, length = struct.unpack_from(order + "HH2sH", data, position)
    vr = raw_vr.decode("ascii")
    if vr in LONG_VRS:
        (length,) = struct.unpack_from(order + "L", data, position + 8)
        return group << 16 | number, vr, position + 12, length
    return group << 16 | number, vr, position + 8, length


def _fragments_end(data: bytes, position: int) -> int:
    """Position after the Sequence Delimitation Item of encapsulated pixel data (PS3.5 A.4)."""
    while True:
        group, number, length = struct.unpack_from("<HHL", data, position)
        position += 8
        if (group, number) == (0xFFFE, 0xE0DD):
            return position
        if (group, number) != (0xFFFE, 0xE000) or length == UNDEFINED:
            raise Unreadable("Encapsulated Pixel Data (7FE0,0010) is not a list of fragments")
        position += length


def _little_endian_pixels(
    tag: int, vr: str, value: bytes, bits_allocated: bytes | Sequence[object]
) -> bytes:
    if vr == "OW" and bits_allocated not in (b"\x08\0", b"\x10\0"):
        raise Unsupported("Big endian pixel data of other than 8 or 16 bits")
    if vr in WORD_BYTES:
        value = _swapped(value, WORD_BYTES[vr])
    return _element_header(tag, vr, len(value), implicit=False) + value
