"""The one place that says what a destination's answer to an instance means.

C-STORE puts its codes into Status (0000,0900), STOW-RS into Failure Reason (0008,1197) and Warning
Reason (0008,1196), or it answers the whole request with an HTTP status.

References
----------
PS3.4 2026b Table B.2-1 (Storage); PS3.7 2026b 9.1.1.1.9 and Annex C (general statuses); PS3.18
2026b Table I.2.2-2 (Store Instances Response); RFC 9110 15 (HTTP statuses).
"""

from __future__ import annotations

from dataclasses import dataclass

from node.ports import Answer, StoreStatus


@dataclass(frozen=True)
class StatusRange:
    """Statuses from ``first`` to ``last``, both included, that mean the same."""

    first: int
    last: int
    answer: Answer
    meaning: str


#: PS3.7 9.1.1.1.9: neither stored nor refused for good. Some PACS answer it to what they dislike.
PROCESSING_FAILURE = 0x0110
SOP_CLASS_NOT_SUPPORTED = 0x0122

#: Ordered by code; the first that fits counts. What is not here is a failure that nobody has
#: described: refused.
STORE_STATUSES = (
    StatusRange(0x0000, 0x0000, Answer.ACCEPTED, "success"),
    StatusRange(0x0001, 0x0001, Answer.WARNING, "optional attributes not supported"),
    StatusRange(0x0107, 0x0107, Answer.WARNING, "attribute list error"),
    StatusRange(0x0110, 0x0110, Answer.TRY_AGAIN, "processing failure"),
    # The destination holds it already: the goal of sending is reached, and proof comes later.
    StatusRange(0x0111, 0x0111, Answer.WARNING, "duplicate SOP instance"),
    StatusRange(0x0116, 0x0116, Answer.WARNING, "attribute value out of range"),
    StatusRange(0x0117, 0x0117, Answer.REFUSED, "invalid SOP instance"),
    StatusRange(0x0122, 0x0122, Answer.REFUSED, "SOP class not supported"),
    StatusRange(0x0124, 0x0124, Answer.REFUSED, "not authorized"),
    StatusRange(0x0210, 0x0210, Answer.TRY_AGAIN, "duplicate invocation"),
    StatusRange(0x0211, 0x0211, Answer.REFUSED, "unrecognized operation"),
    StatusRange(0x0212, 0x0212, Answer.REFUSED, "mistyped argument"),
    StatusRange(0x0213, 0x0213, Answer.BUSY, "resource limitation"),
    # dcm4chee-arc answers these for reasons of its own, which no waiting changes.
    StatusRange(0xA770, 0xA770, Answer.WARNING, "rejection note received before"),
    StatusRange(0xA774, 0xA774, Answer.WARNING, "rejected before"),
    # The earlier result may be on its way.
    StatusRange(0xA772, 0xA772, Answer.TRY_AGAIN, "what it rejects is not there"),
    StatusRange(0xA771, 0xA779, Answer.REFUSED, "refused by a rule of the archive"),
    StatusRange(0xA700, 0xA7FF, Answer.BUSY, "out of resources"),
    StatusRange(0xA800, 0xA8FF, Answer.REFUSED, "SOP class not supported"),
    StatusRange(0xA900, 0xA9FF, Answer.REFUSED, "data set does not match SOP class"),
    StatusRange(0xB000, 0xB000, Answer.WARNING, "coercion of data elements"),
    StatusRange(0xB006, 0xB006, Answer.WARNING, "elements discarded"),
    StatusRange(0xB007, 0xB007, Answer.WARNING, "data set does not match SOP class"),
    StatusRange(0xB000, 0xBFFF, Answer.WARNING, "a warning that the standard does not list"),
    StatusRange(0xC000, 0xCFFF, Answer.REFUSED, "cannot understand"),
)

#: How a service may refuse the content of a request. Login and address are another matter.
REFUSED_CONTENT = {
    400: "bad request",
    406: "not acceptable",
    409: "conflict",
    413: "content too large",
    415: "media type not supported",
    422: "content cannot be processed",
}


def store_status(sop_instance_uid: str, status: int) -> StoreStatus:
    """The meaning of a DICOM status."""
    for known in STORE_STATUSES:
        if known.first <= status <= known.last:
            said = f"status 0x{status:04X}, {known.meaning}"
            return StoreStatus(sop_instance_uid, known.answer, said, status)
    said = f"status 0x{status:04X}, which the standard does not list"
    return StoreStatus(sop_instance_uid, Answer.REFUSED, said, status)


def refused_over_http(sop_instance_uid: str, code: int) -> StoreStatus:
    """A service that has refused the whole request for what is in it."""
    said = f"HTTP {code}, {REFUSED_CONTENT[code]}"
    return StoreStatus(sop_instance_uid, Answer.REFUSED, said, code)


def not_answered(sop_instance_uid: str, why: str, *, sent: bool) -> StoreStatus:
    """An instance of which nobody knows whether it has arrived, or that was not sent any more."""
    return StoreStatus(sop_instance_uid, Answer.TRY_AGAIN, why, unsure=sent)
