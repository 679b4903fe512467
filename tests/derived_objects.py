"""Objects of every kind that somebody may derive from de-identified CT instances, by whom they may.

highdicom, dcmqi and DCMTK make them as they make them for anybody; what no library on hand makes
(RT Structure Set, Encapsulated PDF) is written with pydicom after the IOD. None of them knows what
a pseudonym is.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    RTStructureSetStorage,
    generate_uid,
)

BIN = Path(sys.executable).parent
DEVICE = {
    "manufacturer": "Elsewhere",
    "manufacturer_model_name": "Workstation",
    "software_versions": "3.1",
    "device_serial_number": "77",
}
Maker = Callable[[Sequence[Dataset], Path], bytes]


def new_uids() -> dict[str, object]:
    """Identity of a new instance in a new series."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": 77,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
    }


def saved(ds: Dataset) -> bytes:
    """``ds`` as a Part 10 file."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def mask_of(sources: Sequence[Dataset]) -> np.ndarray:
    """A block of ones, shape (slices, rows, columns), uint8."""
    mask = np.zeros((len(sources), sources[0].Rows, sources[0].Columns), np.uint8)
    mask[:, 2:5, 2:6] = 1
    return mask


def algorithm() -> hd.AlgorithmIdentificationSequence:
    """Who drew it."""
    return hd.AlgorithmIdentificationSequence("model", codes.DCM.ArtificialIntelligence, "1")


def segment_description(number: int, label: str) -> hd.seg.SegmentDescription:
    """One segment, tracked."""
    return hd.seg.SegmentDescription(
        number, label, codes.SCT.Organ, codes.SCT.Lung, "AUTOMATIC", algorithm(),
        tracking_uid=generate_uid(), tracking_id=f"finding {number}",
    )  # fmt: skip


def segmentation_dataset(sources: Sequence[Dataset], **attributes: object) -> hd.seg.Segmentation:
    """A binary SEG with one segment (PS3.3 A.51)."""
    return hd.seg.Segmentation(
        source_images=sources, pixel_array=mask_of(sources), segmentation_type="BINARY",
        segment_descriptions=[segment_description(1, "Lung")], **(new_uids() | DEVICE | attributes),
    )  # fmt: skip


def segmentation(sources: Sequence[Dataset], folder: Path) -> bytes:
    """By highdicom."""
    return saved(segmentation_dataset(sources))


def fractional_segmentation(sources: Sequence[Dataset], folder: Path) -> bytes:
    """Fractional and compressed: an encapsulated transfer syntax."""
    seg = hd.seg.Segmentation(
        source_images=sources, pixel_array=mask_of(sources) * 0.5, segmentation_type="FRACTIONAL",
        segment_descriptions=[segment_description(1, "Lung")], max_fractional_value=200,
        transfer_syntax_uid=RLELossless, **new_uids(), **DEVICE,
    )  # fmt: skip
    return saved(seg)


def implicit_segmentation(sources: Sequence[Dataset], folder: Path) -> bytes:
    """Written without VRs."""
    return saved(segmentation_dataset(sources, transfer_syntax_uid=ImplicitVRLittleEndian))


def edited_segmentation(sources: Sequence[Dataset], folder: Path) -> bytes:
    """What a person's tool makes of our SEG: a segment more, other words, private attributes."""
    seg = pydicom.dcmread(io.BytesIO(segmentation(sources, folder)))
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    seg.SeriesInstanceUID = generate_uid()
    seg.SeriesDescription = "corrected by hand"
    seg.ContentCreatorName = "Corrector^Chris"
    second = Dataset()
    second.update(seg.SegmentSequence[0])
    second.SegmentNumber, second.SegmentLabel = 2, "Node"
    second.TrackingUID = generate_uid()
    seg.SegmentSequence.append(second)
    block = seg.private_block(0x0099, "EDITOR 9", create=True)
    block.add_new(0x01, "LO", "brush 3 mm")
    block.add_new(0x02, "UI", sources[0].SOPInstanceUID)
    block.add_new(0x03, "UN", sources[0].PatientID.encode())
    block.add_new(0x04, "OB", b"\x01\x02\x03\x04")
    return saved(seg)


def measurement_report(
    sources: Sequence[Dataset], folder: Path, segment: Dataset | None = None
) -> bytes:
    """TID 1500 with a volume, by highdicom; measured on ``segment`` or a SEG of its own."""
    segment = segment or segmentation_dataset(sources)
    tracked = segment.SegmentSequence[0]
    measured = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=tracked.TrackingUID, identifier=tracked.TrackingID
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            segment.SOPClassUID,
            segment.SOPInstanceUID,
            segment_number=1,
            source_series=hd.sr.SourceSeriesForSegmentation(sources[0].SeriesInstanceUID),
        ),
        finding_type=codes.SCT.Organ,
        measurements=[hd.sr.Measurement(codes.SCT.Volume, 3.5, codes.UCUM.CubicCentimeter)],
    )
    observer = hd.sr.ObserverContext(
        codes.DCM.Device, hd.sr.DeviceObserverIdentifyingAttributes(uid=generate_uid())
    )
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=[measured],
        title=codes.DCM.ImagingMeasurementReport,
    )
    document = hd.sr.Comprehensive3DSR(
        evidence=[*sources, segment], content=report[0], manufacturer="Elsewhere", **new_uids()
    )
    return saved(document)


def key_objects(sources: Sequence[Dataset], folder: Path) -> bytes:
    """Key Object Selection of two images."""
    content = hd.ko.KeyObjectSelection(codes.DCM.OfInterest, list(sources[:2]))
    return saved(
        hd.ko.KeyObjectSelectionDocument(
            evidence=list(sources[:2]), content=content, manufacturer="Elsewhere", **new_uids()
        )
    )


def presentation_state(sources: Sequence[Dataset], folder: Path) -> bytes:
    """Grayscale Softcopy Presentation State with a remark on one image."""
    layer = hd.pr.GraphicLayer("REMARKS", order=1)
    text = hd.pr.TextObject(
        "see here", units=hd.pr.AnnotationUnitsValues.PIXEL, anchor_point=(3.0, 3.0)
    )
    annotation = hd.pr.GraphicAnnotation(
        referenced_images=[sources[0]], graphic_layer=layer, text_objects=[text]
    )
    return saved(
        hd.pr.GrayscaleSoftcopyPresentationState(
            referenced_images=list(sources),
            content_label="REMARKS",
            concept_name=codes.DCM.PresentationState,
            graphic_annotations=[annotation],
            graphic_layers=[layer],
            **new_uids(),
            **DEVICE,
        )
    )


def secondary_capture(sources: Sequence[Dataset], folder: Path) -> bytes:
    """A colour picture of the first slice that says which one it is of."""
    first = sources[0]
    picture = hd.sc.SCImage(
        pixel_array=np.full((16, 16, 3), 99, np.uint8), photometric_interpretation="RGB",
        bits_allocated=8, coordinate_system="PATIENT", manufacturer="Elsewhere",
        study_instance_uid=first.StudyInstanceUID, patient_id=first.PatientID,
        patient_name=first.PatientName, patient_birth_date=None, patient_sex=None,
        accession_number=None, study_id=None, study_date=first.StudyDate,
        study_time=first.StudyTime, referring_physician_name=None,
        patient_orientation=("L", "P"), **new_uids(),
    )  # fmt: skip
    picture.SourceImageSequence = [reference(first)]
    return saved(picture)


def parametric_map(sources: Sequence[Dataset], folder: Path) -> bytes:
    """Floating point values per pixel."""
    mapping = hd.pm.RealWorldValueMapping(
        "HU", "Density", codes.UCUM.NoUnits, (0.0, 1.0), slope=1.0, intercept=0.0
    )
    return saved(
        hd.pm.ParametricMap(
            source_images=sources,
            pixel_array=mask_of(sources).astype(np.float32),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            window_center=0.5,
            window_width=1.0,
            **new_uids(),
            **DEVICE,
        )
    )


def enhanced_image(sources: Sequence[Dataset], folder: Path) -> bytes:
    """All slices as one multi-frame image, which carries what it did not understand of each."""
    return saved(hd.legacy.LegacyConvertedEnhancedCTImage(list(sources), **new_uids()))


def structure_set(sources: Sequence[Dataset], folder: Path) -> bytes:
    """RT Structure Set after PS3.3 A.19, as planning systems write it."""
    first = sources[0]
    ds = same_study(first, RTStructureSetStorage, "RTSTRUCT")
    ds.StructureSetLabel, ds.StructureSetDate, ds.StructureSetTime = "CONTOURS", "20261121", "1200"
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [reference(source) for source in sources]
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    roi = Dataset()
    roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = 1, "lung", "AUTOMATIC"
    roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
    ds.StructureSetROISequence = [roi]
    contour = Dataset()
    contour.ContourImageSequence = [reference(first)]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "POINT", 1
    contour.ContourData = [1.5, 2.5, 2.5]
    drawn = Dataset()
    drawn.ReferencedROINumber, drawn.ContourSequence = 1, [contour]
    ds.ROIContourSequence = [drawn]
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = 1
    observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
    ds.RTROIObservationsSequence = [observation]
    return saved(ds)


def encapsulated_pdf(sources: Sequence[Dataset], folder: Path, text: str = "lung: fine") -> bytes:
    """Encapsulated PDF (PS3.3 A.45.1) that names the slices it is about."""
    ds = same_study(sources[0], EncapsulatedPDFStorage, "DOC")
    ds.ConversionType, ds.BurnedInAnnotation, ds.DocumentTitle = "WSD", "NO", "Report"
    ds.ContentDate, ds.ContentTime, ds.AcquisitionDateTime = "20261121", "120000", ""
    ds.ConceptNameCodeSequence = []
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.SourceInstanceSequence = [reference(source) for source in sources]
    document = f"%PDF-1.4\n% {text}\n%%EOF\n".encode()
    ds.EncapsulatedDocument = document + b"\n" * (len(document) % 2)
    return saved(ds)


def dcmqi_segmentation(sources: Sequence[Dataset], folder: Path) -> bytes:
    """By dcmqi's itkimage2segimage, from a NRRD label map and its metadata."""
    images, labels = folder / "images", folder / "labels.nrrd"
    write_images(sources, images)
    write_nrrd(labels, mask_of(sources), sources)
    what = {
        "labelID": 1, "SegmentDescription": "Lung", "SegmentAlgorithmType": "AUTOMATIC",
        "SegmentAlgorithmName": "model",
        "SegmentedPropertyCategoryCodeSequence": coded(codes.SCT.Organ),
        "SegmentedPropertyTypeCodeSequence": coded(codes.SCT.Lung),
    }  # fmt: skip
    meta = folder / "seg.json"
    meta.write_text(json.dumps({
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/"
                   "seg-schema.json#",
        "ContentCreatorName": "Reader1", "ClinicalTrialSeriesID": "Session1",
        "ClinicalTrialTimePointID": "1", "SeriesDescription": "Segmentation",
        "SeriesNumber": "300", "InstanceNumber": "1", "BodyPartExamined": "CHEST",
        "segmentAttributes": [[what]],
    }))  # fmt: skip
    out = folder / "seg.dcm"
    run("itkimage2segimage", "--inputImageList", labels, "--inputDICOMDirectory", images,
        "--inputMetadata", meta, "--outputDICOM", out)  # fmt: skip
    return out.read_bytes()


def dcmqi_report(sources: Sequence[Dataset], folder: Path) -> bytes:
    """By dcmqi's tid1500writer, on a SEG by dcmqi."""
    seg = pydicom.dcmread(io.BytesIO(dcmqi_segmentation(sources, folder)))
    (folder / "context").mkdir()
    seg.save_as(folder / "context" / "seg.dcm")
    sources[0].save_as(folder / "context" / "ct.dcm")
    group = {
        "TrackingIdentifier": "Lung", "ReferencedSegment": 1,
        "SourceSeriesForImageSegmentation": sources[0].SeriesInstanceUID,
        "segmentationSOPInstanceUID": seg.SOPInstanceUID,
        "Finding": coded(codes.SCT.Lung),
        "measurementItems": [{
            "value": "3.5", "quantity": coded(codes.SCT.Volume),
            "units": coded(codes.UCUM.CubicCentimeter),
        }],
    }  # fmt: skip
    meta = folder / "sr.json"
    meta.write_text(json.dumps({
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/"
                   "sr-tid1500-schema.json#",
        "SeriesDescription": "Measurements", "SeriesNumber": "301", "InstanceNumber": "1",
        "compositeContext": ["ct.dcm", "seg.dcm"], "imageLibrary": [f"{n}.dcm" for n in
                                                          range(len(sources))],
        "observerContext": {"ObserverType": "DEVICE", "DeviceObserverUID": generate_uid()},
        "VerificationFlag": "UNVERIFIED", "CompletionFlag": "COMPLETE",
        "activitySession": "1", "timePoint": "1", "Measurements": [group],
    }))  # fmt: skip
    out = folder / "sr.dcm"
    run("tid1500writer", "--inputImageLibraryDirectory", folder / "images",
        "--inputCompositeContextDirectory", folder / "context",
        "--inputMetadata", meta, "--outputDICOM", out)  # fmt: skip
    return out.read_bytes()


MAKERS: dict[str, Maker] = {
    "SEG": segmentation,
    "SEG, fractional, RLE": fractional_segmentation,
    "SEG, implicit VR": implicit_segmentation,
    "SEG, edited by hand": edited_segmentation,
    "SEG of dcmqi": dcmqi_segmentation,
    "SR of dcmqi": dcmqi_report,
    "SR": measurement_report,
    "KOS": key_objects,
    "GSPS": presentation_state,
    "SC": secondary_capture,
    "parametric map": parametric_map,
    "enhanced CT": enhanced_image,
    "RTSTRUCT": structure_set,
    "PDF": encapsulated_pdf,
}


# ---------------------------------------------------------------- parts


def reference(source: Dataset) -> Dataset:
    """SOP Instance Reference Macro (PS3.3 Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item


def same_study(source: Dataset, sop_class_uid: str, modality: str) -> Dataset:
    """A new instance in a new series of the study of ``source``."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate",
                    "StudyTime", "StudyInstanceUID", "StudyID", "AccessionNumber",
                    "ReferringPhysicianName"):  # fmt: skip
        setattr(ds, keyword, source.get(keyword, ""))
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = sop_class_uid
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.SeriesInstanceUID, ds.Modality, ds.Manufacturer = generate_uid(), modality, "Elsewhere"
    ds.SeriesNumber, ds.InstanceNumber, ds.OperatorsName = "77", "1", ""
    return ds


def coded(code: object) -> dict[str, str]:
    """A code as dcmqi's metadata writes it."""
    return {
        "CodeValue": code.value,  # type: ignore[attr-defined]
        "CodingSchemeDesignator": code.scheme_designator,  # type: ignore[attr-defined]
        "CodeMeaning": code.meaning,  # type: ignore[attr-defined]
    }


def write_images(sources: Sequence[Dataset], folder: Path) -> None:
    """One file per instance."""
    folder.mkdir()
    for number, source in enumerate(sources):
        source.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def write_nrrd(path: Path, labels: np.ndarray, sources: Sequence[Dataset]) -> None:
    """A label map, shape (slices, rows, columns), in the space of its source images."""
    first = sources[0]
    row, column = first.PixelSpacing
    step = float(sources[1].ImagePositionPatient[2]) - float(first.ImagePositionPatient[2])
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {labels.shape[2]} {labels.shape[1]} {labels.shape[0]}\n"
        f"space directions: ({column},0,0) (0,{row},0) (0,0,{step})\n"
        f"space origin: ({','.join(str(v) for v in first.ImagePositionPatient)})\n"
        "kinds: domain domain domain\nendian: little\nencoding: raw\n\n"
    )
    path.write_bytes(header.encode() + labels.tobytes())


def run(program: str, *arguments: object) -> None:
    """A program of the environment; its output if it fails."""
    command = [str(BIN / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
