"""Stored pixel values of one single-frame instance, decoded and brought to modality units.

Decoders, in pydicom's order: its own for native, big endian, deflated and RLE; pyjpegls for
JPEG-LS; pylibjpeg-openjpeg for JPEG 2000 and HTJ2K; GDCM for the JPEG DCT and lossless processes.
pydicom refuses 12-bit DCT JPEG, and the retired spectral-selection and full-progression processes,
which GDCM's image reader decodes: those go to GDCM directly.

References: PS3.5 2026b A.4 (encapsulation); PS3.3 2026b C.7.6.3 (pixels), C.7.5.1.1.2 (padding),
C.11.1 (Modality LUT).
"""

from __future__ import annotations

import re
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

from node.errors import DamagedInstance, UnsuitableInput, UnsupportedTransferSyntax

_PLAIN_NUMBER = re.compile(r"[0-9]{1,4}")

AIR_HU = -1024
"""What padding outside a CT's reconstruction circle becomes."""

GDCM_READER_SYNTAXES = frozenset(
    {
        JPEGExtended12Bit,
        UID("1.2.840.10008.1.2.4.53"),  # JPEG Spectral Selection, Process 6 and 8 (retired)
        UID("1.2.840.10008.1.2.4.55"),  # JPEG Full Progression, Process 10 and 12 (retired)
    }
)


def modality_values(ds: Dataset) -> npt.NDArray[np.int16]:
    """Decode one grey-scale frame to int16: Hounsfield units for CT, else rescaled values.

    Values outside int16 are clipped. Where RescaleSlope and RescaleIntercept are integers, no
    floating-point copy is made. Padding (PixelPaddingValue and its range limit) becomes -1024 HU
    in CT and 0 elsewhere.

    Returns
    -------
    numpy.ndarray
        int16, shape (rows, columns).

    Raises
    ------
    UnsupportedTransferSyntax
        Names the syntax.
    DamagedInstance
        PixelData is missing, short, or does not decode; RescaleIntercept is missing in a CT.
    UnsuitableInput
        Colour, floating-point or 32-bit pixels.
    """
    require_grey_scale(ds)
    stored = stored_values(ds)
    slope, intercept = _rescale(ds)
    padding = padding_mask(ds, stored)
    limits = np.iinfo(np.int16)
    if slope.is_integer() and intercept.is_integer():
        # int32 holds any 16-bit value times a slope of up to 2^15.
        values = stored.astype(np.int32)
        if slope != 1:
            values *= int(slope)
        if intercept:
            values += int(intercept)
    else:
        values = np.rint(stored.astype(np.float32) * slope + intercept)
    result = np.clip(values, limits.min, limits.max).astype(np.int16)
    if padding is not None:
        result[padding] = AIR_HU if ds.get("Modality") == "CT" else 0
    return result


def require_grey_scale(ds: Dataset) -> None:
    """Return if the pixels are grey-scale of 8 or 16 bits.

    Raises
    ------
    UnsuitableInput
        Colour, floating-point or 32-bit pixels.
    """
    if int(ds.get("SamplesPerPixel", 1)) != 1 or int(ds.get("BitsAllocated", 16)) not in (8, 16):
        raise UnsuitableInput(
            f"Instance {number_of(ds)} is not grey-scale of 8 or 16 bits "
            "(SamplesPerPixel, BitsAllocated): it is a picture, not a measurement",
            remedy="Send the original images, not screenshots or colour captures.",
        )


def number_of(ds: Dataset, place: int | None = None) -> str:
    """InstanceNumber for a message, if it can only be a position in the series.

    Hospitals write order numbers into it, and a header may hold anything there: what is no plain
    number of four digits at most is not repeated. ``place`` then says which instance it is, by its
    place in the list at hand, from 1.
    """
    value = str(ds.get("InstanceNumber") or "")
    if _PLAIN_NUMBER.fullmatch(value):
        return value
    return "without a plain InstanceNumber" if place is None else f"at place {place}"


def stored_values(ds: Dataset) -> npt.NDArray[Any]:
    """The decoded frame, shape (rows, columns), in the integer type that the header declares.

    Raises
    ------
    UnsupportedTransferSyntax
        Names the syntax.
    DamagedInstance
        PixelData is missing, short, or does not decode.
    """
    if "PixelData" not in ds:
        raise DamagedInstance(f"Instance {number_of(ds)} has no PixelData (7FE0,0010)")
    syntax = UID(str(ds.file_meta.get("TransferSyntaxUID", "")))
    shape = (int(ds.Rows), int(ds.Columns))
    number = number_of(ds)
    damaged = DamagedInstance(
        f"The pixel data of instance {number} cannot be decoded: "
        f"it is truncated or is not {syntax.name} ({syntax})"
    )
    try:
        decoder = get_decoder(syntax)
        known = decoder.is_available
    except NotImplementedError:
        known = False
    if not known and syntax not in GDCM_READER_SYNTAXES:
        raise UnsupportedTransferSyntax(
            f"No decoder reads the transfer syntax {syntax.name} ({syntax}) of instance {number}"
        )
    # Decoders raise anything, and their messages may quote the file: only our own words go on.
    try:
        if syntax in GDCM_READER_SYNTAXES:
            values = _gdcm_image_values(ds)
        elif not syntax.is_compressed and syntax.is_little_endian:
            values = _native_values(ds)
        else:
            values = decoder.as_array(ds, raw=True)[0]
    except Exception:  # noqa: BLE001
        raise damaged from None
    if values.shape != shape:
        raise damaged
    return values


def _native_values(ds: Dataset) -> npt.NDArray[Any]:
    """Uncompressed little endian without a copy: half the time of the general decoder."""
    dtype = _stored_dtype(ds)
    count = int(ds.Rows) * int(ds.Columns)
    values = np.frombuffer(ds.PixelData, dtype=dtype, count=count)
    unused = dtype.itemsize * 8 - int(ds.BitsStored)
    if unused:
        # PS3.5 8.1.1 allows anything above BitsStored (overlays, once): shift it out, with sign.
        values = (values << unused) >> unused
    return values.reshape(int(ds.Rows), int(ds.Columns))


def _gdcm_image_values(ds: Dataset) -> npt.NDArray[Any]:
    """Decode through GDCM's own image reader, which reads files only."""
    import gdcm

    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        ds.save_as(file, enforce_file_format=False)
        file.flush()
        reader = gdcm.ImageReader()
        reader.SetFileName(file.name)
        if not reader.Read():
            raise ValueError("not readable")
        # SWIG hands the buffer over as text; surrogateescape gives back the bytes.
        data = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(data, dtype=_stored_dtype(ds)).reshape(int(ds.Rows), int(ds.Columns))


def _stored_dtype(ds: Dataset) -> np.dtype[Any]:
    kind = "i" if int(ds.PixelRepresentation) else "u"
    return np.dtype(f"<{kind}{int(ds.BitsAllocated) // 8}")


def _rescale(ds: Dataset) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept; a CT without them has no Hounsfield units."""
    if ds.get("Modality") == "CT" and ds.get("RescaleIntercept") in (None, ""):
        raise DamagedInstance(
            f"Instance {number_of(ds)} is CT without RescaleIntercept (0028,1052)",
            remedy="Send the original CT images: these carry no Hounsfield units.",
        )
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    return (float(1 if slope in (None, "") else slope), float(intercept or 0))


def padding_mask(ds: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Where the pixels are padding; None if the header declares none."""
    first = ds.get("PixelPaddingValue")
    if first is None:
        return None
    last = ds.get("PixelPaddingRangeLimit", first)
    bits = stored.dtype.itemsize * 8
    signed = bool(int(ds.PixelRepresentation))

    def as_stored(value: Any) -> int:
        # The VR is US or SS by PixelRepresentation, yet many writers get it wrong: read the bits.
        wrapped = int(value) & ((1 << bits) - 1)
        return wrapped - (1 << bits) if signed and wrapped >> (bits - 1) else wrapped

    low, high = sorted((as_stored(first), as_stored(last)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None
