"""What a recipe amounts to, in the words of PS3.15: the options that it claims, or that it departs.

DeidentificationMethodCodeSequence (0012,0064) tells the receiver what was done. A code is claimed
if every attribute was treated as the basic profile or the options behind the codes say, or more
strictly; where a recipe keeps what none of them lets stay, such as a description word for word, no
code would be true.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom._dicom_dict import DicomDictionary

from anonymizer.options import Option
from anonymizer.profile import FREE_TEXT_VRS, Action, Policy, method_codes, table_rows

# Actions that leave something of the original value.
_KEEPING = frozenset({Action.KEEP, Action.CAP_AGE, Action.CLEAN, Action.WALK, Action.SHIFT})


def claimed_methods(policy: Policy, actions: Mapping[int, Action]) -> tuple[tuple[str, str], ...]:
    """(code, meaning) of what ``actions`` laid over ``policy`` do; none if they depart from PS3.15.

    An attribute that the table does not list is nobody's to claim, but for a date that is moved.
    """
    if not policy.methods:
        return ()
    claims = set(policy.methods)
    for tag, action in actions.items():
        if action not in _KEEPING or action.value == policy.codes[tag]:
            continue
        option = _option_behind(tag, action, policy.options)
        if option is not None:
            claims.add(option.method)
        elif tag in table_rows():
            return ()
    if Option.RETAIN_MODIFIED_DATES.method in claims:  # which keeps times too
        claims.discard(Option.RETAIN_FULL_DATES.method)
    return method_codes(claims)


def _option_behind(tag: int, action: Action, chosen: frozenset[Option]) -> Option | None:
    """The option under which ``tag`` may be treated so; one that is on already, if there is."""
    row = table_rows().get(tag)
    if row is None:
        return Option.RETAIN_MODIFIED_DATES if action is Action.SHIFT else None
    allowing = [option for option in Option if _allows(option, row.get(option.column), tag, action)]
    return next((option for option in allowing if option in chosen), next(iter(allowing), None))


def _allows(option: Option, letter: str | None, tag: int, action: Action) -> bool:
    """Whether ``action`` is what ``letter`` in the column of ``option`` asks for, or stricter."""
    vr = DicomDictionary[tag][0]
    if letter is None:
        return False
    if option is Option.RETAIN_MODIFIED_DATES:
        return action is Action.SHIFT or (action is Action.KEEP and vr == "TM")
    if action is Action.SHIFT:
        return False
    return letter == "K" or action is not Action.KEEP or vr not in FREE_TEXT_VRS
