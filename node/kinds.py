"""What a result can be: one kind of object each, and each in a series of its own."""

from __future__ import annotations

from enum import StrEnum

from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

#: PS3.4 2026b B.5; pydicom 3.0 has no name for it.
LABEL_MAP_SEGMENTATION_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")


class ResultKind(StrEnum):
    """A kind of result, as ``results`` of a peer names it; in the order in which they are sent."""

    SEG = "seg"  #: Segmentation
    SR = "sr"  #: Comprehensive 3D SR (TID 1500), numbers for machines; refers to the Segmentation
    TEXT_SR = "text_sr"  #: Basic Text SR, the same numbers for people
    PDF = "pdf"  #: Encapsulated PDF, numbers and picture on a page
    CAPTURE = "capture"  #: Secondary Captures, one for each slice: for viewers that show no SEG
    RTSTRUCT = "rtstruct"  #: RT Structure Set, contours
    LABELMAP = "labelmap"  #: Label Map Segmentation, instead of the Segmentation
    LABELMAP_SR = "labelmap_sr"  #: the SR that refers to it
    REJECTION = "rejection"  #: Key Object Selection that rejects earlier results (IHE IOCM)

    @property
    def sop_class_uid(self) -> str:
        """PS3.4 B.5."""
        return _SOP_CLASSES[self]

    @property
    def number(self) -> int:
        """0, 1, 2 …: added to the SeriesNumber of the model's manifest."""
        return list(ResultKind).index(self)

    @property
    def is_segmentation(self) -> bool:
        """Whether it is one, of either type."""
        return self in (ResultKind.SEG, ResultKind.LABELMAP)

    @property
    def wants_segmentation(self) -> bool:
        """Whether it is a Segmentation or says nothing without one."""
        return self in _AS_LABELMAP or self in _AS_LABELMAP.values()

    def as_labelmap(self) -> ResultKind:
        """What takes its place where a destination wants Label Map Segmentations."""
        return _AS_LABELMAP.get(self, self)

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
    ResultKind.LABELMAP: LABEL_MAP_SEGMENTATION_STORAGE,
    ResultKind.LABELMAP_SR: Comprehensive3DSRStorage,
}
_AS_LABELMAP = {
    ResultKind.SEG: ResultKind.LABELMAP,
    ResultKind.SR: ResultKind.LABELMAP_SR,
}
#: What ``results`` of a peer may name.
CHOOSABLE = tuple(kind for kind in ResultKind if kind not in _AS_LABELMAP.values())
#: What ``kinds`` of a model may name.
OF_MODELS = tuple(kind for kind in CHOOSABLE if kind is not ResultKind.REJECTION)

_ENDINGS = {
    ResultKind.SEG: "",
    ResultKind.SR: " measurements",
    ResultKind.TEXT_SR: " report",
    ResultKind.PDF: " page",
    ResultKind.CAPTURE: " pictures",
    ResultKind.RTSTRUCT: " contours",
    ResultKind.REJECTION: " replaced",
    ResultKind.LABELMAP: " label map",
    ResultKind.LABELMAP_SR: " label map measurements",
}
