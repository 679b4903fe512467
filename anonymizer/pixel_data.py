"""The pixel data element as bytes: found, completed, never decoded (PS3.5 8, A.4)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from anonymizer.encoding import LONG_VRS, UNDEFINED, WORD_BYTES, Element, element_header, swapped
from anonymizer.errors import Unreadable, Unsupported

# Extended offset tables and the three kinds of pixel data: the last elements of an instance that
# mean anything here. What follows (padding, digital signatures) is dropped.
PIXEL_TAGS = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00008, 0x7FE00009, 0x7FE00010})
PIXEL_DATA = 0x7FE00010
# Float, Double Float (PS3.3 C.7.6.24, C.7.6.25) and integer Pixel Data: one of them, and the last.
FRAMES = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})

Values = Mapping[int, bytes | list[list[Element]]]


def pixel_elements(
    data: bytes, position: int, values: Values, *, implicit: bool, big_endian: bool
) -> bytes | memoryview:
    """The elements of group 7FE0 from ``position``, little endian, without what follows them.

    A view of ``data`` where they need no change: pixels are not copied without need. ``values`` are
    the top-level values of the instance, by tag. Fragments of compressed pixel data stay as they
    are. Uncompressed pixel data loses what exceeds its frames: no viewer shows
    it, so nobody would notice what is written there.

    Raises
    ------
    Unreadable
        Cut short, or fewer bytes than Rows, Columns and the other attributes promise.
    Unsupported
        Big endian words of another size than 16 bits, compressed or float pixels in big endian.
    """
    parts: list[bytes | memoryview] = []
    previous = 0
    view = memoryview(data)
    while position < len(data):
        tag, vr, start, length = _read_header_at(data, position, implicit, big_endian)
        if tag == 0x7FE00000:  # retired group length
            position = start + length
            continue
        if tag not in PIXEL_TAGS or tag <= previous:
            break
        previous = tag
        end = _fragments_end(data, start) if length == UNDEFINED else start + length
        if end > len(data):
            raise Unreadable("Pixel Data (7FE0,0010) is cut short")
        if tag in FRAMES and length != UNDEFINED and not (big_endian and tag != PIXEL_DATA):
            value: bytes | memoryview = _exact_frames(view[start:end], values)
            if big_endian:
                value = _little_endian(vr, bytes(value), values)
            header = element_header(tag, vr, len(value), implicit)
            if not big_endian and header == view[position:start] and len(value) == end - start:
                parts.append(view[position:end])
            else:
                parts += [header, value]
        elif big_endian:
            raise Unsupported("Compressed or float pixel data in a big endian instance")
        else:
            parts.append(view[position:end])
        position = end
        if tag in FRAMES:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    if parts:
        raise Unreadable("Offset tables (7FE0,0001), (7FE0,0002) without Pixel Data (7FE0,0010)")
    return b""


def frames_header(pixel_data: bytes | memoryview, *, implicit: bool) -> bytes | None:
    """Tag, VR and length of Pixel Data that is not compressed, from what is written of it."""
    tag, _vr, start, length = _read_header_at(pixel_data, 0, implicit, False)
    is_plain = tag == PIXEL_DATA and start + length == len(pixel_data)
    return bytes(pixel_data[:start]) if is_plain else None


def _exact_frames(value: memoryview, values: Values) -> memoryview:
    """``value`` up to the end of its last frame and a padding byte (PS3.5 8.1.1)."""
    rows, columns, samples, bits = (
        _number(values, tag) for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100)
    )
    photometric = values.get(0x00280004, b"")
    frames = values.get(0x00280008) or b"1"
    if isinstance(photometric, bytes) and b"422" in photometric:
        samples = 2  # two chrominance samples are shared by two pixels (PS3.3 C.7.6.3.1.2)
    if not isinstance(frames, bytes) or not frames.strip(b" \0").isdigit():
        raise Unreadable("Number of Frames (0028,0008) is not a number")
    expected = (rows * columns * samples * bits * int(frames.strip(b" \0")) + 7) // 8
    if len(value) < expected:
        raise Unreadable("Pixel Data (7FE0,0010) is shorter than its frames")
    return value[: expected + expected % 2]


def _number(values: Values, tag: int) -> int:
    """A US value, which is little endian by now."""
    value = values.get(tag)
    if not isinstance(value, bytes) or len(value) != 2:
        raise Unreadable("Rows, Columns, Samples per Pixel or Bits Allocated is missing")
    return int.from_bytes(value, "little")


def _read_header_at(
    data: bytes | memoryview, position: int, implicit: bool, big_endian: bool
) -> tuple[int, str, int, int]:
    order = ">" if big_endian else "<"
    if implicit:
        group, number, length = struct.unpack_from(order + "HHL", data, position)
        return group << 16 | number, "OW", position + 8, length
    group, number, raw_vr, length = struct.unpack_from(order + "HH2sH", data, position)
    vr = raw_vr.decode("ascii")
    if vr in LONG_VRS:
        (length,) = struct.unpack_from(order + "L", data, position + 8)
        return group << 16 | number, vr, position + 12, length
    return group << 16 | number, vr, position + 8, length


def _fragments_end(data: bytes, position: int) -> int:
    """Position after the Sequence Delimitation Item of encapsulated pixel data (PS3.5 A.4)."""
    while True:
        group, number, length = struct.unpack_from("<HHL", data, position)
        position += 8
        if (group, number) == (0xFFFE, 0xE0DD):
            return position
        if (group, number) != (0xFFFE, 0xE000) or length == UNDEFINED:
            raise Unreadable("Encapsulated Pixel Data (7FE0,0010) is not a list of fragments")
        position += length


def _little_endian(vr: str, value: bytes, values: Values) -> bytes:
    if vr != "OW":
        return value
    if _number(values, 0x00280100) not in (8, 16):
        raise Unsupported("Big endian pixel data of other than 8 or 16 bits")
    return swapped(value, WORD_BYTES["OW"])
