"""Labels as people keep them: packed masks, NIfTI, DICOM SEG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt


def masks_by_sop_instance_uid(paths: Sequence[Path]) -> dict[str, npt.NDArray[np.bool_]]:
    """Binary masks (rows, columns) by the SOP Instance UID that each belongs to.

    Each ``.npz`` holds ``shape`` (slices, rows, columns), ``mask`` (its bits, packed) and ``sop``
    (the UIDs, in slice order). A mask may be smaller than its image: it shows the same field.
    """
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            shape = tuple(int(n) for n in file["shape"])
            bits = np.unpackbits(file["mask"])[: math.prod(shape)].reshape(shape)
            masks.update(zip(file["sop"].tolist(), bits.astype(bool), strict=True))
    return masks
