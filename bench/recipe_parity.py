"""Does a compiled recipe do what deid does?  ``python bench/recipe_parity.py FOLDER``

Runs deid's own executor and our compiled table on the same files with the same recipes, both over
"keep everything", and compares every element that a recipe names, at every depth. A difference is
counted under the reason that explains it (docs/deidentification.md lists them); status 1 if one is
left without a reason.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pydicom
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage

from anonymizer.actions import Patient, treat_elements
from anonymizer.dates import cap_age, shift_date, shift_date_time
from anonymizer.encoding import Element, encode_elements
from anonymizer.errors import AnonymizerError
from anonymizer.identity import Identifiers
from anonymizer.part10 import read_instance
from anonymizer.profile import CODED_ENTRY, Action, Policy
from anonymizer.recipe import apply_recipe
from anonymizer.uids import pseudonymous_uid

SAME, CHANGED, NOT_READ = "same, as it was", "same, changed", "file that pydicom cannot read"
UID_KEY, SHIFT_DAYS, PSEUDONYM = b"k" * 32, -1234, "ANON-0123456789ABCDEF"
RECIPES = {
    "verbs": """
KEEP StudyDescription
BLANK Manufacturer
REMOVE (0008,1090)
REMOVE 00181210
REPLACE InstitutionName EXAMPLE HOSPITAL
ADD ClinicalTrialProtocolID TRIAL-7
REMOVE StationName
BLANK StationName""",
    "functions": """
REPLACE ReferencedSOPInstanceUID func:keyed_uid
REPLACE IrradiationEventUID func:keyed_uid
REPLACE PatientAge func:cap_age
REPLACE OtherPatientIDs var:pseudonym
JITTER StudyDate var:patient_shift
JITTER SeriesDate var:patient_shift
JITTER AcquisitionDateTime var:patient_shift
JITTER RadiopharmaceuticalStartDateTime var:patient_shift
REMOVE select:VR:PN""",
    "selectors": """
REMOVE contains:Comments
REMOVE startswith:Requested
BLANK endswith:Description
KEEP SeriesDescription
REMOVE select:group:0032
REMOVE select:VR:TM
REPLACE startswith:StationNam STATION""",
    "allow-list": """
REMOVE ALL
KEEP select:group:0028
KEEP Modality
KEEP ImageType
KEEP ImagePositionPatient
KEEP ImageOrientationPatient
KEEP SliceThickness
REPLACE Manufacturer ACME""",
    "fields": """
%fields who
FIELD PatientAddress
FIELD contains:Physician
FIELD select:VR:AE
%header
REMOVE fields:who
BLANK select:VR:LT""",
}
# deid never touches these (its config.json), nor do we where the engine writes them.
DEID_SKIPS = {0x00283010, 0x00281201, 0x00281202, 0x00281203, 0x7FE00010}
_KEEP_ALL = Policy(
    codes={
        tag: (Action.WALK if entry[0] == "SQ" else Action.KEEP).value
        for tag, entry in DicomDictionary.items()
    }
)


def compare(path: Path, recipe: Path) -> Iterator[tuple[str, int]]:
    """(finding, tag) of each element that the recipe names.

    The finding is "same, as it was" or "same, changed", a reason to differ, or "" if nothing
    explains the difference. A file that one side cannot treat gives one finding, with tag 0.
    """
    policy = apply_recipe(_KEEP_ALL, recipe)
    named = {tag for tag, code in policy.codes.items() if code != _KEEP_ALL.codes[tag]}
    named |= policy.additions.keys()
    named |= {tag for tag in policy.codes if _is_kept_by(recipe, tag)}
    before = _readable(path)
    if before is None:
        yield NOT_READ, 0
        return
    try:
        ours = compiled(path.read_bytes(), policy)
    except AnonymizerError:
        yield "file refused by us: nothing leaves", 0
        return
    theirs = executed_by_deid(path, recipe)
    if theirs is None:
        yield "file on which deid fails", 0
        return
    everything = dict(_elements(before))
    tops = {(tag,): before.get(tag) for tag in policy.additions}
    for place in everything | tops:
        tag = place[-1]
        if tag not in named or tag & 0x10000 or tag < 0x00080000:
            continue
        mine, deids = _at(ours, place), _at(theirs, place)
        if mine == deids:
            yield (SAME if mine == _at(before, place) else CHANGED), tag
        else:
            yield _reason(tag, place, everything.get(place), mine, deids, policy), tag


def compiled(data: bytes, policy: Policy) -> Dataset:
    """What the compiled table makes of the data set, and nothing else of the engine."""
    elements = treat_elements(
        read_instance(data, pixels_required=False).elements,
        policy.for_sop_class(CTImageStorage),
        Patient(
            uid_key=UID_KEY,
            pseudonym=PSEUDONYM,
            shift_days=SHIFT_DAYS,
            identifiers=Identifiers(frozenset(), frozenset(), frozenset(), frozenset()),
        ),
        parent=0,
        character_set=b"",
    )
    added = {
        tag: Element(tag, DicomDictionary[tag][0], value.encode("ascii"))
        for tag, value in policy.additions.items()
    }
    elements = [element for element in elements if element.tag not in added] + [*added.values()]
    elements.append(Element(0x00080005, "CS", b"ISO_IR 192"))
    encoded = DicomBytesIO(encode_elements(elements, implicit=False))
    return read_dataset(encoded, is_implicit_VR=False, is_little_endian=True)


def executed_by_deid(path: Path, recipe: Path) -> Dataset | None:
    """What deid makes of the file; None if it fails."""
    from deid.config import DeidRecipe
    from deid.dicom import fields
    from deid.dicom.parser import DicomParser
    from deid.logger import bot

    bot.level = -sys.maxsize
    try:
        parser = DicomParser(str(path), recipe=DeidRecipe(deid=[str(recipe)], base=False))
        parser.lookup.update(
            keyed_uid=_keyed_uid, cap_age=_cap_age, pseudonym=PSEUDONYM, patient_shift=SHIFT_DAYS
        )
        parser.parse(remove_private=True)
        dataset: Dataset = parser.dicom
        for _ in dataset.iterall():  # decoded now: a value that deid made unreadable is its failure
            pass
    except (Exception, SystemExit):  # noqa: BLE001 - whatever deid fails with, there is no result
        return None
    finally:
        fields._get_fields_inner.cache_clear()  # it holds every data set it ever saw
    return dataset


def _keyed_uid(dicom: object, value: str, field: object, item: object) -> object:
    uids = _strings(field.element.value)  # type: ignore[attr-defined]
    mapped = [pseudonymous_uid(uid, UID_KEY) for uid in uids]
    return mapped[0] if len(mapped) == 1 else mapped


def _cap_age(dicom: object, value: str, field: object, item: object) -> str:
    return cap_age(str(field.element.value)) or ""  # type: ignore[attr-defined]


def _readable(path: Path) -> Dataset | None:
    try:
        dataset = pydicom.dcmread(path)
        for _ in dataset.iterall():
            pass
    except Exception:  # noqa: BLE001 - not DICOM, or not for pydicom
        return None
    return dataset


def _is_kept_by(recipe: Path, tag: int) -> bool:
    keyword = DicomDictionary[tag][4]
    return bool(keyword) and f"KEEP {keyword}\n" in recipe.read_text() + "\n"


def _elements(
    dataset: Dataset, place: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], object]]:
    for element in dataset:
        yield (*place, int(element.tag)), element
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from _elements(item, (*place, int(element.tag), number))


def _at(dataset: Dataset, place: tuple[int, ...]) -> object:
    """The value at ``place`` as text; the number of items of a sequence; None if absent."""
    for tag, number in zip(place[:-1:2], place[1::2], strict=True):
        if tag not in dataset or number >= len(dataset[tag].value or []):
            return None
        dataset = dataset[tag].value[number]
    if place[-1] not in dataset:
        return None
    element = dataset[place[-1]]
    return len(element.value or []) if element.VR == "SQ" else _strings(element.value)


def _strings(value: object) -> list[str]:
    if value is None or value == "":
        return [""]
    values = value if isinstance(value, list | pydicom.multival.MultiValue) else [value]
    return [str(one).rstrip(" \0") for one in values] or [""]


def _reason(
    tag: int, place: tuple[int, ...], before: object, mine: object, deids: object, policy: Policy
) -> str:
    """Why ours and deid's may differ here; empty if nothing explains it."""
    vr = getattr(before, "VR", DicomDictionary.get(tag, ("UN",))[0])
    if tag in DEID_SKIPS or any(step in DEID_SKIPS for step in place[:-1:2]):
        return "deid does not look there (its skip list)"
    if vr not in DicomDictionary.get(tag, ("",))[0].split(" or ") or tag not in DicomDictionary:
        return "an attribute or VR that PS3.6 does not know goes"
    if tag in CODED_ENTRY or any(step in CODED_ENTRY for step in place):
        return "a coded entry has a rule of its own"
    if vr in ("OB", "UN") and mine is None:
        return "bulk data goes"
    if len(place) > 1 and mine is None:
        return "an item that says nothing any more goes"
    if policy.codes[tag] == Action.SHIFT.value and mine == [""]:
        old = _strings(before.value)  # type: ignore[attr-defined]
        shift = shift_date if vr == "DA" else shift_date_time
        if any(shift(value, 1) is None for value in old):
            return "a date that cannot be read becomes empty"
    if policy.codes[tag] == Action.SHIFT.value and vr == "DT" and _moments(mine) == _moments(deids):
        return "DT keeps its precision and loses its offset from UTC"
    dropped = mine in (None, [""]) or (vr == "CS" and set(mine) < set(_strings(before.value)))  # type: ignore[attr-defined, arg-type]
    if policy.codes[tag] == Action.KEEP.value and dropped:
        return "a value that its VR does not allow goes"
    return ""


def _moments(date_times: object) -> list[str]:
    """DT values to the microsecond, without the offset: what stays when form is taken away."""
    values = date_times if isinstance(date_times, list) else [""]
    without_offset = [re.sub(r"[+-]\d{4}$", "", value).replace(".", "") for value in values]
    return [value.ljust(20, "0") for value in without_offset]


def main(folder: Path) -> int:
    """Print counts per recipe; status 1 if a difference is unexplained."""
    warnings.simplefilter("ignore")  # pydicom's would quote values
    unexplained = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, lines in RECIPES.items():
            counts: collections.Counter[str] = collections.Counter()
            strange: collections.Counter[str] = collections.Counter()
            recipe = written(lines, Path(scratch) / f"{name}.deid")
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                results = list(compare(path, recipe))
                counts.update(finding for finding, _ in results)
                strange.update(DicomDictionary[tag][4] for finding, tag in results if not finding)
            print(name)
            for finding, count in counts.most_common():
                print(f"    {count:7} {finding or f'NOT EXPLAINED: {dict(strange)}'}")
            unexplained += counts[""]
    return 1 if unexplained else 0


def written(lines: str, path: Path) -> Path:
    """A recipe of these lines."""
    head = "" if re.match(r"\s*%", lines) else "%header\n"
    path.write_text(f"FORMAT dicom\n{head}{lines.strip()}\n")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="files to compare on")
    sys.exit(main(parser.parse_args().folder))
