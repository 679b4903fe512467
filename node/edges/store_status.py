"""The one table of what a destination may answer to an instance.

C-STORE puts these codes into Status (0000,0900), STOW-RS into Failure Reason (0008,1197) and
Warning Reason (0008,1196).

References
----------
PS3.4 2026b Table B.2-1 (Storage); PS3.7 2026b 9.1.1.1.9 and Annex C (general statuses); PS3.18
2026b Table I.2.2-2 (Store Instances Response).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from node.ports import StoreStatus


class Answer(Enum):
    """What an answer makes the sender do."""

    ACCEPTED = "accepted"
    TRY_AGAIN = "try again"
    REFUSED = "refused"


@dataclass(frozen=True)
class StatusRange:
    """Statuses from ``first`` to ``last``, both included, that mean the same."""

    first: int
    last: int
    answer: Answer
    meaning: str


#: Ordered by code. What is not here is a failure that nobody has described: refused.
STORE_STATUSES = (
    StatusRange(0x0000, 0x0000, Answer.ACCEPTED, "success"),
    StatusRange(0x0110, 0x0110, Answer.TRY_AGAIN, "processing failure"),
    # The destination holds it already: the goal of sending is reached.
    StatusRange(0x0111, 0x0111, Answer.ACCEPTED, "duplicate SOP instance"),
    StatusRange(0x0117, 0x0117, Answer.REFUSED, "invalid SOP instance"),
    StatusRange(0x0122, 0x0122, Answer.REFUSED, "SOP class not supported"),
    StatusRange(0x0124, 0x0124, Answer.REFUSED, "not authorized"),
    StatusRange(0x0210, 0x0210, Answer.TRY_AGAIN, "duplicate invocation"),
    StatusRange(0x0211, 0x0211, Answer.REFUSED, "unrecognized operation"),
    StatusRange(0x0212, 0x0212, Answer.REFUSED, "mistyped argument"),
    StatusRange(0xA700, 0xA7FF, Answer.TRY_AGAIN, "out of resources"),
    StatusRange(0xA900, 0xA9FF, Answer.REFUSED, "data set does not match SOP class"),
    StatusRange(0xB000, 0xB000, Answer.ACCEPTED, "warning: coercion of data elements"),
    StatusRange(0xB006, 0xB006, Answer.ACCEPTED, "warning: elements discarded"),
    StatusRange(0xB007, 0xB007, Answer.ACCEPTED, "warning: data set does not match SOP class"),
    StatusRange(0xC000, 0xCFFF, Answer.REFUSED, "cannot understand"),
)


def answer_to(status: int) -> tuple[Answer, str]:
    """What a status code makes the sender do, and its meaning in the standard's words."""
    for known in STORE_STATUSES:
        if known.first <= status <= known.last:
            return known.answer, known.meaning
    return Answer.REFUSED, "a status that the standard does not list"


def store_status(sop_instance_uid: str, status: int) -> StoreStatus:
    """The status as pipeline steps see it."""
    answer, meaning = answer_to(status)
    return StoreStatus(
        sop_instance_uid=sop_instance_uid,
        status=status,
        accepted=answer is Answer.ACCEPTED,
        meaning=meaning,
    )
