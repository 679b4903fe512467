"""Decoding: every transfer syntax of the sample set, Hounsfield units, padding and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import BaseTag
from pydicom.uid import (
    MPEG2MPML,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from node.errors import DamagedInstance, UnsuitableInput, UnsupportedTransferSyntax
from node.imaging.pixels import AIR_HU, modality_values, number_of
from tests.phantoms import PADDING, ct_series

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "ts_one_ct_15_syntaxes_cornerstone3d"
LOSSLESS = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
)
# Largest mean error in HU: the 12-bit files were quantised to steps of 2 HU, the 8-bit one to
# steps of 32, before they were compressed.
LOSSY = {
    "1.2.840.10008.1.2.4.81": 1.0,
    "1.2.840.10008.1.2.4.91": 2.0,
    "1.2.840.10008.1.2.4.51": 5.0,
    "1.2.840.10008.1.2.4.53": 5.0,
    "1.2.840.10008.1.2.4.55": 5.0,
    "1.2.840.10008.1.2.4.50": 18.0,
}


def sample(syntax: str) -> Dataset:
    if not SAMPLES.is_dir():
        pytest.skip("the sample set is not on this machine")
    (path,) = SAMPLES.glob(f"CTImage.dcm_*_{syntax}.dcm")
    return dcmread(path)


def one_slice(**attributes: object) -> Dataset:
    (ds,) = ct_series(slices=1, rows=64, columns=64, **attributes)
    return ds


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_decode_to_the_same_hounsfield_units(syntax: str) -> None:
    """One slice in each lossless syntax is the same slice, voxel for voxel."""
    reference = modality_values(sample("1.2.840.10008.1.2.1"))
    np.testing.assert_array_equal(modality_values(sample(syntax)), reference)


@pytest.mark.parametrize("syntax", sorted(LOSSY))
def test_lossy_syntaxes_decode_close_to_the_original(syntax: str) -> None:
    """Lossy and retired JPEG processes decode, each within what its quantisation explains."""
    reference = modality_values(sample("1.2.840.10008.1.2.1")).astype(float)
    decoded = modality_values(sample(syntax)).astype(float)
    inside = reference > -1500
    assert np.abs(decoded - reference)[inside].mean() < LOSSY[syntax]


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compressed_phantom_decodes_to_its_own_pixels(syntax: str) -> None:
    """What an encoder here writes, the decoders here read back (no sample set needed)."""
    plain = one_slice()
    expected = modality_values(plain)
    plain.compress(syntax)
    np.testing.assert_array_equal(modality_values(plain), expected)


def test_rescale_is_applied_without_rounding() -> None:
    """HU are stored value times slope plus intercept, as int16."""
    ds = one_slice(RescaleSlope=2, RescaleIntercept=-1000)
    stored = np.frombuffer(ds.PixelData, "<i2").reshape(64, 64).astype(int)
    values = modality_values(ds)
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, stored * 2 - 1000)


def test_fractional_slope_rounds_to_the_nearest_unit() -> None:
    """A slope of 0.5 is not truncated."""
    ds = one_slice(RescaleSlope="0.5", RescaleIntercept="-1024.25")
    stored = np.frombuffer(ds.PixelData, "<i2").reshape(64, 64).astype(float)
    np.testing.assert_array_equal(modality_values(ds), np.rint(stored * 0.5 - 1024.25))


def test_values_beyond_int16_are_clipped() -> None:
    """A metal implant on an extended scale saturates instead of wrapping to air."""
    ds = one_slice(RescaleSlope=100)
    assert modality_values(ds).max() == np.iinfo(np.int16).max


@pytest.mark.parametrize("declared", [PADDING, PADDING + 65536])
def test_padding_becomes_air(declared: int) -> None:
    """PixelPaddingValue is air in a CT, also where a writer declared it with the wrong sign."""
    ds = one_slice(padding_outside_mm=80)
    del ds.PixelPaddingValue
    ds.add_new(0x00280120, "US" if declared > 0 else "SS", declared)
    values = modality_values(ds)
    assert values[0, 0] == AIR_HU
    assert values.min() >= AIR_HU - 40


def test_bits_above_bits_stored_are_ignored() -> None:
    """Overlay bits in the unused high bits do not become Hounsfield units (PS3.5 8.1.1)."""
    clean = one_slice(PixelRepresentation=0, BitsStored=12, HighBit=11)
    dirty = one_slice(PixelRepresentation=0, BitsStored=12, HighBit=11)
    stored = np.frombuffer(dirty.PixelData, "<u2").copy()
    dirty.PixelData = (stored | 0x8000).tobytes()
    np.testing.assert_array_equal(modality_values(dirty), modality_values(clean))


def test_truncated_native_pixels_are_damage() -> None:
    """Short PixelData names the instance and the syntax."""
    ds = one_slice()
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]
    with pytest.raises(DamagedInstance, match="instance 1 cannot be decoded"):
        modality_values(ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_truncated_compressed_pixels_are_damage(syntax: str) -> None:
    """A code stream cut in half is not half an image."""
    ds = one_slice()
    ds.compress(syntax)
    ds.PixelData = encapsulate([ds.PixelData[16 : len(ds.PixelData) // 4]])
    with pytest.raises(DamagedInstance, match=r"JPEG|RLE"):
        modality_values(ds)


def test_undecodable_syntax_is_named() -> None:
    """MPEG2 is refused with its name and UID, and a remedy."""
    ds = one_slice()
    ds.file_meta.TransferSyntaxUID = MPEG2MPML
    with pytest.raises(UnsupportedTransferSyntax, match=rf"MPEG2.*{MPEG2MPML}") as caught:
        modality_values(ds)
    assert caught.value.remedy


def test_wrong_syntax_is_damage_not_unsupported() -> None:
    """Native pixels that claim to be HTJ2K are damaged: a decoder for HTJ2K is here."""
    ds = one_slice()
    ds.file_meta.TransferSyntaxUID = HTJ2KLossless
    with pytest.raises(DamagedInstance):
        modality_values(ds)


@pytest.mark.parametrize("attributes", [{"SamplesPerPixel": 3}, {"BitsAllocated": 32}])
def test_pictures_are_refused(attributes: dict[str, int]) -> None:
    """A colour screenshot stored as CT has no Hounsfield units."""
    with pytest.raises(UnsuitableInput, match="picture"):
        modality_values(one_slice(**attributes))


def test_ct_without_rescale_intercept_is_refused() -> None:
    """Stored values are not taken for Hounsfield units."""
    with pytest.raises(DamagedInstance, match="RescaleIntercept"):
        modality_values(one_slice(RescaleIntercept=None))


@pytest.mark.parametrize(
    "held", [b"DOE^JOHN", b"0012345678", b"+12345678 ", b"1\\2 ", b"12345 ", b""]
)
def test_a_message_names_an_instance_by_its_place_where_its_number_may_identify(
    held: bytes,
) -> None:
    """Whatever a hospital wrote into InstanceNumber is not repeated; a plain number is."""
    ds = Dataset()
    ds[0x00200013] = RawDataElement(BaseTag(0x00200013), "IS", len(held), held, 0, False, True)
    assert number_of(ds, 7) == "at place 7"
    assert number_of(ds) == "without a plain InstanceNumber"
    ds.InstanceNumber = 12
    assert number_of(ds, 7) == "12"
