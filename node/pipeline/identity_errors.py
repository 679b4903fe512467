"""What the anonymizer raises, as what the node does next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anonymizer import errors as anonymizer
from node.errors import DamagedInstance, IdentityUnsafe, NodeError, Rejected


@contextmanager
def as_node_errors() -> Iterator[None]:
    """Raise the anonymizer's errors as the node's: rejected, or held for a person.

    A vault that does not open holds the job too: nothing may leave without the patient's own data.
    """
    try:
        yield
    except anonymizer.AnonymizerError as error:
        raise _counterpart(error)(str(error), remedy=error.remedy) from None


def _counterpart(error: anonymizer.AnonymizerError) -> type[NodeError]:
    match error:
        case anonymizer.Unreadable():
            return DamagedInstance
        case anonymizer.Rejected():
            return Rejected
        case _:
            return IdentityUnsafe
