"""Give a derived object back its patient, and check it before it goes.

One function for every kind of object (SEG, SR, Secondary Capture): it walks all sequences, so no
reference is forgotten. What the object shares with its study, the Patient and Study modules
(PS3.3 C.7.1, C.7.2), comes from the sealed original header byte for byte; its own SOP Instance and
Series Instance UIDs stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from pydicom.datadict import dictionary_VR, keyword_for_tag

from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import FRAME_OF_REFERENCE_UID, SERIES_INSTANCE_UID, STUDY_INSTANCE_UID
from anonymizer.encoding import Element
from anonymizer.errors import PseudonymRemains, ReferenceMismatch, Unsupported
from anonymizer.identity import leaves
from anonymizer.part10 import (
    SPECIFIC_CHARACTER_SET,
    Instance,
    read_instance,
    write_instance,
)
from anonymizer.profile import TEXT_VRS, WRITTEN_TAGS, patient_study_attributes

REFERENCED_SOP_CLASS_UID = 0x00081150
REFERENCED_SOP_INSTANCE_UID = 0x00081155
REFERENCED_SERIES_SEQUENCE = 0x00081115
# Sequences that say what else there is, not what the object was made from. Their instances need
# not be of the series, but must be ones that the series itself names.
_CONTEXT_SEQUENCES = frozenset({0x00081111, 0x00081140})
_PSEUDONYMOUS_UID = re.compile(r"2\.25\.\d+")
_DATE = re.compile(r"(?<!\d)\d{8}(?!\d)")


def reidentify_object(data: bytes, crosswalk: Crosswalk) -> bytes:
    """The derived object with its patient, its study and every reference restored.

    Parameters
    ----------
    data
        A DICOM Part 10 object made from the de-identified series.
    crosswalk
        The crosswalk of that series.

    Returns
    -------
    bytes
        The object in its own transfer syntax. Attributes of the Patient and Study modules are the
        original's (absent ones absent, Type 2 ones empty), with its SpecificCharacterSet; UIDs and
        dates that came from the series are original; private attributes are gone, because nobody
        can say what they hold.

    Raises
    ------
    Unreadable, Unsupported
        Not one complete object, or it has text of its own outside ASCII, which the original's
        character set may not be able to say.
    """
    instance = read_instance(data, pixels_required=False)
    shared = patient_study_attributes()
    own = [
        element
        for element in instance.elements
        if element.tag not in shared
        and element.tag not in WRITTEN_TAGS
        and element.tag != SPECIFIC_CHARACTER_SET
    ]
    _refuse_own_non_ascii(own)
    return write_instance(
        _restored(own, crosswalk) + _patient_and_study(crosswalk),
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        pixel_data=instance.pixel_data,
    )


def check_released(
    data: bytes, crosswalk: Crosswalk, *, siblings: Collection[str] = frozenset()
) -> None:
    """The gate: raise unless ``data`` may go back to the hospital.

    It must have the original's patient and study, refer to at least one instance of the series and
    to no instance outside it, and hold no pseudonym, pseudonymous UID or shifted date.

    Parameters
    ----------
    data
        What :func:`reidentify_object` returned.
    crosswalk
        The crosswalk of the series it was made from.
    siblings
        SOP Instance UIDs of other results of the same job, to which it may refer (SR to SEG).

    Raises
    ------
    ReferenceMismatch, PseudonymRemains
        Names the attribute.
    """
    instance = read_instance(data, pixels_required=False)
    shared = patient_study_attributes()
    _check_is_new(instance, crosswalk)
    _check_patient_and_study(instance.elements, crosswalk)
    own = [element for element in instance.elements if element.tag not in shared]
    _check_no_pseudonym(own, crosswalk)
    _check_references(own, crosswalk, frozenset(siblings) | {instance.sop_instance_uid})


# ---------------------------------------------------------------- restoring


def _patient_and_study(crosswalk: Crosswalk) -> list[Element]:
    """SpecificCharacterSet and the Patient and Study modules of the original."""
    shared = patient_study_attributes()
    found = {
        element.tag: element
        for element in crosswalk.elements
        if element.tag in shared or element.tag == SPECIFIC_CHARACTER_SET
    }
    for tag, attribute_type in shared.items():
        if attribute_type == "2" and tag not in found:
            found[tag] = Element(tag, dictionary_VR(tag), b"")
    return list(found.values())


def _restored(elements: Iterable[Element], crosswalk: Crosswalk) -> list[Element]:
    restored = []
    for tag, vr, value in elements:
        if tag >> 16 & 1:
            continue
        if isinstance(value, list):
            restored.append(Element(tag, vr, [_restored(item, crosswalk) for item in value]))
        elif vr == "UI":
            restored.append(Element(tag, vr, _original_uids(value, crosswalk)))
        elif vr in ("DA", "DT"):
            restored.append(Element(tag, vr, _original_dates(value, crosswalk)))
        else:
            restored.append(Element(tag, vr, value))
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


def _refuse_own_non_ascii(elements: Iterable[Element]) -> None:
    for element, _ in leaves(elements, b""):
        text = element.value
        if element.vr in TEXT_VRS and isinstance(text, bytes) and not text.isascii():
            raise Unsupported(
                f"{_named(element.tag)} of the derived object has text outside ASCII",
                remedy="Have the model or plugin write ASCII text only.",
            )


# ---------------------------------------------------------------- the gate


class _Leaf(NamedTuple):
    """One value with the sequence that it stands in (0: top level) and its neighbours."""

    element: Element
    parent: int
    item: list[Element]


def _leaves_with_parent(elements: list[Element], parent: int = 0) -> Iterator[_Leaf]:
    for element in elements:
        if isinstance(element.value, list):
            for item in element.value:
                yield from _leaves_with_parent(item, element.tag)
        else:
            yield _Leaf(element, parent, elements)


def _check_is_new(instance: Instance, crosswalk: Crosswalk) -> None:
    """A result is an instance and a series of its own, or it would replace what it came from."""
    top = {element.tag: _bare(element) for element in instance.elements}
    if instance.sop_instance_uid in crosswalk.uids:
        raise ReferenceMismatch("SOPInstanceUID is that of an instance of the original study")
    if top.get(SERIES_INSTANCE_UID) in (None, b"", crosswalk.series_instance_uid.encode("ascii")):
        raise ReferenceMismatch("SeriesInstanceUID is missing or that of the original series")


def _check_patient_and_study(elements: list[Element], crosswalk: Crosswalk) -> None:
    shared = patient_study_attributes()
    present = {element.tag: _bare(element) for element in elements if element.tag in shared}
    for element in _patient_and_study(crosswalk):
        if element.tag in shared and present.pop(element.tag, None) != _bare(element):
            raise ReferenceMismatch(f"{_named(element.tag)} is not that of the original study")
    for tag in present:
        raise ReferenceMismatch(f"{_named(tag)} is not in the original study")


def _check_no_pseudonym(own: list[Element], crosswalk: Crosswalk) -> None:
    # A shifted date that is also an original date of the series may stand there rightly.
    shifted = set(crosswalk.original_dates) - set(crosswalk.dates)
    pseudonym = crosswalk.pseudonym.lower()
    for leaf in _leaves_with_parent(own):
        tag, vr, value = leaf.element
        if tag in WRITTEN_TAGS:
            raise PseudonymRemains(f"{_named(tag)} still says that the object is de-identified")
        if not isinstance(value, bytes) or vr in ("OB", "OW", "OF", "OD", "OL", "OV"):
            continue
        text = value.decode("latin-1")
        found = pseudonym in text.lower() or any(
            uid in crosswalk.originals for uid in _PSEUDONYMOUS_UID.findall(text)
        )
        if vr in ("DA", "DT"):
            found = found or any(date[:8] in shifted for date in text.split("\\"))
        elif vr in TEXT_VRS:
            found = found or any(date in shifted for date in _DATE.findall(text))
        if found:
            raise PseudonymRemains(f"{_named(tag)} holds a pseudonymous value")


def _check_references(own: list[Element], crosswalk: Crosswalk, siblings: frozenset[str]) -> None:
    sources = 0
    for element, parent, item in _leaves_with_parent(own):
        if not isinstance(element.value, bytes):
            continue
        uids = [uid.strip("\0 ") for uid in element.value.decode("latin-1").split("\\")]
        if element.tag == REFERENCED_SOP_INSTANCE_UID:
            for uid in uids:
                sources += _resolved(uid, parent, item, crosswalk, siblings)
        elif element.tag == SERIES_INSTANCE_UID and parent == REFERENCED_SERIES_SEQUENCE:
            if uids != [crosswalk.series_instance_uid] and not _names_only(item, siblings):
                raise ReferenceMismatch("ReferencedSeriesSequence names another series")
        elif element.tag == STUDY_INSTANCE_UID and uids != [crosswalk.study_instance_uid]:
            raise ReferenceMismatch(f"StudyInstanceUID in {_named(parent)} is another study's")
        elif (element.tag, parent) == (FRAME_OF_REFERENCE_UID, 0):
            _check_frame_of_reference(uids, crosswalk)
    if not sources:
        raise ReferenceMismatch("The object refers to no instance of the original series")


def _check_frame_of_reference(uids: list[str], crosswalk: Crosswalk) -> None:
    if crosswalk.frame_of_reference_uid not in (None, *uids):
        raise ReferenceMismatch("FrameOfReferenceUID is not that of the original series")


def _resolved(
    uid: str,
    parent: int,
    item: list[Element],
    crosswalk: Crosswalk,
    siblings: frozenset[str],
) -> int:
    """1 for a reference to an instance of the series, 0 for another one that is allowed."""
    sop_class_uid = crosswalk.instances.get(uid)
    if sop_class_uid is None:
        if uid in siblings or (parent in _CONTEXT_SEQUENCES and uid in crosswalk.uids):
            return 0
        raise ReferenceMismatch(f"{_named(parent)} names an instance that is not of the series")
    stated = [element for element in item if element.tag == REFERENCED_SOP_CLASS_UID]
    if [_bare(element) for element in stated] != [sop_class_uid.encode("ascii")]:
        raise ReferenceMismatch(f"{_named(parent)} gives an instance another SOP Class")
    return 1


def _names_only(item: list[Element], siblings: frozenset[str]) -> bool:
    """Whether all instances that ``item`` names are results of the same job."""
    named = [
        leaf.element.value
        for leaf in _leaves_with_parent(item)
        if leaf.element.tag == REFERENCED_SOP_INSTANCE_UID
    ]
    return bool(named) and all(
        isinstance(value, bytes) and value.decode("latin-1").strip("\0 ") in siblings
        for value in named
    )


def _bare(element: Element) -> object:
    """A value as it compares: without the padding that writing may add."""
    value = element.value
    if isinstance(value, bytes):
        return value.rstrip(b"\0 ")
    return [{inner.tag: _bare(inner) for inner in item} for item in value]


def _named(tag: int) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
