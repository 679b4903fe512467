"""Clean Descriptors (PS3.15 E.3.5): what may stay of a free text.

A description is kept word by word: a word stays if it is published vocabulary of imaging
(``profiles/descriptor_words.json``: PS3.16 context groups and names of protocols), a number if it
is short and cannot be a year. Whatever else stands there, a person, a place, an order, goes without
anyone having to recognise it. This patient's own identifiers are looked for afterwards, as in
every value that is kept.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources

# A word may hold digits (T1, 3D, 5mm); what joins words (/ + -) separates them, except in "w/o",
# which turns the sense of what follows.
_TOKEN = re.compile(r"\bw/o?(?![^\W_])|\d+(?:[.,]\d+)+|[^\W_]+", re.IGNORECASE)
_MEASURE = re.compile(r"(\d{1,4})([a-z]{1,3})", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,4}|\d{1,3}[.,]\d{1,3}")
_YEAR = re.compile(r"(?:18|19|20|21)\d\d")
_TITLED = re.compile(r"\b(?:dr|prof|mrs?|ms|miss|herr|frau|mme|pat(?:ient)?)\b\.?\s+\S+", re.I)
_DATE_OR_UID = re.compile(r"\d+(?:[./-]\d+){2,}")


def cleaned_text(text: str) -> str:
    """The words of ``text`` that are published vocabulary, and its small numbers.

    The words keep their spelling and order and are joined by single blanks; empty if none stays.
    """
    rest = _DATE_OR_UID.sub(" ", _TITLED.sub(" ", text))
    return " ".join(token for token in _TOKEN.findall(rest) if _is_harmless(token))


def _is_harmless(token: str) -> bool:
    if token[0].isdigit() and not any(char.isalpha() for char in token):
        return bool(_NUMBER.fullmatch(token)) and not _YEAR.fullmatch(token)
    measure = _MEASURE.fullmatch(token)
    words = _vocabulary()
    return token.lower() in words or (measure is not None and measure[2].lower() in words)


@cache
def _vocabulary() -> frozenset[str]:
    table = resources.files("anonymizer.profiles").joinpath("descriptor_words.json")
    return frozenset(json.loads(table.read_text("utf-8"))["words"])
