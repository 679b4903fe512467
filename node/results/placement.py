"""Does a Segmentation show each mask on the slice that it was computed from?

Viewers trust the reference to a source image more than the position, and show a mask on the wrong
slice without a word when the two disagree (OHIF up to 3.14; OHIF/Viewers#2733). No validator looks
at this, so the object is read as a viewer reads it before it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.errors import Quarantined
from node.results.source import is_projection

_TOLERANCE_MM = 1e-3
_REMEDY = "Do not send this result; report the series' geometry to the developers of segnode."


def check_frames(
    segmentation: Dataset, labels: NDArray[np.uint8], source_instances: Sequence[Dataset]
) -> None:
    """Return when every frame is right, and every labelled slice has its frame.

    Right means: one source image, of this series; the frame's position is that image's position
    (a radiograph has none, nor has its frame); the frame's bits are the label map's mask of that
    segment on that slice.

    Parameters
    ----------
    segmentation
        BINARY, native pixel data.
    labels
        uint8, shape (slices, rows, columns), ``source_instances[i]`` being the slice of
        ``labels[i]``.

    Raises
    ------
    Quarantined
        A frame is misplaced, or one is missing.

    References
    ----------
    PS3.3 2026b C.7.6.16.2.3 (Plane Position), C.7.6.16.2.6 (Derivation Image), C.8.20.3.1
    (Segment Identification).
    """
    slices = {source.SOPInstanceUID: index for index, source in enumerate(source_instances)}
    present = {
        (index, int(number))
        for index, plane in enumerate(labels)
        for number in np.flatnonzero(np.bincount(plane.ravel(), minlength=1))
        if number
    }
    packed = np.frombuffer(segmentation.PixelData, np.uint8)
    for frame, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        index = slices.get(_only_source(groups, frame))
        if index is None:
            raise _misplaced(frame, "refers to an instance outside its source series")
        if not _same_position(groups, source_instances[index]):
            raise _misplaced(frame, "lies elsewhere than the source image that it refers to")
        number = _segment_number(segmentation, groups)
        if not np.array_equal(_mask(packed, frame, labels.shape[1:]), labels[index] == number):
            raise _misplaced(frame, "does not hold the mask of the slice that it refers to")
        present.discard((index, number))
    if present:
        raise Quarantined(
            f"The segmentation lacks {len(present)} frames of its label map", remedy=_REMEDY
        )


def _only_source(groups: Dataset, frame: int) -> str:
    derivations = groups.get("DerivationImageSequence") or []
    sources = [image for item in derivations for image in item.get("SourceImageSequence") or []]
    if len(sources) != 1:
        raise _misplaced(frame, f"names {len(sources)} source images instead of one")
    return str(sources[0].ReferencedSOPInstanceUID)


def _same_position(groups: Dataset, source: Dataset) -> bool:
    if is_projection(source):
        return "PlanePositionSequence" not in groups
    position = [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]
    expected = [float(value) for value in source.ImagePositionPatient]
    return bool(np.allclose(position, expected, rtol=0, atol=_TOLERANCE_MM))


def _segment_number(segmentation: Dataset, groups: Dataset) -> int:
    """Per frame, or shared when the Segmentation has a single segment."""
    if "SegmentIdentificationSequence" not in groups:
        groups = segmentation.SharedFunctionalGroupsSequence[0]
    return int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _mask(packed: NDArray[np.uint8], frame: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """One frame of single-bit pixel data, frames following without padding (PS3.5 8.1.1)."""
    size = int(np.prod(shape))
    first_byte, skipped_bits = divmod(frame * size, 8)
    last_byte = -(-(frame + 1) * size // 8)
    bits = np.unpackbits(packed[first_byte:last_byte], bitorder="little")
    return np.asarray(bits[skipped_bits : skipped_bits + size].reshape(shape), bool)


def _misplaced(frame: int, what: str) -> Quarantined:
    return Quarantined(f"Frame {frame + 1} of the segmentation {what}", remedy=_REMEDY)
