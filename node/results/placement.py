"""Does a Segmentation show each mask on the slice that it was computed from?

Viewers trust the reference to a source image more than the position, and show a mask on the wrong
slice without a word when the two disagree (OHIF up to 3.14; OHIF/Viewers#2733). No validator looks
at this, so the object is read as a viewer reads it before it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from anonymizer.encoding import Element
from anonymizer.part10 import read_instance
from node.errors import Quarantined
from node.results.source import is_projection

DERIVATION_IMAGE_SEQUENCE = 0x00089124
SOURCE_IMAGE_SEQUENCE = 0x00082112
REFERENCED_SOP_INSTANCE_UID = 0x00081155
PLANE_POSITION_SEQUENCE = 0x00209113
IMAGE_POSITION = 0x00200032
SEGMENT_IDENTIFICATION_SEQUENCE = 0x0062000A
REFERENCED_SEGMENT_NUMBER = 0x0062000B
SEGMENTATION_TYPE = 0x00620001
SHARED_GROUPS, PER_FRAME_GROUPS = 0x52009229, 0x52009230

_PIXEL_HEADER_BYTES = 12  # of an element of VR OB, explicit
_TOLERANCE_MM = 1e-3
_ALL = 0  # instead of a segment's number, where a frame shows all of them
_REMEDY = "Do not send this result; report the series' geometry to the developers of segnode."


def check_frames(
    data: bytes, labels: NDArray[np.uint8], source_instances: Sequence[Dataset]
) -> None:
    """Return when every frame is right, and every labelled slice has its frame.

    Right means: one source image, of this series; the frame's position is that image's position
    (a radiograph has none, nor has its frame); the frame's bits are the label map's mask of that
    segment on that slice, or in a Label Map Segmentation its bytes the slice's labels.

    Parameters
    ----------
    data
        A BINARY or LABELMAP Segmentation with native pixel data, as it would be sent: read here by
        another reader than what wrote it.
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
    slices = {str(source.SOPInstanceUID): index for index, source in enumerate(source_instances)}
    instance = read_instance(data)
    top = {element.tag: element.value for element in instance.elements}
    shared = _items(top.get(SHARED_GROUPS))
    stored = np.frombuffer(instance.pixel_data, np.uint8, offset=_PIXEL_HEADER_BYTES)
    of_all_labels = top.get(SEGMENTATION_TYPE) == b"LABELMAP"
    numbers = [_ALL] if of_all_labels else range(1, int(labels.max()) + 1)
    present = {
        (index, number)
        for index, plane in enumerate(labels)
        for number in numbers
        if (plane.any() if number == _ALL else (plane == number).any())
    }
    for frame, groups in enumerate(_items(top.get(PER_FRAME_GROUPS))):
        index = slices.get(_only_source(groups, frame))
        if index is None:
            raise _misplaced(frame, "refers to an instance outside its source series")
        if not _same_position(groups, source_instances[index]):
            raise _misplaced(frame, "lies elsewhere than the source image that it refers to")
        shape = labels.shape[1:]
        if of_all_labels:
            number = _ALL
            same = np.array_equal(_plane(stored, frame, shape), labels[index])
        else:
            number = _segment_number([*shared[0], *groups])
            same = _is_mask(stored, frame, labels[index] == number)
        if not same:
            raise _misplaced(frame, "does not hold the mask of the slice that it refers to")
        present.discard((index, number))
    if present:
        raise Quarantined(
            f"The segmentation lacks {len(present)} frames of its label map", remedy=_REMEDY
        )


def _items(value: object) -> list[list[Element]]:
    return value if isinstance(value, list) else []


def _values(elements: Sequence[Element], *path: int) -> Iterator[bytes]:
    """All values at a path of tags."""
    for tag, _, value in elements:
        if tag == path[0]:
            if isinstance(value, bytes):
                yield value
            else:
                for item in value:
                    yield from _values(item, *path[1:])


def _only_source(groups: Sequence[Element], frame: int) -> str:
    sources = list(
        _values(
            groups, DERIVATION_IMAGE_SEQUENCE, SOURCE_IMAGE_SEQUENCE, REFERENCED_SOP_INSTANCE_UID
        )
    )
    if len(sources) != 1:
        raise _misplaced(frame, f"names {len(sources)} source images instead of one")
    return sources[0].decode("ascii").rstrip("\0 ")


def _same_position(groups: Sequence[Element], source: Dataset) -> bool:
    if is_projection(source):
        return not any(element.tag == PLANE_POSITION_SEQUENCE for element in groups)
    (value,) = _values(groups, PLANE_POSITION_SEQUENCE, IMAGE_POSITION)
    position = [float(number) for number in value.decode("ascii").split("\\")]
    expected = [float(number) for number in source.ImagePositionPatient]
    return all(
        abs(one - other) <= _TOLERANCE_MM for one, other in zip(position, expected, strict=True)
    )


def _segment_number(groups: Sequence[Element]) -> int:
    """Per frame, or shared when the Segmentation has a single segment."""
    (value,) = _values(groups, SEGMENT_IDENTIFICATION_SEQUENCE, REFERENCED_SEGMENT_NUMBER)
    return int.from_bytes(value, "little")


def _is_mask(packed: NDArray[np.uint8], frame: int, mask: NDArray[np.bool_]) -> bool:
    """Whether one frame of single-bit pixel data is a mask; frames follow one another without
    padding (PS3.5 8.1.1)."""
    first_byte, skipped_bits = divmod(frame * mask.size, 8)
    last_byte = -(-(frame + 1) * mask.size // 8)
    stored = packed[first_byte:last_byte]
    if mask.size % 8 == 0:
        return np.array_equal(stored, np.packbits(mask, bitorder="little"))
    bits = np.unpackbits(stored, bitorder="little")[skipped_bits : skipped_bits + mask.size]
    return np.array_equal(bits.reshape(mask.shape), mask)


def _plane(stored: NDArray[np.uint8], frame: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One frame of pixel data of one byte each."""
    size = int(np.prod(shape))
    return stored[frame * size : (frame + 1) * size].reshape(shape)


def _misplaced(frame: int, what: str) -> Quarantined:
    return Quarantined(f"Frame {frame + 1} of the segmentation {what}", remedy=_REMEDY)
