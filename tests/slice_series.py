"""Slices of one made-up CT series, and what must come of them: the same as of each alone."""

from __future__ import annotations

import dataclasses
import io

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from anonymizer import Deidentifier, Policy, PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.deidentify import DeidentifiedInstance
from anonymizer.errors import AnonymizerError
from tests.identified_ct import SERIES, STUDY_DATE, ct_instance

KEYS = PseudonymKeys.from_secret(bytes(range(32)))


def in_syntax(ds: Dataset, syntax: str) -> bytes:
    """``ds`` written in ``syntax``."""
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == RLELossless:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless)
    ds.preamble = bytes(128)
    buffer = io.BytesIO()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    pydicom.dcmwrite(buffer, ds, implicit_vr=implicit, little_endian=little)
    return buffer.getvalue()


def slice_of_series(number: int, **attributes: object) -> Dataset:
    """A slice with what varies in a real series: position, times, a reference, a private number."""
    ds = ct_instance(number, **attributes)
    ds.AcquisitionDateTime = f"{STUDY_DATE}1011{number % 60:02d}"
    ds.ContentTime = f"1012{number % 60:02d}"
    ds.SliceLocation = str(number * 2.5)
    ds.SmallestImagePixelValue = number
    ds.ImageComments = f"Featherstone, slice {number}"
    reference = Dataset()
    reference.ReferencedSOPClassUID = CTImageStorage
    reference.ReferencedSOPInstanceUID = f"{SERIES}.{number + 1}"
    ds.SourceImageSequence = [reference]
    ds.add_new(0x00190010, "LO", "ACME")
    ds.add_new(0x00191001, "OB", number.to_bytes(2, "little") + b"Quillon!")
    return ds


def outcome(make: object) -> tuple[object, ...]:
    """What came of one instance: the whole result, or the error's class and message."""
    try:
        result = make()  # type: ignore[operator]
    except AnonymizerError as error:
        return type(error), str(error)
    assert isinstance(result, DeidentifiedInstance)
    return result.data, dataclasses.astuple(result.original)


def assert_memory_changes_nothing(
    instances: list[bytes], policy: Policy | None = None
) -> Deidentifier:
    """Each instance comes out of a series as it does alone; the memory, for another look."""
    policy = policy or basic_policy()
    deidentifier = Deidentifier(policy, KEYS)
    for data in instances:
        alone = outcome(lambda data=data: deidentify_instance(data, policy, KEYS))
        assert outcome(lambda data=data: deidentifier.deidentify(data)) == alone
    return deidentifier
