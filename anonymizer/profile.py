"""The policy: for every attribute of every SOP Class, one action.

PS3.15 Table E.1-1 gives a code per attribute: of the basic profile, or of an option that stands
over it (:mod:`anonymizer.options`). Three things are added to it:

- A compound code (X/Z, X/Z/D ...) means "as the IOD demands", so it is resolved per SOP Class by
  the attribute's Type: Type 1 takes D, Type 2 takes Z, Type 3 takes X.
- Attributes that the table does not list are judged by their VR: text is removed unless it stands
  in ``KEPT_TEXT``; numbers, codes and geometry stay; private and unknown attributes go.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache, cached_property
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

from pydicom._dicom_dict import DicomDictionary

from anonymizer.closed_lists import CLOSED_LISTS, KNOWN_SCHEMES
from anonymizer.errors import Unsupported
from anonymizer.identity import NUMBER_TAGS
from anonymizer.options import (
    BASIC_METHOD,
    DATE_OPTIONS,
    DEFAULT_OPTIONS,
    Option,
    checked_options,
)

# Raise it when the actions change their meaning: outputs of two versions are told apart by digest.
ENGINE_VERSION = 3


class Action(Enum):
    """What happens to one attribute; the letters are those of PS3.15 Table E.1-1a."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    KEEP = "K"
    """Kept if the value is what its VR promises; text is cleaned of this patient's identifiers."""
    CLEAN = "C"
    """Free text, of which only published vocabulary stays (:mod:`anonymizer.descriptors`)."""
    WALK = "K*"
    """A sequence whose items are treated one by one."""
    UID = "U"
    SHIFT = "C:date"
    CAP_AGE = "C:age"
    PSEUDONYM = "D:pseudonym"
    CONSTANT = "D:recipe"


PATIENT_NAME = 0x00100010
PATIENT_ID = 0x00100020
TEXT_VRS = frozenset({"AE", "AS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
FREE_TEXT_VRS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
# Text that the table does not list and that reading, segmenting or coding the image needs.
KEPT_TEXT = frozenset({
    0x00080070,  # Manufacturer
    0x00081090,  # ManufacturerModelName
    0x00180024,  # SequenceName
    0x00180031,  # Radiopharmaceutical
    0x00181020,  # SoftwareVersions
    0x00181160,  # FilterType
    0x00181210,  # ConvolutionKernel
    0x00189005,  # PulseSequenceName
    0x00201040,  # PositionReferenceIndicator
    0x00281054,  # RescaleType
    0x00620005,  # SegmentLabel
    0x00620009,  # SegmentAlgorithmName
    0x00660031,  # AlgorithmVersion
    0x00660036,  # AlgorithmName
})  # fmt: skip
# Bulk values that are part of the image: palettes, modality and VOI lookup tables.
KEPT_BULK = frozenset({*range(0x00281201, 0x00281205), *range(0x00281221, 0x00281224), 0x00283006})
# UIDs that name a class, a coding scheme or an implementation, never an instance.
CLASS_UID_WORDS = ("SOPClass", "TransferSyntax", "CodingSchemeUID", "ContextUID", "MappingResource",
                   "ContextGroupExtensionCreator", "ImplementationClass")  # fmt: skip
# A coded entry has a rule of its own: actions.cleaned_coded_item.
CODED_ENTRY = frozenset({0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00080119, 0x00080120})
# Written anew in every output.
WRITTEN_TAGS = frozenset({0x00120062, 0x00120063, 0x00120064, 0x00280303})


class PrivateAttribute(NamedTuple):
    """A private attribute by what stays the same wherever its block is (PS3.5 7.8.1)."""

    creator: str
    group: int
    element: int
    """The last two hexadecimal digits of its element number."""


@dataclass(frozen=True)
class ClassPolicy:
    """The policy resolved for one SOP Class."""

    actions: Mapping[int, Action]
    """Per attribute, where its Type does not matter or is the same everywhere (Type 3)."""
    exceptions: Mapping[tuple[int, int], Action]
    """Per (sequence it is in, attribute); 0 is the top level."""
    type_1: frozenset[tuple[int, int]]
    type_2: frozenset[tuple[int, int]]
    constants: Mapping[int, str]
    """Values that a recipe writes instead of the original."""
    safe_private: Mapping[PrivateAttribute, str] = field(default_factory=dict)
    """VR of each private attribute that may stay."""

    def __post_init__(self) -> None:
        _freeze(self, "actions", "exceptions", "constants", "safe_private")

    def action(self, parent: int, tag: int) -> Action:
        """What to do with ``tag`` inside the sequence ``parent`` (0: at top level)."""
        found = self.exceptions.get((parent, tag))
        return found or self.actions.get(tag, Action.REMOVE)

    def attribute_type(self, parent: int, tag: int) -> int:
        """1, 2 or 3: what the IOD demands of ``tag`` there."""
        if (parent, tag) in self.type_1:
            return 1
        return 2 if (parent, tag) in self.type_2 else 3


@dataclass(frozen=True, eq=False)
class Policy:
    """Everything that decides what leaves, immutable, with a digest that names it."""

    codes: Mapping[int, str] = field(repr=False)
    """Table E.1-1 codes (``X``, ``X/Z`` ...) and default rules, per attribute."""
    constants: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Values that a recipe writes instead of the original."""
    additions: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Attributes that a recipe adds."""
    methods: tuple[tuple[str, str], ...] = (BASIC_METHOD,)
    """(code, meaning) of DeidentificationMethodCodeSequence: exactly what is done. None where a
    recipe keeps what neither the basic profile nor an option of it lets stay."""
    options: frozenset[Option] = frozenset()
    retained: frozenset[int] = frozenset()
    """Attributes that an option keeps as they are: their values are not looked for elsewhere."""
    safe_private: Mapping[PrivateAttribute, str] = field(default_factory=dict, repr=False)
    """VR of each private attribute that may stay; empty without Retain Safe Private."""
    edition: str = ""
    cleans_pixels: bool = False
    """Whether the text of the pixels was blanked: what is drawn may leave."""

    def __post_init__(self) -> None:
        _freeze(self, "codes", "constants", "additions", "safe_private")

    @property
    def retains_uids(self) -> bool:
        """Whether instance UIDs stay the original ones."""
        return Option.RETAIN_UIDS in self.options

    @property
    def shifts_dates(self) -> bool:
        """Whether a patient's dates move, where any stay."""
        return Option.RETAIN_FULL_DATES not in self.options

    @cached_property
    def temporal_information(self) -> str:
        """Longitudinal Temporal Information Modified (0028,0303), PS3.3 C.12.1."""
        if Action.SHIFT.value in self.codes.values():
            return "MODIFIED"
        kept = (self.codes[tag] == Action.KEEP.value for tag in _times_of_study())
        return "UNMODIFIED" if any(kept) else "REMOVED"

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides an output, as 64 hexadecimal digits."""
        return _digest(self)

    @cached_property
    def with_clean_pixels(self) -> Policy:
        """The same policy for an image whose pixels were cleaned, which it claims (113101)."""
        claimed = {*self.methods, Option.CLEAN_PIXEL_DATA.method}
        methods = method_codes(claimed) if self.methods else ()
        return replace(self, methods=methods, cleans_pixels=True)

    def for_sop_class(self, sop_class_uid: str) -> ClassPolicy:
        """The policy with every compound code resolved.

        Raises
        ------
        Unsupported
            No attribute Types are known for this SOP Class, so no valid output can be promised.
        """
        if sop_class_uid not in supported_sop_classes():
            raise Unsupported("No de-identification rules for this SOP Class (0008,0016)")
        return _resolved(self, sop_class_uid)


def _freeze(table: object, *names: str) -> None:
    """Make the mappings of a frozen dataclass as immutable as itself: a digest names them."""
    for name in names:
        object.__setattr__(table, name, MappingProxyType(dict(getattr(table, name))))


def basic_policy() -> Policy:
    """The basic profile with modified dates, and no recipe."""
    return profile_with(DEFAULT_OPTIONS)


@cache
def profile_with(options: frozenset[Option]) -> Policy:
    """The basic profile with ``options`` over it (PS3.15 E.2, E.3), and no recipe.

    Raises
    ------
    RecipeError
        The options cannot be carried out together.
    """
    options = checked_options(options)
    table = _table("ps315_e1_1.json")
    codes = {}
    retained = set()
    for tag, (vr, _vm, _name, _retired, keyword) in DicomDictionary.items():
        row = table_rows().get(tag)
        if row is None:
            codes[tag] = _default_code(tag, vr, keyword, options)
        else:
            codes[tag] = _listed_code(vr, row, options)
        if codes[tag] == Action.KEEP.value and (vr in ("DA", "DT") or tag in NUMBER_TAGS):
            retained.add(tag)
    codes[PATIENT_NAME] = codes[PATIENT_ID] = Action.PSEUDONYM.value
    codes.update(dict.fromkeys(WRITTEN_TAGS, Action.REMOVE.value))
    codes.update(dict.fromkeys(CODED_ENTRY, Action.KEEP.value))
    return Policy(
        codes=codes,
        # Clean pixels are claimed by the images that were cleaned: Policy.with_clean_pixels.
        methods=method_codes(option.method for option in options - {Option.CLEAN_PIXEL_DATA}),
        options=options,
        retained=frozenset(retained),
        safe_private=_safe_private() if Option.RETAIN_SAFE_PRIVATE in options else {},
        edition=table["edition"],
    )


def method_codes(methods: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The basic profile, and ``methods`` by code."""
    return (BASIC_METHOD, *sorted(set(methods) - {BASIC_METHOD}))


def supported_sop_classes() -> Mapping[str, Any]:
    """SOP Class UID to its attribute Types."""
    classes: Mapping[str, Any] = _table("iod_types.json")["sop_classes"]
    return classes


@cache
def table_rows() -> Mapping[int, Mapping[str, str]]:
    """The rows of Table E.1-1 that are about one attribute each, by tag."""
    rows = {row["tag"].replace(",", ""): row for row in _table("ps315_e1_1.json")["rows"]}
    return {int(tag, 16): row for tag, row in rows.items() if re.fullmatch("[0-9A-F]{8}", tag)}


def patient_study_attributes() -> Mapping[int, str]:
    """Attributes of the Patient and Study modules at top level, with their Types (PS3.3 C.7)."""
    return _patient_study_attributes()


@cache
def _patient_study_attributes() -> dict[int, str]:
    by_keyword = {entry[4]: tag for tag, entry in DicomDictionary.items()}
    modules = _table("iod_types.json")["patient_study_modules"]
    return {by_keyword[keyword]: kind for keyword, kind in modules.items()}


@cache
def _table(name: str) -> dict[str, Any]:
    text = resources.files("anonymizer.profiles").joinpath(name).read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _listed_code(vr: str, row: Mapping[str, str], options: frozenset[Option]) -> str:
    """The code of the basic profile, or of the option that overrides it."""
    cells = {option: row[option.column] for option in options if option.column in row}
    if Option.RETAIN_MODIFIED_DATES in cells:
        # What is no date (Timezone Offset From UTC, time stamps in OB) says where or when it was.
        basic = row["basic"]
        return {"DA": Action.SHIFT.value, "DT": Action.SHIFT.value, "TM": Action.KEEP.value}.get(
            vr, basic
        )
    letters = set(cells.values())
    if letters and vr in BULK_VRS:
        return row["basic"]  # nobody can say what the bytes hold
    if "K" in letters or (letters and vr == "SQ"):
        return {"SQ": Action.WALK.value, "AS": Action.CAP_AGE.value}.get(vr, Action.KEEP.value)
    if letters:
        return Action.CLEAN.value if vr in FREE_TEXT_VRS else Action.KEEP.value
    if row["basic"] == "U" and Option.RETAIN_UIDS in options:
        # UID (0040,A124) in a report is the TrackingUID of a segmentation, which the table retains.
        return Action.KEEP.value
    return Action.WALK.value if "U*" in row["basic"] else row["basic"]


def _default_code(tag: int, vr: str, keyword: str, options: frozenset[Option]) -> str:
    """The code of an attribute that the table does not list."""
    group = tag >> 16
    if group < 8 or group >= 0x7FE0 or vr == "NONE" or not keyword:
        return Action.REMOVE.value
    if vr == "SQ":
        return Action.WALK.value
    if vr in ("DA", "DT", "TM"):
        if not options & DATE_OPTIONS:
            return "X/Z/D"
        shifted = vr != "TM" and Option.RETAIN_MODIFIED_DATES in options
        return Action.SHIFT.value if shifted else Action.KEEP.value
    if vr == "UI":
        is_class = any(word in keyword for word in CLASS_UID_WORDS)
        kept = is_class or Option.RETAIN_UIDS in options
        return Action.KEEP.value if kept else Action.UID.value
    if vr in TEXT_VRS:
        return Action.KEEP.value if tag in KEPT_TEXT else "X/Z/D"
    if any(part in BULK_VRS for part in vr.split(" or ")):
        return Action.KEEP.value if tag in KEPT_BULK else Action.REMOVE.value
    return Action.KEEP.value


@cache
def _times_of_study() -> tuple[int, ...]:
    """Dates and times that tell when the patient was there; not those of the device's upkeep."""
    when, device = Option.RETAIN_FULL_DATES.column, Option.RETAIN_DEVICE_IDENTITY.column
    return tuple(
        tag
        for tag, row in table_rows().items()
        if tag in DicomDictionary and when in row and device not in row
    )


@cache
def _safe_private() -> Mapping[PrivateAttribute, str]:
    return {
        PrivateAttribute(row["creator"], int(row["group"], 16), int(row["element"], 16)): row["vr"]
        for row in _table("safe_private.json")["attributes"]
    }


@cache
def _resolved(policy: Policy, sop_class_uid: str) -> ClassPolicy:
    types = supported_sop_classes()[sop_class_uid]
    type_1 = frozenset(map(_place, types["type_1"]))
    type_2 = frozenset(map(_place, types["type_2"]))
    actions = {tag: _resolve(code, 3, tag) for tag, code in policy.codes.items()}
    exceptions = {
        (parent, tag): _resolve(policy.codes[tag], number, tag)
        for number, places in ((2, type_2), (1, type_1))
        for parent, tag in places
        if tag in policy.codes
    }
    # A coded entry stands in a sequence; at top level its parts are somebody's free text.
    exceptions.update({(0, tag): Action.REMOVE for tag in CODED_ENTRY})
    return ClassPolicy(actions, exceptions, type_1, type_2, policy.constants, policy.safe_private)


def _place(key: str) -> tuple[int, int]:
    *parent, tag = key.split("/")
    return (int(parent[0], 16) if parent else 0, int(tag, 16))


def _resolve(code: str, attribute_type: int, tag: int) -> Action:
    """One action for a code, given what the IOD demands (PS3.15 Table E.1-1a)."""
    letters = code.split("/")
    wanted = {1: ("D", "Z"), 2: ("Z", "D"), 3: ("X", "Z", "D")}[attribute_type]
    letter = next((want for want in wanted if want in letters), letters[0])
    action = Action(letter)
    if action is Action.DUMMY and DicomDictionary[tag][0] == "SQ":
        # A dummy sequence is the sequence with dummies in it; where it may be absent, it is.
        return Action.REMOVE if attribute_type == 3 else Action.WALK
    if action is Action.DUMMY and DicomDictionary[tag][0] == "UI":
        return Action.UID
    return action


@cache
def _digest(policy: Policy) -> str:
    content = {
        "engine": ENGINE_VERSION,
        "codes": {f"{tag:08X}": code for tag, code in sorted(policy.codes.items())},
        "constants": {f"{tag:08X}": value for tag, value in sorted(policy.constants.items())},
        "additions": {f"{tag:08X}": value for tag, value in sorted(policy.additions.items())},
        "methods": policy.methods,
        "cleans_pixels": policy.cleans_pixels,
        "options": sorted(option.value for option in policy.options),
        "retained": sorted(policy.retained),
        "safe_private": sorted([*key, vr] for key, vr in policy.safe_private.items()),
        "types": supported_sop_classes(),
        "closed_lists": {f"{tag:08X}": sorted(terms) for tag, terms in CLOSED_LISTS.items()},
        "schemes": sorted(scheme.decode("ascii") for scheme in KNOWN_SCHEMES),
        "descriptor_words": _table("descriptor_words.json")["words"],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
