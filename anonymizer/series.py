"""The instances of a series one after the other, each as if it were alone, most of them faster.

Between two slices of a series only a dozen attributes differ: UIDs, position, times. The bytes of
all others are equal, and equal bytes of the same patient under the same policy have one and the
same output. So two instances teach a :mod:`anonymizer.template`: what must recur exactly, and what
may vary. Where all of it recurs, only what varies is read, treated and written; anything else, down
to one other byte, goes the long way through :mod:`anonymizer.deidentify` and teaches a new
template. The two ways have the same output, byte for byte.

What decides over other attributes is never allowed to vary inside a template: whose image it is,
its character set, what the pixels are judged by. Nor may what varies add a name, a number or a date
to look for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydicom._dicom_dict import DicomDictionary

from anonymizer.deidentify import (
    FRAME_OF_REFERENCE_UID,
    ISSUER_OF_PATIENT_ID,
    PIXEL_JUDGEMENT_TAGS,
    SERIES_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    DeidentifiedInstance,
    Treated,
    released,
    treated,
)
from anonymizer.identity import NUMBER_TAGS
from anonymizer.keys import PseudonymKeys
from anonymizer.part10 import (
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    TRANSFER_SYNTAX_UID,
    Instance,
    read_instance,
)
from anonymizer.profile import (
    PATIENT_ID,
    PATIENT_NAME,
    WRITTEN_TAGS,
    Policy,
    patient_study_attributes,
)
from anonymizer.scan import PIXEL_REPRESENTATION, is_private_creator, scan_meta
from anonymizer.template import Template, learned_template

# Attributes that others depend on: their bytes must recur, or the template is not used.
DECISIVE_TAGS = PIXEL_JUDGEMENT_TAGS | WRITTEN_TAGS | NUMBER_TAGS | frozenset({
    TRANSFER_SYNTAX_UID, SPECIFIC_CHARACTER_SET, SOP_CLASS_UID, PATIENT_NAME, PATIENT_ID,
    ISSUER_OF_PATIENT_ID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, FRAME_OF_REFERENCE_UID,
    PIXEL_REPRESENTATION,
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100,  # frame size
})  # fmt: skip

# The length of the file meta information and the UID in it, (0002,0003), go with the last.
ALWAYS_VARY = frozenset({0x00020000, 0x00020003, SOP_INSTANCE_UID})


# How many series are remembered at a time: a study's arrive in turns.
REMEMBERED_SERIES = 8


class Deidentifier:
    """De-identifies instances under one policy and remembers what recurs from one to the next.

    For instances of any series in any order; where few of a kind are near each other it costs time,
    nothing else. Not for use by two threads at once.
    """

    def __init__(self, policy: Policy, keys: PseudonymKeys) -> None:
        self.reused = 0
        """How many instances were made with what others of their series had taught."""
        self._policy = policy
        self._keys = keys
        self._memories: dict[tuple[str, str, str], _Memory] = {}
        """The latest last."""

    def deidentify(self, source: bytes | Path) -> DeidentifiedInstance:
        """What :func:`anonymizer.deidentify.deidentify_instance` returns, and raises."""
        data = source.read_bytes() if isinstance(source, Path) else source
        for template in self.templates():
            made = template.deidentified(data)
            if made is not None:
                self.reused += 1
                return made
        instance = read_instance(data, pixels_required=False)
        treatment = treated(instance, self._policy, self._keys)
        result = released(instance, treatment, self._policy)
        kind = (
            result.original.series_instance_uid,
            instance.sop_class_uid,
            instance.transfer_syntax_uid,
        )
        memory = self._memories.pop(kind, None) or _Memory()
        memory.learn(data, instance, treatment, result, self._policy)
        self._memories[kind] = memory
        if len(self._memories) > REMEMBERED_SERIES:
            del self._memories[next(iter(self._memories))]
        return result

    def templates(self) -> list[Template]:
        """What was learned so far, the latest first."""
        memories = reversed(self._memories.values())
        return [memory.template for memory in memories if memory.template is not None]


class _Memory:
    """What is remembered of one kind of instances: one series, SOP Class, transfer syntax."""

    def __init__(self) -> None:
        self.template: Template | None = None
        self._previous: dict[int, bytes] = {}
        """Elements of the last that was not made from the template, up to the pixel data."""
        self._varying = ALWAYS_VARY

    def learn(
        self,
        data: bytes,
        instance: Instance,
        treatment: Treated,
        result: DeidentifiedInstance,
        policy: Policy,
    ) -> None:
        """Make a template from this instance and the one before it."""
        previous, self._previous, self.template = self._previous, {}, None
        if not instance.places:
            return
        places = (*scan_meta(data).places, *instance.places)
        self._previous = {place.tag: data[place.start : place.end] for place in places}
        differing = _differing(previous, self._previous)
        if not differing:
            return  # the first, or the same again: no lesson
        if not all(_may_vary(tag, policy) for tag in differing):
            self._varying = ALWAYS_VARY
            return
        self._varying |= differing
        self.template = learned_template(data, instance, treatment, result, self._varying, policy)


def deidentify_series(
    instances: Iterable[bytes | Path], policy: Policy, keys: PseudonymKeys
) -> Iterator[DeidentifiedInstance]:
    """De-identify instances one after the other, none kept in memory.

    Collect ``result.original`` with :meth:`anonymizer.crosswalk.Crosswalk.collect`.
    """
    deidentifier = Deidentifier(policy, keys)
    for instance in instances:
        yield deidentifier.deidentify(instance)


def _differing(one: Mapping[int, bytes], other: Mapping[int, bytes]) -> frozenset[int]:
    """Attributes that both have, and not alike."""
    return frozenset(tag for tag in one.keys() & other.keys() if one[tag] != other[tag])


def _may_vary(tag: int, policy: Policy) -> bool:
    """Whether no other attribute's output, and nobody's identity, depends on ``tag``."""
    entry = DicomDictionary.get(tag)
    return not (
        tag in DECISIVE_TAGS
        or tag in policy.additions
        or tag in policy.retained
        or tag in patient_study_attributes()
        or is_private_creator(tag)
        or tag >> 16 & 0xFF01 == 0x6000
        or (entry is not None and entry[0] in ("DA", "PN"))
    )
