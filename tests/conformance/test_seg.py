"""The Segmentation we write, read back by DCMTK, dicom3tools and highdicom."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from node.errors import EmptyResult, GeometryError, ModelFault, Quarantined, Rejected
from node.manifest import Code, Segment
from node.results.placement import check_frames
from node.results.seg import Algorithm, build_seg, encode_seg
from node.results.source import SourceSeries
from node.results.uids import ResultIdentity, result_uid

ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")


def lung(number: int, side: str, code: str, rgb: tuple[int, int, int]) -> Segment:
    meaning = f"{side} lung"
    return Segment(
        number=number,
        label=meaning,
        category=ANATOMY,
        type=Code(value=code, scheme="SCT", meaning=meaning),
        rgb=rgb,
    )


SEGMENTS = (
    lung(1, "Left", "44029006", (255, 140, 0)),
    lung(2, "Right", "3341006", (0, 200, 255)),
)
ALGORITHM = Algorithm(name="ct_lungs", version="1.2.0", digest="ab" * 32)
IDENTITY = ResultIdentity.for_job(
    "a job's key",
    series_number=9001,
    series_description="ct_lungs 1.2.0",
    created=datetime(2026, 11, 3, 12, 30, 1),
    software_version="0.1.0",
)

# Row and column direction cosines in patient coordinates (LPS).
ORIENTATIONS = {
    "supine": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "decubitus": (0, -1, 0, 1, 0, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0.0, -0.48, 0.64, 0.6),
}


def series(
    orientation: Sequence[float] = ORIENTATIONS["supine"],
    *,
    slices: int = 6,
    rows: int = 16,
    columns: int = 24,
    step_mm: float = 2.5,
) -> list[Dataset]:
    """De-identified CT headers, ``step_mm`` apart along (negative: against) the normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    headers = []
    for index in range(slices):
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 100"
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = f"2.25.{1000 + index}"
        header.StudyInstanceUID = "2.25.1"
        header.SeriesInstanceUID = "2.25.2"
        header.FrameOfReferenceUID = "2.25.3"
        header.PatientName = "PSEUDO^ONE"
        header.PatientID = "PSEUDO1"
        header.PatientBirthDate = ""
        header.PatientSex = "O"
        header.StudyDate = "20010203"
        header.StudyTime = "101112"
        header.StudyID = "S1"
        header.AccessionNumber = ""
        header.ReferringPhysicianName = ""
        header.PositionReferenceIndicator = ""
        header.Manufacturer = "Scanner maker"
        header.Modality = "CT"
        header.BodyPartExamined = "CHEST"
        header.InstanceNumber = index + 1
        header.SliceThickness = 3
        header.Rows, header.Columns = rows, columns
        header.PixelSpacing = [0.75, 0.5]
        header.ImageOrientationPatient = list(orientation)
        corner = np.array([-40.0, -30.0, 100.0]) + index * step_mm * normal
        header.ImagePositionPatient = [round(float(value), 6) for value in corner]
        headers.append(header)
    return headers


def labels_for(headers: Sequence[Dataset], seed: int = 1) -> np.ndarray:
    """Another mask on every slice; slice 0 is empty and the last has no segment 2."""
    shape = (len(headers), headers[0].Rows, headers[0].Columns)
    labels = np.random.default_rng(seed).integers(0, 3, shape, dtype=np.uint8)
    labels[0] = 0
    labels[-1][labels[-1] == 2] = 0
    return labels


def part10(instance: Dataset) -> bytes:
    stream = BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dcmtk_json(path: Path) -> dict[str, Any]:
    """The object as DCMTK's dcm2json reads it."""
    done = subprocess.run(
        ["/usr/bin/dcm2json", str(path)], capture_output=True, check=True, timeout=60
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def frames_by_dcmtk(path: Path) -> dict[tuple[str, int], tuple[list[float], np.ndarray]]:
    """(referenced SOP Instance UID, segment number) → (position, mask), read by DCMTK."""
    document = dcmtk_json(path)
    rows, columns = (document[tag]["Value"][0] for tag in ("00280010", "00280011"))
    groups = document["52009230"]["Value"]
    data = np.frombuffer(base64.b64decode(document["7FE00010"]["InlineBinary"]), np.uint8)
    bits = np.unpackbits(data, bitorder="little")[: len(groups) * rows * columns]
    frames = {}
    for item, mask in zip(groups, bits.reshape(len(groups), rows, columns), strict=True):
        (derivation,) = item["00089124"]["Value"]
        (image,) = derivation["00082112"]["Value"]
        number = item["0062000A"]["Value"][0]["0062000B"]["Value"][0]
        position = item["00209113"]["Value"][0]["00200032"]["Value"]
        frames[image["00081155"]["Value"][0], number] = (position, mask)
    return frames


@pytest.mark.parametrize("step_mm", [2.5, -2.5], ids=["feet to head", "head to feet"])
@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
@pytest.mark.parametrize("columns", [24, 23])
def test_every_mask_lies_on_the_slice_it_was_computed_from(
    orientation: Sequence[float], step_mm: float, columns: int, tmp_path: Path
) -> None:
    """DCMTK finds each mask at its slice's position and reference, whatever the orientation."""
    headers = series(orientation, step_mm=step_mm, columns=columns)
    order = np.random.default_rng(7).permutation(len(headers))
    headers = [headers[index] for index in order]
    labels = labels_for(headers)
    path = tmp_path / "seg.dcm"
    path.write_bytes(part10(encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)))

    frames = frames_by_dcmtk(path)
    expected = {
        (header.SOPInstanceUID, number)
        for header, plane in zip(headers, labels, strict=True)
        for number in (1, 2)
        if (plane == number).any()
    }
    assert set(frames) == expected
    for header, plane in zip(headers, labels, strict=True):
        for number in (1, 2):
            if (header.SOPInstanceUID, number) in frames:
                position, mask = frames[header.SOPInstanceUID, number]
                assert position == pytest.approx(list(header.ImagePositionPatient), abs=1e-4)
                assert np.array_equal(mask, plane == number)


def test_highdicom_reads_back_the_label_map() -> None:
    """The masks found by source instance equal the label map, empty slices included."""
    headers = series()
    labels = labels_for(headers)
    written = part10(encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY))
    read = hd.seg.Segmentation.from_dataset(dcmread(BytesIO(written)))
    masks = read.get_pixels_by_source_instance(
        source_sop_instance_uids=[header.SOPInstanceUID for header in headers],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(masks, labels)


def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    """The validator that knows the Segmentation IOD has nothing to say against it."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dicom3tools is not installed")
    headers = series()
    path = tmp_path / "seg.dcm"
    path.write_bytes(
        part10(encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY))
    )
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
    said = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in said
    assert [line for line in said if line.startswith("Error")] == []


def test_header_names_source_algorithm_and_equipment(tmp_path: Path) -> None:
    """A receiver finds the source series, the model with its digest, and one frame of reference."""
    headers = series()
    path = tmp_path / "seg.dcm"
    path.write_bytes(
        part10(encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY))
    )
    document = dcmtk_json(path)

    def value(tag: str, of: dict[str, Any] = document) -> Any:
        return of[tag]["Value"][0]

    references = value("00081115")
    assert value("0020000E", references) == "2.25.2"
    assert [value("00081155", item) for item in references["0008114A"]["Value"]] == [
        header.SOPInstanceUID for header in headers
    ]
    assert value("0020000D") == "2.25.1"
    assert value("00200052") == "2.25.3"
    assert value("00080005") == "ISO_IR 192"
    assert (value("00080021"), value("00080023")) == ("20261103", "20261103")
    assert (value("00080031"), value("00080033")) == ("123001", "123001")
    assert value("00180015") == "CHEST"
    assert value("00200011") == 9001
    assert value("0008103E") == "ct_lungs 1.2.0"
    assert value("00700080") == "AI_SEGMENTATION"
    assert document["00181020"]["Value"] == ["0.1.0", "1.2.0", "ab" * 32]
    ours = [item for item in document["0018A001"]["Value"] if value("00080070", item) == "segnode"]
    assert [value("00081090", item) for item in ours] == ["ct_lungs"]
    assert value("00080100", value("0040A170", ours[0])) == "109102"
    measures = value("00289110", value("52009229"))
    assert measures["00280030"]["Value"] == [0.75, 0.5]
    assert (value("00180050", measures), value("00180088", measures)) == (3, 2.5)

    first, second = document["00620002"]["Value"]
    assert (value("00620005", first), value("00620005", second)) == ("Left lung", "Right lung")
    assert value("00620008", first) == "AUTOMATIC"
    assert value("00080100", value("0062000F", first)) == "44029006"
    assert value("00080100", value("00620003", first)) == "123037004"
    assert value("00620020", first) == "ct_lungs Left lung"
    assert value("00620021", first) != value("00620021", second)
    assert first["0062000D"]["Value"] != second["0062000D"]["Value"]
    algorithm = value("00620007", first)
    assert value("00660036", algorithm) == "ct_lungs"
    assert value("00660031", algorithm) == "1.2.0"
    assert value("00660032", algorithm) == "package_sha256=" + "ab" * 32


def test_display_colour_survives_within_cielab_rounding() -> None:
    """A viewer that converts CIELab back shows the colour that the model asked for."""
    headers = series()
    result = encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)
    for item, segment in zip(result.SegmentSequence, SEGMENTS, strict=True):
        colour = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
        assert colour.to_rgb() == pytest.approx(segment.rgb, abs=3)


def test_the_same_job_makes_the_same_bytes() -> None:
    """A step that runs twice makes one instance, not two: no chance, no clock."""
    headers = series()
    labels = labels_for(headers)
    once, twice = (
        part10(encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)) for _ in range(2)
    )
    assert once == twice


def test_another_job_makes_other_uids() -> None:
    """Nothing that identifies a result is shared between two jobs on one series."""
    headers = series()
    other = ResultIdentity.for_job(
        "another key",
        series_number=9001,
        series_description="ct_lungs 1.2.0",
        created=IDENTITY.created,
        software_version="0.1.0",
    )
    results = [
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, identity)
        for identity in (IDENTITY, other)
    ]
    own = [
        {element.value for element in result.iterall() if str(element.value).startswith("2.25.")}
        - {uid for header in headers for uid in (header.SOPInstanceUID, "2.25.1", "2.25.2")}
        - {"2.25.3"}
        for result in results
    ]
    assert own[0]
    assert not own[0] & own[1]


def test_source_headers_are_left_alone_and_gaps_are_filled_empty() -> None:
    """Type 2 elements that the source lacks are empty in the result; the source keeps its shape."""
    headers = series()
    for header in headers:
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyID", "SliceThickness"):
            del header[keyword]
        header.PatientSex = "U"
        header.add_new(0x00091001, "LO", "private")
    before = [header.to_json() for header in headers]
    result = encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)
    assert [header.to_json() for header in headers] == before
    assert all(
        not result[keyword].value
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyID", "PatientSex")
    )
    assert not [element for element in result.iterall() if element.tag.is_private]


def test_spacing_is_measured_and_jitter_is_levelled() -> None:
    """A wrong SpacingBetweenSlices and a last digit of difference in orientation do no harm."""
    headers = series()
    for header in headers:
        header.SpacingBetweenSlices = 0
    headers[2].ImageOrientationPatient = [1, 0, 0.00001, 0, 1, 0]
    result = encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)
    measures = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5
    assert measures.SliceThickness == 3


def test_text_of_another_charset_arrives_as_unicode(tmp_path: Path) -> None:
    """Latin-1 text of the source is written as UTF-8, in the top level and in sequences."""
    headers = series()
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "Schädel"
    for header in headers:
        header.StudyDescription = "Schädel nativ"
        header.ProcedureCodeSequence = [code]
    raw = BytesIO()
    headers[0].save_as(raw, implicit_vr=False, little_endian=True)
    headers[0] = dcmread(BytesIO(raw.getvalue()), force=True)  # not yet decoded
    path = tmp_path / "seg.dcm"
    path.write_bytes(
        part10(encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY))
    )
    document = dcmtk_json(path)
    assert document["00081030"]["Value"] == ["Schädel nativ"]
    assert document["00081032"]["Value"][0]["00080104"]["Value"] == ["Schädel"]


def test_segment_without_voxels_keeps_its_item() -> None:
    """That a structure was not found is a result: the item stays, without frames."""
    headers = series()
    labels = np.where(labels_for(headers) == 1, 1, 0).astype(np.uint8)
    result = encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)
    assert [item.SegmentNumber for item in result.SegmentSequence] == [1, 2]
    numbers = {
        item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for item in result.PerFrameFunctionalGroupsSequence
    }
    assert numbers == {1}


def test_single_segment_and_single_slice_are_encoded() -> None:
    """The smallest case: one slice, one segment, whose number is shared by all frames."""
    headers = series(slices=1)
    labels = np.zeros((1, 16, 24), np.uint8)
    labels[0, 3:7, 5:9] = 1
    result = encode_seg(labels, headers, SEGMENTS[:1], ALGORITHM, IDENTITY)
    assert result.NumberOfFrames == 1
    assert np.array_equal(np.squeeze(result.pixel_array), labels[0])


def test_nothing_found_is_an_empty_result() -> None:
    """An all-empty label map makes no object."""
    headers = series()
    with pytest.raises(EmptyResult):
        encode_seg(np.zeros((6, 16, 24), np.uint8), headers, SEGMENTS, ALGORITHM, IDENTITY)


@pytest.mark.parametrize("shape", [(6, 16, 12), (5, 16, 24)])
def test_another_grid_than_the_source_is_refused(shape: tuple[int, int, int]) -> None:
    """Viewers do not show a mask on another grid, so it is never written."""
    with pytest.raises(ModelFault, match="label map"):
        encode_seg(np.ones(shape, np.uint8), series(), SEGMENTS, ALGORITHM, IDENTITY)


def test_label_without_a_segment_is_refused() -> None:
    """A voxel that nobody can name does not leave the node."""
    labels = labels_for(series())
    labels[2, 0, 0] = 3
    with pytest.raises(ModelFault, match="label 3"):
        encode_seg(labels, series(), SEGMENTS, ALGORITHM, IDENTITY)


def test_two_slices_at_one_position_are_refused() -> None:
    """Without distinct positions a mask could belong to either slice."""
    headers = series()
    headers[4].ImagePositionPatient = headers[1].ImagePositionPatient
    with pytest.raises(GeometryError, match="2 and 5"):
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)


def test_slice_of_another_orientation_is_refused() -> None:
    """A localizer among the slices is named by its place."""
    headers = series()
    headers[3].ImageOrientationPatient = list(ORIENTATIONS["coronal"])
    with pytest.raises(GeometryError, match="1 and 4 differ in ImageOrientationPatient"):
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)


def test_missing_frame_of_reference_is_refused_by_name() -> None:
    """An element that no Segmentation can do without is named, without any value."""
    headers = series()
    del headers[2].FrameOfReferenceUID
    with pytest.raises(Rejected, match="slice 3 of 6 has no FrameOfReferenceUID"):
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)


def _swap_references(seg: Dataset) -> None:
    first, last = (seg.PerFrameFunctionalGroupsSequence[index] for index in (0, -1))
    first.DerivationImageSequence, last.DerivationImageSequence = (
        last.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def _swap_positions(seg: Dataset) -> None:
    first, last = (seg.PerFrameFunctionalGroupsSequence[index] for index in (0, -1))
    first.PlanePositionSequence, last.PlanePositionSequence = (
        last.PlanePositionSequence,
        first.PlanePositionSequence,
    )


def _drop_derivation(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence


def _swap_segments(seg: Dataset) -> None:
    for item in seg.PerFrameFunctionalGroupsSequence:
        identification = item.SegmentIdentificationSequence[0]
        identification.ReferencedSegmentNumber = 3 - identification.ReferencedSegmentNumber


def _flip_a_bit(seg: Dataset) -> None:
    data = bytearray(seg.PixelData)
    data[40] ^= 4
    seg.PixelData = bytes(data)


def _refer_elsewhere(seg: Dataset) -> None:
    item = seg.PerFrameFunctionalGroupsSequence[0]
    item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "2.25.9"


def _lose_the_last_frame(seg: Dataset) -> None:
    seg.PerFrameFunctionalGroupsSequence = seg.PerFrameFunctionalGroupsSequence[:-1]


@pytest.mark.parametrize(
    "spoil",
    [
        _swap_references,
        _swap_positions,
        _drop_derivation,
        _swap_segments,
        _flip_a_bit,
        _refer_elsewhere,
        _lose_the_last_frame,
    ],
)
def test_misplaced_mask_is_quarantined(spoil: Any) -> None:
    """What viewers would show on the wrong slice without a word is held back."""
    headers = series()
    labels = labels_for(headers)
    result = encode_seg(labels, headers, SEGMENTS, ALGORITHM, IDENTITY)
    check_frames(part10(result), labels, headers)
    spoil(result)
    with pytest.raises(Quarantined):
        check_frames(part10(result), labels, headers)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("step_mm", [2.5, -2.5])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_frames_are_those_that_highdicom_would_have_built(
    orientation: str, step_mm: float, count: int
) -> None:
    """Copied from one frame, they are equal in every attribute to frames built one by one."""
    headers = series(ORIENTATIONS[orientation], step_mm=step_mm)
    labels = labels_for(headers)
    labels[labels > count] = 0
    segments = SEGMENTS[:count]
    built = build_seg(labels, SourceSeries.of(headers).headers, segments, ALGORITHM, IDENTITY)
    read = dcmread(BytesIO(part10(built)))
    assert encode_seg(labels, headers, segments, ALGORITHM, IDENTITY) == read


def test_no_value_of_the_patient_is_said_while_encoding() -> None:
    """highdicom comments on names of one component and prints them; we keep it quiet."""
    headers = series()
    for header in headers:
        header.PatientName = "SECRETNAME"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)
    assert not [note for note in said if "SECRETNAME" in str(note.message)]


def test_result_uid_is_a_valid_uuid_derived_uid() -> None:
    """2.25. and a decimal UUID of version 8, stable for one key and role."""
    uid = result_uid("key", "series")
    number = int(uid.removeprefix("2.25."))
    assert number < 1 << 128
    assert (number >> 76) & 0xF == 8
    assert (number >> 62) & 0x3 == 2
    assert uid == result_uid("key", "series")
    assert uid != result_uid("key", "instance")
    assert len(uid) <= 64
