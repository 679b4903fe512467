"""Clean Descriptors (PS3.15 E.3.5): what may stay of a free text.

A description is kept word by word: a word stays if it is published vocabulary of imaging
(``profiles/descriptor_words.json``: PS3.16 context groups and names of protocols), a number if it
is short, cannot be a year, is none of this patient's, and makes no long one with the numbers
beside it (943 476 5919 is a patient's number, 12 03 56 a birth date). Whatever else stands there,
a person, a place, an order, goes without anyone having to recognise it. This patient's own
identifiers are looked for afterwards, as in every value that is kept.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from itertools import groupby

# A word may hold digits (T1, 3D, 5mm); what joins words (/ + -) separates them, except in "w/o",
# which turns the sense of what follows.
_TOKEN = re.compile(r"\bw/o?(?![^\W_])|\d+(?:[.,]\d+)+|[^\W_]+", re.IGNORECASE)
_MEASURE = re.compile(r"(\d{1,4})([a-z]{1,3})", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,4}|\d{1,3}[.,]\d{1,3}")
# Of several numbers in a row, all together.
_MOST_DIGITS = 4
_YEAR = re.compile(r"(?:18|19|20|21)\d\d")
_TITLED = re.compile(r"\b(?:dr|prof|mrs?|ms|miss|herr|frau|mme|pat(?:ient)?)\b\.?\s+\S+", re.I)
_DATE_OR_UID = re.compile(r"\d+(?:[./-]\d+){2,}")


def cleaned_text(text: str, known: frozenset[str] = frozenset()) -> str:
    """The words of ``text`` that are published vocabulary, and its small numbers.

    The words keep their spelling and order and are joined by single blanks; empty if none stays.
    ``known`` are numbers that the patient goes by, however short: digits without leading zeros.
    """
    rest = _DATE_OR_UID.sub(" ", _TITLED.sub(" ", text))
    tokens = [token for token in _TOKEN.findall(rest) if _is_number(token) or _is_word(token)]
    kept: list[str] = []
    # What stands between two numbers and does not stay does not keep them apart either.
    for are_numbers, group in groupby(tokens, key=_is_number):
        run = list(group)
        kept += _harmless_numbers(run, known) if are_numbers else run
    return " ".join(kept)


def _is_number(token: str) -> bool:
    return token[0].isdigit() and not any(char.isalpha() for char in token)


def _harmless_numbers(run: list[str], known: frozenset[str]) -> list[str]:
    """What may stay of numbers that follow each other."""
    together = "".join(run)
    long = len(run) > 1 and sum(map(str.isdigit, together)) > _MOST_DIGITS
    if long or _digits_of(together) in known:
        return []
    return [token for token in run if _is_short(token) and _digits_of(token) not in known]


def _is_short(token: str) -> bool:
    return bool(_NUMBER.fullmatch(token)) and not _YEAR.fullmatch(token)


def _digits_of(text: str) -> str:
    return "".join(filter(str.isdigit, text)).lstrip("0")


def _is_word(token: str) -> bool:
    measure = _MEASURE.fullmatch(token)
    words = _vocabulary()
    return token.lower() in words or (measure is not None and measure[2].lower() in words)


@cache
def _vocabulary() -> frozenset[str]:
    table = resources.files("anonymizer.profiles").joinpath("descriptor_words.json")
    return frozenset(json.loads(table.read_text("utf-8"))["words"])
