"""Content items of a report that say who the subject is (PS3.15 Table E.1-2, PS3.16 TID 1007).

A report states age, sex and birth date of its subject as content items of their own, a number, a
code and a date, which no rule about attributes tells from a measurement. They go.
"""

from __future__ import annotations

from collections.abc import Iterable

from anonymizer.encoding import Element

CONTENT_SEQUENCE = 0x0040A730
CONCEPT_NAME_CODE_SEQUENCE = 0x0040A043
CODE_VALUE, CODING_SCHEME = 0x00080100, 0x00080102
# (scheme, code) of the concept names with X in the basic profile that are no text and no name.
_SUBJECT = frozenset({
    (b"DCM", b"121031"),  # Subject Birth Date
    (b"DCM", b"121032"),  # Subject Sex
    (b"DCM", b"121033"),  # Subject Age
})  # fmt: skip


def describes_subject(item: Iterable[Element]) -> bool:
    """Whether a content item states age, sex or birth date of the subject."""
    for tag, _, value in item:
        if tag == CONCEPT_NAME_CODE_SEQUENCE and isinstance(value, list):
            return any(_concept(code) in _SUBJECT for code in value)
    return False


def _concept(code: Iterable[Element]) -> tuple[bytes, bytes]:
    values = {tag: value.strip(b"\0 ") for tag, _, value in code if isinstance(value, bytes)}
    return values.get(CODING_SCHEME, b""), values.get(CODE_VALUE, b"")
