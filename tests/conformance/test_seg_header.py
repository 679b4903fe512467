"""What the Segmentation says of its source, its algorithm and its segments, and what not."""

from __future__ import annotations

import subprocess
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.errors import Rejected
from node.results.seg import encode_seg
from node.results.uids import ResultIdentity, result_uid
from tests.part10 import part10
from tests.seg_case import ALGORITHM, IDENTITY, SEGMENTS, dcmtk_json, labels_for, series


def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    """The validator that knows the Segmentation IOD has nothing to say against it."""
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


def test_missing_frame_of_reference_is_refused_by_name() -> None:
    """An element that no Segmentation can do without is named, without any value."""
    headers = series()
    del headers[2].FrameOfReferenceUID
    with pytest.raises(Rejected, match="slice 3 of 6 has no FrameOfReferenceUID"):
        encode_seg(labels_for(headers), headers, SEGMENTS, ALGORITHM, IDENTITY)


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
