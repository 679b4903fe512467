"""Objects other than plain images: references are remapped, never emptied; text goes."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from anonymizer import PseudonymKeys, basic_policy, deidentify_instance
from anonymizer.__main__ import main as anonymize
from anonymizer.errors import Unsupported
from anonymizer.uids import pseudonymous_uid
from tests.identified_ct import ROOT, SERIES, ct_bytes, ct_instance, part10

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
SOURCE, TRACKING = f"{SERIES}.1", f"{ROOT}.77.1"
REPOSITORY = Path(__file__).parents[2]


def item(**attributes: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def code(value: str, scheme: str, meaning: str) -> Sequence:
    return Sequence([item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)])


def reference() -> Dataset:
    return item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=SOURCE)


def without_pixels(sop_class_uid: str, **attributes: Any) -> bytes:
    ds = ct_instance(SOPClassUID=sop_class_uid, **attributes)
    del ds.PixelData
    return part10(ds)


def deidentified(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(deidentify_instance(data, basic_policy(), KEYS).data))


def report() -> bytes:
    """A report with a finding, its image and its tracking UID two levels down."""
    leaves = [
        item(RelationshipType="CONTAINS", ValueType="TEXT", TextValue="Seen by Quillon",
             ConceptNameCodeSequence=code("121071", "DCM", "Finding")),
        item(RelationshipType="CONTAINS", ValueType="IMAGE",
             ReferencedSOPSequence=Sequence([reference()])),
        item(RelationshipType="HAS OBS CONTEXT", ValueType="UIDREF", UID=TRACKING,
             ConceptNameCodeSequence=code("112040", "DCM", "Tracking Unique Identifier")),
    ]  # fmt: skip
    group = item(
        RelationshipType="CONTAINS",
        ValueType="CONTAINER",
        ContinuityOfContent="SEPARATE",
        ConceptNameCodeSequence=code("125007", "DCM", "Measurement Group"),
        ContentSequence=Sequence(leaves),
    )
    return without_pixels(
        Comprehensive3DSRStorage, Modality="SR", ValueType="CONTAINER",
        ContinuityOfContent="SEPARATE", ContentSequence=Sequence([group]),
        ConceptNameCodeSequence=code("126000", "DCM", "Imaging Measurement Report"),
    )  # fmt: skip


def test_a_report_keeps_its_tree_and_loses_its_text() -> None:
    """Every node stays where it was, with its code and reference; the sentence goes."""
    data = deidentify_instance(report(), basic_policy(), KEYS).data
    assert b"Quillon" not in data
    leaves = deidentified(report()).ContentSequence[0].ContentSequence
    assert [leaf.ValueType for leaf in leaves] == ["TEXT", "IMAGE", "UIDREF"]
    assert leaves[0].ConceptNameCodeSequence[0].CodeMeaning == "Finding"
    assert leaves[0].TextValue == "ANON"
    named = leaves[1].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == pseudonymous_uid(SOURCE, KEYS.uid)
    assert named.ReferencedSOPClassUID == CTImageStorage


def test_a_report_does_not_say_who_its_subject_is() -> None:
    """Birth date, sex and age are items of a number, a code and a date (PS3.15 Table E.1-2)."""
    subject = [
        item(RelationshipType="HAS OBS CONTEXT", ValueType="DATE", Date="19470812",
             ConceptNameCodeSequence=code("121031", "DCM", "Subject Birth Date")),
        item(RelationshipType="HAS OBS CONTEXT", ValueType="CODE",
             ConceptNameCodeSequence=code("121032", "DCM", "Subject Sex"),
             ConceptCodeSequence=code("F", "DCM", "Female")),
        item(RelationshipType="HAS OBS CONTEXT", ValueType="NUM",
             ConceptNameCodeSequence=code("121033", "DCM", "Subject Age"),
             MeasuredValueSequence=Sequence([item(NumericValue="97",
                 MeasurementUnitsCodeSequence=code("a", "UCUM", "year"))])),
        item(RelationshipType="HAS OBS CONTEXT", ValueType="PNAME", PersonName="Quillon^Q",
             ConceptNameCodeSequence=code("121029", "DCM", "Subject Name")),
    ]  # fmt: skip
    volume = item(
        RelationshipType="CONTAINS", ValueType="NUM",
        ConceptNameCodeSequence=code("118565006", "SCT", "Volume"),
        MeasuredValueSequence=Sequence([item(NumericValue="97",
            MeasurementUnitsCodeSequence=code("cm3", "UCUM", "cm3"))]),
    )  # fmt: skip
    ds = deidentified(
        without_pixels(
            Comprehensive3DSRStorage, Modality="SR", ValueType="CONTAINER",
            ContinuityOfContent="SEPARATE", ContentSequence=Sequence([*subject, volume]),
            ConceptNameCodeSequence=code("126000", "DCM", "Imaging Measurement Report"),
        )
    )  # fmt: skip
    left = [node.ConceptNameCodeSequence[0].CodeMeaning for node in ds.ContentSequence]
    assert left == ["Subject Name", "Volume"]
    assert ds.ContentSequence[0].PersonName == "ANON^"
    assert ds.ContentSequence[1].MeasuredValueSequence[0].NumericValue == 97


def test_tracking_uid_of_a_segment_is_that_of_the_report() -> None:
    """SEG TrackingUID and the SR's UIDREF name one finding before and after."""
    segment = item(SegmentNumber=1, SegmentLabel="Lung", TrackingUID=TRACKING, TrackingID="x")
    seg = deidentified(
        ct_bytes(
            SOPClassUID=SegmentationStorage, Modality="SEG", SegmentSequence=Sequence([segment])
        )
    )
    uidref = deidentified(report()).ContentSequence[0].ContentSequence[2].UID
    assert seg.SegmentSequence[0].TrackingUID == uidref != TRACKING


def test_a_structure_set_keeps_contours_and_references() -> None:
    """Contours stay where they are; the region's name and its interpreter go."""
    contour = item(ContourData=[1.5, 2.5, 3.5], ContourImageSequence=Sequence([reference()]))
    ds = deidentified(
        without_pixels(
            RTStructureSetStorage,
            Modality="RTSTRUCT",
            StructureSetLabel="Quillon",
            StructureSetROISequence=Sequence([item(ROINumber=1, ROIName="Quillon lung")]),
            ROIContourSequence=Sequence([item(ContourSequence=Sequence([contour]))]),
        )
    )
    found = ds.ROIContourSequence[0].ContourSequence[0]
    assert found.ContourData == [1.5, 2.5, 3.5]
    named = found.ContourImageSequence[0].ReferencedSOPInstanceUID
    assert named == pseudonymous_uid(SOURCE, KEYS.uid)
    assert "Quillon" not in str(ds)
    assert ds.StructureSetROISequence[0].ROINumber == 1


def test_a_presentation_state_points_at_its_images_and_says_nothing() -> None:
    """Reference kept, annotation text gone."""
    text = item(UnformattedTextValue="Quillon, left", BoundingBoxAnnotationUnits="PIXEL")
    ds = deidentified(
        without_pixels(
            GrayscaleSoftcopyPresentationStateStorage,
            Modality="PR",
            ReferencedSeriesSequence=Sequence(
                [item(SeriesInstanceUID=SERIES, ReferencedImageSequence=Sequence([reference()]))]
            ),
            GraphicAnnotationSequence=Sequence(
                [item(GraphicLayer="LAYER1", TextObjectSequence=Sequence([text]))]
            ),
        )
    )
    series = ds.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == pseudonymous_uid(SERIES, KEYS.uid)
    named = series.ReferencedImageSequence[0].ReferencedSOPInstanceUID
    assert named == pseudonymous_uid(SOURCE, KEYS.uid)
    assert "Quillon" not in str(ds)


def test_pixels_do_not_travel_in_a_report() -> None:
    """An object of a kind without pixels that has some is refused: nobody judged them."""
    with pytest.raises(Unsupported, match="of a kind that has none"):
        deidentify_instance(ct_bytes(SOPClassUID=Comprehensive3DSRStorage), basic_policy(), KEYS)


def test_midi_b_mapping_files_come_from_the_vault(tmp_path: Path) -> None:
    """Patient and UID mapping as the validator reads them, for what the command sealed."""
    path = REPOSITORY / "bench" / "midi_b.py"
    spec = importlib.util.spec_from_file_location("midi_b", path)
    assert spec and spec.loader
    midi_b = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(midi_b)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.dcm").write_bytes(ct_bytes(1))
    vault = tmp_path / "vault"
    assert anonymize([str(tmp_path / "in"), str(tmp_path / "out"), "--vault", str(vault)]) == 0
    arguments = [str(vault), str(tmp_path / "vault.key"), str(tmp_path / "mapping")]
    assert midi_b.main(arguments) == 0
    written = next((tmp_path / "out").rglob("*.dcm"))
    after = pydicom.dcmread(written)
    mapping = {}
    for name in ("patient_mapping.csv", "uid_mapping.csv"):
        file = tmp_path / "mapping" / name
        assert file.stat().st_mode & 0o077 == 0
        with file.open(newline="") as text:
            mapping.update({row["id_old"]: row["id_new"] for row in csv.DictReader(text)})
    before = ct_instance(1)
    for keyword in ("PatientID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert mapping[before[keyword].value] == after[keyword].value
