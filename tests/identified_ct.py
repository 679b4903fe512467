"""Synthetic CT instances of a made-up patient whose identity stands in every kind of place."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tests.part10 import part10

ROOT = "1.2.826.0.1.3680043.8.498.77"
STUDY, SERIES, FRAME = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"
PATIENT_ID, ACCESSION = "MRN-774411", "ACC20991234"
BIRTH_DATE, STUDY_DATE = "19470812", "20240517"
# Latin letters only, so that a search for bytes finds them whatever the character set.
SECRETS = ("Featherstone", "Quillon", "774411", "20991234", "Overbrook", "Zimmerfrau", ROOT,
           "19470812", "20240517")  # fmt: skip
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def ct_instance(
    number: int = 1,
    *,
    name: str = "Featherstone^Quillon",
    charset: str | list[str] | None = "ISO_IR 100",
    size: int = 8,
    **attributes: Any,
) -> Dataset:
    """A valid single-frame CT image (PS3.3 A.3); ``attributes`` replace or add by keyword."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if charset is not None:
        ds.SpecificCharacterSet = charset
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{SERIES}.{number}"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = STUDY_DATE
    ds.StudyTime = ds.ContentTime = "101112.25"
    ds.AcquisitionDateTime = f"{STUDY_DATE}101112.250000+0200"
    ds.AccessionNumber = ACCESSION
    ds.Modality = "CT"
    ds.Manufacturer = "ACME SCANNERS"
    ds.ReferringPhysicianName = "Zimmerfrau^Ada"
    ds.PatientName = name
    ds.PatientID = PATIENT_ID
    ds.PatientBirthDate = BIRTH_DATE
    ds.PatientSex = "F"
    ds.BodyPartExamined = "CHEST"
    ds.KVP = "120"
    ds.SliceThickness = "2.5"
    ds.ConvolutionKernel = "B30f"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = STUDY
    ds.SeriesInstanceUID = SERIES
    ds.FrameOfReferenceUID = FRAME
    ds.StudyID = "S-4711"
    ds.SeriesNumber = "4"
    ds.AcquisitionNumber = "1"
    ds.InstanceNumber = str(number)
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient = ["-100", "-100", str(2.5 * number)]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing = ["0.75", "0.75"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows = ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    pixels = np.arange(size * size, dtype=np.uint16).reshape(size, size) + number
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def ct_bytes(number: int = 1, **attributes: Any) -> bytes:
    """:func:`ct_instance` as a file in memory."""
    return part10(ct_instance(number, **attributes))


def ct_with_planted_identity(number: int = 1, tail: bytes = b"Featherstone at the end") -> bytes:
    """A CT with the patient's identity in every kind of place that a rule about tags misses."""
    ds = ct_instance(number)
    ds.OtherPatientIDs = [PATIENT_ID, "OTHER-774411"]
    ds.PatientComments = "Mrs Featherstone, born 12.08.1947"
    ds.StudyDescription = "Chest of Quillon Featherstone"
    ds.InstitutionName = "Overbrook Infirmary"
    ds.ImageComments = "seen by Zimmerfrau"
    ds.LUTExplanation = "for Featherstone"  # not in Table E.1-1
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.WindowCenterWidthExplanation = "FEATHERSTONE WINDOW"
    ds.SoftwareVersions = ["vA1", "site Featherstone 20240517"]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "FEATHERSTONE"]
    ds.ProtocolName = "Quillon special"
    ds.TimezoneOffsetFromUTC = "+0200"
    ds.RequestAttributesSequence = [_request()]
    ds.ReferencedImageSequence = [_reference(f"{SERIES}.99")]
    ds.ProcedureCodeSequence = [
        _code("T-D3000", "SRT", "Chest of Featherstone"),
        _code("77", "99OVERBROOK", "Local code Featherstone"),
    ]
    ds.AnatomicRegionSequence = [_code("51185008", "SCT", "Chest")]
    ds.AnatomicRegionSequence[0].add_new(0x00080115, "ST", "Featherstone scheme")
    block = ds.private_block(0x0029, "OVERBROOK PRIVATE", create=True)
    block.add_new(0x01, "LO", "Featherstone")
    block.add_new(0x02, "OB", b"Quillon 774411!!")
    block.add_new(0x03, "SQ", [_request()])
    ds.add_new(0x60000010, "US", 8)
    ds.add_new(0x60000022, "LO", "Featherstone overlay")
    ds.add_new(0x60003000, "OW", b"Featherstone 774411 ")
    ds.add_new(0x50000022, "LO", "Featherstone curve")
    ds.add_new(0x00091001, "LO", "Featherstone without creator")
    ds.add_new(0x00180001, "LO", "Featherstone in no dictionary")
    ds.DataSetTrailingPadding = b"Featherstone padding"
    ds.PixelData = ds.PixelData + b"Featherstone after the last frame!"
    ds.file_meta.SourceApplicationEntityTitle = "OVERBROOK_AE"
    ds.file_meta.PrivateInformationCreatorUID = f"{ROOT}.55"
    ds.file_meta.PrivateInformation = b"Featherstone"
    data = part10(ds)
    return b"Featherstone^Quillon".ljust(128, b"\0") + data[128:] + tail


def raw_element(tag: int, vr: str, value: bytes) -> RawDataElement:
    """An element that pydicom writes byte for byte, whatever it thinks of it."""
    value += b" " * (len(value) % 2)
    return RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


def _request() -> Dataset:
    item = Dataset()
    item.RequestedProcedureID = "REQ774411"
    item.ScheduledProcedureStepDescription = "for Featherstone"
    item.ReasonForTheRequestedProcedure = "Quillon coughs"
    item.RequestedProcedureCodeSequence = [_code("9", "99OVERBROOK", "Featherstone")]
    return item


def _reference(sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = CTImageStorage
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
