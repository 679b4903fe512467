"""The way back: what one series was, next to what it was called outside.

A crosswalk is the secret of a de-identified series. It is kept in the vault, nowhere else; ``repr``
shows nothing of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydicom.datadict import dictionary_VR

from anonymizer.deidentify import OriginalIdentity
from anonymizer.encoding import Element
from anonymizer.errors import Unsupported, VaultError
from anonymizer.part10 import SPECIFIC_CHARACTER_SET, read_header
from anonymizer.profile import patient_study_attributes

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Crosswalk:
    """Original and pseudonymous identity of one series. All mappings go from the original."""

    header: bytes = field(repr=False)
    """Part 10 bytes of the series' first instance without its pixel data."""
    study_instance_uid: str = field(repr=False)
    series_instance_uid: str = field(repr=False)
    frame_of_reference_uid: str | None = field(repr=False)
    instances: Mapping[str, str] = field(repr=False)
    """SOP Instance UID to SOP Class UID, for every instance of the series."""
    uids: Mapping[str, str] = field(repr=False)
    """Every instance UID that was replaced, to its pseudonymous UID."""
    dates: Mapping[str, str] = field(repr=False)
    """Every date that was shifted, to the shifted date, YYYYMMDD."""
    shift_days: int = field(repr=False)
    pseudonym: str
    profile_digest: str
    other_series: frozenset[str] = field(default=frozenset(), repr=False)
    """Series Instance UIDs of the further series that :meth:`joined_with` brought in."""

    @classmethod
    def collect(cls, originals: Iterable[OriginalIdentity]) -> Crosswalk:
        """The crosswalk of one series from its instances, in any order.

        Raises
        ------
        Unsupported
            No instance, or instances of more than one patient, study or series.
        """
        first: OriginalIdentity | None = None
        instances: dict[str, str] = {}
        uids: dict[str, str] = {}
        dates: dict[str, str] = {}
        for original in originals:
            first = first or original
            if _series_key(original) != _series_key(first):
                raise Unsupported("The instances are not all of one patient, study and series")
            instances[original.sop_instance_uid] = original.sop_class_uid
            uids.update(original.uids)
            dates.update(original.dates)
        if first is None:
            raise Unsupported("A crosswalk needs at least one instance")
        return cls(
            header=first.header,
            study_instance_uid=first.study_instance_uid,
            series_instance_uid=first.series_instance_uid,
            frame_of_reference_uid=first.frame_of_reference_uid,
            instances=instances,
            uids=uids,
            dates=dates,
            shift_days=first.shift_days,
            pseudonym=first.pseudonym,
            profile_digest=first.profile_digest,
        )

    def joined_with(self, others: Iterable[Crosswalk]) -> Crosswalk:
        """This crosswalk with the instances, UIDs and dates of other series of the same study.

        For an object derived from more than one series. It is made when it is needed, not sealed.

        Raises
        ------
        Unsupported
            A crosswalk is of another patient or study.
        """
        joined = self
        for other in others:
            if (other.pseudonym, other.study_instance_uid) != (
                self.pseudonym,
                self.study_instance_uid,
            ):
                raise Unsupported("The crosswalks are not all of one patient and study")
            joined = replace(
                joined,
                instances={**joined.instances, **other.instances},
                uids={**joined.uids, **other.uids},
                dates={**joined.dates, **other.dates},
                other_series=joined.other_series | {other.series_instance_uid},
            )
        return joined

    @property
    def series(self) -> frozenset[str]:
        """Series Instance UIDs of every series in it."""
        return self.other_series | {self.series_instance_uid}

    @property
    def pseudonymous_study_instance_uid(self) -> str:
        """The name of the study outside, under which the vault keeps it."""
        return self.uids.get(self.study_instance_uid, self.study_instance_uid)

    @cached_property
    def originals(self) -> Mapping[str, str]:
        """Pseudonymous UID to original UID."""
        return {pseudonymous: original for original, pseudonymous in self.uids.items()}

    @cached_property
    def original_dates(self) -> Mapping[str, str]:
        """Shifted date to original date, YYYYMMDD."""
        return {shifted: original for original, shifted in self.dates.items()}

    @cached_property
    def elements(self) -> list[Element]:
        """The data elements of the original header, values byte for byte."""
        return read_header(self.header)

    @cached_property
    def character_set(self) -> bytes:
        """The original's SpecificCharacterSet (0008,0005) as it stands there; empty if absent."""
        values = [e.value for e in self.elements if e.tag == SPECIFIC_CHARACTER_SET]
        return next((value for value in values if isinstance(value, bytes)), b"")

    @cached_property
    def patient_and_study(self) -> list[Element]:
        """The original's Patient and Study modules (PS3.3 C.7.1, C.7.2), values byte for byte.

        What the original lacks is absent, or empty where it is Type 2.
        """
        shared = patient_study_attributes()
        found = {element.tag: element for element in self.elements if element.tag in shared}
        for tag, attribute_type in shared.items():
            if attribute_type == "2" and tag not in found:
                found[tag] = Element(tag, dictionary_VR(tag), b"")
        return list(found.values())

    def to_bytes(self) -> bytes:
        """A form of one series' crosswalk to seal; :meth:`from_bytes` reads it."""
        content = {
            "version": FORMAT_VERSION,
            "header": base64.b64encode(self.header).decode("ascii"),
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "frame_of_reference_uid": self.frame_of_reference_uid,
            "instances": dict(self.instances),
            "uids": dict(self.uids),
            "dates": dict(self.dates),
            "shift_days": self.shift_days,
            "pseudonym": self.pseudonym,
            "profile_digest": self.profile_digest,
        }
        return json.dumps(content, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Crosswalk:
        """The crosswalk that :meth:`to_bytes` wrote.

        Raises
        ------
        VaultError
            Not a crosswalk, or of a later version.
        """
        try:
            content = json.loads(data)
            if content.pop("version") != FORMAT_VERSION:
                raise VaultError("The crosswalk was written by another version of this software")
            content["header"] = base64.b64decode(content["header"], validate=True)
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            raise VaultError("The record is not a crosswalk") from None


def _series_key(original: OriginalIdentity) -> tuple[str, str, str]:
    return original.pseudonym, original.study_instance_uid, original.series_instance_uid
