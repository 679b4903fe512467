"""Write the tables of this folder from their published sources.

``python -m anonymizer.profiles.generate TABLE_E1_1.json`` (a maintainer's command; needs highdicom)

- ``ps315_e1_1.json``   PS3.15 Table E.1-1. TABLE_E1_1.json is a list of rows ``{"tag": "0008,0050",
  "name": ..., "basic": "Z", "edition": "2024b", "rtn_dev_id": "K", ...}``: the table as innolitics
  publishes it for 2024b, with the rows that 2026c added.
- ``iod_types.json``    for each SOP Class that may be de-identified: which attributes are Type 1 or
  2, at top level and inside which sequence; and the attributes of the Patient and Study modules.
  From the IOD and module tables of PS3.3 that highdicom ships.
- ``descriptor_words.json``  the words that Clean Descriptors keeps: those of the code meanings in
  the context groups of PS3.16 about anatomy, contrast and acquisition that pydicom ships, and of
  the list below.

``safe_private.json`` is written by hand out of PS3.15 Table E.3.10-1, whose selection its header
states; tests/conformance/test_ps315_safe_private.py holds it to pydicom's private dictionary.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import tag_for_keyword

HERE = Path(__file__).parent
SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.4": "MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.1": "Computed Radiography Image Storage",
    "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image Storage - For Presentation",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "Digital X-Ray Image Storage - For Processing",
    "1.2.840.10008.5.1.4.1.1.128": "Positron Emission Tomography Image Storage",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET Image Storage",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET Image Storage",
    "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR Storage",
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR Storage",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR Storage",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR Storage",
    "1.2.840.10008.5.1.4.1.1.88.59": "Key Object Selection Document Storage",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT Structure Set Storage",
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.11.2": "Color Softcopy Presentation State Storage",
}
# The modules of the Patient and Study information entities: what a derived object shares with the
# study it is added to (PS3.3 C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.2, C.7.2.3).
MANDATORY_MODULES = ("patient", "general-study")
PATIENT_STUDY_MODULES = (
    "clinical-trial-subject",
    "patient-study",
    "clinical-trial-study",
    *MANDATORY_MODULES,
)
CONTENT_SEQUENCE = "0040A730"
# The attributes of a coded entry (PS3.3 Table 8.8-1) have a rule of their own.
CODED_ENTRY = {0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00080119, 0x00080120}
# Attributes whose VR makes their Type matter when a value has to go.
VALUE_VRS = {"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "SQ", "ST", "TM", "UC", "UR"}
VALUE_VRS |= {"UT"}
# Context groups of PS3.16: anatomy, its modifiers, laterality, contrast, position, modality,
# views, acquisition and reconstruction, segmented structures.
WORD_CONTEXT_GROUPS = (
    *(2, 4, 11, 12, 18, 19, 20, 23, 29, 244, 501, 4009, 4010, 4013, 4014, 4015, 4030, 4031),
    *(7151, 7152, 7153, 7154, 7180, 7192, 7203, 10013, 10033),
)
# What protocols are called, and no context group has.
PROTOCOL_WORDS = """
    3d 2d 4d adc asl average axl b0 bold bravo ce cor cta cube delay delayed dixon dti dwi dynamic
    early epi exp expiration fatsat ffe filtered flair fov fs fse fspgr ge gre haste helical hr hrct
    inspiration ir iso isotropic kernel kv kvp late localizer low lr lava mip mm mpr mprage mra mrcp
    ms nac native or pc pd pet plain post pre protocol recon reconstruction reformat resolution
    routine sag scout se sec seq sequence series sharp slice slices smooth soft space spgr spair
    standard stir stage study survey suv swan swi syn t1 t1w t2 t2w te tfe thick thin thins tir tof
    topogram tr tra trufi tse unenhanced vibe vol w/ w/o wip with without wo cm hu mgy min ml no
"""
# Eponyms and everyday words among them that are also family names.
NAMES_AMONG_WORDS = """
    boyd broad cast cockett coin couinaud diamond dodd en giacomini gold gray half hunterian james
    janma major mark pan pin rest ruler star stem student wall white willis
"""


def table_e1_1(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Table E.1-1 with its editions in the header and one row per attribute."""
    kept = []
    editions = set()
    for row in rows:
        editions.add(row["edition"])
        options = {
            key: value
            for key, value in row.items()
            if key.startswith(("rtn_", "clean_")) and value is not None
        }
        kept.append({"tag": row["tag"], "name": row["name"], "basic": row["basic"], **options})
    return {
        "standard": "DICOM PS3.15 Table E.1-1",
        "edition": " + rows added by ".join(sorted(editions)),
        "rows": sorted(kept, key=lambda row: row["tag"]),
    }


def iod_types() -> dict[str, Any]:
    """Types of attributes per SOP Class, and the attributes of the Patient and Study modules."""
    from highdicom import _standard_utils as tables

    modules = tables.get_module_attribute_map()
    iods = tables.get_iod_module_map()
    iod_of = tables.get_sop_class_iod_map()
    classes = {}
    for uid, name in SOP_CLASSES.items():
        strongest: dict[str, str] = {}
        for module in iods[iod_of[uid]]:
            for attribute in modules[module["key"]]:
                _note_type(strongest, attribute)
        if CONTENT_SEQUENCE in strongest:
            # The tables describe the first level of a report's tree; it goes on below (C.17.3).
            strongest[f"{CONTENT_SEQUENCE}/{CONTENT_SEQUENCE}"] = strongest[CONTENT_SEQUENCE]
        classes[uid] = {
            "name": name,
            "type_1": sorted(key for key, value in strongest.items() if value == "1"),
            "type_2": sorted(key for key, value in strongest.items() if value == "2"),
        }
    shared = {
        # What an optional module demands, it demands only where the original has the module.
        attribute["keyword"]: attribute["type"] if key in MANDATORY_MODULES else "3"
        for key in PATIENT_STUDY_MODULES
        for attribute in modules[key]
        if not attribute["path"]
    }
    return {
        "standard": "DICOM PS3.3, modules of the IODs, by way of highdicom " + version("highdicom"),
        "note": "GGGGEEEE at top level; GGGGEEEE/GGGGEEEE inside a sequence. 1C counts as 1: an "
        "attribute that is present met its condition.",
        "sop_classes": classes,
        "patient_study_modules": dict(sorted(shared.items())),
    }


def _note_type(strongest: dict[str, str], attribute: Mapping[str, Any]) -> None:
    tag = tag_for_keyword(attribute["keyword"])
    if tag is None or attribute["type"] == "3" or tag in CODED_ENTRY:
        return
    if DicomDictionary[tag][0] not in VALUE_VRS:
        return
    key = f"{tag:08X}"
    if attribute["path"]:
        parent = tag_for_keyword(attribute["path"][-1])
        if parent is None:
            return
        key = f"{parent:08X}/{key}"
    strongest[key] = min(strongest.get(key, "9"), attribute["type"][0])


def descriptor_words() -> dict[str, Any]:
    """Words of published vocabulary, lower case, at least two letters each."""
    from pydicom.sr._cid_dict import cid_concepts

    words = set(PROTOCOL_WORDS.split())
    for group in WORD_CONTEXT_GROUPS:
        for keyword in chain.from_iterable(cid_concepts[group].values()):
            parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", keyword)
            words.update(part.lower() for part in parts if len(part) > 1)
    return {
        "standard": "DICOM PS3.16, context groups by way of pydicom " + version("pydicom"),
        "words": sorted(words.difference(NAMES_AMONG_WORDS.split())),
    }


def main(table: str) -> None:
    """Write the tables beside this script."""
    rows = json.loads(Path(table).read_text())
    tables = {
        "ps315_e1_1.json": table_e1_1(rows),
        "iod_types.json": iod_types(),
        "descriptor_words.json": descriptor_words(),
    }
    for name, content in tables.items():
        text = json.dumps(content, indent=1, ensure_ascii=True)
        (HERE / name).write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
