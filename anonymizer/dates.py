"""Dates moved by one number of days per patient (PS3.15 E.3.6, code 113107).

Intervals within a patient stay true, so follow-up studies still line up. Dates only move back:
a shifted date is never mistaken for the day on which a result is made.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re

MAX_SHIFT_DAYS = 3650

# PS3.5 6.2: DA is YYYYMMDD; ACR-NEMA wrote YYYY.MM.DD, which readers still accept.
_DATE = re.compile(r"(\d{4})(\.?)(\d{2})\2(\d{2})")
# DT: a full date, then time to any precision, then an offset from UTC.
_DATE_TIME = re.compile(r"(\d{8})((?:\d{2}){0,3}(?:(?<=\d{14})\.\d{1,6})?)([+-]\d{4})?")


def shift_days_for(patient: str, key: bytes) -> int:
    """Days by which all dates of this patient move: -1 to -3650, the same every time."""
    digest = hmac.digest(key, patient.encode("utf-8"), hashlib.sha256)
    return -(1 + int.from_bytes(digest[:8], "big") % MAX_SHIFT_DAYS)


def shift_date(value: str, days: int) -> str | None:
    """A DA value moved by ``days``; None if it is not one full calendar date."""
    match = _DATE.fullmatch(value.strip("\0 "))
    if match is None:
        return None
    try:
        day = datetime.date(int(match[1]), int(match[3]), int(match[4]))
        return (day + datetime.timedelta(days=days)).isoformat().replace("-", "")
    except (ValueError, OverflowError):
        return None


def shift_date_time(value: str, days: int) -> str | None:
    """A DT value moved by ``days``, its time kept; None if it has no full calendar date.

    The offset from UTC is left out, as Timezone Offset From UTC (0008,0201) is: it says where the
    patient was.
    """
    match = _DATE_TIME.fullmatch(value.strip("\0 "))
    if match is None:
        return None
    moved = shift_date(match[1], days)
    return None if moved is None else moved + match[2]


def cap_age(value: str) -> str | None:
    """An AS value with every age above 89 years written as 090Y; None if it is not an age."""
    match = re.fullmatch(r"(\d{3})([DWMY])", value.strip("\0 "))
    if match is None:
        return None
    years = int(match[1]) * {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1}[match[2]]
    return "090Y" if years >= 90 else match[0]
