"""What the anonymizer raises, as what the node does next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from anonymizer import errors as anonymizer
from node.errors import DamagedInstance, IdentityUnsafe, NodeError, OutOfSpace, Rejected


@contextmanager
def as_node_errors() -> Iterator[None]:
    """Raise the anonymizer's errors as the node's: rejected, or held for a person.

    A vault that does not open holds the job too: nothing may leave without the patient's own data.
    A vault that is full is waited for.
    """
    try:
        yield
    except anonymizer.AnonymizerError as error:
        raise _counterpart(error)(str(error), remedy=error.remedy) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("The vault is full") from None
        raise


def _counterpart(error: anonymizer.AnonymizerError) -> type[NodeError]:
    match error:
        case anonymizer.Unreadable():
            return DamagedInstance
        case anonymizer.Rejected():
            return Rejected
        case _:
            return IdentityUnsafe
