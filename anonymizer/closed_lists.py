"""Published terms that say nothing about anybody. They are part of the policy's digest."""

from __future__ import annotations

IMAGE_TYPES = frozenset({
    "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "MPR", "VOLUME", "HELICAL",
    "REFORMATTED", "AVERAGE", "MAXIMUM", "MINIMUM", "STATIC", "DYNAMIC", "GATED", "IMAGE", "OTHER",
    "NONE", "M", "P", "R", "I",
    # PS3.3 C.8.15.3.1 and C.8.13.3.1: values 3 and 4 in enhanced images
    "ANGIO", "DIFFUSION", "FLUOROSCOPY", "MOTION", "PERFUSION", "REST", "STRESS", "ADC", "MTT",
    "RCBF", "RCBV", "TTP", "MASKED", "MEAN", "RESAMPLED", "SUBTRACTION", "MIXED",
})  # fmt: skip
# Attributes whose values are one of a closed list (PS3.3 C.7.6.1.1.2, C.7.6.3.1.2 ...): a
# patient called Primary is not given away by a primary image.
CLOSED_LISTS = {
    0x00080008: IMAGE_TYPES,
    0x00089007: IMAGE_TYPES,
    0x00080060: frozenset(["CT", "MR", "CR", "DX", "PT", "SEG"]),
    0x00080068: frozenset(("FOR PRESENTATION", "FOR PROCESSING")),
    0x00280004: frozenset(("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR")),
    0x00185100: frozenset(["HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS"]),
    0x00281054: frozenset(("HU", "US", "OD", "HU_MOD", "MGML", "Z_EFF")),
}
# Coding schemes whose meanings are published vocabulary (PS3.16 Chapter 8).
KNOWN_SCHEMES = frozenset(
    b"DCM SCT SRT SNM3 UCUM LN LOINC RADLEX RADELEMENT FMA UMLS NCIt MA BI ISO3166_1 ISO639_1 "
    b"RFC5646 NYUMCCG PUBCHEM_CID ATC RXNORM ICD10 I10 I9C NEU UNS ITIS_TSN IBSI".split()
)
