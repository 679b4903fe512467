"""Decoding, blanking and storing keep every pixel outside the regions, over real encodings."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_color_lut

from anonymizer.errors import Unreadable, Unsupported
from anonymizer.pixel_cleaning import Region, blanked
from anonymizer.pixel_frames import decoded, picture

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
CT = "ts_one_ct_15_syntaxes_cornerstone3d/CTImage.dcm_"
PATTERN = "ts_one_ct_15_syntaxes_cornerstone3d/TestPattern_"

# File, Photometric Interpretation afterwards, Lossy Image Compression afterwards.
ENCODINGS = [
    ("ts_one_ct_15_syntaxes_cornerstone3d/CTImage.dcm", "MONOCHROME2", None),
    (CT + "LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm", "MONOCHROME2", None),
    (
        CT + "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99.dcm",
        "MONOCHROME2",
        None,
    ),
    (CT + "RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm", "MONOCHROME2", None),
    (CT + "JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50.dcm", "MONOCHROME2", "01"),
    (CT + "JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81.dcm", "MONOCHROME2", "01"),
    (CT + "JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm", "MONOCHROME2", "01"),
    ("wg04_modalities/CT1_JPLL", "MONOCHROME2", "00"),
    ("wg04_modalities/CT2_JLSL", "MONOCHROME2", "00"),
    ("wg04_modalities/RG3_J2KR", "MONOCHROME1", "00"),
    ("burned_in_pseudophi_presidio/0_ORIGINAL_compressed.dcm", "MONOCHROME1", "00"),
    ("wg04_modalities/US1_RLE", "RGB", None),
    ("wg04_modalities/US1_J2KR", "RGB", "00"),  # was YBR_RCT
    ("wg04_modalities/VL1_J2KI", "RGB", "01"),  # was YBR_ICT
    ("pydicom_data_odd/HTJ2KLossless_08_RGB.dcm", "RGB", None),
    ("pydicom_data_odd/color-pl.dcm", "RGB", None),  # one plane for each colour
    ("pydicom_data_odd/SC_ybr_full_uncompressed.dcm", "YBR_FULL", "01"),
    ("ts_one_ct_15_syntaxes_cornerstone3d/US-YBR_FULL_422-EVRLE.dcm", "YBR_FULL", "01"),
    (PATTERN + "JPEG-Baseline_YBR422.dcm", "RGB", "01"),
    (PATTERN + "JPEG-LS-NearLossless.dcm", "RGB", "01"),
    (PATTERN + "Palette_16.dcm", "PALETTE COLOR", None),
    ("pydicom_data_odd/OBXXXX1A_rle_2frame.dcm", "PALETTE COLOR", "00"),
    ("pydicom_data_odd/emri_small_jpeg_ls_lossless.dcm", "MONOCHROME2", "00"),  # ten frames
    ("pydicom_data_odd/emri_small_jpeg_2k_lossless.dcm", "MONOCHROME2", "00"),
    ("pydicom_data_odd/emri_small_RLE.dcm", "MONOCHROME2", "00"),
    ("pydicom_data_odd/SC_rgb_32bit.dcm", "RGB", None),
]
CANNOT = [
    (CT + "JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm", Unreadable),
    (CT + "JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm", Unreadable),
    (CT + "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm", Unsupported),
    ("pydicom_data_odd/liver.dcm", Unsupported),  # one bit for each pixel
    ("pydicom_data_odd/emri_small_jpeg_2k_lossless_too_short.dcm", Unreadable),
]
BOX = Region(10, 5, 50, 25, "test")


def read(data: bytes) -> tuple[pydicom.Dataset, np.ndarray]:
    """The dataset, and its frames as pydicom decodes them: (frames, rows, columns, samples)."""
    ds = pydicom.dcmread(io.BytesIO(data))
    frames = int(ds.get("NumberOfFrames") or 1)
    return ds, ds.pixel_array.reshape(frames, ds.Rows, ds.Columns, -1)


def darkest(pixels: np.ndarray, ds: pydicom.Dataset) -> float:
    """The stored value, or the sum of the colours, of the darkest tone in the picture."""
    match ds.PhotometricInterpretation:
        case "MONOCHROME1":
            return float(pixels.max())
        case "MONOCHROME2":
            return float(pixels.min())
        case "PALETTE COLOR":
            return float(apply_color_lut(np.unique(pixels).reshape(1, -1), ds).sum(-1).min())
        case _:
            return 0


@needs_data
@pytest.mark.parametrize(
    ("name", "photometric", "lossy"), ENCODINGS, ids=lambda value: str(value).rsplit("/", 1)[-1]
)
def test_only_the_region_changes_and_the_attributes_stay_true(
    name: str, photometric: str, lossy: str | None
) -> None:
    """As pydicom reads both: the same outside the region, one darkest tone in it, stored native."""
    original = (SHARED / name).read_bytes()
    _, expected = read(original)
    after, stored = read(blanked(original, [BOX]))
    outside = np.ones(expected.shape[1:3], bool)
    outside[BOX.top : BOX.bottom, BOX.left : BOX.right] = False
    assert (stored[:, outside] == expected[:, outside]).all()
    inside = stored[:, ~outside]
    assert (inside == inside[0, 0]).all()
    if photometric == "PALETTE COLOR":
        inside = apply_color_lut(inside[:1, :1, 0], after)
    assert float(inside.reshape(-1, inside.shape[-1])[0].sum()) == darkest(expected, after)
    assert after.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert after.PhotometricInterpretation == photometric
    assert after.get("LossyImageCompression") == lossy
    assert after.BurnedInAnnotation == "NO"


@needs_data
@pytest.mark.parametrize(("name", "error"), CANNOT, ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_what_cannot_be_decoded_is_not_called_clean(name: str, error: type[Exception]) -> None:
    """It is refused with an error of ours, so it stays held."""
    with pytest.raises(error):
        blanked((SHARED / name).read_bytes(), [BOX])


@needs_data
def test_lossy_compression_is_stated_though_the_sender_left_it_out() -> None:
    """What JPEG has lost stays lost when the pixels are stored native."""
    ds = pydicom.dcmread(SHARED / (PATTERN + "JPEG-Baseline_YBR422.dcm"))
    del ds.LossyImageCompression
    buffer = io.BytesIO()
    ds.save_as(buffer)
    after = pydicom.dcmread(io.BytesIO(blanked(buffer.getvalue(), [BOX])))
    assert after.LossyImageCompression == "01"


@needs_data
def test_a_palette_image_is_shown_in_its_colours() -> None:
    """The picture has three samples, and is what pydicom makes of the palette."""
    data = (SHARED / (PATTERN + "Palette.dcm")).read_bytes()
    ds = pydicom.dcmread(io.BytesIO(data))
    expected = apply_color_lut(ds.pixel_array, ds)
    expected = expected >> 8 * (expected.dtype.itemsize - 1)
    assert (picture(decoded(data), 0) == expected).all()
