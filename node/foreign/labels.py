"""From a program's label values to the numbers of the model's segments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from node.errors import ProgramFailed
from node.foreign.grid import Array

_MAX_VALUE = 65535
_SHOWN = 5


def as_segments(
    values: Array, meaning: Mapping[int, int], *, ignore_others: bool
) -> npt.NDArray[np.uint8]:
    """uint8, same shape: the segment that each value means; 0 means background unless it is named.

    Raises
    ------
    ProgramFailed
        A value is no whole number from 0 to 65535, or is one that ``meaning`` does not name.
    """
    lowest, highest = values.min(), values.max()  # of NaN too
    if not (lowest >= 0 and highest <= _MAX_VALUE):
        raise ProgramFailed("The labels hold values that are no whole numbers from 0 to 65535")
    whole = values.astype(np.uint16)
    if values.dtype.kind not in "iub" and not np.array_equal(whole, values):
        raise ProgramFailed(
            "The labels hold fractions: they are probabilities, or were interpolated",
            remedy="Have the program write label values.",
        )
    present = np.flatnonzero(np.bincount(whole.ravel())).tolist()
    unknown = [value for value in present if value and value not in meaning]
    if unknown and not ignore_others:
        names = ", ".join(map(str, unknown[:_SHOWN])) + (" ..." if unknown[_SHOWN:] else "")
        raise ProgramFailed(
            f"The labels hold values that [command.labels] of model.toml does not name: {names}",
            remedy='Name them there, or set other_labels = "ignore".',
        )
    table = np.zeros(_MAX_VALUE + 1, np.uint8)
    for value, segment in meaning.items():
        table[value] = segment
    return table[whole]
