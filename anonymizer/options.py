"""The ten options of PS3.15 E.3, by the names that a site writes.

An option is a column of Table E.1-1: where it has K the attribute is kept, where it has C the
attribute is cleaned. What is done is claimed in DeidentificationMethodCodeSequence by the codes of
CID 7050.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from anonymizer.errors import RecipeError


class Option(Enum):
    """An option; its value is its name in settings and on the command line."""

    CLEAN_PIXEL_DATA = "clean-pixel-data"
    CLEAN_GRAPHICS = "clean-graphics"
    CLEAN_STRUCTURED_CONTENT = "clean-structured-content"
    CLEAN_DESCRIPTORS = "clean-descriptors"
    RETAIN_FULL_DATES = "retain-longitudinal-full-dates"
    RETAIN_MODIFIED_DATES = "retain-longitudinal-modified-dates"
    RETAIN_PATIENT_CHARACTERISTICS = "retain-patient-characteristics"
    RETAIN_DEVICE_IDENTITY = "retain-device-identity"
    RETAIN_UIDS = "retain-uids"
    RETAIN_SAFE_PRIVATE = "retain-safe-private"
    RETAIN_INSTITUTION_IDENTITY = "retain-institution-identity"

    @property
    def column(self) -> str:
        """Its column in ``profiles/ps315_e1_1.json``; Clean Pixel Data has none."""
        return _COLUMNS[self]

    @property
    def method(self) -> tuple[str, str]:
        """(code, meaning) of the option in CID 7050."""
        return _METHODS[self]


BASIC_METHOD = ("113100", "Basic Application Confidentiality Profile")
DATE_OPTIONS = frozenset({Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES})
DEFAULT_OPTIONS = frozenset({Option.RETAIN_MODIFIED_DATES})

_COLUMNS = {
    Option.CLEAN_PIXEL_DATA: "",
    Option.CLEAN_GRAPHICS: "clean_graph",
    Option.CLEAN_STRUCTURED_CONTENT: "clean_struct_cont",
    Option.CLEAN_DESCRIPTORS: "clean_desc",
    Option.RETAIN_FULL_DATES: "rtn_long_full_dates",
    Option.RETAIN_MODIFIED_DATES: "rtn_long_modif_dates",
    Option.RETAIN_PATIENT_CHARACTERISTICS: "rtn_pat_chars",
    Option.RETAIN_DEVICE_IDENTITY: "rtn_dev_id",
    Option.RETAIN_UIDS: "rtn_uids",
    Option.RETAIN_SAFE_PRIVATE: "rtn_safe_priv",
    Option.RETAIN_INSTITUTION_IDENTITY: "rtn_inst_id",
}
_METHODS = {
    Option.CLEAN_PIXEL_DATA: ("113101", "Clean Pixel Data Option"),
    Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.CLEAN_STRUCTURED_CONTENT: ("113104", "Clean Structured Content Option"),
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_FULL_DATES: (
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
    ),
    Option.RETAIN_MODIFIED_DATES: (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION_IDENTITY: ("113112", "Retain Institution Identity Option"),
}


def options_named(names: Iterable[str]) -> frozenset[Option]:
    """The options of these names, and no others: without a dates option no date stays.

    Raises
    ------
    RecipeError
        A name is not an option's, or two contradict each other.
    """
    known = {option.value: option for option in Option}
    chosen = set()
    for name in names:
        if name not in known:
            raise RecipeError(
                f"There is no de-identification option {name!r}",
                remedy=f"Use names out of: {', '.join(known)}.",
            )
        chosen.add(known[name])
    return checked_options(chosen)


def checked_options(options: Iterable[Option]) -> frozenset[Option]:
    """``options`` if they can be carried out together.

    Raises
    ------
    RecipeError
        Full and modified dates at once.
    """
    chosen = frozenset(options)
    if chosen >= DATE_OPTIONS:
        raise RecipeError(
            "Full dates and modified dates cannot both be retained",
            remedy="Choose one of the two options.",
        )
    return chosen
