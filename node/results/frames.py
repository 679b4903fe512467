"""The frames of a Segmentation: from a small one that highdicom built to all of them.

Building hundreds of per-frame items as objects, and writing them, is most of what a Segmentation
costs. All frames of one segment are alike but for a position, a reference and an index, so
highdicom builds one frame for each segment and the others are copies with those values changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from anonymizer.encoding import Element, element_header
from anonymizer.part10 import Instance, write_instance
from node.results.source import is_projection

NUMBER_OF_FRAMES = 0x00280008
REFERENCED_SERIES_SEQUENCE = 0x00081115
REFERENCED_INSTANCE_SEQUENCE = 0x0008114A
SOURCE_IMAGE_SEQUENCE = 0x00082112
REFERENCED_SOP_INSTANCE_UID = 0x00081155
DIMENSION_INDEX_VALUES = 0x00209157
DIMENSION_ORGANIZATION_TYPE = 0x00209311
IMAGE_POSITION = 0x00200032
REFERENCED_SEGMENT_NUMBER = 0x0062000B
PER_FRAME_GROUPS = 0x52009230
PIXEL_DATA = 0x7FE00010


@dataclass(frozen=True)
class Frame:
    """One mask: segment ``number`` on slice ``index``, the ``rank``-th labelled one in space."""

    number: int
    index: int
    rank: int


def frames_of(labels: NDArray[np.uint8], headers: Sequence[Dataset], segments: int) -> list[Frame]:
    """The frames that are not empty, in highdicom's order: by segment, then along the normal.

    Parameters
    ----------
    labels
        uint8, shape (slices, rows, columns), ``headers[i]`` being the slice of ``labels[i]``.
    """
    # Plane by plane: what is compared stays in the processor's cache.
    present = np.array([[(plane == n + 1).any() for plane in labels] for n in range(segments)])
    ranks = {
        index: rank
        for rank, index in enumerate(
            (int(index) for index in _along_normal(headers) if present[:, index].any()), start=1
        )
    }
    return [
        Frame(number + 1, index, rank)
        for number in range(segments)
        for index, rank in ranks.items()
        if present[number, index]
    ]


def _along_normal(headers: Sequence[Dataset]) -> NDArray[np.intp]:
    if is_projection(headers[0]):
        return np.zeros(1, np.intp)
    normal = hd.spatial.get_normal_vector(
        headers[0].ImageOrientationPatient, index_convention=hd.spatial.VOLUME_INDEX_CONVENTION
    )
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    return np.argsort(positions @ normal, kind="stable")


def with_frames(
    one_each: Instance,
    frames: Sequence[Frame],
    labels: NDArray[np.uint8],
    headers: Sequence[Dataset],
) -> bytes:
    """The Part 10 bytes of the whole Segmentation.

    Parameters
    ----------
    one_each
        A BINARY Segmentation of the same series with at least one frame.
    frames
        As :func:`frames_of` gives them.
    """
    references = [header.SOPInstanceUID.encode("ascii") for header in headers]
    positions = [_position(header) for header in headers]
    elements = {element.tag: element for element in one_each.elements}
    like = _items(elements[PER_FRAME_GROUPS])[0]
    groups = [
        _changed(
            like,
            {
                REFERENCED_SOP_INSTANCE_UID: references[frame.index],
                IMAGE_POSITION: positions[frame.index],
                DIMENSION_INDEX_VALUES: _dimension_indices(frame, headers[frame.index]),
                REFERENCED_SEGMENT_NUMBER: struct.pack("<H", frame.number),
            },
        )
        for frame in frames
    ]
    elements[PER_FRAME_GROUPS] = Element(PER_FRAME_GROUPS, "SQ", groups)
    elements[NUMBER_OF_FRAMES] = Element(NUMBER_OF_FRAMES, "IS", str(len(frames)).encode())
    elements[SOURCE_IMAGE_SEQUENCE] = _of_all(elements[SOURCE_IMAGE_SEQUENCE], references)
    (series,) = _items(elements[REFERENCED_SERIES_SEQUENCE])
    elements[REFERENCED_SERIES_SEQUENCE] = Element(
        REFERENCED_SERIES_SEQUENCE,
        "SQ",
        [[_of_all(e, references) if e.tag == REFERENCED_INSTANCE_SEQUENCE else e for e in series]],
    )
    if _is_regular(frames, headers):
        elements[DIMENSION_ORGANIZATION_TYPE] = Element(DIMENSION_ORGANIZATION_TYPE, "CS", b"3D")
    packed = b"".join(_packed(labels, frames))
    packed += bytes(len(packed) % 2)
    return write_instance(
        elements.values(),
        sop_class_uid=one_each.sop_class_uid,
        sop_instance_uid=one_each.sop_instance_uid,
        transfer_syntax_uid=one_each.transfer_syntax_uid,
        pixel_data=element_header(PIXEL_DATA, "OB", len(packed), implicit=False) + packed,
    )


def _position(header: Dataset) -> bytes:
    """ImagePositionPatient; nothing of a radiograph, which has none to change."""
    if is_projection(header):
        return b""
    return "\\".join(map(str, header.ImagePositionPatient)).encode("ascii")


def _dimension_indices(frame: Frame, header: Dataset) -> bytes:
    """Segment, and rank in space where there is space."""
    if is_projection(header):
        return struct.pack("<L", frame.number)
    return struct.pack("<LL", frame.number, frame.rank)


def _is_regular(frames: Sequence[Frame], headers: Sequence[Dataset]) -> bool:
    """Whether the frames are one evenly spaced stack, by highdicom's rule (PS3.3 C.7.6.17.3)."""
    indices = sorted({frame.index for frame in frames})
    if len(indices) != len(frames) or len(frames) < 2:
        return False
    spacing_mm, _ = hd.spatial.get_volume_positions(
        image_positions=[headers[index].ImagePositionPatient for index in indices],
        image_orientation=headers[0].ImageOrientationPatient,
        sort=False,
    )
    return spacing_mm is not None and spacing_mm > 0


def _changed(elements: list[Element], changes: dict[int, bytes]) -> list[Element]:
    """A copy with the values of some tags changed, at any depth."""
    return [
        Element(tag, vr, [_changed(item, changes) for item in value])
        if isinstance(value, list)
        else Element(tag, vr, changes.get(tag, value))
        for tag, vr, value in elements
    ]


def _items(sequence: Element) -> list[list[Element]]:
    assert isinstance(sequence.value, list), "a sequence of highdicom's"  # noqa: S101
    return sequence.value


def _of_all(sequence: Element, uids: Sequence[bytes]) -> Element:
    """A sequence of references with one item for each instance."""
    like = _items(sequence)[0]
    items = [_changed(like, {REFERENCED_SOP_INSTANCE_UID: uid}) for uid in uids]
    return sequence._replace(value=items)


def _packed(labels: NDArray[np.uint8], frames: Sequence[Frame]) -> Iterator[bytes]:
    """Single-bit pixels, the first in the lowest bit, frames without padding (PS3.5 8.1.1)."""
    if labels[0].size % 8 == 0:
        for frame in frames:
            yield np.packbits(labels[frame.index] == frame.number, bitorder="little").tobytes()
        return
    masks = [labels[frame.index].ravel() == frame.number for frame in frames]
    yield np.packbits(np.concatenate(masks), bitorder="little").tobytes()
