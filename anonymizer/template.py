"""What recurs in a series, learned from one instance, and how to make others of its kind.

Bytes that recur have an output that recurs; the rest is treated attribute by attribute, most of it
by a rule of :mod:`anonymizer.varying`, and what becomes of it is searched for the patient's
identifiers every time. What recurs was searched where it was learned: the same bytes, for the same
identifiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydicom.uid import UID

from anonymizer.actions import Patient, treat_elements
from anonymizer.deidentify import (
    DeidentifiedInstance,
    OriginalIdentity,
    Treated,
    has_text_outside_ascii,
    refuse_swallowed_elements,
    refuse_unknown_character_sets,
    residual_identifiers,
    with_written_elements,
)
from anonymizer.encoding import Element, encode_elements
from anonymizer.errors import AnonymizerError
from anonymizer.identity import Identifiers, identifiers_of, leaves
from anonymizer.part10 import (
    DAMAGE,
    SPECIFIC_CHARACTER_SET,
    Instance,
    file_meta,
    header_bytes,
)
from anonymizer.pixel_data import frames_header, pixel_elements
from anonymizer.profile import Action, ClassPolicy, Policy
from anonymizer.runs import Runs, runs_of
from anonymizer.scan import (
    PIXEL_REPRESENTATION,
    Irregular,
    is_private_creator,
    pixel_representation,
    scan_meta,
    settled_vr,
)
from anonymizer.varying import GONE, Rule, rule_for
from anonymizer.verify import (
    may_hold,
    plain_texts,
    verify_deidentified,
    verify_elements,
    verify_fragments,
)


@dataclass(frozen=True)
class Template:
    """What recurs in a series, and where the rest stands. ``repr`` shows nothing of it."""

    policy: Policy = field(repr=False)
    class_policy: ClassPolicy = field(repr=False)
    patient: Patient = field(repr=False)
    """The patient, with the UIDs and dates that recur."""
    residual: Identifiers = field(repr=False)
    """What must not be found in the output, but for the UIDs that vary."""
    texts: tuple[bytes, ...] = field(repr=False)
    """The same, as :func:`anonymizer.verify.may_hold` takes it."""
    original: OriginalIdentity = field(repr=False)
    """Of the instance from which this was learned: what is one for the series recurs."""
    syntax: UID
    meta: Runs = field(repr=False)
    dataset: Runs = field(repr=False)
    output: tuple[bytes, ...] = field(repr=False)
    """The data set to write: what recurs, and between any two parts a gap for what varies, in the
    order of ``dataset.steps``."""
    values: Mapping[int, bytes | list[list[Element]]] = field(repr=False)
    """Values that recur, by tag: they give the size of a frame."""
    pixel_header: bytes | None
    """Tag, VR and length of Pixel Data, which recur where it is not compressed."""
    pixel_bytes: int
    """Of Pixel Data with its header."""
    creators: tuple[Element, ...] = field(repr=False)
    """Private creators: what the private attributes that vary belong to (PS3.5 7.8.1)."""
    kept_private: frozenset[int]
    """Private attributes that vary and stayed in the instance that this was learned from."""

    def deidentified(self, data: bytes) -> DeidentifiedInstance | None:
        """The output for an instance that fits; None for one that does not, or may not pass.

        None is no verdict: the long way finds out what is the matter.
        """
        try:
            return self._deidentified(data)
        except (AnonymizerError, Irregular, *DAMAGE):
            return None

    def _deidentified(self, data: bytes) -> DeidentifiedInstance | None:
        patient = _again(self.patient)
        meta = self.meta.matched(data, 132, patient) if data[128:132] == b"DICM" else None
        found = self.dataset.matched(data, meta.end, patient) if meta else None
        if not meta or not found or not found.sop_instance_uid:
            return None
        implicit = self.dataset.implicit
        pixel_data = self._pixel_data(data, found.end)
        if not pixel_data:
            return None
        outputs = found.outputs
        if found.others:
            treated = self._treated(found.others, patient)
            if treated is None:
                return None
            for place, element in treated.items():
                outputs[place] = encode_elements([element], implicit=implicit)
        original = self.original
        sop_instance_uid = patient.pseudonym_of_uid(found.sop_instance_uid)
        parts = [file_meta(self.syntax, original.sop_class_uid, sop_instance_uid), *self.output]
        parts[2::2] = outputs
        header = b"".join(parts)
        others = b"".join([outputs[place] for place in found.others])
        self._verify(header, outputs, others, pixel_data, patient)
        dataset = data[meta.end : found.end]
        return DeidentifiedInstance(
            header=header,
            pixel_data=pixel_data,
            sop_instance_uid=sop_instance_uid,
            series_instance_uid=patient.pseudonym_of_uid(original.series_instance_uid),
            study_instance_uid=patient.pseudonym_of_uid(original.study_instance_uid),
            original=OriginalIdentity(
                header=header_bytes(
                    dataset, self.syntax, original.sop_class_uid, found.sop_instance_uid
                ),
                sop_class_uid=original.sop_class_uid,
                sop_instance_uid=found.sop_instance_uid,
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

    def _pixel_data(self, data: bytes, start: int) -> bytes | memoryview:
        end = start + self.pixel_bytes
        recurs = self.pixel_header is not None and data.startswith(self.pixel_header, start)
        if recurs and end <= len(data):
            return memoryview(data)[start:end]
        return pixel_elements(
            data, start, self.values, implicit=self.dataset.implicit, big_endian=False
        )

    def _treated(
        self, others: Mapping[int, Element], patient: Patient
    ) -> dict[int, Element] | None:
        """Each of ``others`` that may leave, as it may; None if what must be looked for changes."""
        varying = {element.tag: place for place, element in others.items()}
        elements = [self._with_settled_vr(element) for element in others.values()]
        refuse_unknown_character_sets(elements)
        refuse_swallowed_elements(elements)
        character_set = self.values.get(SPECIFIC_CHARACTER_SET, b"")
        if not isinstance(character_set, bytes) or not patient.identifiers.covers(
            identifiers_of(elements, character_set=character_set)
        ):
            return None
        retained = self.policy.retained
        if retained and any(leaf.tag in retained for leaf, _ in leaves(elements, b"")):
            return None
        treated = treat_elements(
            [*self.creators, *elements], self.class_policy, patient, 0, character_set
        )
        treated = [element for element in treated if element.tag in varying]
        kept_private = {element.tag for element in treated if element.tag >> 16 & 1}
        if (
            kept_private != self.kept_private
            or patient.dates != self.patient.dates
            or has_text_outside_ascii(treated)
        ):
            return None
        return {varying[element.tag]: element for element in treated}

    def _with_settled_vr(self, element: Element) -> Element:
        if " or " not in element.vr:
            return element
        representation = self.values.get(PIXEL_REPRESENTATION)
        signed = (
            pixel_representation(Element(PIXEL_REPRESENTATION, "US", representation))
            if representation is not None
            else 0
        )
        return element._replace(vr=settled_vr(element.vr, signed))

    def _verify(
        self,
        header: bytes,
        outputs: Iterable[bytes],
        others: bytes,
        pixel_data: bytes | memoryview,
        patient: Patient,
    ) -> None:
        """What varies is searched; where anything is found, the whole is read again.

        What recurs was verified where it was learned, but not for the UIDs of this instance.
        """
        new = [uid.encode("ascii") for uid in patient.uids if uid not in self.patient.uids]
        suspicious = may_hold(b"".join(outputs), self.texts) or may_hold(header, new)
        if not (others or suspicious or self.syntax.is_encapsulated):
            return
        residual = self.residual.with_uids(patient.uids)
        if others:
            implicit = self.dataset.implicit
            verify_elements(others, residual, patient.pseudonym, implicit=implicit)
        if suspicious:
            verify_deidentified(header, residual, patient.pseudonym)
        if self.syntax.is_encapsulated:
            verify_fragments(pixel_data, residual)


def learned_template(
    data: bytes,
    instance: Instance,
    treated: Treated,
    result: DeidentifiedInstance,
    may_vary: frozenset[int],
    policy: Policy,
) -> Template | None:
    """What recurs of ``instance``, which was released as ``result``, if ``may_vary`` do not.

    None if they bring a name, a number or a date of their own, or if there are no pixels.
    """
    recurring = [element for element in instance.elements if element.tag not in may_vary]
    patient = _with_what_recurs(treated, recurring, policy)
    if patient is None or not instance.pixel_data:
        return None
    class_policy, implicit = treated.class_policy, instance.is_implicit_vr
    constant = [element for element in treated.elements if element.tag not in may_vary]
    residual = residual_identifiers(patient)
    numbers = frozenset(number.encode() for number in residual.whole_numbers)
    elements = {element.tag: element for element in instance.elements}

    def rule(tag: int, header: bytes, length_bytes: int) -> Rule:
        if tag not in elements:  # a retired group length
            return GONE
        return rule_for(
            elements[tag], header, length_bytes, class_policy, numbers, implicit=implicit
        )

    dataset = runs_of(data, instance.places, may_vary, rule, implicit=implicit)
    return Template(
        policy=policy,
        class_policy=class_policy,
        patient=patient,
        residual=residual,
        texts=plain_texts(residual),
        original=result.original,
        syntax=UID(instance.transfer_syntax_uid),
        meta=runs_of(data, scan_meta(data).places, may_vary, lambda *_: GONE, implicit=False),
        dataset=dataset,
        output=_output(
            with_written_elements(constant, policy, patient),
            [step.tag for step in dataset.steps],
            implicit,
        ),
        values={element.tag: element.value for element in recurring},
        pixel_header=frames_header(instance.pixel_data, implicit=implicit),
        pixel_bytes=len(instance.pixel_data),
        creators=tuple(
            element
            for element in recurring
            if policy.safe_private and is_private_creator(element.tag)
        ),
        kept_private=frozenset(
            element.tag
            for element in treated.elements
            if element.tag in may_vary and element.tag >> 16 & 1
        ),
    )


def _with_what_recurs(treated: Treated, recurring: list[Element], policy: Policy) -> Patient | None:
    """The patient with no UIDs but those that recur; None if not all else does."""
    patient = treated.patient
    if identifiers_of(recurring, policy.retained) != patient.identifiers:
        return None
    actions = (Action.UID, Action.SHIFT)
    recurs = replace(patient, uids={}, dates={})
    linking = [
        element
        for element in recurring
        if isinstance(element.value, list) or treated.class_policy.action(0, element.tag) in actions
    ]
    treat_elements(linking, treated.class_policy, recurs, 0, b"")
    return recurs if recurs.dates == patient.dates else None


def _again(patient: Patient) -> Patient:
    """The same patient, to fill up with the UIDs of one more instance."""
    return Patient(
        uid_key=patient.uid_key,
        pseudonym=patient.pseudonym,
        shift_days=patient.shift_days,
        identifiers=patient.identifiers,
        uids=dict(patient.uids),
        dates=dict(patient.dates),
        retains_uids=patient.retains_uids,
    )


def _output(
    constant: Iterable[Element], varying: Iterable[int], implicit: bool
) -> tuple[bytes, ...]:
    """``Template.output``; ``varying`` are the tags that vary, ascending."""
    parts = []
    left = sorted(constant, key=lambda element: element.tag)
    for tag in varying:
        run = [element for element in left if element.tag < tag]
        left = left[len(run) :]
        parts += [encode_elements(run, implicit=implicit), b""]
    return (*parts, encode_elements(left, implicit=implicit))
