"""Give a derived object back its patient.

One function for every kind of object, whoever made it (our SEG, one that a person corrected, what a
foreign program returns): it walks all sequences, so no reference is forgotten. What the object
shares with its study, the Patient and Study modules (PS3.3 C.7.1, C.7.2), comes from the sealed
original header byte for byte; what is new in it stays. :mod:`anonymizer.release` has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from anonymizer.character_sets import with_one_character_set
from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import STUDY_INSTANCE_UID
from anonymizer.encoding import Element
from anonymizer.errors import ReferenceMismatch
from anonymizer.part10 import SPECIFIC_CHARACTER_SET, read_instance, write_instance
from anonymizer.profile import PATIENT_ID, WRITTEN_TAGS, patient_study_attributes
from anonymizer.release import check_released, holds_pseudonym
from anonymizer.uids import has_form_of_pseudonym

__all__ = ["check_released", "reidentify_object"]

_PSEUDONYM = re.compile(rb"ANON-[0-9A-F]{16}")


def reidentify_object(data: bytes, crosswalk: Crosswalk) -> bytes:
    """The derived object with its patient, its study and every reference restored.

    Parameters
    ----------
    data
        A DICOM Part 10 object made from the de-identified series.
    crosswalk
        The crosswalk of that series; for an object made from several series of one study, theirs
        joined (:meth:`Crosswalk.joined_with`).

    Returns
    -------
    bytes
        The object in its own transfer syntax. Attributes of the Patient and Study modules are the
        original's (absent ones absent, Type 2 ones empty); UIDs and dates that came from the series
        are original, at every depth; UIDs, dates and text that the object brought along stay.
        Text is in the original's SpecificCharacterSet, or in the object's own where the patient
        and study are written in ASCII. A private attribute that holds a pseudonym is gone: nobody
        can say what the rest of it means.

    Raises
    ------
    ReferenceMismatch
        The object says that it is another patient's or another study's.
    Unreadable, Unsupported
        Not one complete object, or its text does not fit into the original's character set.
    """
    instance = read_instance(data, pixels_required=False)
    _refuse_other_identity(instance.elements, crosswalk)
    shared = patient_study_attributes()
    stated = b""
    own = []
    for element in instance.elements:
        if element.tag == SPECIFIC_CHARACTER_SET:
            stated = bytes(element.value) if isinstance(element.value, bytes) else b""
        elif element.tag not in shared and element.tag not in WRITTEN_TAGS:
            own.append(element)
    original = crosswalk.patient_and_study
    own, character_set = with_one_character_set(own, stated, original, crosswalk.character_set)
    if character_set:
        original = [Element(SPECIFIC_CHARACTER_SET, "CS", character_set), *original]
    return write_instance(
        [*_restored(own, crosswalk), *original],
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=crosswalk.originals.get(
            instance.sop_instance_uid, instance.sop_instance_uid
        ),
        transfer_syntax_uid=instance.transfer_syntax_uid,
        pixel_data=instance.pixel_data,
    )


def _refuse_other_identity(elements: Iterable[Element], crosswalk: Crosswalk) -> None:
    """Raise if the object names another study or patient of this node: theirs would be replaced."""
    for tag, _, value in elements:
        if not isinstance(value, bytes):
            continue
        bare = value.strip(b"\0 ")
        if tag == STUDY_INSTANCE_UID:
            uid = bare.decode("latin-1")
            known = (crosswalk.study_instance_uid, crosswalk.pseudonymous_study_instance_uid)
            if uid not in known and has_form_of_pseudonym(uid):
                raise ReferenceMismatch("StudyInstanceUID is the pseudonym of another study")
        elif tag == PATIENT_ID and _PSEUDONYM.fullmatch(bare):
            originals = [e.value for e in crosswalk.patient_and_study if e.tag == PATIENT_ID]
            if bare != crosswalk.pseudonym.encode("ascii") and value not in originals:
                raise ReferenceMismatch("PatientID is the pseudonym of another patient")


def _restored(elements: Iterable[Element], crosswalk: Crosswalk) -> list[Element]:
    restored = []
    for tag, vr, value in elements:
        if isinstance(value, list):
            items = [_restored(item, crosswalk) for item in value]
            restored.append(Element(tag, vr, items))
            continue
        if vr == "UI":
            value = _original_uids(value, crosswalk)
        elif vr in ("DA", "DT"):
            value = _original_dates(value, crosswalk)
        element = Element(tag, vr, value)
        if not (tag >> 16 & 1 and holds_pseudonym(element, crosswalk)):
            restored.append(element)
    return restored


def _original_uids(value: bytes, crosswalk: Crosswalk) -> bytes:
    uids = [uid.strip("\0 ") for uid in value.decode("latin-1").split("\\")]
    return "\\".join(crosswalk.originals.get(uid, uid) for uid in uids).encode("latin-1")


def _original_dates(value: bytes, crosswalk: Crosswalk) -> bytes:
    """Dates copied from the series, original; the object's own dates as they are."""
    dates = value.decode("latin-1").split("\\")
    return "\\".join(
        crosswalk.original_dates.get(date[:8], date[:8]) + date[8:] for date in dates
    ).encode("latin-1")
