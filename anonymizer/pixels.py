"""Whether the pixels may show who the patient is, judged without decoding them.

Text burned into pixels is invisible to every rule about attributes, and Burned In Annotation
(0028,0301) is absent from most images that have it. So the question is turned round: which images
are known to come straight from the detector? Anything else is held until someone has looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
PET_IMAGE = "1.2.840.10008.5.1.4.1.1.128"
SEGMENTATIONS = frozenset({
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
})  # fmt: skip
ENHANCED_IMAGES = frozenset({
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
    "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
    "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
})  # fmt: skip
# Objects without pixels of their own, so without anything burned into them.
WITHOUT_PIXELS = frozenset({
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
    "1.2.840.10008.5.1.4.1.1.481.3",  # RT Structure Set
    "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.11.2",  # Color Softcopy Presentation State
})  # fmt: skip
# Reconstructed slices: their pixels are measurements, so text appears only if a workstation drew
# it, and then ImageType or the colour says so.
RECONSTRUCTED = frozenset({CT_IMAGE, MR_IMAGE, PET_IMAGE}) | ENHANCED_IMAGES

# Objects made of screens, documents or film, by the beginning of their SOP Class UID (PS3.4 B.5);
# and why blanking text does not make them clean, if it does not.
_PHOTOGRAPH = "is a photograph or a film: blanking text leaves a face"
_DOCUMENT = "is a document without pixels that could be blanked"
DRAWN_SOP_CLASSES: Mapping[str, str | None] = {
    "1.2.840.10008.5.1.4.1.1.7": None,  # Secondary Capture, all kinds
    "1.2.840.10008.5.1.4.1.1.6": None,  # Ultrasound, the retired one too
    "1.2.840.10008.5.1.4.1.1.3": None,  # Ultrasound Multi-frame, the retired one too
    "1.2.840.10008.5.1.4.1.1.77.1": _PHOTOGRAPH,  # Endoscopy, photography, microscopy
    "1.2.840.10008.5.1.4.1.1.104": _DOCUMENT,  # Encapsulated PDF, CDA, STL, OBJ
    "1.2.840.10008.5.1.4.1.1.88": _DOCUMENT,  # Dose reports, and what WITHOUT_PIXELS does not name
}
# Words in ImageType (0008,0008) of pages that a scanner or workstation draws.
TEXT_PAGE_TYPES = ("DOSE", "PROTOCOL", "REPORT", "CHART")
DRAWN_IMAGE_TYPES = (*TEXT_PAGE_TYPES, "SCREEN", "CAPTURE", "FUSED", "SCANO")


def burned_in_risk(ds: Dataset) -> str | None:
    """Why the pixels of ``ds`` may show the patient's identity; None if nothing suggests it.

    The reason names attributes, never their values. Pixel data is not needed.
    """
    sop_class_uid = str(ds.get("SOPClassUID", ""))
    burned_in = _term(ds, "BurnedInAnnotation")
    if burned_in == "YES":
        return "Burned In Annotation (0028,0301) is YES"
    if _term(ds, "RecognizableVisualFeatures") == "YES":
        return "Recognizable Visual Features (0028,0302) is YES"
    if is_drawn(sop_class_uid):
        return f"{_sop_class(sop_class_uid)} holds screens, documents or photographs"
    if sop_class_uid in SEGMENTATIONS | WITHOUT_PIXELS:
        return None
    if _term(ds, "ConversionType"):
        return "Conversion Type (0008,0064) says that the image is a capture or a scan"
    if _has_overlay_in_pixels(ds):
        return "an overlay (60xx,0102) is stored in unused bits of the pixel data"
    if _image_type_has(ds, DRAWN_IMAGE_TYPES):
        return "Image Type (0008,0008) is that of a drawn page"
    if burned_in == "NO":
        return None
    if sop_class_uid not in RECONSTRUCTED:
        return "Burned In Annotation (0028,0301) is absent from a projection image"
    return _reconstruction_risk(ds)


def beyond_blanking(ds: Dataset) -> str | None:
    """Why ``ds`` may show the patient's identity even with all text blanked; None if it does not.

    What is left to ask of pixels that were cleaned. The reason names attributes, never values.
    """
    sop_class_uid = str(ds.get("SOPClassUID", ""))
    if _term(ds, "RecognizableVisualFeatures") == "YES":
        return "Recognizable Visual Features (0028,0302) is YES, and blanking text leaves a face"
    if is_drawn(sop_class_uid) and (why := DRAWN_SOP_CLASSES[_drawn_prefix(sop_class_uid)]):
        return f"{_sop_class(sop_class_uid)} {why}"
    if _has_overlay_in_pixels(ds):
        return "an overlay (60xx,0102) is stored in unused bits of the pixel data"
    if _image_type_has(ds, TEXT_PAGE_TYPES):
        return "Image Type (0008,0008) is that of a page of text, of which blanking leaves nothing"
    return None


def _reconstruction_risk(ds: Dataset) -> str | None:
    """Reasons to doubt a CT, MR or PET slice that does not state Burned In Annotation."""
    image_type = _terms(ds, "ImageType")
    if len(image_type) < 2:
        return "Image Type (0008,0008) is absent"
    if image_type[1] != "PRIMARY":
        return "Image Type (0008,0008) is not PRIMARY"
    if "LOCALIZER" in image_type:
        return "Image Type (0008,0008) is LOCALIZER, the type that scanners give to drawn pages"
    if not _term(ds, "PhotometricInterpretation").startswith("MONOCHROME"):
        return "Photometric Interpretation (0028,0004) is a colour"
    return None


def is_drawn(sop_class_uid: str) -> bool:
    """Whether objects of this SOP Class are made of screens, documents, film or photographs."""
    return sop_class_uid not in WITHOUT_PIXELS and bool(_drawn_prefix(sop_class_uid))


def _sop_class(uid: str) -> str:
    """Its name in PS3.6; not the UID itself, behind which a sender may have put anything."""
    known = UID_dictionary.get(uid)
    return known[0] if known else "Such an object (a SOP Class that PS3.6 does not list)"


def _drawn_prefix(sop_class_uid: str) -> str:
    """The entry of DRAWN_SOP_CLASSES that this SOP Class falls under, or nothing."""
    prefixes = (one for one in DRAWN_SOP_CLASSES if f"{sop_class_uid}.".startswith(f"{one}."))
    return next(prefixes, "")


def _has_overlay_in_pixels(ds: Dataset) -> bool:
    """Retired overlays (PS3.3-2004 C.9.2) whose bits stay behind when the 60xx group is removed."""
    groups = range(0x6000, 0x6020, 2)
    return any((group, 0x0102) in ds and (group, 0x3000) not in ds for group in groups)


def _image_type_has(ds: Dataset, words: Iterable[str]) -> bool:
    """Whether one of ``words`` is part of a term of ImageType (0008,0008)."""
    terms = _terms(ds, "ImageType")
    return any(word in term for word in words for term in terms)


def _terms(ds: Dataset, keyword: str) -> list[str]:
    value = ds.get(keyword)
    if value is None:
        return []
    values = [value] if isinstance(value, str) else list(value)
    return [str(term).strip().upper() for term in values]


def _term(ds: Dataset, keyword: str) -> str:
    terms = _terms(ds, keyword)
    return terms[0] if terms else ""
