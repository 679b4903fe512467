"""The numbers of a result for people whose viewer shows text: a Basic Text SR."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom.sr as hd
from highdicom.sr.utils import collect_evidence
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage

from node.manifest import Segment
from node.results.measurements import Measurements
from node.results.report import NOTICE, complete_report, new_document, quiet, statements, title_of
from node.results.seg import Algorithm
from node.results.source import named
from node.results.sr import device_observer
from node.results.uids import ResultIdentity

FINDING = codes.DCM.Finding
FINDINGS = codes.DCM.Findings
ENGLISH = hd.CodedConcept("en-US", "RFC5646", "English (United States)")
CONTAINS = hd.RelationshipTypeValues.CONTAINS


def encode_text_sr(
    measurements: Measurements,
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """One page: the notice, then each segment with its numbers.

    Parameters
    ----------
    measurements
        In the order of ``segments``.
    source_instances
        De-identified headers in slice order; all of them become evidence.

    References
    ----------
    PS3.3 2026b A.35.1 (Basic Text SR); PS3.16 2026b TID 2000 (Basic Diagnostic Imaging Report).
    """
    # One item for each number: viewers cut long ones off (seen in OHIF).
    lines = [
        f"{segment.label}: {statement}"
        for segment, found in zip(segments, measurements, strict=True)
        for statement in statements(found, source_instances)
    ]
    return text_document([NOTICE, *lines], source_instances, algorithm, identity)


def text_document(
    paragraphs: Sequence[str],
    source_instances: Sequence[Dataset],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """Paragraphs as a Basic Text SR of the sources' study, unverified.

    ``source_instances`` need not form a volume: this may be what the document says.
    """
    sources = named(source_instances)
    with quiet():
        report = _document(sources, identity)
        content = _content(paragraphs, algorithm)
        for element in content:
            report[element.tag] = element
        evidence, _ = collect_evidence(list(sources), content, report.StudyInstanceUID)
    report.CurrentRequestedProcedureEvidenceSequence = evidence
    return complete_report(report, algorithm, identity)


def _document(sources: Sequence[Dataset], identity: ResultIdentity) -> Dataset:
    """SR Document Series and SR Document General (PS3.3 C.17.1, C.17.2); highdicom has no class."""
    document = new_document(BasicTextSRStorage, "SR", sources[0], identity)
    document.ContentDate = document.ContentTime = None
    document.CompletionFlag = "COMPLETE"
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.PerformedProcedureCodeSequence = []
    document.ReferencedPerformedProcedureStepSequence = []
    return document


def _content(paragraphs: Sequence[str], algorithm: Algorithm) -> Dataset:
    """TID 2000: language (TID 1204), who observed (TID 1001), one section."""
    title = Code("18748-4", "LN", "Diagnostic imaging report")
    root = hd.ContainerContentItem(name=title, is_content_continuous=False, template_id="2000")
    section = hd.ContainerContentItem(
        name=FINDINGS, is_content_continuous=False, relationship_type=CONTAINS
    )
    section.ContentSequence = hd.ContentSequence(
        [
            hd.TextContentItem(name=FINDING, value=text, relationship_type=CONTAINS)
            for text in (title_of(algorithm), *paragraphs)
        ]
    )
    language = hd.LanguageOfContentItemAndDescendants(ENGLISH)
    observer = hd.ObservationContext(device_observer(algorithm))
    root.ContentSequence = hd.ContentSequence([*language, *observer, section])
    return root
