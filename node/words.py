"""Text that others wrote, programs and the compute zone, as it may be stored and shown."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_UIDS = re.compile(r"\d+(?:\.\d+){4,}")
#: The standard's own UIDs (PS3.6) name a transfer syntax or a class, and no patient.
_STANDARD = "1.2.840.10008."
_LONG_NUMBERS = re.compile(r"\d{6,}")


def fit_to_show(text: str) -> str:
    """One line without control characters, UIDs, and numbers of six or more digits.

    Whoever wrote it has seen de-identified data only. Still a UID is not passed on, nor what could
    be a date or an identifier. Nor are characters that turn the direction of a line.
    """
    text = _ESCAPES.sub("", text.replace("\r", "\n"))
    text = "".join(letter for letter in text if letter.isprintable() or letter == "\n")
    text = _LONG_NUMBERS.sub("#", _UIDS.sub(_uid_shown, text))
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    return " | ".join(lines)


def _uid_shown(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith(_STANDARD) else "[uid]"
