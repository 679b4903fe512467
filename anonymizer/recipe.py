"""A site's own rules, in the grammar of pydicom/deid, laid over the profile.

deid's parser reads the lines; deid itself is not run, because it passes an element unchanged when a
line names something that it does not know. Here such a line stops the start::

    FORMAT dicom
    %header
    KEEP SeriesDescription
    REMOVE contains:Comments
    REPLACE InstitutionName EXAMPLE HOSPITAL
    REPLACE PatientAge func:cap_age
    JITTER 0040A030 var:patient_shift
    ADD ClinicalTrialProtocolID TRIAL-7

==========  =================================================================================
KEEP        keep, cleaned of this patient's identifiers; sequences are walked. Text that the table
            lets nobody keep whole can be kept so, but then nothing of PS3.15 is claimed
BLANK       keep the attribute, empty
REMOVE      remove
REPLACE     a constant (ASCII), ``func:keyed_uid``, ``func:shift_date``, ``func:cap_age``,
            ``func:clean_text``, ``func:pseudonym`` or ``var:pseudonym``
JITTER      ``var:patient_shift``: move dates by the patient's own shift
ADD         add a constant at top level
==========  =================================================================================

A field is a keyword, a tag (``00081030`` or ``(0008,1030)``), ``ALL``, or ``contains:``,
``startswith:``, ``endswith:``, ``except:`` with a regular expression over keywords, names and tags,
``select:VR:..``, ``select:group:....``, or ``fields:NAME`` for the FIELD lines of a section
``%fields NAME``. Where two lines disagree: KEEP, then REPLACE, JITTER, REMOVE, BLANK.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR, tag_for_keyword

from anonymizer.claims import claimed_methods
from anonymizer.errors import RecipeError
from anonymizer.identity import NUMBER_TAGS
from anonymizer.profile import (
    CODED_ENTRY,
    FREE_TEXT_VRS,
    PATIENT_ID,
    PATIENT_NAME,
    WRITTEN_TAGS,
    Action,
    Policy,
)

_VERBS = ("KEEP", "REPLACE", "JITTER", "REMOVE", "BLANK")  # in order of precedence
_FUNCTIONS = {
    "func:keyed_uid": (Action.UID, {"UI"}),
    "func:shift_date": (Action.SHIFT, {"DA", "DT"}),
    "func:cap_age": (Action.CAP_AGE, {"AS"}),
    "func:clean_text": (Action.CLEAN, FREE_TEXT_VRS),
    "func:pseudonym": (Action.PSEUDONYM, {"LO", "SH", "PN"}),
    "var:pseudonym": (Action.PSEUDONYM, {"LO", "SH", "PN"}),
}
# What makes an instance one, and what says that it is de-identified: no recipe changes these.
_FIXED_TAGS = CODED_ENTRY | WRITTEN_TAGS | {
    0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052,
    PATIENT_NAME, PATIENT_ID,
}  # fmt: skip
PATIENT_BIRTH_DATE = 0x00100030
_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")
_MAX_LENGTH = {"SH": 16, "CS": 16, "LO": 64, "PN": 64, "AE": 16, "ST": 1024, "LT": 10240}


class _Line(NamedTuple):
    number: int
    verb: str
    field: str
    value: str


def apply_recipe(policy: Policy, recipe: Path) -> Policy:
    """``policy`` with the lines of ``recipe`` laid over it.

    Raises
    ------
    RecipeError
        Names the line that has an unknown verb, field, function or variable, or that would let an
        identifier through.
    """
    actions: dict[int, tuple[int, Action]] = {}
    constants: dict[int, str] = {}
    additions: dict[int, str] = {}
    for line in _lines(recipe):
        if line.verb == "ADD":
            tag = _one_tag(line)
            additions[tag] = _constant(line, tag)
            continue
        rank = _VERBS.index(line.verb)
        explicit = _is_single(line.field)
        for tag in _tags(line):
            action = _action(line, tag, policy, explicit)
            constant = _constant(line, tag) if action is Action.CONSTANT else ""
            if action is None or (tag in actions and actions[tag][0] <= rank):
                continue
            actions[tag] = (rank, action)
            constants.pop(tag, None)
            if action is Action.CONSTANT:
                constants[tag] = constant
    chosen = {tag: action for tag, (_, action) in actions.items()}
    return replace(
        policy,
        codes={**policy.codes, **{tag: action.value for tag, action in chosen.items()}},
        constants=constants,
        additions=additions,
        methods=claimed_methods(policy, chosen),
        retained=policy.retained - chosen.keys(),
    )


def _lines(recipe: Path) -> Iterator[_Line]:
    """The action lines, read by deid's own grammar, one by one so that each has its number."""
    from deid.config import DeidRecipe
    from deid.config.utils import parse_config_action

    try:
        text = recipe.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise RecipeError(f"The recipe {recipe.name} cannot be read") from None
    section = ""
    listed = ""
    fields: dict[str, list[_Line]] = {}
    parsed: list[dict[str, str]] = []
    lines: list[_Line] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.upper().startswith("FORMAT"):
            if line.split()[1:] != ["dicom"]:
                raise RecipeError(f"Line {number}: FORMAT must be dicom")
            continue
        if line.startswith("%"):
            section, _, listed = line[1:].split("#")[0].strip().partition(" ")
            if section not in ("header", "fields") or (section == "fields") != bool(listed):
                raise RecipeError(
                    f"Line {number}: only the sections %header and %fields NAME are supported"
                )
            continue
        if section == "fields":
            verb, _, listed_field = line.split("#")[0].partition(" ")
            if verb != "FIELD" or not listed_field.strip():
                raise RecipeError(f"Line {number}: a list of fields has lines FIELD field")
            selected = _Line(number, verb, listed_field.strip(), "")
            _tags(selected)  # an unknown field stops here, with its own line
            fields.setdefault(listed.strip(), []).append(selected)
            continue
        if section != "header":
            raise RecipeError(f"Line {number}: an action before %header")
        if line.split()[0] not in (*_VERBS, "ADD"):
            raise RecipeError(f"Line {number}: unknown verb {line.split()[0]!r}")
        config: dict[str, list[dict[str, str]]] = {"header": []}
        try:
            with _silent_deid():
                parse_config_action(section="header", line=line, config=config)
        except SystemExit:  # deid's way of refusing
            config["header"] = []
        if len(config["header"]) != 1:
            raise RecipeError(f"Line {number}: the action lacks its field or value")
        entry = config["header"][0]
        parsed.append(entry)
        field = entry["field"].split("#")[0]
        lines.append(_Line(number, entry["action"], field, entry.get("value", "").strip()))
    with _silent_deid():
        whole = DeidRecipe(deid=[str(recipe)], base=False).get_actions() or []
    if parsed != list(whole):
        raise RecipeError("deid reads this recipe differently; keep to one action per line")
    for action in lines:
        if not action.field.startswith("fields:"):
            yield action
            continue
        name = action.field.removeprefix("fields:")
        if name not in fields:
            raise RecipeError(f"Line {action.number}: there is no list %fields {name}")
        for selected in fields[name]:
            yield action._replace(field=selected.field)


@contextmanager
def _silent_deid() -> Iterator[None]:
    """deid prints what it reads to the terminal; our errors say what matters."""
    from deid.logger import bot

    level, bot.level = bot.level, -sys.maxsize
    try:
        yield
    finally:
        bot.level = level


def _action(line: _Line, tag: int, policy: Policy, explicit: bool) -> Action | None:
    """What ``line`` means for ``tag``; None where a broad selector meets what may not change."""
    vr = DicomDictionary[tag][0]
    refusal = _refusal(line, tag, vr, policy)
    if refusal:
        if explicit:
            raise RecipeError(f"Line {line.number}: {refusal}")
        return None
    if line.verb == "KEEP":
        return Action.WALK if vr == "SQ" else Action.KEEP
    if line.verb == "BLANK":
        return Action.EMPTY
    if line.verb == "REMOVE":
        return Action.REMOVE
    if line.verb == "JITTER":
        return Action.SHIFT
    return _FUNCTIONS[line.value][0] if line.value in _FUNCTIONS else Action.CONSTANT


def _refusal(line: _Line, tag: int, vr: str, policy: Policy) -> str:
    """Why ``line`` may not be applied to ``tag``; empty if it may."""
    keyword = DicomDictionary[tag][4]
    if tag in _FIXED_TAGS:
        return f"{keyword} is set by the engine"
    identifying = (
        tag in NUMBER_TAGS
        or vr in ("PN", "DA", "DT", "OB", "UN")
        or (vr == "UI" and policy.codes[tag] == Action.UID.value)
    )
    if line.verb == "KEEP" and identifying:
        return f"{keyword} cannot be kept: it would identify the patient"
    if line.verb == "REMOVE" and line.value:
        return "REMOVE with a condition is not supported"
    if line.verb == "JITTER":
        if line.value != "var:patient_shift":
            return "JITTER takes var:patient_shift: all dates of a patient move together"
        if vr not in ("DA", "DT") or tag == PATIENT_BIRTH_DATE:
            return f"{keyword} is not a date that may be shifted"
    shifts = line.verb == "JITTER" or line.value == "func:shift_date"
    if shifts and not policy.shifts_dates:
        return "nothing is shifted where full dates are retained"
    if line.verb == "REPLACE" and line.value.startswith(("func:", "var:", "deid_func:")):
        if line.value not in _FUNCTIONS:
            return f"unknown function or variable {line.value!r}"
        if vr not in _FUNCTIONS[line.value][1]:
            return f"{line.value} does not make a value for {keyword}"
    return ""


def _constant(line: _Line, tag: int) -> str:
    vr = dictionary_VR(tag)
    value = line.value
    if value.startswith(("func:", "var:", "deid_func:")):
        raise RecipeError(f"Line {line.number}: unknown function or variable {value!r}")
    if vr not in _MAX_LENGTH or not value.isascii() or not value.isprintable() or "\\" in value:
        raise RecipeError(f"Line {line.number}: not a constant that this attribute may take")
    if len(value) > _MAX_LENGTH[vr]:
        raise RecipeError(f"Line {line.number}: the constant is longer than VR {vr} allows")
    if vr == "CS" and not re.fullmatch(r"[A-Z0-9 _]*", value):
        raise RecipeError(f"Line {line.number}: a CS value is upper case letters, digits, _")
    return value


def _one_tag(line: _Line) -> int:
    if not _is_single(line.field):
        raise RecipeError(f"Line {line.number}: ADD takes one attribute")
    tag = _tags(line)[0]
    if tag in _FIXED_TAGS:
        raise RecipeError(f"Line {line.number}: {DicomDictionary[tag][4]} is set by the engine")
    return tag


def _is_single(field: str) -> bool:
    return field.upper() != "ALL" and ":" not in field


def _tags(line: _Line) -> list[int]:
    """The attributes that a field selects."""
    field = line.field
    if match := _TAG.fullmatch(field):
        tag = int(match[1] + match[2], 16)
        if tag not in DicomDictionary:
            raise RecipeError(f"Line {line.number}: no public attribute has the tag {field}")
        return [tag]
    found = tag_for_keyword(field)
    if found is not None:
        return [int(found)]
    if field.upper() == "ALL":
        return list(DicomDictionary)
    selector, _, argument = field.partition(":")
    tags = _selected(selector.lower(), argument, line.number)
    if not tags:
        raise RecipeError(f"Line {line.number}: nothing matches the field {field!r}")
    return tags


def _selected(selector: str, argument: str, number: int) -> list[int]:
    if selector == "select":
        kind, _, value = argument.partition(":")
        if kind.upper() == "VR":
            return [t for t, entry in DicomDictionary.items() if entry[0] == value.upper()]
        if kind.lower() == "group" and re.fullmatch("[0-9A-Fa-f]{4}", value):
            return [tag for tag in DicomDictionary if tag >> 16 == int(value, 16)]
    forms = {"contains": "{}", "startswith": "^(?:{})", "endswith": "(?:{})$", "except": "{}"}
    if selector not in forms or not argument:
        return []
    try:
        pattern = re.compile(forms[selector].format(argument), re.IGNORECASE)
    except re.error:
        raise RecipeError(f"Line {number}: not a regular expression") from None
    wanted = selector != "except"
    return [
        tag
        for tag, entry in DicomDictionary.items()
        if any(map(pattern.search, _names(tag, entry[2], entry[4]))) == wanted
    ]


def _names(tag: int, name: str, keyword: str) -> tuple[str, str, str, str]:
    """By what deid finds an attribute: name, keyword, tag with and without punctuation."""
    group, element = f"{tag >> 16:04X}", f"{tag & 0xFFFF:04X}"
    return keyword, name, f"{group}{element}", f"({group},{element})"
