"""De-identify instances: one in, one out, with what is needed to find the way back.

The output is built anew from what the policy lets through, never edited from the input, and is
searched for the patient's identifiers before it is handed over.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import config
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from anonymizer.actions import (
    CODE_MEANING,
    CODE_VALUE,
    CODING_SCHEME,
    Patient,
    treat_elements,
)
from anonymizer.dates import shift_days_for
from anonymizer.encoding import Element
from anonymizer.errors import BurnedInText, Unreadable, Unsupported
from anonymizer.identity import Identifiers, identifiers_of, leaves
from anonymizer.keys import PseudonymKeys
from anonymizer.part10 import (
    SPECIFIC_CHARACTER_SET,
    Instance,
    decode_text,
    read_instance,
    write_instance,
)
from anonymizer.pixels import WITHOUT_PIXELS, beyond_blanking, burned_in_risk, is_drawn
from anonymizer.profile import (
    PATIENT_ID,
    PATIENT_NAME,
    TEXT_VRS,
    ClassPolicy,
    Policy,
    patient_study_attributes,
)
from anonymizer.verify import verify_deidentified, verify_fragments

STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
FRAME_OF_REFERENCE_UID = 0x00200052
ISSUER_OF_PATIENT_ID = 0x00100021
STRING_VRS = TEXT_VRS | {"CS", "DA", "DS", "DT", "IS", "TM"}
_NUL_INSIDE = re.compile(rb"\0[^\0 \\]")
# Read by burned_in_risk, which takes a Dataset.
PIXEL_JUDGEMENT_TAGS = frozenset({
    0x00080008, 0x00080016, 0x00080064, 0x00280004, 0x00280301, 0x00280302,
})  # fmt: skip


@dataclass(frozen=True)
class OriginalIdentity:
    """Who and what an instance was: its part of the crosswalk. ``repr`` shows nothing of it."""

    header: bytes = field(repr=False)
    """Part 10 bytes of the original without its pixel data."""
    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    study_instance_uid: str = field(repr=False)
    series_instance_uid: str = field(repr=False)
    frame_of_reference_uid: str | None = field(repr=False)
    uids: Mapping[str, str] = field(repr=False)
    """Original instance UID to pseudonymous UID, for every UID that was replaced."""
    dates: Mapping[str, str] = field(repr=False)
    """Original date to shifted date, YYYYMMDD."""
    shift_days: int = field(repr=False)
    pseudonym: str
    profile_digest: str


@dataclass(frozen=True)
class DeidentifiedInstance:
    """A de-identified instance and, apart from it, what it was made from."""

    header: bytes = field(repr=False)
    """DICOM Part 10 bytes up to the pixel data."""
    pixel_data: bytes | memoryview = field(repr=False)
    """The rest of them; where nothing had to change, a view of the input."""
    sop_instance_uid: str
    """Pseudonymous, like all UIDs here."""
    series_instance_uid: str
    study_instance_uid: str
    original: OriginalIdentity

    @property
    def data(self) -> bytes:
        """DICOM Part 10 bytes. A copy: ``writelines((header, pixel_data))`` does without it."""
        return b"".join((self.header, self.pixel_data))


def deidentify_instance(
    source: bytes | Path, policy: Policy, keys: PseudonymKeys
) -> DeidentifiedInstance:
    """De-identify one DICOM Part 10 instance under ``policy`` (PS3.15 E.1).

    Raises
    ------
    Rejected
        Not one complete instance, or one that no rule covers.
    Quarantined
        The pixels may show the patient, or an identifier survived.
    """
    data = source.read_bytes() if isinstance(source, Path) else source
    instance = read_instance(data, pixels_required=False)
    return released(instance, treated(instance, policy, keys), policy)


@dataclass(frozen=True)
class Treated:
    """What an instance becomes, not yet verified. ``repr`` shows nothing of it."""

    patient: Patient = field(repr=False)
    """Whom it is about, with the UIDs and dates of the whole instance."""
    class_policy: ClassPolicy = field(repr=False)
    elements: list[Element] = field(repr=False)
    """As they may leave, without those that every output states."""


def treated(instance: Instance, policy: Policy, keys: PseudonymKeys) -> Treated:
    """The elements of ``instance`` under ``policy``.

    Raises
    ------
    Unsupported
        No rule covers the SOP Class, or a character set.
    BurnedInText
        The pixels may show the patient.
    """
    class_policy = class_policy_for(instance, policy)
    refuse_unknown_character_sets(instance.elements)
    refuse_swallowed_elements(instance.elements)
    patient = patient_of(instance.elements, policy, keys)
    elements = treat_elements(instance.elements, class_policy, patient, parent=0, character_set=b"")
    return Treated(patient, class_policy, elements)


def released(instance: Instance, made: Treated, policy: Policy) -> DeidentifiedInstance:
    """The output for ``instance``, written and verified.

    Raises
    ------
    Unreadable
        It belongs to no series.
    ResidualIdentifier
        An identifier of the patient is left in it.
    """
    patient = made.patient
    original = original_identity(instance, patient, policy)
    sop_instance_uid = patient.pseudonym_of_uid(instance.sop_instance_uid)
    header = write_instance(
        with_written_elements(made.elements, policy, patient),
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
    )
    identifiers = residual_identifiers(patient)
    verify_deidentified(header, identifiers, patient.pseudonym)
    if UID(instance.transfer_syntax_uid).is_encapsulated:
        verify_fragments(instance.pixel_data, identifiers)
    return DeidentifiedInstance(
        header=header,
        pixel_data=instance.pixel_data,
        sop_instance_uid=sop_instance_uid,
        series_instance_uid=patient.pseudonym_of_uid(original.series_instance_uid),
        study_instance_uid=patient.pseudonym_of_uid(original.study_instance_uid),
        original=original,
    )


def residual_identifiers(patient: Patient) -> Identifiers:
    """What must not be found in the output, once all elements are treated.

    A date that is also what another date became cannot be told from it.
    """
    return patient.identifiers.with_uids(patient.uids).without_dates(patient.dates.values())


def class_policy_for(instance: Instance, policy: Policy) -> ClassPolicy:
    """The rules for this instance, if there are any and its pixels are above suspicion."""
    judged = judged_dataset(instance)
    reason = burned_in_risk(judged)
    if policy.cleans_pixels and judged.get("BurnedInAnnotation") == "NO":
        reason = beyond_blanking(judged)
    held = BurnedInText(f"The pixels may show the patient's identity: {reason}")
    if reason is not None and is_drawn(instance.sop_class_uid):
        raise held  # most of them have no rules, which is not what is wrong with them
    class_policy = policy.for_sop_class(instance.sop_class_uid)
    if instance.sop_class_uid in WITHOUT_PIXELS:
        if instance.pixel_data:
            raise Unsupported("Pixel Data (7FE0,0010) in an object of a kind that has none")
    elif not instance.pixel_data:
        raise Unreadable("The instance ends before its Pixel Data (7FE0,0010)")
    if reason is not None:
        raise held
    return class_policy


def patient_key(elements: Iterable[Element]) -> str:
    """What tells this patient from others: PatientID and its issuer.

    Without a PatientID, the study: two unknown patients must never become one.
    """
    values: dict[int, str] = {}
    for (tag, vr, value), character_set in leaves(elements, b""):
        if tag in (PATIENT_ID, ISSUER_OF_PATIENT_ID, STUDY_INSTANCE_UID) and value:
            text = decode_text(bytes(value), character_set, vr)  # type: ignore[arg-type]
            values.setdefault(tag, unicodedata.normalize("NFC", text.strip()))
    patient_id = values.get(PATIENT_ID)
    if not patient_id:
        return "study\0" + values.get(STUDY_INSTANCE_UID, "")
    return "patient\0" + patient_id + "\0" + values.get(ISSUER_OF_PATIENT_ID, "")


def patient_pseudonym(patient: str, key: bytes) -> str:
    """``ANON-`` and 64 bits of HMAC-SHA256 as hexadecimal digits."""
    digest = hmac.digest(key, patient.encode("utf-8"), hashlib.sha256)
    return "ANON-" + digest[:8].hex().upper()


def refuse_unknown_character_sets(elements: Iterable[Element]) -> None:
    """A name that cannot be read cannot be searched for."""
    for tag, _, value in elements:
        if isinstance(value, list):
            if not tag >> 16 & 1:  # private sequences go unread
                for item in value:
                    refuse_unknown_character_sets(item)
        elif tag == SPECIFIC_CHARACTER_SET:
            terms = value.decode("latin-1").split("\\")
            if any(term.rstrip("\0 ").lstrip(" ") not in python_encoding for term in terms):
                raise Unsupported("A term of SpecificCharacterSet (0008,0005) is not DICOM's")


def refuse_swallowed_elements(elements: Iterable[Element]) -> None:
    """A wrong length makes a value of the elements after it: the patient's name could be inside one
    that is kept, and nobody would know that it is a name. Their headers hold NUL, which text has at
    its end only (PS3.5 6.2)."""
    for (tag, vr, value), _ in leaves(elements, b""):
        if vr in STRING_VRS and isinstance(value, bytes) and _NUL_INSIDE.search(value):
            raise Unreadable(
                f"{keyword_for_tag(tag) or 'An attribute'} ({tag >> 16:04X},{tag & 0xFFFF:04X}) "
                "holds NUL before its end: its length is wrong, or its text is damaged"
            )


def patient_of(elements: list[Element], policy: Policy, keys: PseudonymKeys) -> Patient:
    """Whom the top-level ``elements`` are about."""
    # PatientID counts only at top level: a nested one may be another patient's.
    top = [element for element in elements if isinstance(element.value, bytes)]
    patient = patient_key(top)
    return Patient(
        uid_key=keys.uid,
        pseudonym=patient_pseudonym(patient, keys.patient_id),
        shift_days=shift_days_for(patient, keys.date_shift) if policy.shifts_dates else 0,
        identifiers=identifiers_of(elements, policy.retained),
        retains_uids=policy.retains_uids,
    )


def judged_dataset(instance: Instance) -> Dataset:
    """The few attributes by which the pixels are judged, decoded."""
    dataset = Dataset()
    for tag, _vr, value in instance.elements:
        if tag in PIXEL_JUDGEMENT_TAGS and isinstance(value, bytes):
            terms = value.decode("latin-1").rstrip("\0 ").split("\\")
            vr = dictionary_VR(tag)
            # pydicom's complaint about a malformed value would quote it.
            dataset.add(DataElement(tag, vr, terms, validation_mode=config.IGNORE))
        elif tag >> 16 & 0xFF01 == 0x6000 and tag & 0xFFFF in (0x0102, 0x3000):
            dataset.add_new(tag, "US", None)  # its presence is what counts
    return dataset


def with_written_elements(
    elements: list[Element], policy: Policy, patient: Patient
) -> list[Element]:
    """``elements`` with what every output states (PS3.15 E.1.1) and must have.

    The character set is UTF-8 if there is text outside ASCII, else not stated: the original one
    tells where the patient lives, and not every reader knows it.
    """
    codes = [
        [
            Element(CODE_VALUE, "SH", code.encode("ascii")),
            Element(CODING_SCHEME, "SH", b"DCM"),
            Element(CODE_MEANING, "LO", meaning.encode("ascii")),
        ]
        for code, meaning in policy.methods
    ]
    exceptions = "" if codes else " with exceptions"
    method = f"segnode PS3.15 {policy.edition[:5]}{exceptions}; {policy.digest[:16]}"
    written = {
        PATIENT_NAME: Element(PATIENT_NAME, "PN", patient.name.encode("ascii")),
        PATIENT_ID: Element(PATIENT_ID, "LO", patient.pseudonym.encode("ascii")),
        0x00120062: Element(0x00120062, "CS", b"YES"),
        0x00120063: Element(0x00120063, "LO", method.encode("ascii")),
        0x00280303: Element(0x00280303, "CS", policy.temporal_information.encode("ascii")),
    }
    if codes:
        written[0x00120064] = Element(0x00120064, "SQ", codes)
    for tag, attribute_type in patient_study_attributes().items():
        if attribute_type == "2" and not any(element.tag == tag for element in elements):
            written.setdefault(tag, Element(tag, dictionary_VR(tag), b""))
    if has_text_outside_ascii(elements):
        utf8 = Element(SPECIFIC_CHARACTER_SET, "CS", b"ISO_IR 192")
        written[SPECIFIC_CHARACTER_SET] = utf8
    for tag, value in policy.additions.items():
        written[tag] = Element(tag, dictionary_VR(tag), value.encode("ascii"))
    return [element for element in elements if element.tag not in written] + [*written.values()]


def has_text_outside_ascii(elements: Iterable[Element]) -> bool:
    """Whether any text, at any depth, needs a character set."""
    for _, vr, value in elements:
        if isinstance(value, list):
            if any(map(has_text_outside_ascii, value)):
                return True
        elif vr in TEXT_VRS and not value.isascii():
            return True
    return False


def original_identity(instance: Instance, patient: Patient, policy: Policy) -> OriginalIdentity:
    """The instance's part of the crosswalk, once all elements are treated."""
    top = {
        element.tag: element.value.decode("latin-1").strip("\0 ")
        for element in instance.elements
        if isinstance(element.value, bytes)
        and element.tag in (STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, FRAME_OF_REFERENCE_UID)
    }
    for tag in (STUDY_INSTANCE_UID, SERIES_INSTANCE_UID):
        if not top.get(tag):
            raise Unreadable(f"No {keyword_for_tag(tag)}: the instance belongs to no series")
    return OriginalIdentity(
        header=instance.header,
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        study_instance_uid=top[STUDY_INSTANCE_UID],
        series_instance_uid=top[SERIES_INSTANCE_UID],
        frame_of_reference_uid=top.get(FRAME_OF_REFERENCE_UID) or None,
        uids=dict(patient.uids),
        dates=dict(patient.dates),
        shift_days=patient.shift_days,
        pseudonym=patient.pseudonym,
        profile_digest=policy.digest,
    )
