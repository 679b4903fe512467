"""What identifies this one patient, and how to find it in text.

The identifiers come from the instance itself: every person name, the numbers under which the
patient and the visit are known, every instance UID, every date. They serve twice: to clean what the
profile keeps (:mod:`anonymizer.actions`) and to check what is about to leave
(:mod:`anonymizer.verify`).

What counts as a match. Both sides are folded first: compatibility forms, case and accents removed
(Müller = MULLER), and German umlauts are also tried spelled out (MUELLER).

=====================  ==============================================================
identifier             matches
=====================  ==============================================================
name, 6 letters up     anywhere, also inside a word
name, 3 to 5 letters   as a word of its own (Kim, not Kimberlite)
name, not Latin        anywhere, from 2 characters (山田)
number with a letter,  anywhere from 7 characters, as a word of its own from 4
  institution
number, digits only    from 5 digits, not next to another digit, not part of a decimal;
                       a decimal or integer string that is, as a whole, the same
                       integer, from 6 digits
UID                    not next to another digit or dot
date                   YYYYMMDD, and as written with dashes, dots, slashes or blanks
=====================  ==============================================================

Numbers are compared without what stands between their digits and letters: 12-34-56 is 123456 and
12 34 56. Anything shorter ("1", "CT", "Li") would match by chance in every image, so it is not
searched for; it goes with its attribute, because unlisted text is removed by default.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from pydicom._dicom_dict import DicomDictionary

from anonymizer.encoding import Element
from anonymizer.part10 import SPECIFIC_CHARACTER_SET, decode_text

# Numbers and texts under which a patient, a visit or an order is known (PS3.3 C.7.1, C.7.2, C.4).
NUMBER_TAGS = frozenset({
    0x00080050,  # AccessionNumber
    0x00080080,  # InstitutionName
    0x00080081,  # InstitutionAddress
    0x00100020,  # PatientID
    0x00101000,  # OtherPatientIDs
    0x00101040,  # PatientAddress
    0x00101050,  # InsurancePlanIdentification
    0x00101090,  # MedicalRecordLocator
    0x00102154,  # PatientTelephoneNumbers
    0x00120040,  # ClinicalTrialSubjectID
    0x00120042,  # ClinicalTrialSubjectReadingID
    0x00200010,  # StudyID
    0x00380010,  # AdmissionID
    0x00380060,  # ServiceEpisodeID
    0x00400009,  # ScheduledProcedureStepID
    0x00400253,  # PerformedProcedureStepID
    0x00401001,  # RequestedProcedureID
    0x00402016,  # PlacerOrderNumberImagingServiceRequest
    0x00402017,  # FillerOrderNumberImagingServiceRequest
})  # fmt: skip
WHOLE_VALUE_TAGS = frozenset({0x00080080, 0x00080081, 0x00101040})

_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})
# Written where a name was taken away, by this software or another: they name nobody.
_NOBODY = frozenset({"anon", "anonymous", "anonymized", "anonymised", "patient", "unknown", "none"})
# Between two characters of a number, as people write it: 943 476 5919, (020) 7946-0958.
_GAP = r"[\W_]{0,2}"
# A number of fewer digits may be a whole decimal or integer string by chance.
_LEAST_WHOLE_DIGITS = 6
_LEAST_DIGITS, _LEAST_CHARACTERS, _LEAST_ANYWHERE = 5, 4, 7
_LIKE_A_NUMBER = re.compile(r"[0-9.e+-]+")
# Of no integer that anybody goes by.
_GREATEST_EXPONENT = 30
_NAME_BREAKS = re.compile(r"[\s\\^=,.;()/\-'\u2019\u2010]+")


@dataclass(frozen=True)
class Identifiers:
    """Folded identifiers of one patient as one instance states them. ``repr`` shows none."""

    names: frozenset[str] = field(repr=False)
    numbers: frozenset[str] = field(repr=False)
    uids: frozenset[str] = field(repr=False)
    dates: frozenset[str] = field(repr=False)
    digits: frozenset[str] = field(default=frozenset(), repr=False)
    """Numbers of digits only, however short: nothing but their digits, no leading zeros."""

    def covers(self, other: Identifiers) -> bool:
        """Whether everything that ``other`` holds is here too."""
        return (
            self.names >= other.names
            and self.numbers >= other.numbers
            and self.uids >= other.uids
            and self.dates >= other.dates
            and self.digits >= other.digits
        )

    def without_dates(self, dates: Iterable[str]) -> Identifiers:
        """These identifiers less ``dates``: ones that also occur as somebody's shifted date."""
        return replace(self, dates=self.dates.difference(dates))

    def with_uids(self, uids: Iterable[str]) -> Identifiers:
        """These identifiers and the original UIDs ``uids``."""
        return replace(self, uids=self.uids.union(uids))

    def is_whole_number(self, text: str) -> bool:
        """Whether ``text``, one decimal or integer string, is a number of this patient's.

        As it is written, or as an integer: 0012345678, +12345678 and 12345678.0 are one.
        """
        text = text.strip("\0 ").lower()  # of 123456E2, too, the numbers are folded
        if len(text) < _LEAST_WHOLE_DIGITS:
            return False
        return text in self.numbers or whole_number(text) in self.whole_numbers

    @property
    def whole_numbers(self) -> frozenset[str]:
        """What of the numbers a decimal or integer string may be: plain integers, and as written.

        A string in lower case that is one of them contains one of these; one with an exponent, it
        or its integer.
        """
        return _whole_numbers(self.numbers)

    def occurs_in(self, text: str) -> bool:
        """Whether a name, number or date of this patient stands in ``text``."""
        dates = date_pattern(self.dates)
        if dates is not None and dates.search(text):
            return True
        pattern = _pattern(self.names, self.numbers)
        return pattern is not None and any(pattern.search(form) for form in folded_forms(text))


def fold(text: str) -> str:
    """``text`` without compatibility forms, case and accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def folded_forms(text: str) -> set[str]:
    """The spellings of ``text`` to compare: accents dropped, and umlauts spelled out."""
    if text.isascii():
        return {text.lower()}
    composed = unicodedata.normalize("NFKC", text.lower())
    return {fold(composed), fold(composed.translate(_UMLAUTS))}


def whole_number(text: str) -> str:
    """The digits of the integer that a decimal or integer string is; empty if it is none.

    Without sign and leading zeros: a number that somebody goes by stays readable under either.
    """
    if "e" in text or "E" in text:
        try:
            number = Decimal(text)
        except InvalidOperation:
            return ""
        if not number.is_finite() or abs(number.adjusted()) > _GREATEST_EXPONENT:
            return ""
        text = f"{number:f}"
    integer, _, fraction = text.lstrip("+-").partition(".")
    return "" if fraction.strip("0") else integer.lstrip("0")


def identifiers_of(
    elements: Iterable[Element],
    retained: frozenset[int] = frozenset(),
    character_set: bytes = b"",
) -> Identifiers:
    """The names, numbers and dates that ``elements`` state, at any depth.

    Values of ``retained`` attributes stay by an option, so they and equal dates are left out.
    """
    names: set[str] = set()
    numbers: set[str] = set()
    dates: set[str] = set()
    retained_dates: set[str] = set()
    for element, terms in leaves(elements, character_set):
        tag, vr, value = element
        if not isinstance(value, bytes) or not value:
            continue
        entry = DicomDictionary.get(tag)
        vr = entry[0] if entry else vr  # a name under a foreign VR is a name all the same
        if vr == "PN":
            names.update(_name_parts(value, terms))
        elif vr in ("DA", "DT"):
            found = re.findall(r"(?:18|19|20)\d{6}", value.decode("latin-1"))
            (retained_dates if tag in retained else dates).update(found)
        elif tag in NUMBER_TAGS and tag not in retained:
            text = decode_text(value, terms, vr)
            parts = [text] if tag in WHOLE_VALUE_TAGS else text.split("\\")
            for part in parts:
                numbers.update(form.strip() for form in folded_forms(part) if part.strip())
    return Identifiers(
        names=frozenset(name for name in names if _is_distinct_name(name)),
        numbers=frozenset(number for number in numbers if _is_distinct_number(number)),
        uids=frozenset(),
        dates=frozenset(dates - retained_dates),
        digits=frozenset(_compact(n).lstrip("0") for n in numbers if _compact(n).isdigit()),
    )


def leaves(elements: Iterable[Element], character_set: bytes) -> Iterator[tuple[Element, bytes]]:
    """Every public element without items, at any depth, with its SpecificCharacterSet value."""
    level = list(elements)
    for element in level:
        if element.tag == SPECIFIC_CHARACTER_SET and isinstance(element.value, bytes):
            character_set = element.value
    for element in level:
        if isinstance(element.value, list):
            for item in element.value:
                yield from leaves(item, character_set)
        elif not element.tag >> 16 & 1:
            yield element, character_set


def _name_parts(value: bytes, character_set: bytes) -> Iterator[str]:
    """Family, given and middle names; prefixes and suffixes (Dr., MD) name nobody."""
    decoded = decode_text(value, character_set, "PN")
    # The bytes as Latin-1 too: an attribute may hold the name under another character set.
    for text in {decoded, value.decode("latin-1")}:
        for name in text.split("\\"):
            for group in name.split("="):
                for component in group.split("^")[:3]:
                    for part in _NAME_BREAKS.split(component):
                        yield from folded_forms(part)


def _is_distinct_name(name: str) -> bool:
    if name in _NOBODY or not any(char.isalpha() for char in name):
        return False
    return len(name) >= (3 if name.isascii() else 2)


def _is_distinct_number(number: str) -> bool:
    least = _LEAST_DIGITS if number.isdigit() else _LEAST_CHARACTERS
    return len(number) >= least and any(map(str.isalnum, number))


def _compact(number: str) -> str:
    """Its letters and digits."""
    return "".join(char for char in number if char.isalnum())


@lru_cache(maxsize=64)
def _whole_numbers(numbers: frozenset[str]) -> frozenset[str]:
    digits = {_compact(n).lstrip("0") for n in numbers if _compact(n).isdigit()}
    written = {n for n in numbers if _LIKE_A_NUMBER.fullmatch(n)}
    return frozenset(text for text in digits | written if len(text) >= _LEAST_WHOLE_DIGITS)


@lru_cache(maxsize=64)
def _pattern(names: frozenset[str], numbers: frozenset[str]) -> re.Pattern[str] | None:
    choices = []
    for name in names:
        escaped = re.escape(name)
        word = name.isascii() and len(name) < 6
        choices.append(rf"(?<![^\W\d_]){escaped}(?![^\W\d_])" if word else escaped)
    for number in numbers:
        choices += _number_patterns(number)
    return re.compile("|".join(sorted(choices, key=len, reverse=True))) if choices else None


def _number_patterns(number: str) -> Iterator[str]:
    """As it is written, and as its letters and digits with anything between them."""
    compact = _compact(number)
    spelled = _GAP.join(map(re.escape, compact))
    if compact.isdigit():
        if len(compact) >= _LEAST_DIGITS:
            yield rf"(?<![\d.]){spelled}(?!\d|\.\d)"
    elif len(compact) >= _LEAST_ANYWHERE:
        yield spelled
    elif len(compact) >= _LEAST_CHARACTERS:
        yield rf"(?<![^\W_]){spelled}(?![^\W_])"
    if number != compact:
        escaped = re.escape(number)
        short = len(number) < _LEAST_ANYWHERE
        yield rf"(?<![^\W_]){escaped}(?![^\W_])" if short else escaped


@lru_cache(maxsize=64)
def date_pattern(dates: frozenset[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of ``dates`` (YYYYMMDD) however it is written with digits."""
    choices = []
    for date in sorted(dates):
        year, month, day = date[:4], date[4:6], date[6:]
        choices.append(rf"(?<!\d){year}[-./ ]?{month}[-./ ]?{day}")
        choices.append(rf"(?<!\d)(?:{day}[-./ ]{month}|{month}[-./ ]{day})[-./ ]{year}(?!\d)")
    return re.compile("|".join(choices)) if choices else None
