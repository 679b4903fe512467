"""A CT series whose patient stands in 86 places: what the de-identifiers are measured on.

512x512 int16 slices, Explicit VR Little Endian, about 180 top-level elements. Each planted place
holds the patient's name with a number of its own, so a leak says where it came from; the places are
sorted into the classes of the table in which the result is printed. What varies from slice to slice
is what varies in a real series.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498.4711"
STUDY, SERIES, FRAME = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"
NAME = "Quillonbeck"
BIRTH_DATE, STUDY_DATE, SERIES_DATE = "19470812", "20230517", "20230518"
DATES = (BIRTH_DATE, STUDY_DATE, SERIES_DATE)
SIZE = 512

LISTED = (
    "InstitutionName",
    "InstitutionAddress",
    "ReferringPhysicianName",
    "ReferringPhysicianAddress",
    "ReferringPhysicianTelephoneNumbers",
    "StationName",
    "StudyDescription",
    "SeriesDescription",
    "InstitutionalDepartmentName",
    "PhysiciansOfRecord",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
    "AdmittingDiagnosesDescription",
    "DerivationDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "MilitaryRank",
    "PatientAddress",
    "MedicalRecordLocator",
    "MedicalAlerts",
    "Allergies",
    "CountryOfResidence",
    "RegionOfResidence",
    "PatientTelephoneNumbers",
    "EthnicGroup",
    "Occupation",
    "AdditionalPatientHistory",
    "PatientReligiousPreference",
    "PatientComments",
    "DeviceSerialNumber",
    "ProtocolName",
    "StudyID",
    "AccessionNumber",
    "ImageComments",
    "RequestingPhysician",
    "RequestingService",
    "RequestedProcedureDescription",
    "AdmissionID",
    "PerformedProcedureStepDescription",
)
IN_LISTED_SEQUENCE = {
    "RequestAttributesSequence": """RequestedProcedureDescription RequestedProcedureID
        ScheduledProcedureStepDescription ScheduledProcedureStepID""",
    "ReferringPhysicianIdentificationSequence": "InstitutionName PersonTelephoneNumbers",
    "OtherPatientIDsSequence": "PatientID IssuerOfPatientID",
    "OperatorIdentificationSequence": "InstitutionName PersonAddress",
    "PhysiciansOfRecordIdentificationSequence": "InstitutionName InstitutionAddress",
    "InstitutionCodeSequence": "CodeMeaning CodeValue",
}
LISTED_LEAF = {
    "RealWorldValueMappingSequence": "SeriesDescription ImageComments",
    "DerivationCodeSequence": "InstitutionName",
    "CTDIPhantomTypeCodeSequence": "StationName",
}
UNLISTED_LEAF = {
    "ProcedureCodeSequence": "CodeMeaning",
    "PerformedProtocolCodeSequence": "CodeMeaning",
    "VOILUTSequence": "LUTExplanation",
}
CODES = {"CTDIPhantomTypeCodeSequence", "DerivationCodeSequence", "ProcedureCodeSequence",
         "PerformedProtocolCodeSequence", "InstitutionCodeSequence"}  # fmt: skip
UNLISTED = ("WindowCenterWidthExplanation", "FilterType")
CLASSES = (
    "top level, listed",
    "inside a listed SQ",
    "nested, leaf listed",
    "nested, not listed",
    "top level, not listed",
    "private",
    "overlay and curve",
    "trailing padding",
    "file meta, preamble",
)

Plant = Callable[[str, str], str]


@dataclass(frozen=True)
class PlantedCt:
    """The bytes of the slices and, by class, the strings planted in each of them."""

    slices: tuple[bytes, ...]
    planted: dict[str, list[str]]


def planted_ct(slices: int) -> PlantedCt:
    """``slices`` CT instances of one series."""
    planted: dict[str, list[str]] = {name: [] for name in CLASSES}
    made = []
    config.settings.writing_validation_mode = config.IGNORE
    for number in range(1, slices + 1):
        planted = {name: [] for name in CLASSES}
        count = 0

        def plant(kind: str, after: str = "", planted: dict[str, list[str]] = planted) -> str:
            nonlocal count
            count += 1
            text = f"{NAME} {count:03d}"
            planted[kind].append(text)
            return text + after

        made.append(_slice(number, slices, plant))
    return PlantedCt(tuple(made), planted)


def write_planted_ct(folder: Path, slices: int) -> dict[str, list[str]]:
    """The slices as ``folder/0001.dcm`` ...; what is planted in them."""
    made = planted_ct(slices)
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(made.slices, start=1):
        (folder / f"{number:04d}.dcm").write_bytes(data)
    return made.planted


def _slice(number: int, slices: int, plant: Plant) -> bytes:
    ds = _image(number, slices)
    _identity(ds, number, plant)
    _private(ds, number, plant)
    _graphics(ds, plant)
    ds.add_new(0xFFFCFFFC, "OB", plant(CLASSES[7]).encode().ljust(64, b"\0"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        CTImageStorage,
        ds.SOPInstanceUID,
    )
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, f"{ROOT}.9"
    meta.SourceApplicationEntityTitle = plant(CLASSES[8])
    meta.PrivateInformationCreatorUID = f"{ROOT}.8"
    meta.PrivateInformation = plant(CLASSES[8]).encode().ljust(32, b"\0")
    ds.file_meta = meta
    ds.preamble = b"II*\0" + plant(CLASSES[8]).encode().ljust(124, b"\0")
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _image(number: int, slices: int) -> Dataset:
    """What a scanner writes about the image itself."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{SERIES}.{number}"
    ds.InstanceCreationDate, ds.InstanceCreationTime = SERIES_DATE, f"1015{number % 60:02d}.5"
    ds.StudyDate = STUDY_DATE
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = SERIES_DATE
    ds.AcquisitionDateTime = f"{SERIES_DATE}1011{number % 60:02d}.250000"
    ds.StudyTime, ds.SeriesTime = "095500", "101000"
    ds.AcquisitionTime = ds.ContentTime = f"1011{number % 60:02d}.250000"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "ACME", "Spiral 64"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, SERIES, FRAME
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 4, 1, number
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = BIRTH_DATE, "F", "075Y"
    ds.PatientSize, ds.PatientWeight = "1.68", "63"
    ds.BodyPartExamined, ds.ScanOptions, ds.PatientPosition = "CHEST", "HELICAL MODE", "HFS"
    ds.SliceThickness, ds.SpacingBetweenSlices, ds.KVP = "1.25", "1.25", "120"
    ds.DataCollectionDiameter, ds.ReconstructionDiameter = "500", "360"
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = "949", "541"
    ds.GantryDetectorTilt, ds.TableHeight, ds.RotationDirection = "0", "151.5", "CW"
    ds.ExposureTime, ds.XRayTubeCurrent, ds.Exposure = 500, 180 + number % 40, 90 + number % 20
    ds.GeneratorPower, ds.FocalSpots, ds.ConvolutionKernel = "24000", "1.2", "STANDARD"
    ds.SoftwareVersions, ds.SingleCollimationWidth = "v12.4", 0.625
    ds.TotalCollimationWidth, ds.TableSpeed, ds.TableFeedPerRotation = 40.0, 55.0, 27.5
    ds.SpiralPitchFactor, ds.CTDIvol, ds.ExposureModulationType = 0.98, 6.4 + number / 100, "NONE"
    ds.EstimatedDoseSaving, ds.AcquisitionType, ds.RevolutionTime = 0.0, "SPIRAL", 0.5
    ds.DateOfLastCalibration, ds.TimeOfLastCalibration = "20230101", "060000"
    ds.ContrastBolusRoute, ds.PregnancyStatus, ds.SmokingStatus = "IV", 4, "NO"
    ds.PositionReferenceIndicator, ds.ImagesInAcquisition = "SN", slices
    position = -1.25 * number
    ds.SliceLocation, ds.ImagePositionPatient = f"{position:.2f}", ["-180", "-180", f"{position}"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing = ["0.703125", "0.703125"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = SIZE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue = -1024, 1000 + number
    ds.WindowCenter, ds.WindowWidth, ds.RescaleIntercept = "40", "400", "-1024"
    ds.RescaleSlope, ds.RescaleType, ds.BurnedInAnnotation = "1", "HU", "NO"
    ds.LossyImageCompression, ds.PresentationLUTShape = "00", "IDENTITY"
    ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime = STUDY_DATE, "100500"
    ds.PerformedProcedureStepID = "PPS1"
    for keyword, neighbour in (("SourceImageSequence", number % slices + 1),
                               ("ReferencedImageSequence", 1)):  # fmt: skip
        reference = Dataset()
        reference.ReferencedSOPClassUID = CTImageStorage
        reference.ReferencedSOPInstanceUID = f"{SERIES}.{neighbour}"
        setattr(ds, keyword, [reference])
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE) * 3) % 2000 - 1000
    noise = np.random.default_rng(number).integers(-20, 20, (SIZE, SIZE))
    ds.PixelData = (ramp + noise).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _identity(ds: Dataset, number: int, plant: Plant) -> None:
    """The patient in public attributes, at top level and nested."""
    for keyword in LISTED:
        name = ds.get(keyword) if keyword == "ImageComments" else None
        setattr(ds, keyword, name or plant(CLASSES[0]))
    ds.ImageComments += f" {number}"
    for kind, sequences in zip(
        CLASSES[1:4], (IN_LISTED_SEQUENCE, LISTED_LEAF, UNLISTED_LEAF), strict=True
    ):
        for sequence, leaves in sequences.items():
            item = Dataset()
            if sequence in CODES:
                item.CodeValue, item.CodingSchemeDesignator = "113691", "DCM"
                item.CodeMeaning = "IEC Body Dosimetry Phantom"
            elif sequence == "RealWorldValueMappingSequence":
                item.RealWorldValueSlope = 1.0
            for keyword in leaves.split():
                setattr(item, keyword, plant(kind))
            setattr(ds, sequence, [item])
    ds.VOILUTSequence[0].LUTDescriptor = [16, 0, 16]
    ds.VOILUTSequence[0]["LUTDescriptor"].VR = "US"
    ds.VOILUTSequence[0].LUTData = bytes(32)
    ds.VOILUTSequence[0]["LUTData"].VR = "OW"
    for keyword in UNLISTED:
        setattr(ds, keyword, plant(CLASSES[4]))


def _private(ds: Dataset, number: int, plant: Plant) -> None:
    """Private attributes: six texts, four nested texts, and the usual numbers."""
    kind = CLASSES[5]
    for group in (0x0009, 0x0019, 0x0029):
        ds.add_new(Tag(group, 0x0010), "LO", f"ACME_{group:04X}_01")
    for element, vr in enumerate(("LO", "SH", "ST", "LT"), start=0x1001):
        ds.add_new(Tag(0x0009, element), vr, plant(kind))
    for element, vr in ((0x1005, "UN"), (0x1006, "OB")):
        ds.add_new(Tag(0x0009, element), vr, plant(kind, f" {number:06d}").encode())
    ds.add_new(Tag(0x0019, 0x1001), "DS", str(number))
    nested = Dataset()
    for element in (0x1001, 0x1002):
        nested.add_new(Tag(0x0029, element), "LO", plant(kind))
    nested.add_new(Tag(0x0029, 0x0010), "LO", "ACME_0029_01")
    ds.add_new(Tag(0x0029, 0x1010), "SQ", [nested])
    item = ds.RealWorldValueMappingSequence[0]
    item.add_new(Tag(0x0009, 0x0010), "LO", "ACME_0009_01")
    for element in (0x1001, 0x1002):
        item.add_new(Tag(0x0009, element), "LO", plant(kind))


def _graphics(ds: Dataset, plant: Plant) -> None:
    """An overlay and a curve, both drawn over the image and both captioned."""
    kind = CLASSES[6]

    def add(group: int, element: int, vr: str, value: object) -> None:
        ds.add_new(BaseTag(group << 16 | element), vr, value)

    add(0x6000, 0x0010, "US", SIZE)
    add(0x6000, 0x0011, "US", SIZE)
    add(0x6000, 0x0022, "LO", plant(kind))
    add(0x6000, 0x0040, "CS", "G")
    add(0x6000, 0x0050, "SS", [1, 1])
    add(0x6000, 0x0100, "US", 1)
    add(0x6000, 0x0102, "US", 0)
    add(0x6000, 0x1500, "LO", plant(kind))
    add(0x6000, 0x3000, "OW", bytes(SIZE * SIZE // 8))
    add(0x6000, 0x4000, "LT", plant(kind))
    add(0x5000, 0x0005, "US", 1)
    add(0x5000, 0x0010, "US", 4)
    add(0x5000, 0x0020, "CS", "HIST")
    add(0x5000, 0x0103, "US", 0)
    add(0x5000, 0x2500, "LO", plant(kind))
    add(0x5000, 0x3000, "OW", bytes(8))
