"""The gate before an object goes back to the hospital: it is this patient's, and nothing else.

It looks at the object as it will leave, and trusts nothing that restored it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from pydicom.datadict import keyword_for_tag

from anonymizer.character_sets import is_plain
from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import FRAME_OF_REFERENCE_UID, SERIES_INSTANCE_UID, STUDY_INSTANCE_UID
from anonymizer.encoding import Element
from anonymizer.errors import PseudonymRemains, ReferenceMismatch
from anonymizer.part10 import SPECIFIC_CHARACTER_SET, Instance, read_instance
from anonymizer.profile import TEXT_VRS, WRITTEN_TAGS, patient_study_attributes
from anonymizer.uids import has_form_of_pseudonym

REFERENCED_SOP_CLASS_UID = 0x00081150
REFERENCED_SOP_INSTANCE_UID = 0x00081155
# Sequences that say what else there is, not what the object was made from. Their instances need
# not be of the series, but must be ones that the series itself names: referenced procedure steps,
# studies and images, other evidence and predecessors of a document.
_CONTEXT_SEQUENCES = frozenset({0x00081110, 0x00081111, 0x00081140, 0x0040A360, 0x0040A385})
# Where the study itself is named by its UID (PS3.3 C.8.8.5: RT Referenced Study Sequence).
_STUDY_SEQUENCES = frozenset({0x00081110, 0x30060012})
# UIDs by which an object names itself or something new in it; everything else in UI refers.
_NAMING = frozenset({
    0x00080014,  # InstanceCreatorUID
    0x00080018,  # SOPInstanceUID
    0x00181002,  # DeviceUID
    0x00209161,  # ConcatenationUID
    0x00209164,  # DimensionOrganizationUID
    0x00620021,  # TrackingUID
    0x0040A124,  # UID: of a report's finding
    0x0040A171,  # ObservationUID
    0x0070031A,  # FiducialUID
})  # fmt: skip
_UID = re.compile(r"2\.25\.\d{1,39}")
_UID_BYTES = re.compile(rb"2\.25\.\d{1,39}")
_DATE = re.compile(r"(?<!\d)\d{8}(?!\d)")


def check_released(
    data: bytes,
    crosswalk: Crosswalk,
    *,
    siblings: Collection[str] = frozenset(),
    sibling_series: Collection[str] = frozenset(),
    rejected: Collection[str] = frozenset(),
) -> None:
    """Raise unless ``data`` may go back to the hospital.

    It must have the original's patient and study, refer to at least one instance of the series and
    to no instance outside it, and hold no pseudonym, pseudonymous UID or shifted date: neither in
    an attribute, at any depth, nor anywhere else in its bytes. A note that rejects earlier results
    refers to these and to no instance of the series: it must never take an image from the hospital.

    Parameters
    ----------
    data
        What :func:`anonymizer.reidentify.reidentify_object` returned.
    crosswalk
        The crosswalk that it was restored with.
    siblings
        SOP Instance UIDs of other results of the same release, to which it may refer (SR to SEG).
    sibling_series
        Series Instance UIDs of these.
    rejected
        Series and SOP Instance UIDs of earlier results that a rejection note is about; empty for
        every other object.

    Raises
    ------
    ReferenceMismatch, PseudonymRemains
        Names the attribute.
    """
    instance = read_instance(data, pixels_required=False)
    shared = patient_study_attributes()
    own = [element for element in instance.elements if element.tag not in shared]
    allowed = frozenset(siblings).union(rejected, {instance.sop_instance_uid})
    _check_is_new(instance, crosswalk)
    _check_patient_and_study(instance.elements, crosswalk)
    _check_no_pseudonym(own, crosswalk)
    _check_no_pseudonym_in_bytes(data, crosswalk)
    _check_references(own, crosswalk, allowed, frozenset(rejected))
    _check_no_strange_pseudonym(own, crosswalk, allowed.union(sibling_series))


def holds_pseudonym(element: Element, crosswalk: Crosswalk) -> bool:
    """Whether a value holds a pseudonym, a pseudonymous UID or a shifted date of this series."""
    _, vr, value = element
    if not isinstance(value, bytes):
        return False
    text = value.decode("latin-1")
    if crosswalk.pseudonym.lower() in text.lower():
        return True
    if any(uid in crosswalk.originals for uid in _UID.findall(text)):
        return True
    # A shifted date that is also an original date of the series may stand there rightly.
    shifted = crosswalk.original_dates.keys() - crosswalk.dates.keys()
    if vr in ("DA", "DT"):
        return any(date[:8] in shifted for date in text.split("\\"))
    return vr in TEXT_VRS and any(date in shifted for date in _DATE.findall(text))


class _Leaf(NamedTuple):
    """One value with the sequences that it stands in, outermost first, and its neighbours."""

    element: Element
    path: tuple[int, ...]
    item: list[Element]

    @property
    def parent(self) -> int:
        """The sequence that it stands in; 0 at top level."""
        return self.path[-1] if self.path else 0

    @property
    def uids(self) -> list[str]:
        """Its value as UIDs."""
        value = self.element.value
        text = value.decode("latin-1") if isinstance(value, bytes) else ""
        return [uid.strip("\0 ") for uid in text.split("\\")]


def _leaves(elements: list[Element], path: tuple[int, ...] = ()) -> Iterator[_Leaf]:
    for element in elements:
        if isinstance(element.value, list):
            for item in element.value:
                yield from _leaves(item, (*path, element.tag))
        else:
            yield _Leaf(element, path, elements)


def _check_is_new(instance: Instance, crosswalk: Crosswalk) -> None:
    """A result is an instance and a series of its own, or it would replace what it came from."""
    if instance.sop_instance_uid in crosswalk.uids.keys() | crosswalk.instances.keys():
        raise ReferenceMismatch("SOPInstanceUID is that of an instance of the original study")
    found = [leaf.uids for leaf in _leaves(instance.elements)
             if (leaf.element.tag, leaf.parent) == (SERIES_INSTANCE_UID, 0)]  # fmt: skip
    if found in ([], [[""]]) or found[0][0] in crosswalk.series:
        raise ReferenceMismatch("SeriesInstanceUID is missing or that of the original series")


def _check_patient_and_study(elements: list[Element], crosswalk: Crosswalk) -> None:
    shared = patient_study_attributes()
    present = {element.tag: _bare(element) for element in elements if element.tag in shared}
    for element in crosswalk.patient_and_study:
        if present.pop(element.tag, None) != _bare(element):
            raise ReferenceMismatch(f"{_named(element.tag)} is not that of the original study")
    for tag in present:
        raise ReferenceMismatch(f"{_named(tag)} is not in the original study")
    stated = [_bare(element) for element in elements if element.tag == SPECIFIC_CHARACTER_SET]
    original = [crosswalk.character_set.rstrip(b"\0 ")] if crosswalk.character_set else []
    if stated != original and not is_plain(crosswalk.patient_and_study):
        raise ReferenceMismatch("SpecificCharacterSet is not that of the original study")


def _check_no_pseudonym(own: list[Element], crosswalk: Crosswalk) -> None:
    for leaf in _leaves(own):
        tag = leaf.element.tag
        if tag in WRITTEN_TAGS or any(parent in WRITTEN_TAGS for parent in leaf.path):
            raise PseudonymRemains(f"{_named(tag)} still says that the object is de-identified")
        if holds_pseudonym(leaf.element, crosswalk):
            raise PseudonymRemains(f"{_named(tag)} holds a pseudonymous value")


def _check_no_pseudonym_in_bytes(data: bytes, crosswalk: Crosswalk) -> None:
    """Every byte, pixel data too: documents and compressed streams carry text of their own."""
    found = crosswalk.pseudonym.encode("ascii").lower() in data.lower() or any(
        uid.decode("ascii") in crosswalk.originals for uid in _UID_BYTES.findall(data)
    )
    if found:
        raise PseudonymRemains("A pseudonymous value stands in the bytes of the object")


def _check_no_strange_pseudonym(
    own: list[Element], crosswalk: Crosswalk, allowed: frozenset[str]
) -> None:
    """No UID of the form that this software gives to pseudonyms, unless it is known whose it is.

    The node's own results have UIDs of the same form, so what merely names something new passes.
    """
    known = allowed | crosswalk.uids.keys() | crosswalk.instances.keys()
    naming = {
        uid
        for leaf in _leaves(own)
        if leaf.element.tag in _NAMING
        or (leaf.element.tag, leaf.parent) == (SERIES_INSTANCE_UID, 0)
        for uid in leaf.uids
    }
    for leaf in _leaves(own):
        value = leaf.element.value
        if leaf.element.vr not in TEXT_VRS | {"UI"} or not isinstance(value, bytes):
            continue
        for uid in _UID.findall(value.decode("latin-1")):
            if has_form_of_pseudonym(uid) and uid not in known and uid not in naming:
                raise PseudonymRemains(f"{_named(leaf.element.tag)} holds a UID of unknown origin")


def _check_references(
    own: list[Element], crosswalk: Crosswalk, allowed: frozenset[str], rejected: frozenset[str]
) -> None:
    sources = 0
    for leaf in _leaves(own):
        tag = leaf.element.tag
        if tag == REFERENCED_SOP_INSTANCE_UID:
            sources += sum(_resolved(uid, leaf, crosswalk, allowed) for uid in leaf.uids)
        elif tag == SERIES_INSTANCE_UID and leaf.path:
            if not crosswalk.series.issuperset(leaf.uids) and not _names_only(leaf.item, allowed):
                raise ReferenceMismatch(f"{_named(leaf.parent)} names another series")
        elif tag == STUDY_INSTANCE_UID and leaf.uids != [crosswalk.study_instance_uid]:
            raise ReferenceMismatch(f"StudyInstanceUID in {_named(leaf.parent)} is another study's")
        elif (tag, leaf.parent) == (FRAME_OF_REFERENCE_UID, 0) and (
            crosswalk.frame_of_reference_uid not in (None, *leaf.uids)
        ):
            raise ReferenceMismatch("FrameOfReferenceUID is not that of the original series")
    if rejected and sources:
        raise ReferenceMismatch("A rejection note names an instance of the original series")
    if not rejected and not sources:
        raise ReferenceMismatch("The object refers to no instance of the original series")


def _resolved(uid: str, leaf: _Leaf, crosswalk: Crosswalk, allowed: frozenset[str]) -> int:
    """1 for a reference to an instance of the series, 0 for another one that is allowed."""
    sop_class_uid = crosswalk.instances.get(uid)
    if sop_class_uid is None:
        is_context = not _CONTEXT_SEQUENCES.isdisjoint(leaf.path) and uid in crosswalk.uids
        is_study = leaf.parent in _STUDY_SEQUENCES and uid == crosswalk.study_instance_uid
        if uid in allowed or is_context or is_study:
            return 0
        raise ReferenceMismatch(
            f"{_named(leaf.parent)} names an instance that is not of the series"
        )
    stated = [_bare(e) for e in leaf.item if e.tag == REFERENCED_SOP_CLASS_UID]
    if stated != [sop_class_uid.encode("ascii")]:
        raise ReferenceMismatch(f"{_named(leaf.parent)} gives an instance another SOP Class")
    return 1


def _names_only(item: list[Element], allowed: frozenset[str]) -> bool:
    """Whether all instances that ``item`` names are results of the same release."""
    named = [leaf.uids for leaf in _leaves(item) if leaf.element.tag == REFERENCED_SOP_INSTANCE_UID]
    return bool(named) and all(allowed.issuperset(uids) for uids in named)


def _bare(element: Element) -> object:
    """A value as it compares: without the padding that writing may add."""
    value = element.value
    if isinstance(value, bytes):
        return value.rstrip(b"\0 ")
    return [{inner.tag: _bare(inner) for inner in item} for item in value]


def _named(tag: int) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
