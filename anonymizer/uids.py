"""Pseudonymous UIDs: a keyed, one-way, repeatable map of every instance UID.

A hash without a key would not do: original UIDs are known to the PACS, to every report and to
whoever received the study before, so they can be tried one by one.
"""

from __future__ import annotations

import hashlib
import hmac

from pydicom._uid_dict import UID_dictionary

# UUIDs as UIDs: PS3.5 B.2 and ISO/IEC 9834-8. Version 8 (RFC 9562) is the one for own content.
_VERSION_8 = 8 << 76
_VARIANT = 2 << 62
_CLEAR = ~((0xF << 76) | (0x3 << 62))


def pseudonymous_uid(uid: str, key: bytes) -> str:
    """The pseudonym of one instance UID: ``2.25.`` and 122 bits of HMAC-SHA256.

    UIDs that the standard itself registers (PS3.6 Annex A: SOP Classes, transfer syntaxes,
    well-known frames of reference) name no patient and stay what they are.
    """
    uid = uid.strip("\0 ")
    if not uid or uid in UID_dictionary:
        return uid
    digest = hmac.digest(key, uid.encode("utf-8"), hashlib.sha256)
    bits = int.from_bytes(digest[:16], "big")
    return f"2.25.{bits & _CLEAR | _VERSION_8 | _VARIANT}"


def has_form_of_pseudonym(uid: str) -> bool:
    """Whether ``uid`` could be one that :func:`pseudonymous_uid` made: ``2.25.`` and a version 8.

    Without the crosswalk nobody can say more. UIDs that other software makes from UUIDs are of
    versions 1 to 7 (RFC 9562 4.2); those of this node's results are of version 8 too.
    """
    number = uid.removeprefix("2.25.")
    if number == uid or not number.isdecimal() or int(number) >> 128:
        return False
    return int(number) >> 76 & 0xF == 8 and int(number) >> 62 & 0x3 == 2
