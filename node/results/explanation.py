"""Why there is no result: one page that goes home instead, as each destination can show it."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

import highdicom as hd
import numpy as np
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.kinds import ResultKind
from node.results.drawing import font
from node.results.objects import Origin
from node.results.pdf import page_document
from node.results.report import (
    NOTICE,
    complete_report,
    patient_and_study,
    quiet,
    reference_to,
    title_of,
)
from node.results.seg import MANUFACTURER, Algorithm
from node.results.source import named
from node.results.text_sr import text_document
from node.results.uids import ResultIdentity

#: What can say it, best first.
EXPLAINING = (ResultKind.TEXT_SR, ResultKind.PDF, ResultKind.CAPTURE)

_PICTURE = (768, 1024)  # rows, columns
_LETTER = 26
_LINE = 36
_MARGIN = 40
_LETTERS_IN_A_LINE = 64


def explaining_kind(taken: Collection[ResultKind]) -> ResultKind:
    """The best of what a destination takes; the text, which most do, where it names none."""
    return next((kind for kind in EXPLAINING if kind in taken), EXPLAINING[0])


def explanation(
    kind: ResultKind, reason: Mapping[str, str], sources: Sequence[Dataset], origin: Origin
) -> Dataset:
    """One page that says why a series has no result and what can be done, so that nobody waits.

    Parameters
    ----------
    kind
        One of :data:`EXPLAINING`.
    reason
        ``cause`` and ``remedy`` of the error that stopped the job: they name tags, never values.
    sources
        De-identified instances, suitable or not; the page names all of them.
    """
    paragraphs = [
        f"{NOTICE}. There is no result for this series.",
        f"Cause: {_ascii(reason['cause'])}",
        f"What to do: {_ascii(reason['remedy'])}",
    ]
    encode = {
        ResultKind.TEXT_SR: text_document,
        ResultKind.PDF: page_document,
        ResultKind.CAPTURE: picture_document,
    }[kind]
    identity = origin.identity(kind, sources[0], explanation=True)
    return encode(paragraphs, sources, origin.algorithm, identity)


def picture_document(
    paragraphs: Sequence[str],
    source_instances: Sequence[Dataset],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """Paragraphs as one Secondary Capture, white on black, of the sources' study.

    References
    ----------
    PS3.3 2026b A.8.1 (Secondary Capture).
    """
    sources = named(source_instances)
    study = sources[0]
    with quiet():
        picture = hd.sc.SCImage(
            pixel_array=_drawn([f"{MANUFACTURER} {title_of(algorithm)}", *paragraphs]),
            photometric_interpretation="MONOCHROME2",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=identity.series_instance_uid,
            series_number=identity.series_number,
            sop_instance_uid=identity.sop_instance_uid,
            instance_number=1,
            manufacturer=MANUFACTURER,
            **patient_and_study(study),
            patient_orientation=("L", "F"),  # highdicom wants one
            specific_character_set="ISO_IR 192",
            series_description=identity.series_description,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
    picture.PatientOrientation = []  # words lie nowhere in a patient
    picture.Laterality = ""
    picture.ConversionType = "WSD"
    picture.BurnedInAnnotation = "YES"
    picture.SourceImageSequence = [reference_to(source) for source in sources]
    return complete_report(picture, algorithm, identity)


def _drawn(paragraphs: Sequence[str]) -> np.ndarray:
    """uint8, shape (rows, columns)."""
    picture = Image.new("L", _PICTURE[::-1])
    draw = ImageDraw.Draw(picture)
    lines = [line for text in paragraphs for line in (*textwrap.wrap(text, _LETTERS_IN_A_LINE), "")]
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, 255, font(_LETTER))
    return np.asarray(picture)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")
