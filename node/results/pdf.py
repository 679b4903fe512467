"""The result on one page for people: the picture and the numbers as an Encapsulated PDF."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib.colors import Color
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, Table, TableStyle

from node.manifest import Segment
from node.results.measurements import Measurements
from node.results.report import (
    NOTICE,
    complete_report,
    new_document,
    quiet,
    reference_to,
    statements,
    title_of,
)
from node.results.seg import MANUFACTURER, Algorithm
from node.results.source import SourceSeries
from node.results.uids import ResultIdentity

_MARGIN = 14 * mm
_GAP = 4 * mm
_BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=10, leading=13)


def encode_pdf(
    picture_png: bytes,
    measurements: Measurements,
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """One landscape A4 page: title and notice, the picture, a row for each segment.

    Parameters
    ----------
    picture_png
        As :func:`node.results.overlay.montage_png` draws it.
    measurements
        In the order of ``segments``.
    source_instances
        De-identified headers in slice order; the document names all of them as its sources.

    References
    ----------
    PS3.3 2026b A.45.1 (Encapsulated PDF), C.24.2 (Encapsulated Document).
    """
    rows = [
        (segment, "; ".join(statements(found, source_instances)))
        for segment, found in zip(segments, measurements, strict=True)
    ]
    sources = SourceSeries.of(source_instances).headers
    with quiet():
        document = _document(sources, identity)
    document.EncapsulatedDocument = _page(picture_png, rows, algorithm)
    return complete_report(document, algorithm, identity)


def _page(picture_png: bytes, rows: Sequence[tuple[Segment, str]], algorithm: Algorithm) -> bytes:
    stream = BytesIO()
    width, height = landscape(A4)
    # Invariant: no clock and no random id, so that the same result is the same file.
    page = Canvas(stream, pagesize=(width, height), invariant=1)
    page.setTitle(title_of(algorithm))
    page.setAuthor(MANUFACTURER)
    top = height - _MARGIN - 16
    page.setFont("Helvetica-Bold", 16)
    page.drawString(_MARGIN, top, f"{MANUFACTURER} {title_of(algorithm)}")
    page.setFont("Helvetica-Bold", 11)
    page.drawRightString(width - _MARGIN, top, NOTICE)

    table = Table(
        [["", segment.label, Paragraph(text, _BODY)] for segment, text in rows],
        colWidths=[8 * mm, 50 * mm, width - 2 * _MARGIN - 58 * mm],
    )
    colours = [
        ("BACKGROUND", (0, row), (0, row), Color(*(value / 255 for value in segment.rgb)))
        for row, (segment, _) in enumerate(rows)
    ]
    table.setStyle(TableStyle([*colours, ("VALIGN", (0, 0), (-1, -1), "MIDDLE")]))
    room = width - 2 * _MARGIN
    _, table_height = table.wrap(room, height)
    picture = ImageReader(BytesIO(picture_png))
    pixels_wide, pixels_high = picture.getSize()
    scale = min(room / pixels_wide, (top - table_height - _MARGIN - 2 * _GAP) / pixels_high)
    below = top - _GAP - scale * pixels_high
    page.drawImage(picture, _MARGIN, below, scale * pixels_wide, scale * pixels_high)
    table.drawOn(page, _MARGIN, below - _GAP - table_height)
    page.showPage()
    page.save()
    return stream.getvalue()


def _document(sources: Sequence[Dataset], identity: ResultIdentity) -> Dataset:
    """Encapsulated Document Series and SC Equipment; highdicom has no class for it."""
    document = new_document(EncapsulatedPDFStorage, "DOC", sources[0], identity)
    document.ConversionType = "WSD"
    document.BurnedInAnnotation = "YES"
    document.ContentDate = document.ContentTime = None
    document.AcquisitionDateTime = None
    document.DocumentTitle = identity.series_description
    document.ConceptNameCodeSequence = []
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.SourceInstanceSequence = [reference_to(source) for source in sources]
    return document
