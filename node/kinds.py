"""What a result can be: one kind of object each, and each in a series of its own."""

from __future__ import annotations

from enum import StrEnum

from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)


class ResultKind(StrEnum):
    """A kind of result, as ``results`` of a peer names it; in the order in which they are sent."""

    SEG = "seg"  #: Segmentation
    SR = "sr"  #: Comprehensive 3D SR (TID 1500), numbers for machines; refers to the Segmentation
    TEXT_SR = "text_sr"  #: Basic Text SR, the same numbers for people
    PDF = "pdf"  #: Encapsulated PDF, numbers and picture on a page
    CAPTURE = "capture"  #: Secondary Captures, one for each slice: for viewers that show no SEG
    RTSTRUCT = "rtstruct"  #: RT Structure Set, contours
    REJECTION = "rejection"  #: Key Object Selection that rejects earlier results (IHE IOCM)

    @property
    def sop_class_uid(self) -> str:
        """PS3.4 B.5."""
        return _SOP_CLASSES[self]

    @property
    def number(self) -> int:
        """0, 1, 2 …: added to the SeriesNumber of the model's manifest."""
        return list(ResultKind).index(self)

    def described(self, series_description: str, ending: str = "") -> str:
        """A SeriesDescription of this kind's own, at most 64 characters (PS3.5 6.2, LO)."""
        return cut(series_description, _ENDINGS[self] + ending)


def cut(text: str, ending: str) -> str:
    """Both, the text cut where they are longer than the 64 characters of LO (PS3.5 6.2)."""
    return text[: 64 - len(ending)].rstrip() + ending


_SOP_CLASSES = {
    ResultKind.SEG: SegmentationStorage,
    ResultKind.SR: Comprehensive3DSRStorage,
    ResultKind.TEXT_SR: BasicTextSRStorage,
    ResultKind.PDF: EncapsulatedPDFStorage,
    ResultKind.CAPTURE: SecondaryCaptureImageStorage,
    ResultKind.RTSTRUCT: RTStructureSetStorage,
    ResultKind.REJECTION: KeyObjectSelectionDocumentStorage,
}

_ENDINGS = {
    ResultKind.SEG: "",
    ResultKind.SR: " measurements",
    ResultKind.TEXT_SR: " report",
    ResultKind.PDF: " page",
    ResultKind.CAPTURE: " pictures",
    ResultKind.RTSTRUCT: " contours",
    ResultKind.REJECTION: " replaced",
}
