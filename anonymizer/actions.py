"""The actions of the profile, each a function from one element to its replacement.

``None`` means that the element goes. What is kept must be what its VR promises (PS3.5 6.2) and must
not hold an identifier of this patient; a value that fails is dropped, never repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import assert_never

from pydicom._dicom_dict import DicomDictionary

from anonymizer.closed_lists import CLOSED_LISTS, KNOWN_SCHEMES
from anonymizer.content_items import CONTENT_SEQUENCE, describes_subject
from anonymizer.dates import cap_age, shift_date, shift_date_time
from anonymizer.descriptors import cleaned_text
from anonymizer.encoding import WORD_BYTES, Element
from anonymizer.identity import Identifiers
from anonymizer.part10 import SPECIFIC_CHARACTER_SET, decode_text
from anonymizer.private import safe_private_elements
from anonymizer.profile import CODED_ENTRY, PATIENT_NAME, TEXT_VRS, Action, ClassPolicy
from anonymizer.uids import pseudonymous_uid

# What a value of each VR may look like (PS3.5 Table 6.2-1); binary VRs are checked by length.
_VALUE_FORMS = {
    "AS": re.compile(rb"\d{3}[DWMY]"),
    "CS": re.compile(rb"[A-Z0-9 _]{0,16}"),
    "DA": re.compile(rb"\d{8}"),
    "DS": re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"),
    "IS": re.compile(rb"[+-]?\d{1,11}"),
    "TM": re.compile(rb"\d{2}:?(\d{2}:?(\d{2}(\.\d{1,6})?)?)?"),
    "UI": re.compile(rb"[0-9.]{1,64}"),
}
# Whole values, of one number or time or several: kept, they stay as they are, whoever it is.
NUMBER_FORMS = {
    vr: re.compile(rb"(?:%b) *(?:\\(?:%b) *)*" % (form.pattern, form.pattern))
    for vr, form in _VALUE_FORMS.items()
    if vr in ("DS", "IS", "TM")
}
# Numbers that count, into which hospitals write others: a study's, an order's, a patient's. Of any
# other number that equals one of those, the last look decides: it may be measured with, so nothing
# is made up in its place.
LABELS = frozenset({0x00200011, 0x00200012, 0x00200013})  # Series, Acquisition, Instance Number
# Stands in for a removed value where the IOD demands one; says nothing about anybody.
_DUMMIES = {
    "AS": b"000Y", "CS": b"ANON", "DA": b"19000101", "DS": b"0", "DT": b"19000101000000",
    "IS": b"0", "PN": b"ANON^", "TM": b"000000", "UR": b"urn:anon",
}  # fmt: skip
CODE_VALUE, CODING_SCHEME, CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
CODE_VALUES = frozenset({CODE_VALUE, 0x00080119, 0x00080120})
# SNOMED CT "Unknown (qualifier value)": a valid coded entry where the IOD demands one.
UNKNOWN_CODE = [
    Element(CODE_VALUE, "SH", b"261665006"),
    Element(CODING_SCHEME, "SH", b"SCT"),
    Element(CODE_MEANING, "LO", b"Unknown"),
]


@dataclass
class Patient:
    """What is the same for a whole instance: keys, pseudonym, shift, and what to look for.

    ``uids`` and ``dates`` fill up while the instance is treated: the start of the crosswalk.
    """

    uid_key: bytes = field(repr=False)
    pseudonym: str
    shift_days: int = field(repr=False)
    identifiers: Identifiers = field(repr=False)
    uids: dict[str, str] = field(default_factory=dict, repr=False)
    """Original instance UID to pseudonymous UID."""
    dates: dict[str, str] = field(default_factory=dict, repr=False)
    """Original date to shifted date, both YYYYMMDD."""
    retains_uids: bool = False
    """Whether instance UIDs stay (PS3.15 E.3.9): then each is its own pseudonym."""

    @property
    def name(self) -> str:
        """The pseudonym as a person name: a family name and nothing else."""
        return self.pseudonym + "^"

    def pseudonym_of_uid(self, uid: str) -> str:
        """The pseudonymous UID, remembered for the crosswalk."""
        if self.retains_uids:
            return uid
        known = self.uids.get(uid)
        if known is None:
            known = pseudonymous_uid(uid, self.uid_key)
            if known != uid:
                self.uids[uid] = known
        return known


def treat_elements(
    elements: list[Element],
    policy: ClassPolicy,
    patient: Patient,
    parent: int,
    character_set: bytes,
) -> list[Element]:
    """The elements of one data set or item as they may leave."""
    for element in elements:
        if element.tag == SPECIFIC_CHARACTER_SET and isinstance(element.value, bytes):
            character_set = element.value
    treated = (treat(element, policy, patient, parent, character_set) for element in elements)
    return [
        *(element for element in treated if element is not None),
        *safe_private_elements(elements, policy.safe_private),
    ]


def treat(
    element: Element, policy: ClassPolicy, patient: Patient, parent: int, character_set: bytes
) -> Element | None:
    """One element as it may leave, or None."""
    tag, vr, value = element
    if tag >> 16 & 1 or not has_dictionary_vr(tag, vr):
        return None
    action = policy.action(parent, tag)
    if action is Action.REMOVE:
        return None
    if tag == SPECIFIC_CHARACTER_SET:
        return None  # what is kept is written in UTF-8; see deidentify
    if action is Action.CONSTANT:
        return Element(tag, vr, policy.constants[tag].encode("ascii"))
    if isinstance(value, list):
        if action is Action.EMPTY:
            return Element(tag, vr, [])
        return _walked(tag, value, policy, patient, parent, character_set)
    if action is Action.EMPTY:
        return Element(tag, vr, b"")
    if action is Action.DUMMY:
        return Element(tag, vr, dummy(vr))
    if action is Action.PSEUDONYM:
        text = patient.name if tag == PATIENT_NAME else patient.pseudonym
        return Element(tag, vr, text.encode("ascii"))
    if action is Action.UID:
        return Element(tag, vr, _mapped_uids(value, patient))
    if action is Action.SHIFT:
        return Element(tag, vr, _shifted(vr, value, patient))
    if action is Action.CAP_AGE:
        return Element(tag, vr, (cap_age(value.decode("latin-1")) or "").encode("ascii"))
    if action is Action.CLEAN:
        original = decode_text(value, character_set, vr)
        text = cleaned_text(original, patient.identifiers.digits)
        if not text and policy.attribute_type(parent, tag) == 3:
            return None
        element = Element(tag, vr, text.encode("utf-8") or dummy(vr))
        return _kept(element, policy, patient, parent, b"ISO_IR 192")
    if action is Action.KEEP or action is Action.WALK:
        return _kept(element, policy, patient, parent, character_set)
    assert_never(action)


def dummy(vr: str) -> bytes:
    """A value of ``vr`` that says nothing."""
    return _DUMMIES.get(vr, b"ANON" if vr in TEXT_VRS else b"")


@lru_cache(maxsize=8192)
def has_dictionary_vr(tag: int, vr: str) -> bool:
    """Whether ``vr`` is one that PS3.6 allows; a disguised value is not looked at further."""
    entry = DicomDictionary.get(tag)
    return entry is not None and vr in entry[0].split(" or ")


def _mapped_uids(value: bytes, patient: Patient) -> bytes:
    uids = value.decode("latin-1").split("\\")
    return "\\".join(patient.pseudonym_of_uid(uid.strip("\0 ")) for uid in uids).encode("ascii")


def _shifted(vr: str, value: bytes, patient: Patient) -> bytes:
    """Dates moved; one that cannot be read becomes empty, never stays."""
    shift = shift_date if vr == "DA" else shift_date_time
    moved = []
    for original in value.decode("latin-1").split("\\"):
        shifted = shift(original, patient.shift_days) or ""
        if shifted:
            day = original.strip("\0 ").replace(".", "")[:8] if vr == "DA" else original[:8]
            patient.dates[day] = shifted[:8]
        moved.append(shifted)
    return "\\".join(moved).encode("ascii")


def _kept(
    element: Element, policy: ClassPolicy, patient: Patient, parent: int, character_set: bytes
) -> Element | None:
    """The element without values that are malformed or name this patient."""
    tag, vr, value = element
    if not isinstance(value, bytes) or not value:
        return element
    if vr in WORD_BYTES:
        return element if len(value) % WORD_BYTES[vr] == 0 else None
    if vr in ("OB", "UN", "OV"):
        return None
    if tag in LABELS and _is_known_number(value, patient):
        return Element(tag, vr, dummy(vr))
    values = [value] if vr in ("ST", "LT", "UT", "UR") else value.split(b"\\")
    kept = [one for one in values if _may_stay(tag, vr, one, patient, character_set)]
    if len(kept) == len(values):
        return Element(tag, vr, _in_utf8(value, character_set, vr)) if vr in TEXT_VRS else element
    if kept and vr == "CS":
        return Element(tag, vr, b"\\".join(kept))
    attribute_type = policy.attribute_type(parent, tag)
    if attribute_type == 3:
        return None
    return Element(tag, vr, dummy(vr) if attribute_type == 1 else b"")


def _is_known_number(value: bytes, patient: Patient) -> bool:
    """Whether one of the values is a number of six digits or more that the patient goes by."""
    return any(map(patient.identifiers.is_whole_number, value.decode("latin-1").split("\\")))


def _in_utf8(value: bytes, character_set: bytes, vr: str) -> bytes:
    """Text in the one character set that the output uses; ASCII is the same in all."""
    if value.isascii() and b"\x1b" not in value:
        return value
    return decode_text(value, character_set, vr).encode("utf-8")


def _may_stay(tag: int, vr: str, value: bytes, patient: Patient, character_set: bytes) -> bool:
    form = _VALUE_FORMS.get(vr)
    stripped = value.strip(b"\0 ")
    if form is not None and stripped and not form.fullmatch(stripped):
        return False
    if vr in ("DS", "IS", "TM", "DA", "UI"):
        return True
    text = decode_text(value, character_set, vr).strip()
    if not text or text in CLOSED_LISTS.get(tag, ()):
        return True
    return not patient.identifiers.occurs_in(text)


def _walked(
    tag: int,
    items: list[list[Element]],
    policy: ClassPolicy,
    patient: Patient,
    parent: int,
    character_set: bytes,
) -> Element | None:
    """A sequence with its items treated; items that say nothing any more are left out."""
    kept = []
    for item in items:
        if tag == CONTENT_SEQUENCE and describes_subject(item):
            continue
        coded = any(element.tag in CODED_ENTRY for element in item)
        cleaned = cleaned_coded_item(item, patient, character_set) if coded else item
        treated = treat_elements(cleaned, policy, patient, tag, character_set)
        if treated or not item:
            kept.append(treated)
    if kept or not items:
        return Element(tag, "SQ", kept)
    attribute_type = policy.attribute_type(parent, tag)
    if attribute_type == 2:
        return Element(tag, "SQ", [])
    held_codes = any(element.tag in CODE_VALUES for item in items for element in item)
    # Of Type 1C, it may be absent where there is nothing to say; empty, it may never be.
    return Element(tag, "SQ", [list(UNKNOWN_CODE)]) if attribute_type == 1 and held_codes else None


def cleaned_coded_item(
    item: list[Element], patient: Patient, character_set: bytes
) -> list[Element]:
    """A coded entry of a published scheme; nothing of a local one (PS3.3 8.8).

    A local code's meaning is free text, and even its scheme names the hospital. Where the meaning
    of a published code holds a name of this patient, its code stands in for it.
    """
    values = {element.tag: element.value for element in item}
    scheme = values.get(CODING_SCHEME, b"")
    if not isinstance(scheme, bytes) or scheme.strip(b"\0 ") not in KNOWN_SCHEMES:
        return []
    codes = [values[tag] for tag in CODE_VALUES if values.get(tag)]
    for code in codes:
        if not isinstance(code, bytes) or patient.identifiers.occurs_in(code.decode("latin-1")):
            return []
    cleaned = []
    for element in item:
        value = element.value
        if element.tag == CODE_MEANING and isinstance(value, bytes):
            text = decode_text(value, character_set, "LO")
            if patient.identifiers.occurs_in(text):
                element = Element(element.tag, element.vr, codes[0] if codes else b"ANON")
        cleaned.append(element)
    return cleaned
