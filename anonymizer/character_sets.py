"""One character set for an object whose text comes from two places (PS3.5 6.1.2, PS3.3 C.12.1.1.2).

A result that goes back holds the patient's text, byte for byte in the original's character set, and
text of its own. Both must be readable under the one SpecificCharacterSet that the object states.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import keyword_for_tag

from anonymizer.encoding import Element
from anonymizer.errors import Unsupported
from anonymizer.part10 import SPECIFIC_CHARACTER_SET, decode_text
from anonymizer.profile import TEXT_VRS

ESCAPE = b"\x1b"  # begins a switch of character set (ISO/IEC 2022): not plain, though 7 bits wide
# One value of these may hold a backslash; the others are split before they are encoded.
_SINGLE_VALUED = frozenset({"LT", "ST", "UT"})


def with_one_character_set(
    own: list[Element], stated: bytes, original: list[Element], required: bytes
) -> tuple[list[Element], bytes]:
    """``own`` and the SpecificCharacterSet under which it and ``original`` can be read.

    Parameters
    ----------
    own
        The object's own elements, whose character set is ``stated``.
    original
        The patient's and study's elements, whose character set is ``required``; they stay as they
        are.

    Raises
    ------
    Unsupported
        The object's own text has a character that the original's character set lacks.
    """
    if is_plain(own):
        return own, required
    if is_plain(original):
        return own, stated
    return _transcoded(own, stated, required), required


def is_plain(elements: Iterable[Element]) -> bool:
    """Whether all text, at any depth, is ASCII, which reads the same in every character set."""
    return all(
        all(map(is_plain, value)) if isinstance(value, list) else _is_plain_value(vr, value)
        for _, vr, value in elements
    )


def _is_plain_value(vr: str, value: bytes) -> bool:
    return vr not in TEXT_VRS or (value.isascii() and ESCAPE not in value)


def _transcoded(elements: list[Element], stated: bytes, required: bytes) -> list[Element]:
    """``elements`` in ``required``; an item inherits it, so none states a set of its own."""
    stated = next(
        (
            element.value
            for element in elements
            if element.tag == SPECIFIC_CHARACTER_SET and isinstance(element.value, bytes)
        ),
        stated,
    )
    transcoded = []
    for tag, vr, value in elements:
        if tag == SPECIFIC_CHARACTER_SET:
            continue
        if isinstance(value, list):
            items = [_transcoded(item, stated, required) for item in value]
            transcoded.append(Element(tag, vr, items))
        elif _is_plain_value(vr, value):
            transcoded.append(Element(tag, vr, value))
        else:
            encoded = _encoded(decode_text(value, stated, vr), vr, required)
            if encoded is None:
                raise Unsupported(
                    f"{keyword_for_tag(tag) or 'A private attribute'} of the derived object has "
                    "text that the original's SpecificCharacterSet (0008,0005) cannot say",
                    remedy="Have the model or plugin write ASCII text only.",
                )
            transcoded.append(Element(tag, vr, encoded))
    return transcoded


def _encoded(text: str, vr: str, character_set: bytes) -> bytes | None:
    """``text`` in ``character_set``; None if it cannot say it.

    Every value, and every component of a person name, begins in the first character set
    (PS3.5 6.1.2.5.3), so each is encoded alone.
    """
    encodings = convert_encodings([term.strip() for term in character_set.decode().split("\\")])
    separators = {"PN": "\\=^"}.get(vr, "" if vr in _SINGLE_VALUED else "\\")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's would quote the text
        encoded = _encoded_parts(text, separators, encodings)
    return encoded if decode_text(encoded, character_set, vr) == text else None


def _encoded_parts(text: str, separators: str, encodings: list[str]) -> bytes:
    if not separators:
        return bytes(encode_string(text, encodings))
    separator, rest = separators[0], separators[1:]
    parts = (_encoded_parts(part, rest, encodings) for part in text.split(separator))
    return separator.encode("ascii").join(parts)
