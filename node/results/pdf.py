"""The result on one page for people: the picture and the numbers as an Encapsulated PDF."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from xml.sax.saxutils import escape

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib.colors import Color
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    Image,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

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
from node.results.source import SourceSeries, named
from node.results.uids import ResultIdentity

_PAGE = landscape(A4)
_MARGIN = 14 * mm
_HEADING = 10 * mm
_GAP = 4 * mm
_ROOM = (_PAGE[0] - 2 * _MARGIN, _PAGE[1] - 2 * _MARGIN - _HEADING)
_LOWEST_PICTURE = _ROOM[1] / 2  # what a picture needs to be looked at; the table goes on overleaf
_BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=10, leading=13)


def encode_pdf(
    picture_png: bytes,
    measurements: Measurements,
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """Landscape A4: title and notice, the picture, a row for each segment; one page where the
    rows leave the picture half of it, else as many as it takes.

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
        ["", _words(segment.label), _words("; ".join(statements(found, source_instances)))]
        for segment, found in zip(segments, measurements, strict=True)
    ]
    table = Table(rows, colWidths=[8 * mm, 50 * mm, _ROOM[0] - 58 * mm])
    colours = [
        ("BACKGROUND", (0, row), (0, row), Color(*(value / 255 for value in segment.rgb)))
        for row, segment in enumerate(segments)
    ]
    table.setStyle(TableStyle([*colours, ("VALIGN", (0, 0), (-1, -1), "MIDDLE")]))
    _, table_height = table.wrap(*_ROOM)
    # A point less than there is, for the sum is of rounded numbers.
    picture_height = max(_LOWEST_PICTURE, _ROOM[1] - table_height - _GAP - 1)
    picture = Image(BytesIO(picture_png), _ROOM[0], picture_height, kind="proportional")
    picture.hAlign = table.hAlign = "LEFT"
    sources = SourceSeries.of(source_instances).headers
    return _document([picture, Spacer(1, _GAP), table], sources, algorithm, identity)


def page_document(
    paragraphs: Sequence[str],
    source_instances: Sequence[Dataset],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """Paragraphs as an Encapsulated PDF of the sources' study.

    ``source_instances`` need not form a volume: this may be what the document says.
    """
    story = [part for text in paragraphs for part in (_words(text), Spacer(1, _GAP))]
    return _document(story, named(source_instances), algorithm, identity)


def _words(text: str) -> Paragraph:
    return Paragraph(escape(text), _BODY)


def _pages(story: list[Flowable], algorithm: Algorithm) -> bytes:
    stream = BytesIO()
    # Invariant: no clock and no random id, so that the same result is the same file.
    template = BaseDocTemplate(
        stream, pagesize=_PAGE, invariant=1, title=title_of(algorithm), author=MANUFACTURER,
    )  # fmt: skip
    frame = Frame(
        _MARGIN, _MARGIN, *_ROOM, leftPadding=0, bottomPadding=0, rightPadding=0, topPadding=0
    )
    template.addPageTemplates(
        PageTemplate(frames=[frame], onPage=partial(_heading, title=title_of(algorithm)))
    )
    template.build(story)
    return stream.getvalue()


def _heading(page: Canvas, _: BaseDocTemplate, *, title: str) -> None:
    top = _PAGE[1] - _MARGIN - 16
    page.setFont("Helvetica-Bold", 16)
    page.drawString(_MARGIN, top, f"{MANUFACTURER} {title}")
    page.setFont("Helvetica-Bold", 11)
    page.drawRightString(_PAGE[0] - _MARGIN, top, NOTICE)


def _document(
    story: list[Flowable],
    sources: Sequence[Dataset],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """Encapsulated Document Series and SC Equipment; highdicom has no class for it."""
    with quiet():
        document = new_document(EncapsulatedPDFStorage, "DOC", sources[0], identity)
    document.ConversionType = "WSD"
    document.BurnedInAnnotation = "NO"  # nothing on the page says whose it is
    document.ContentDate = document.ContentTime = None
    document.AcquisitionDateTime = None
    document.DocumentTitle = identity.series_description
    document.ConceptNameCodeSequence = []
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.SourceInstanceSequence = [reference_to(source) for source in sources]
    document.EncapsulatedDocument = _pages(story, algorithm)
    return complete_report(document, algorithm, identity)
