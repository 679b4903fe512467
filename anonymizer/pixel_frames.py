"""The frames of an image as an array, and back. What was compressed is not compressed again.

Grey and palette values stay as they are stored. Colour that was compressed comes out as RGB, the
form that every decoder gives; colour that was not keeps its colour space. Lossy Image Compression
(0028,2110) stays: what was lost once is lost (PS3.3 2026b C.7.6.1.1.5).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from anonymizer.errors import Unreadable, Unsupported
from anonymizer.part10 import DAMAGE

Array = np.ndarray[Any, np.dtype[Any]]
Picture = np.ndarray[Any, np.dtype[np.uint8]]

_KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL")
#: Transfer syntaxes that always lose something.
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)


@dataclass(frozen=True)
class Frames:
    """The decoded frames of one image, to be changed in place."""

    array: Array = field(repr=False)
    """Shape (frames, rows, columns, samples)."""
    photometric: str
    """MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB or YBR_FULL."""
    dataset: FileDataset = field(repr=False)

    @property
    def darkest(self) -> Any:
        """The stored value that this image shows as its darkest tone, one for each sample."""
        match self.photometric:
            case "MONOCHROME1":
                return self.array.max()
            case "MONOCHROME2":
                return self.array.min()
            case "PALETTE COLOR":
                values = np.unique(self.array)
                tones = _through_palette(values.reshape(1, -1), self.dataset)
                return values[tones.sum(axis=-1).argmin()]
            case "YBR_FULL":
                half = 1 << (int(self.dataset.BitsStored) - 1)
                return (0, half, half)
            case _:
                return 0


def decoded(data: bytes) -> Frames:
    """Read and decode one Part 10 instance.

    Raises
    ------
    Unreadable
        The pixels cannot be decoded.
    Unsupported
        Their Photometric Interpretation (0028,0004) or depth is none that can be blanked.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            dataset = pydicom.dcmread(BytesIO(data))
            syntax = dataset.file_meta.TransferSyntaxUID
            if not syntax.is_little_endian:
                raise Unsupported("Big endian pixels cannot be blanked")
            if dataset.BitsAllocated not in (8, 16, 32):
                raise Unsupported("Pixels of this Bits Allocated (0028,0100) cannot be blanked")
            array, made = get_decoder(syntax).as_array(dataset, raw=not syntax.is_compressed)
    except (*DAMAGE, RuntimeError, MemoryError):
        raise Unreadable("The pixels cannot be decoded") from None
    photometric = str(made["photometric_interpretation"])
    if photometric == "YBR_FULL_422":
        photometric = "YBR_FULL"  # the decoder has given every pixel its own chrominance
    if photometric not in _KINDS:
        raise Unsupported("Pixels of this Photometric Interpretation (0028,0004) cannot be blanked")
    frames = int(made["number_of_frames"])
    shape = (frames, int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    native = array.astype(array.dtype.newbyteorder("="), copy=True)
    return Frames(native.reshape(shape), photometric, dataset)


def encoded(frames: Frames) -> bytes:
    """The instance with these frames as Part 10 bytes, Explicit VR Little Endian."""
    dataset = frames.dataset
    if dataset.file_meta.TransferSyntaxUID in _LOSSY:
        dataset.LossyImageCompression = "01"
    # The range of the values may have been the text's.
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if keyword in dataset:
            del dataset[keyword]
    raw = frames.array.astype(frames.array.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.PhotometricInterpretation = frames.photometric
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    buffer = BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(buffer, implicit_vr=False, little_endian=True)
    except DAMAGE:
        raise Unreadable("The instance cannot be written as Explicit VR Little Endian") from None
    return buffer.getvalue()


def picture(frames: Frames, index: int) -> Picture:
    """One frame as a person sees it: (rows, columns), or (rows, columns, 3) in RGB.

    Grey values are spread from the 0.1st to the 99.9th percentile: text is drawn in tones of its
    own, which a window made for anatomy may not show.
    """
    frame = frames.array[index]
    if frames.photometric in ("RGB", "YBR_FULL"):
        tones: Picture = (frame >> (int(frames.dataset.BitsStored) - 8)).astype(np.uint8)
        if frames.photometric == "YBR_FULL":
            tones = convert_color_space(tones, "YBR_FULL", "RGB")
        return np.ascontiguousarray(tones)
    if frames.photometric == "PALETTE COLOR":
        return _through_palette(frame[..., 0], frames.dataset)
    grey = frame[..., 0].astype(np.float32)
    low, high = np.percentile(grey, (0.1, 99.9))
    if high <= low:
        low, high = float(grey.min()), float(grey.max())
    scaled = np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255
    grey_tones: Picture = scaled.astype(np.uint8)
    return 255 - grey_tones if frames.photometric == "MONOCHROME1" else grey_tones


def _through_palette(values: Array, dataset: FileDataset) -> Picture:
    """Colours of the palette (PS3.3 C.7.6.3.1.5), shape (rows, columns, 3), 8 bits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            colours = apply_color_lut(values, dataset)
    except (*DAMAGE, RuntimeError):
        raise Unsupported("The palette of the image cannot be read") from None
    tones: Picture = (colours[..., :3] >> 8 * (colours.dtype.itemsize - 1)).astype(np.uint8)
    return tones
