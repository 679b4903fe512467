"""What varies from slice to slice, settled one attribute at a time, as bytes.

Most of it needs no look at the patient as a whole: an attribute that goes, a number, a UID, a time
on a day that is known, a reference to another instance. Each has a rule here, with the same outcome
as :func:`anonymizer.actions.treat`, byte for byte. A value that is not of the plain form raises
:class:`anonymizer.scan.Irregular`, which is no verdict: the attribute is treated the long way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from pydicom._dicom_dict import DicomDictionary

from anonymizer.actions import NUMBER_FORMS, Patient, has_dictionary_vr
from anonymizer.encoding import UNDEFINED, WORD_BYTES, Element, element_header
from anonymizer.identity import NUMBER_TAGS, whole_number
from anonymizer.profile import Action, ClassPolicy
from anonymizer.scan import Irregular

_ONE_UID = re.compile(rb"[0-9.]{1,64}\0?")
_TIME_OF_A_DAY = re.compile(rb"(\d{8})(\d{6}(?:\.\d{1,6})?) ?")
# As the length of a plain value: so great a one may be a VR where there should be none.
_TOO_LONG = 0x4141
_ITEM, _ITEM_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_UNDEFINED = b"\xff\xff\xff\xff"
# An item with Referenced SOP Class UID and Referenced SOP Instance UID, by whether VR is implicit.
REFERENCED_SOP_CLASS_UID, REFERENCED_SOP_INSTANCE_UID = 0x00081150, 0x00081155
_REFERENCE = {
    implicit: re.compile(
        rb"%b(.{4})(\x08\0\x50\x11%b)(%b)([0-9.]{1,64}\0?)(\x08\0\x55\x11%b)(%b)([0-9.]{1,64}\0?)"
        rb"(%b)?" % (_ITEM, vr, length, vr, length, re.escape(_ITEM_END)),
        re.DOTALL,
    )
    for implicit, vr, length in ((False, b"UI", b".{2}"), (True, b"", b".{4}"))
}


class Rule(Protocol):
    """What becomes of one attribute that varies."""

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """Where the value that stands at ``start`` ends, and the whole element as it may leave.

        ``length`` is what the element's header states. UIDs are remembered in ``patient``.

        Raises
        ------
        Irregular
            Not of the plain form; nothing is known about it.
        """


class Other:
    """An attribute that must be seen together with the patient: never settled here."""

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """Always :class:`Irregular`."""
        raise Irregular


class Gone:
    """An attribute that goes, whatever it holds."""

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """The end, and nothing."""
        end = start + length
        if length >= _TOO_LONG or end > len(data):
            raise Irregular
        return end, b""


OTHER, GONE = Other(), Gone()


@dataclass(frozen=True, slots=True)
class Digits:
    """Numbers or times in digits, which stay as they are."""

    form: re.Pattern[bytes] = field(repr=False)
    """Of a whole value of this VR."""
    header_bytes: int
    """Tag, VR and length."""
    identifiers: frozenset[bytes] = field(repr=False)
    """What no value that stays may contain: the patient's numbers as plain integers."""

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """The element as it stands."""
        end = start + length
        if length >= _TOO_LONG or length % 2 or end > len(data):
            raise Irregular
        if not self.form.fullmatch(data, start, end):
            raise Irregular
        if self.identifiers:
            self._refuse_identifiers(data[start:end])
        return end, data[start - self.header_bytes : end]

    def _refuse_identifiers(self, value: bytes) -> None:
        """Irregular if one may be a number of the patient's: more than those that are."""
        value = value.lower()
        if b"e" in value:
            numbers = value.decode("ascii").split("\\")
            integers = (whole_number(one.strip("\0 ")).encode("ascii") for one in numbers)
            value = b"\\".join((value, *integers))
        for identifier in self.identifiers:
            if identifier in value:
                raise Irregular


@dataclass(frozen=True, slots=True)
class Words:
    """Numbers in binary, which stay as they are."""

    width: int
    """Bytes of one."""
    header_bytes: int

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """The element as it stands."""
        end = start + length
        if not 0 < length < _TOO_LONG or length % self.width or end > len(data):
            raise Irregular
        return end, data[start - self.header_bytes : end]


@dataclass(frozen=True, slots=True)
class OneUid:
    """One UID, replaced if it names an instance."""

    header: bytes
    """Tag and VR."""
    length_bytes: int
    replaced: bool

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """The element with its pseudonymous UID, or as it stands."""
        end = start + length
        value = data[start:end]
        if len(value) != length or length % 2 or not _ONE_UID.fullmatch(value):
            raise Irregular
        if self.replaced:
            value = _pseudonym_of(value, patient)
        return end, b"".join((self.header, len(value).to_bytes(self.length_bytes, "little"), value))


@dataclass(frozen=True, slots=True)
class TimeOfADay:
    """Date and time, moved by as many days as the date alone was elsewhere in the instance."""

    header: bytes
    length_bytes: int

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """The element with its day moved; a day that is new is not this rule's to judge."""
        end = start + length
        match = _TIME_OF_A_DAY.fullmatch(data, start, end)
        day = patient.dates.get(match[1].decode("ascii")) if match else None
        if match is None or day is None or end > len(data):
            raise Irregular
        value = day.encode("ascii") + match[2]
        value += b" " * (len(value) % 2)
        return end, b"".join((self.header, len(value).to_bytes(self.length_bytes, "little"), value))


@dataclass(frozen=True, slots=True)
class References:
    """A sequence of nothing but references to instances (PS3.3 Table 10-11)."""

    tag: int
    implicit: bool
    replaced: bool

    def settled(self, data: bytes, start: int, length: int, patient: Patient) -> tuple[int, bytes]:
        """The sequence with its references replaced, all lengths explicit."""
        undefined = length == UNDEFINED
        position, end = start, len(data) if undefined else start + length
        if end > len(data):
            raise Irregular
        items = []
        while position < end and not (undefined and data.startswith(_SEQUENCE_END, position)):
            found = _REFERENCE[self.implicit].match(data, position, end)
            if found is None:
                raise Irregular
            items.append(self._item(found, patient))
            position = found.end()
        body = b"".join(items)
        if not body:
            raise Irregular
        end = position + len(_SEQUENCE_END) if undefined else end
        return end, element_header(self.tag, "SQ", len(body), self.implicit) + body

    def _item(self, found: re.Match[bytes], patient: Patient) -> bytes:
        length, before, class_bytes, sop_class, between, uid_bytes, uid, item_end = found.groups()
        content = found.end(7) - found.start(2)
        if length != (_UNDEFINED if item_end else content.to_bytes(4, "little")):
            raise Irregular
        for stated, value in ((class_bytes, sop_class), (uid_bytes, uid)):
            if int.from_bytes(stated, "little") != len(value) or len(value) % 2:
                raise Irregular
        if self.replaced:
            new = _pseudonym_of(uid, patient)
            content += len(new) - len(uid)
            uid, uid_bytes = new, len(new).to_bytes(len(uid_bytes), "little")
        parts = (_ITEM, content.to_bytes(4, "little"), before, class_bytes, sop_class, between,
                 uid_bytes, uid)  # fmt: skip
        return b"".join(parts)


def rule_for(
    element: Element,
    header: bytes,
    length_bytes: int,
    policy: ClassPolicy,
    identifiers: frozenset[bytes],
    *,
    implicit: bool,
) -> Rule:
    """The rule for a top-level attribute that varies.

    ``header`` is its tag and VR as they stand in the file, ``identifiers`` the numbers that no
    decimal or integer string may be (:attr:`anonymizer.identity.Identifiers.whole_numbers`). None
    but ``OTHER`` is for what may hold an identifier to look for elsewhere (a name, a date, the
    numbers of :data:`anonymizer.identity.NUMBER_TAGS`), or for a private attribute that an option
    may keep.
    """
    tag, vr, value = element
    entry = DicomDictionary.get(tag)
    named_vr = entry[0] if entry else vr
    if tag >> 16 & 1:
        is_gone = not policy.safe_private and not isinstance(value, list)
        return GONE if is_gone else OTHER
    if tag in NUMBER_TAGS or named_vr in ("DA", "PN"):
        return OTHER
    action = policy.action(0, tag)
    if action is Action.REMOVE and named_vr != "DT" and not isinstance(value, list):
        return GONE
    as_written = implicit or header[4:6] == vr.encode("ascii")
    if not as_written or not has_dictionary_vr(tag, vr):
        return OTHER
    header_bytes = len(header) + length_bytes
    if vr == "SQ":
        kept = policy.action(tag, REFERENCED_SOP_CLASS_UID) is Action.KEEP
        uid_action = policy.action(tag, REFERENCED_SOP_INSTANCE_UID)
        walked = action in (Action.KEEP, Action.WALK)
        if not (walked and kept and uid_action in (Action.KEEP, Action.UID)):
            return OTHER
        return References(tag, implicit, uid_action is Action.UID)
    if vr == "DT":
        return TimeOfADay(header, length_bytes) if action is Action.SHIFT else OTHER
    if vr == "UI" and action in (Action.UID, Action.KEEP):
        return OneUid(header, length_bytes, action is Action.UID)
    if action is not Action.KEEP:
        return OTHER
    if vr in NUMBER_FORMS:
        looked_for = frozenset() if vr == "TM" else identifiers  # a time is never a hit
        return Digits(NUMBER_FORMS[vr], header_bytes, looked_for)
    return Words(WORD_BYTES[vr], header_bytes) if vr in WORD_BYTES else OTHER


def _pseudonym_of(value: bytes, patient: Patient) -> bytes:
    uid = patient.pseudonym_of_uid(value.rstrip(b"\0").decode("ascii")).encode("ascii")
    return uid + b"\0" * (len(uid) % 2)
