"""The instances of a series one after the other, each as if it were alone, most of them faster.

Between two slices of a series only a dozen attributes differ: UIDs, position, times. The bytes of
all others are equal, and equal bytes of the same patient under the same policy have one and the
same output. So two instances teach a *template*: runs of bytes that must recur exactly, with the
places of the attributes between them that vary. Where every run recurs, only what varies is read,
treated and written; anything else, down to one other byte, goes the long way through
:mod:`anonymizer.deidentify` and teaches a new template. The two ways have the same output, byte for
byte.

What decides over other attributes is never allowed to vary inside a template: whose image it is,
its character set, what the pixels are judged by. Nor may what varies add a name, a number or a date
to look for. And the output as a whole is searched for the patient's identifiers every time, by eyes
that know nothing of templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydicom._dicom_dict import DicomDictionary
from pydicom.uid import UID

from anonymizer.actions import (
    NUMBER_VRS,
    Patient,
    has_dictionary_vr,
    stays_as_it_is,
    treat_elements,
)
from anonymizer.deidentify import (
    FRAME_OF_REFERENCE_UID,
    ISSUER_OF_PATIENT_ID,
    PIXEL_JUDGEMENT_TAGS,
    SERIES_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    DeidentifiedInstance,
    OriginalIdentity,
    class_policy_for,
    deidentified,
    has_text_outside_ascii,
    original_identity,
    patient_of,
    refuse_unknown_character_sets,
    residual_identifiers,
    with_written_elements,
)
from anonymizer.encoding import LONG_VRS, Element, element_header, encode_elements
from anonymizer.errors import AnonymizerError
from anonymizer.identity import NUMBER_TAGS, Identifiers, identifiers_of, leaves
from anonymizer.keys import PseudonymKeys
from anonymizer.part10 import (
    DAMAGE,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    Instance,
    file_meta,
    header_bytes,
    plain_syntax,
    read_instance,
)
from anonymizer.pixel_data import pixel_elements
from anonymizer.profile import (
    PATIENT_ID,
    PATIENT_NAME,
    WRITTEN_TAGS,
    Action,
    ClassPolicy,
    Policy,
    patient_study_attributes,
)
from anonymizer.scan import (
    PIXEL_REPRESENTATION,
    Irregular,
    Place,
    pixel_representation,
    scan_element,
    settled_vr,
)
from anonymizer.verify import (
    may_hold,
    plain_texts,
    verify_deidentified,
    verify_elements,
    verify_fragments,
)

# Attributes that others depend on: their bytes must recur, or the template is not used.
DECISIVE_TAGS = PIXEL_JUDGEMENT_TAGS | WRITTEN_TAGS | NUMBER_TAGS | frozenset({
    SPECIFIC_CHARACTER_SET, SOP_CLASS_UID, PATIENT_NAME, PATIENT_ID, ISSUER_OF_PATIENT_ID,
    STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, FRAME_OF_REFERENCE_UID,
    PIXEL_REPRESENTATION,
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100,  # frame size
})  # fmt: skip

_ONE_UID = re.compile(rb"[0-9.]{1,64}\0?")


class Deidentifier:
    """De-identifies instances under one policy and remembers what recurs from one to the next.

    For the instances of one series, in any order; those of other series, patients or kinds in
    between cost time, nothing else. Not for use by two threads at once.
    """

    def __init__(self, policy: Policy, keys: PseudonymKeys) -> None:
        self._policy = policy
        self._keys = keys
        self._template: Template | None = None
        self._previous: tuple[bytes, Instance] | None = None
        self._varying: frozenset[int] = frozenset({SOP_INSTANCE_UID})

    def deidentify(self, source: bytes | Path) -> DeidentifiedInstance:
        """What :func:`anonymizer.deidentify.deidentify_instance` returns, and raises."""
        data = source.read_bytes() if isinstance(source, Path) else source
        if self._template is not None:
            made = self._template.deidentified(data)
            if made is not None:
                return made
        instance = read_instance(data, pixels_required=False)
        result = deidentified(instance, self._policy, self._keys)
        self._learn(data, instance)
        return result

    def _learn(self, data: bytes, instance: Instance) -> None:
        """A template from this instance and the one before it, if they are of a kind."""
        previous, self._template = self._previous, None
        self._previous = (data, instance) if instance.places else None
        if previous is None or not instance.places:
            return
        differing = _differing(*previous, data, instance)
        if differing is None or any(not _may_vary(tag, self._policy) for tag in differing):
            self._varying = frozenset({SOP_INSTANCE_UID})
            return
        self._varying |= differing
        self._template = learned_template(data, instance, self._varying, self._policy, self._keys)


def deidentify_series(
    instances: Iterable[bytes | Path], policy: Policy, keys: PseudonymKeys
) -> Iterator[DeidentifiedInstance]:
    """De-identify instances one after the other, none kept in memory.

    Collect ``result.original`` with :meth:`anonymizer.crosswalk.Crosswalk.collect`.
    """
    deidentifier = Deidentifier(policy, keys)
    for instance in instances:
        yield deidentifier.deidentify(instance)


class Simple(NamedTuple):
    """An attribute that goes, stays if it is a number, or is one UID."""

    header: bytes
    """Tag and VR as they stand in the file."""
    length_bytes: int
    vr: str
    action: Action
    """REMOVE, KEEP or UID."""


@dataclass(frozen=True)
class Template:
    """What recurs in a series, and where the rest stands. ``repr`` shows nothing of it."""

    policy: Policy = field(repr=False)
    class_policy: ClassPolicy = field(repr=False)
    patient: Patient = field(repr=False)
    """The patient, with the UIDs and dates that recur."""
    residual: Identifiers = field(repr=False)
    """What must not be found in the output, but for the UIDs that vary."""
    original: OriginalIdentity = field(repr=False)
    values: Mapping[int, bytes | list[list[Element]]] = field(repr=False)
    """Values that recur, by tag: they give the size of a frame."""
    syntax: UID
    implicit: bool
    encapsulated: bool
    input: tuple[bytes | int, ...] = field(repr=False)
    """Bytes that recur and, between them, tags of attributes that vary."""
    output: tuple[bytes | int, ...] = field(repr=False)
    """The same of the output: bytes to write, and tags of attributes to treat and write."""
    character_set: bytes
    representation: int
    creators: tuple[Element, ...] = field(repr=False)
    """Private creators: what the private attributes that vary belong to (PS3.5 7.8.1)."""
    kept_private: frozenset[int]
    """Private attributes that vary and stayed in the instance that this was learned from."""
    texts: tuple[bytes, ...] = field(repr=False)
    simple: Mapping[int, Simple]
    """Of what varies, that which can be settled without knowing more of the patient."""
    numbers: frozenset[bytes] = field(repr=False)
    """Identifiers that could be a number's whole value."""

    def deidentified(self, data: bytes) -> DeidentifiedInstance | None:
        """The output for an instance that fits; None for one that does not, or may not pass.

        None is no verdict: the long way finds out what is the matter.
        """
        try:
            return self._deidentified(data)
        except (AnonymizerError, Irregular, *DAMAGE):
            return None

    def _deidentified(self, data: bytes) -> DeidentifiedInstance | None:
        syntax, start = plain_syntax(data)
        if syntax != self.syntax:
            return None
        patient = _again(self.patient)
        matched = self._matched(data, start, patient)
        if matched is None:
            return None
        varying, written, uid, end = matched
        implicit = self.implicit
        pixel_data = pixel_elements(data, end, self.values, implicit=implicit, big_endian=False)
        if not pixel_data or not uid:
            return None
        treated = self._treated(varying, patient)
        if treated is None:
            return None
        rewritten = {one.tag: encode_elements([one], implicit=implicit) for one in treated}
        written |= rewritten
        parts = [
            part if isinstance(part, bytes) else written.get(part, b"") for part in self.output
        ]
        original = self.original
        sop_class_uid, pseudonymous_uid = original.sop_class_uid, patient.pseudonym_of_uid(uid)
        header = b"".join([file_meta(syntax, sop_class_uid, pseudonymous_uid), *parts])
        self._verify(header, b"".join(rewritten.values()), patient)
        if self.encapsulated:
            verify_fragments(pixel_data, self.residual.with_uids(patient.uids))
        return DeidentifiedInstance(
            header=header,
            pixel_data=pixel_data,
            sop_instance_uid=pseudonymous_uid,
            series_instance_uid=patient.pseudonym_of_uid(original.series_instance_uid),
            study_instance_uid=patient.pseudonym_of_uid(original.study_instance_uid),
            original=OriginalIdentity(
                header=header_bytes(data[start:end], syntax, sop_class_uid, uid),
                sop_class_uid=sop_class_uid,
                sop_instance_uid=uid,
                study_instance_uid=original.study_instance_uid,
                series_instance_uid=original.series_instance_uid,
                frame_of_reference_uid=original.frame_of_reference_uid,
                uids=patient.uids,
                dates=patient.dates,
                shift_days=original.shift_days,
                pseudonym=original.pseudonym,
                profile_digest=original.profile_digest,
            ),
        )

    def _matched(
        self, data: bytes, position: int, patient: Patient
    ) -> tuple[list[Element], dict[int, bytes], str, int] | None:
        """What varies, SOP Instance UID and position of the pixel data, if all else recurs.

        What varies comes as elements still to be treated, and as bytes ready to be written.
        """
        varying: list[Element] = []
        written: dict[int, bytes] = {}
        sop_instance_uid = ""
        for step in self.input:
            if isinstance(step, bytes):
                if not data.startswith(step, position):
                    return None
                position += len(step)
                continue
            simple = self.simple.get(step)
            if simple is not None:
                end, output = self._settled(data, position, simple, patient)
                if end:
                    written[step] = output
                    if step == SOP_INSTANCE_UID:
                        start = position + 8
                        sop_instance_uid = data[start:end].rstrip(b"\0").decode("ascii")
                    position = end
                    continue
            element, position = scan_element(data, position, implicit=self.implicit)
            tag, vr, value = element
            if tag != step:
                return None
            if " or " in vr:
                element = Element(tag, settled_vr(vr, self.representation), value)
            if tag & 0xFFFF:
                varying.append(element)
        group = int.from_bytes(data[position : position + 2], "little")
        return (varying, written, sop_instance_uid, position) if group >= 0x7FE0 else None

    def _settled(
        self, data: bytes, position: int, simple: Simple, patient: Patient
    ) -> tuple[int, bytes]:
        """Where the element ends, and what becomes of it; (0, b"") if that is not so simple."""
        header, length_bytes, vr, action = simple
        start = position + len(header) + length_bytes
        length = int.from_bytes(data[start - length_bytes : start], "little")
        end = start + length
        # So great a length is no number's: perhaps a VR, or an undefined length.
        if length >= 0x4141 or end > len(data) or not data.startswith(header, position):
            return 0, b""
        if action is Action.REMOVE:
            return end, b""
        value = data[start:end]
        if action is Action.UID:
            if not _ONE_UID.fullmatch(value):
                return 0, b""
            new = patient.pseudonym_of_uid(value.rstrip(b"\0").decode("ascii")).encode("ascii")
            new += b"\0" * (len(new) & 1)
            return end, b"".join((header, len(new).to_bytes(length_bytes, "little"), new))
        if length % 2 or not stays_as_it_is(vr, value):
            return 0, b""
        if (
            vr in NUMBER_VRS
            and self.numbers
            and not self.numbers.isdisjoint([part.strip(b"\0 ") for part in value.split(b"\\")])
        ):
            return 0, b""
        return end, data[position:end]

    def _treated(self, varying: list[Element], patient: Patient) -> list[Element] | None:
        """What varies as it may leave, unless it changes what must be looked for."""
        refuse_unknown_character_sets(varying)
        if not patient.identifiers.covers(
            identifiers_of(varying, character_set=self.character_set)
        ):
            return None
        retained = self.policy.retained
        if retained and any(leaf.tag in retained for leaf, _ in leaves(varying, b"")):
            return None
        tags = {element.tag for element in varying}
        treated = treat_elements(
            [*self.creators, *varying], self.class_policy, patient, 0, self.character_set
        )
        treated = [element for element in treated if element.tag in tags]
        kept_private = {element.tag for element in treated if element.tag >> 16 & 1}
        if (
            kept_private != self.kept_private
            or patient.dates != self.patient.dates
            or has_text_outside_ascii(treated)
        ):
            return None
        return treated

    def _verify(self, header: bytes, written: bytes, patient: Patient) -> None:
        """What varies is read again; the whole is searched, and read again if anything is found."""
        identifiers = self.residual.with_uids(patient.uids)
        implicit = self.implicit
        verify_elements(written, identifiers, patient.pseudonym, implicit=implicit)
        new = [uid.encode("ascii") for uid in patient.uids if uid not in self.patient.uids]
        if may_hold(header, (*self.texts, *new)):
            verify_deidentified(header, identifiers, patient.pseudonym)


def learned_template(
    data: bytes,
    instance: Instance,
    may_vary: frozenset[int],
    policy: Policy,
    keys: PseudonymKeys,
) -> Template | None:
    """What recurs of ``instance`` if the attributes ``may_vary`` do; None if it would not pass."""
    recurring = [element for element in instance.elements if element.tag not in may_vary]
    values = {element.tag: element.value for element in recurring}
    class_policy = class_policy_for(instance, policy)
    patient = patient_of(recurring, policy, keys)
    # With those that vary: a private creator stays where something of its block does.
    treated = treat_elements(instance.elements, class_policy, _again(patient), 0, b"")
    constant = [element for element in treated if element.tag not in may_vary]
    constant = with_written_elements(constant, policy, patient)
    treat_elements(recurring, class_policy, patient, 0, b"")  # its UIDs and dates
    residual = residual_identifiers(patient)
    implicit = instance.is_implicit_vr
    try:
        verify_elements(
            encode_elements(constant, implicit=implicit),
            residual,
            patient.pseudonym,
            implicit=implicit,
        )
        representation = (
            pixel_representation(Element(PIXEL_REPRESENTATION, "US", values[PIXEL_REPRESENTATION]))
            if PIXEL_REPRESENTATION in values
            else 0
        )
    except (AnonymizerError, Irregular):
        return None
    character_set = values.get(SPECIFIC_CHARACTER_SET, b"")
    return Template(
        policy=policy,
        class_policy=class_policy,
        patient=patient,
        residual=residual,
        original=original_identity(instance, patient, policy),
        values=values,
        syntax=UID(instance.transfer_syntax_uid),
        implicit=implicit,
        encapsulated=UID(instance.transfer_syntax_uid).is_encapsulated,
        input=_input_steps(data, instance.places, may_vary),
        output=_output_steps(constant, instance.elements, may_vary, implicit),
        character_set=character_set if isinstance(character_set, bytes) else b"",
        representation=representation,
        creators=tuple(
            element
            for element in recurring
            if policy.safe_private and _is_private_creator(element.tag)
        ),
        kept_private=frozenset(
            element.tag for element in treated if element.tag in may_vary and element.tag >> 16 & 1
        ),
        texts=plain_texts(residual),
        simple=_simple_ones(instance.elements, may_vary, class_policy, implicit),
        numbers=frozenset(number.encode() for number in residual.numbers),
    )


def _simple_ones(
    elements: Iterable[Element], may_vary: frozenset[int], policy: ClassPolicy, implicit: bool
) -> dict[int, Simple]:
    """The attributes, of those that vary, that can be settled without looking at the patient.

    Not those whose values are identifiers, and no private one that an option may keep.
    """
    simple: dict[int, Simple] = {}
    for tag, vr, value in elements:
        entry = DicomDictionary.get(tag)
        if tag not in may_vary or tag in NUMBER_TAGS:
            continue
        if isinstance(value, list) or (entry and entry[0] in ("DA", "DT", "PN", "SQ")):
            continue
        if tag >> 16 & 1:
            action = Action.KEEP if policy.safe_private else Action.REMOVE
        else:
            action = policy.action(0, tag)
        known = has_dictionary_vr(tag, vr)
        if (
            action is Action.REMOVE
            or (action is Action.KEEP and known)
            or (action is Action.UID and known and vr == "UI")
        ):
            header = element_header(tag, vr, 0, implicit)
            length_bytes = 4 if implicit or vr in LONG_VRS else 2
            simple[tag] = Simple(header[:-length_bytes], length_bytes, vr, action)
    return simple


def _again(patient: Patient) -> Patient:
    """The same patient, to fill up with the UIDs and dates of one more instance."""
    return Patient(
        uid_key=patient.uid_key,
        pseudonym=patient.pseudonym,
        shift_days=patient.shift_days,
        identifiers=patient.identifiers,
        uids=dict(patient.uids),
        dates=dict(patient.dates),
        retains_uids=patient.retains_uids,
    )


def _input_steps(
    data: bytes, places: Iterable[Place], may_vary: frozenset[int]
) -> tuple[bytes | int, ...]:
    steps: list[bytes | int] = []
    run_start = run_end = 0
    for tag, start, end in places:
        if tag in may_vary:
            if run_end > run_start:
                steps.append(data[run_start:run_end])
            steps.append(tag)
            run_start = end
        elif run_end <= run_start:
            run_start = start
        run_end = end
    if run_end > run_start:
        steps.append(data[run_start:run_end])
    return tuple(steps)


def _output_steps(
    constant: Iterable[Element],
    elements: Iterable[Element],
    may_vary: frozenset[int],
    implicit: bool,
) -> tuple[bytes | int, ...]:
    pieces: list[tuple[int, bytes | int]] = [
        (element.tag, encode_elements([element], implicit=implicit)) for element in constant
    ]
    pieces += [(element.tag, element.tag) for element in elements if element.tag in may_vary]
    steps: list[bytes | int] = []
    for _, piece in sorted(pieces, key=lambda piece: piece[0]):
        if isinstance(piece, bytes) and steps and isinstance(steps[-1], bytes):
            steps[-1] += piece
        else:
            steps.append(piece)
    return tuple(steps)


def _differing(
    one_data: bytes, one: Instance, other_data: bytes, other: Instance
) -> frozenset[int] | None:
    """Attributes of both whose bytes differ; None if the instances are not of a kind."""
    if (one.transfer_syntax_uid, one.sop_class_uid) != (
        other.transfer_syntax_uid,
        other.sop_class_uid,
    ):
        return None
    before = {place.tag: one_data[place.start : place.end] for place in one.places}
    return frozenset(
        place.tag
        for place in other.places
        if place.tag in before and before[place.tag] != other_data[place.start : place.end]
    )


def _may_vary(tag: int, policy: Policy) -> bool:
    """Whether no other attribute's output, and nobody's identity, depends on ``tag``."""
    entry = DicomDictionary.get(tag)
    return not (
        tag in DECISIVE_TAGS
        or tag in policy.additions
        or tag in policy.retained
        or tag in patient_study_attributes()
        or _is_private_creator(tag)
        or tag >> 16 & 0xFF01 == 0x6000
        or (entry is not None and entry[0] in ("DA", "PN"))
    )


def _is_private_creator(tag: int) -> bool:
    return bool(tag >> 16 & 1) and 0x10 <= tag & 0xFFFF <= 0xFF
