"""DICOM Part 10 bytes in, elements out; elements in, Part 10 bytes out (PS3.10 7, PS3.5 7).

Values stay the bytes that were received: nothing is decoded, so what is kept is kept exactly.
Everything is rebuilt on the way out: preamble, file meta information, every element header.

Two readers: :mod:`anonymizer.scan` for the plain form, pydicom for big endian, deflated and odd
instances. What neither reads to the last byte is refused.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import cast

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from anonymizer.encoding import UNDEFINED, VRS, WORD_BYTES, Element, encode_elements, swapped
from anonymizer.errors import Unreadable, Unsupported
from anonymizer.pixel_data import Values, pixel_elements
from anonymizer.scan import Irregular, Place, dictionary_vr, scan_dataset, scan_meta, settled_vr

# Registered once for this software by the UUID method (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID = "2.25.262087190137184640731853270417386207837"
IMPLEMENTATION_VERSION_NAME = "SEGNODE_1"

TRANSFER_SYNTAX_UID = 0x00020010
SPECIFIC_CHARACTER_SET = 0x00080005
SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
# A deflated instance is a few hundred times smaller at most; more is an attack (a "zip bomb").
MAX_INFLATED_BYTES = 1 << 31

# JPIP: deflated, and the pixels are on another server.
_UNREADABLE_SYNTAXES = frozenset({"1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
# What pydicom and the standard library raise on damaged input. Their messages quote values, so
# they are never passed on.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
          NotImplementedError, RecursionError, OverflowError, struct.error, zlib.error,
          BytesLengthException)  # fmt: skip


@dataclass(frozen=True)
class Instance:
    """One DICOM instance taken apart. ``repr`` shows nothing of it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    elements: list[Element] = field(repr=False)
    pixel_data: bytes | memoryview = field(repr=False)
    """The elements of group 7FE0 as they are written, header and all; a view of the input where
    they are unchanged."""
    header: bytes = field(repr=False)
    """Part 10 bytes of everything before the pixel data, in the byte order received."""
    places: tuple[Place, ...] = field(default=(), repr=False)
    """Where each top-level element stood in the input; empty if pydicom read it."""

    @property
    def is_implicit_vr(self) -> bool:
        """Whether the data set is written without VRs."""
        return self.transfer_syntax_uid == ImplicitVRLittleEndian


def read_instance(data: bytes, *, pixels_required: bool = True, plain: bool = True) -> Instance:
    """Take a Part 10 file apart.

    Big endian and deflated instances become Explicit VR Little Endian; every other transfer syntax
    stays, its pixel data untouched. ``plain=False`` has pydicom read what need not be.

    Raises
    ------
    Unreadable
        Not DICOM, truncated, or malformed anywhere before the end of the pixel data.
    Unsupported
        A transfer syntax that cannot be read without decoding the pixels.
    """
    try:
        if plain:
            try:
                return _read_plain(data, pixels_required)
            except Irregular:
                pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            return _read_with_pydicom(data, pixels_required)
    except DAMAGE:
        raise Unreadable("The bytes are not one complete DICOM Part 10 instance") from None


def plain_syntax(data: bytes) -> tuple[UID, int]:
    """Transfer syntax and start of the data set, if it is in the plain form.

    Raises
    ------
    Irregular
        It is not: big endian, deflated, or without well-formed file meta information.
    """
    meta = scan_meta(data)
    syntax = meta.values.get(TRANSFER_SYNTAX_UID, b"")
    if not re.fullmatch(rb"[0-9.]{5,64}[\0 ]?", syntax):
        raise Irregular
    found = _readable_syntax(syntax.decode("ascii").rstrip("\0 "))
    if found in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        raise Irregular
    return found, meta.end


def _read_plain(data: bytes, pixels_required: bool) -> Instance:
    syntax, start = plain_syntax(data)
    implicit = syntax == ImplicitVRLittleEndian
    scan = scan_dataset(data, start, implicit=implicit)
    found = {element.tag: element.value for element in scan.elements if element.tag < 0x00300000}
    pixel_data = pixel_elements(data, scan.end, found, implicit=implicit, big_endian=False)
    sop_class_uid, sop_instance_uid = _checked(found, pixel_data, pixels_required)
    return Instance(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=syntax,
        elements=scan.elements,
        pixel_data=pixel_data,
        header=header_bytes(data[start : scan.end], syntax, sop_class_uid, sop_instance_uid),
        places=tuple(scan.places),
    )


@lru_cache(maxsize=64)
def _readable_syntax(uid: str) -> UID:
    syntax = UID(uid)
    if syntax.is_private or syntax.type != "Transfer Syntax" or syntax in _UNREADABLE_SYNTAXES:
        registered = re.fullmatch(r"1\.2\.840\.10008\.[0-9.]{1,50}", syntax)
        name = syntax if registered else "that is not DICOM's"
        raise Unsupported(f"No reader for the transfer syntax {name} (0002,0010)")
    return syntax


def _checked(
    found: Values, pixel_data: bytes | memoryview, pixels_required: bool
) -> tuple[str, str]:
    """SOP Class and SOP Instance UID, without which it is no instance."""
    if pixels_required and not pixel_data:
        raise Unreadable("The instance ends before its Pixel Data (7FE0,0010)")
    sop_class_uid, sop_instance_uid = (
        ascii_text(found.get(tag, b"")) for tag in (SOP_CLASS_UID, SOP_INSTANCE_UID)
    )
    if not sop_class_uid or not sop_instance_uid:
        raise Unreadable("No SOP Class UID (0008,0016) or SOP Instance UID (0008,0018)")
    return sop_class_uid, sop_instance_uid


def _read_with_pydicom(data: bytes, pixels_required: bool) -> Instance:
    if data[128:132] != b"DICM":
        raise Unreadable("No DICM prefix: not a DICOM Part 10 file")
    file = BytesIO(data)
    file.seek(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = _readable_syntax(str(meta[TRANSFER_SYNTAX_UID].value))
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
    pixel_data = pixel_elements(data, end, found, implicit=implicit, big_endian=big_endian)
    sop_class_uid, sop_instance_uid = _checked(found, pixel_data, pixels_required)
    return Instance(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian if big_endian else syntax,
        elements=elements,
        pixel_data=pixel_data,
        header=header_bytes(data[start:end], syntax, sop_class_uid, sop_instance_uid),
    )


def read_header(header: bytes) -> list[Element]:
    """The elements of ``Instance.header``."""
    return read_instance(header, pixels_required=False).elements


def decode_text(value: bytes, character_set: bytes, vr: str) -> str:
    """Text as the SpecificCharacterSet value ``character_set`` reads it; never fails."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").rstrip("\0 ")
    with warnings.catch_warnings():
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
    pixel_data: bytes | memoryview = b"",
) -> bytes:
    """Part 10 bytes: zero preamble, fresh file meta information, elements, pixel data."""
    implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    body = encode_elements(elements, implicit=implicit)
    meta = file_meta(transfer_syntax_uid, sop_class_uid, sop_instance_uid)
    return b"".join((meta, body, pixel_data))


def file_meta(syntax: str, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """Zero preamble, DICM prefix and file meta information (PS3.10 7.1)."""
    uid = sop_instance_uid.encode("ascii")
    before, after = _around_instance_uid(syntax, sop_class_uid, len(uid))
    return before + uid + after


@lru_cache(maxsize=256)
def _around_instance_uid(syntax: str, sop_class_uid: str, length: int) -> tuple[bytes, bytes]:
    """File meta information before and after an instance UID of ``length`` bytes."""
    placeholder = b"\xff" * length
    body = encode_elements(
        [
            Element(0x00020001, "OB", b"\0\1"),
            Element(0x00020002, "UI", sop_class_uid.encode("ascii")),
            Element(0x00020003, "UI", placeholder),
            Element(0x00020010, "UI", syntax.encode("ascii")),
            Element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
            Element(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        ],
        implicit=False,
    )
    size = encode_elements(
        [Element(0x00020000, "UL", struct.pack("<L", len(body)))], implicit=False
    )
    before, _, after = (bytes(128) + b"DICM" + size + body).partition(placeholder)
    return before, after


def header_bytes(dataset: bytes, syntax: UID, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """``Instance.header`` for the bytes of a data set without its pixel data."""
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        syntax = ExplicitVRLittleEndian
    return file_meta(syntax, sop_class_uid, sop_instance_uid) + dataset


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, MAX_INFLATED_BYTES)
    if not inflater.eof:
        raise Unreadable("The deflated data set is cut short or larger than 2 GiB")
    return inflated


def ascii_text(value: bytes | list[list[Element]]) -> str:
    """A value that can only be ASCII, without its padding."""
    return value.decode("ascii").strip("\0 ") if isinstance(value, bytes) else ""


def _elements(dataset: Dataset) -> list[Element]:
    """Every element with its VR, as little endian bytes, sequences opened."""
    return [
        _element(dataset, cast(int, tag), entry)
        for tag, entry in list(dataset.items())
        if tag & 0xFFFF  # retired group lengths would be wrong after any change
    ]


def _element(dataset: Dataset, tag: int, entry: DataElement | RawDataElement) -> Element:
    vr = entry.VR or dictionary_vr(tag)
    if vr == "UN" and tag >> 16 & 1 == 0:
        vr = dictionary_vr(tag)  # PS3.5 6.2.2 note 2: UN keeps the real VR's encoding
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
    if " or " in vr:
        vr = settled_vr(vr, 1 if dataset.get("PixelRepresentation", 0) == 1 else 0)
    if vr not in VRS:
        raise Unreadable("An element has a Value Representation that does not exist")
    if not entry.is_little_endian and vr in WORD_BYTES:
        value = swapped(value, WORD_BYTES[vr])
    return Element(tag, vr, value)
