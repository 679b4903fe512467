"""The last look: what it finds, and what it must not mistake for an identifier."""

from __future__ import annotations

import dataclasses

import pytest

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.encoding import Element
from anonymizer.errors import ResidualIdentifier, Unreadable
from anonymizer.identity import Identifiers, identifiers_of
from anonymizer.part10 import read_instance, write_instance
from anonymizer.verify import values_before_pixels, verify_deidentified, verify_fragments
from tests.identified_ct import JAPANESE, ct_bytes, ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(32))
PSEUDONYM = "ANON-0123456789ABCDEF"
SOFTWARE_VERSIONS = 0x00181020


def identity(**attributes: object) -> Identifiers:
    """The identifiers of a CT with these attributes."""
    return identifiers_of(read_instance(ct_bytes(**attributes)).elements)


def output_with(*extra: Element, implicit: bool = False) -> bytes:
    """A small output that holds ``extra`` and nothing of a patient."""
    return write_instance(
        [
            Element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.2"),
            Element(0x00080008, "CS", rb"ORIGINAL\PRIMARY\AXIAL"),
            Element(0x00100020, "LO", PSEUDONYM.encode()),
            *extra,
        ],
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        sop_instance_uid="2.25.1",
        transfer_syntax_uid="1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1",
    )


def verify(element: Element, identifiers: Identifiers, *, implicit: bool = False) -> None:
    """Look at an output with ``element`` in it."""
    verify_deidentified(output_with(element, implicit=implicit), identifiers, PSEUDONYM)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("LO", b"Featherstone"),
        ("LO", b"dr. FEATHERSTONE's scan"),
        ("LO", b"xfeatherstonex"),
        ("SH", b"MRN-774411"),
        ("SH", b"for mrn-774411b"),
        ("ST", b"ACC20991234"),
        ("LO", b"done 20240517"),
        ("LO", b"done 2024-05-17"),
        ("LO", b"done 17.05.2024"),
        ("LO", b"5/17/2024 was not zero padded; 05/17/2024 is"),
        ("DA", b"20240517"),
        ("DT", b"20240517101112"),
        ("LO", b"born 19470812"),
        ("UI", b"1.2.3.4.5.6.7.8.9"),
        ("LO", b"see 1.2.3.4.5.6.7.8.9"),
    ],
)
def test_identifiers_are_found(vr: str, value: bytes, implicit: bool) -> None:
    """Names inside words, numbers, dates in any notation, UIDs; at top level and nested."""
    identifiers = identity().with_uids(["1.2.3.4.5.6.7.8.9"])
    tag = {"DA": 0x00080022, "DT": 0x0008002A, "UI": 0x00083010, "SH": 0x00181210,
           "ST": 0x00204000, "LO": SOFTWARE_VERSIONS}[vr]  # fmt: skip
    element = Element(tag, vr, value)
    nested = Element(0x00081140, "SQ", [[Element(0x0040A170, "SQ", [[element]])]])
    for place in (element, nested):
        with pytest.raises(ResidualIdentifier) as caught:
            verify(place, identifiers, implicit=implicit)
        assert value.decode() not in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "element"),
    [
        ({"PatientID": "1"}, Element(SOFTWARE_VERSIONS, "LO", b"1")),
        ({"PatientID": "CT"}, Element(SOFTWARE_VERSIONS, "LO", b"CT 64")),
        ({"AccessionNumber": "1234"}, Element(SOFTWARE_VERSIONS, "LO", b"1234")),
        ({"AccessionNumber": "12345"}, Element(SOFTWARE_VERSIONS, "LO", b"v9123456")),
        ({"AccessionNumber": "12345"}, Element(SOFTWARE_VERSIONS, "LO", b"0.12345")),
        ({"AccessionNumber": "12345"}, Element(0x00181152, "IS", b"12345 ")),
        ({"AccessionNumber": "123456"}, Element(0x00080030, "TM", b"123456")),
        ({"PatientID": "AB12"}, Element(SOFTWARE_VERSIONS, "LO", b"XAB123")),
        ({"name": "Kim^Li"}, Element(SOFTWARE_VERSIONS, "LO", b"Kimberlite Lite")),
        ({"name": "Primary^Axial"}, Element(0x00204000, "LT", b"nothing")),
        ({"name": "Doe^J^^Dr.^MD"}, Element(SOFTWARE_VERSIONS, "LO", b"Dr. MD")),
        ({"name": "ABC^DEF"}, Element(0x00280010, "US", b"AB")),
        ({"name": "ABC^DEF"}, Element(0x00280106, "US", b"ABC ")),
        ({"AccessionNumber": "36912258"}, Element(0x00083010, "UI", b"2.25.1369122584")),
    ],
)
def test_chance_is_not_an_identifier(attributes: dict[str, str], element: Element) -> None:
    """Short tokens, digits inside numbers, times, words of the standard: no false alarm."""
    verify(element, identity(**attributes))


def test_non_ascii_name_is_found_in_every_encoding() -> None:
    """Japanese in ISO 2022, with and without the escapes around it, and in UTF-8."""
    identifiers = identity(name=JAPANESE, charset=["", "ISO 2022 IR 87"])
    japanese = "山田太郎の検査".encode("iso2022_jp")
    charset = Element(0x00080005, "CS", rb"\ISO 2022 IR 87")
    data = output_with(charset, Element(SOFTWARE_VERSIONS, "LO", japanese))
    with pytest.raises(ResidualIdentifier):
        verify_deidentified(data, identifiers, PSEUDONYM)
    utf8 = Element(SOFTWARE_VERSIONS, "LO", "検査 たろう".encode())
    data = output_with(Element(0x00080005, "CS", b"ISO_IR 192"), utf8)
    with pytest.raises(ResidualIdentifier):
        verify_deidentified(data, identifiers, PSEUDONYM)


def test_name_under_the_wrong_character_set_is_found() -> None:
    """An attribute's bytes are compared as bytes too: Latin-1 read as nothing else."""
    identifiers = identity(name="Müllersen^Jürgen")
    element = Element(SOFTWARE_VERSIONS, "LO", "Müllersen".encode("latin-1"))
    data = output_with(Element(0x00080005, "CS", b"ISO_IR 144"), element)
    with pytest.raises(ResidualIdentifier):
        verify_deidentified(data, identifiers, PSEUDONYM)


def test_preamble_with_content_is_found() -> None:
    """128 zero bytes, or it does not leave."""
    data = b"II*\0" + output_with()[4:]
    with pytest.raises(ResidualIdentifier, match="preamble"):
        verify_deidentified(data, identity(), PSEUDONYM)


def test_identifier_in_file_meta_is_found() -> None:
    """The file meta information is searched like everything else."""
    data = output_with().replace(b"SEGNODE_1 ", b"QUILLON_1 ")
    verify_deidentified(output_with(), identity(), PSEUDONYM)
    with pytest.raises(ResidualIdentifier, match="ImplementationVersionName"):
        verify_deidentified(data, identity(), PSEUDONYM)


def test_every_byte_is_searched_or_the_check_fails() -> None:
    """A length that does not fit is an error, not a place to hide."""
    data = output_with(Element(0x00081140, "SQ", [[Element(SOFTWARE_VERSIONS, "LO", b"abcd")]]))
    broken = data.replace(b"LO\x04\0abcd", b"LO\x40\0abcd")
    assert broken != data
    with pytest.raises(Unreadable):
        verify_deidentified(broken, identity(), PSEUDONYM)


def test_independent_reader_sees_what_pydicom_sees() -> None:
    """The reader of the check finds the same values at the same places."""
    ds = ct_instance()
    data = deidentify_instance(part10(ds), basic_policy(), KEYS).data
    seen = {value.path[-1] for value in values_before_pixels(data) if len(value.path) == 1}
    instance = read_instance(data)
    flat = {element.tag for element in instance.elements if isinstance(element.value, bytes)}
    assert seen - {tag for tag in seen if tag >> 16 == 2} == flat


def test_fragments_with_text_are_found_and_chance_is_not() -> None:
    """Six bytes and more are searched for in compressed streams."""
    identifiers = dataclasses.replace(identity(), names=frozenset({"kim", "featherstone"}))
    verify_fragments(b"\xff\xd8 kim \xff\xd9", identifiers)
    with pytest.raises(ResidualIdentifier):
        verify_fragments(b"\xff\xd8\xff\xfe\0\x10FeatherStone\xff\xd9", identifiers)
