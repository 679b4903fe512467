"""Streams that end early are told from whole ones."""

from __future__ import annotations

from functools import cache
from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from node.imaging.whole import is_whole
from tests.identified_ct import ct_instance
from tests.running_node import DEMO_CT

SYNTAXES = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian, RLELossless,
)  # fmt: skip


@cache
def stream_in(syntax: str) -> bytes:
    """A CT slice with sequences of both kinds of length, in a transfer syntax."""
    instance = ct_instance(
        ReferencedImageSequence=[_reference(1), _reference(2)],
        SourceImageSequence=[_reference(3)],
        PerformedProtocolCodeSequence=[],
    )
    for keyword in ("ReferencedImageSequence", "PerformedProtocolCodeSequence"):
        instance[keyword].is_undefined_length = True
    for item in instance.ReferencedImageSequence:
        item.is_undefined_length_sequence_item = True
    if syntax == RLELossless:
        instance.compress(RLELossless)
    instance.file_meta.TransferSyntaxUID = syntax
    stream = BytesIO()
    pydicom.dcmwrite(
        stream, instance, implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian, enforce_file_format=True,
    )  # fmt: skip
    return stream.getvalue()


def _reference(number: int) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, f"2.25.{number}"
    return item


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_was_written_to_its_end_is_whole(syntax: str) -> None:
    """In every kind of encoding, with sequences of both kinds of length."""
    assert is_whole(stream_in(syntax))


def test_instances_of_real_scanners_are_whole() -> None:
    """JPEG-LS, as the demo's CT has it."""
    assert all(is_whole(file.read_bytes()) for file in DEMO_CT)


@pytest.mark.parametrize("syntax", SYNTAXES)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_beginning_of_a_stream_is_whole(syntax: str, share: float) -> None:
    """Wherever the writer was cut off, also exactly between two elements."""
    stream = stream_in(syntax)
    if syntax == DeflatedExplicitVRLittleEndian:
        stream = stream.removesuffix(b"\0")  # what makes its length even (PS3.5 A.5) is no loss
    assert not is_whole(stream[: int(share * len(stream))])


def test_a_cut_before_the_pixel_data_is_seen() -> None:
    """Every element is there to its end, but an image without its pixels is not whole."""
    stream = stream_in(ExplicitVRLittleEndian)
    assert not is_whole(stream[: stream.index(b"\xe0\x7f\x10\x00OW")])


def test_what_is_no_dicom_object_is_not_whole() -> None:
    """Zeros, as a file system may leave them, and nothing at all."""
    assert not is_whole(bytes(4096))
    assert not is_whole(b"")
