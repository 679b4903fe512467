"""Every kind of result through de-identification and back: valid, this patient's, leaking nothing.

No servers: :mod:`tests.journey` runs the steps themselves.
"""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from anonymizer.profile import patient_study_attributes
from node.kinds import ResultKind
from node.pipeline.outbound import Profile
from tests.journey import ALL_KINDS, Journey, part10
from tests.phantoms import ct_series
from tests.result_case import IODS, UNKNOWN_TO_DCIODVFY

#: PS3.5 Annexes H to N and their like: SpecificCharacterSet and a name written in it.
NAMES = {
    "latin-1": ("ISO_IR 100", "Müller^Jürgen^Ægir"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "cyrillic": ("ISO_IR 144", "Люксембург^Жанна"),
    "greek": ("ISO_IR 126", "Διονυσίου^Ελένη"),
    "arabic": ("ISO_IR 127", "قباني^لنزار"),
    "hebrew": ("ISO_IR 138", "שרון^דבורה"),
}
PATIENT = {
    "PatientID": "MRN-77.4711",
    "PatientBirthDate": "19510203",
    "PatientSex": "F",
    "PatientAge": "075Y",
    "AccessionNumber": "ACC20210817",
    "StudyDate": "20210817",
    "StudyTime": "101500",
    "StudyID": "S-42",
}
SENTINEL = {
    "PatientName": "Sentinelius^Quirin",
    "PatientID": "MRN-SENTINEL-90210",
    "AccessionNumber": "ACCSENTINEL77",
    "StudyDescription": "Sentinelius chest",
    "SeriesDescription": "MRN-SENTINEL-90210 lung",
    "ReferringPhysicianName": "Refersentinel^Dora",
    "InstitutionName": "Sentinel General Hospital",
    "StudyDate": "20171113",
}
EVERYTHING = {"pacs": Profile(ALL_KINDS)}


def read(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


def stored_bytes(instance: Dataset) -> dict[int, bytes]:
    """Patient and study attributes as they stand in the file, padding removed."""
    found = {}
    for tag in patient_study_attributes():
        element = instance.get_item(tag)
        if element is not None and isinstance(element.value, bytes):
            found[tag] = element.value.rstrip(b" \0")
    return found


@pytest.mark.parametrize("script", NAMES)
def test_names_in_every_script_come_back_byte_for_byte(script: str, tmp_path: Path) -> None:
    """Patient and study attributes of all kinds are the source's, character set included."""
    character_set, name = NAMES[script]
    text = name.split("=")[-1].replace("^", " ")
    series = ct_series(
        **PATIENT,
        SpecificCharacterSet=character_set,
        PatientName=name,
        ReferringPhysicianName=name,
        StudyDescription=text,
    )
    source = read(part10(series[0]))
    wanted = stored_bytes(source)
    name_bytes = wanted[0x00100010]
    assert b"\x1b" in name_bytes or not name_bytes.isascii(), "written in its script"
    journey = Journey(tmp_path, series, EVERYTHING)
    journey.segmented()
    journey.encoded()
    home = journey.reidentified("pacs")
    assert list(home) == list(ALL_KINDS)
    for kind, objects in home.items():
        for one in map(read, objects):
            assert one.SpecificCharacterSet == source.SpecificCharacterSet, kind
            assert stored_bytes(one) == wanted, kind
            assert one.PatientName == source.PatientName, kind


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """A sentinel patient, up to the encoded objects."""
    made = Journey(tmp_path_factory.mktemp("journey"), ct_series(**SENTINEL), EVERYTHING)
    made.segmented()
    made.encoded()
    return made


@pytest.fixture(scope="module")
def home(journey: Journey) -> dict[ResultKind, list[Dataset]]:
    """What goes to the PACS."""
    return {kind: [*map(read, data)] for kind, data in journey.reidentified("pacs").items()}


def test_no_artifact_names_the_patient(journey: Journey, home: object) -> None:
    """Neither the encoded objects, nor picture, numbers and facts, hold a sentinel."""
    names = journey.artifacts.names("job/")
    assert len([name for name in names if name.startswith("job/results/")]) > len(ALL_KINDS)
    wanted = {*SENTINEL.values(), "Sentinelius", "Quirin", "Refersentinel"}
    wanted |= {str(read(data).SOPInstanceUID) for data in journey.received.streams.values()}
    held = {name: journey.artifacts.get(name) for name in names}
    held["facts"] = json.dumps(dict(journey.job.facts)).encode()
    for name, data in held.items():
        lowered = data.lower()
        assert [one for one in wanted if one.lower().encode() in lowered] == [], name


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_goes_home_is_valid(
    kind: ResultKind, home: dict[ResultKind, list[Dataset]], tmp_path: Path
) -> None:
    """dciodvfy names the IOD and no error, after re-identification."""
    for number, one in enumerate(home[kind][:2]):
        path = tmp_path / f"{number}.dcm"
        one.save_as(path, enforce_file_format=True)
        done = subprocess.run(
            ["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", timeout=60
        )
        lines = (done.stdout + done.stderr).splitlines()
        errors = {line for line in lines if line.startswith("Error")}
        assert errors <= UNKNOWN_TO_DCIODVFY.get(kind, set())
        assert kind not in IODS or IODS[kind] in lines


def test_each_kind_is_a_series_of_its_own(home: dict[ResultKind, list[Dataset]]) -> None:
    """Series UIDs, numbers and descriptions differ; a description is short and ASCII."""
    firsts = [objects[0] for objects in home.values()]
    for keyword in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription"):
        values = [one[keyword].value for one in firsts]
        assert len(set(values)) == len(values), keyword
    for objects in home.values():
        assert len({one.SeriesInstanceUID for one in objects}) == 1
        description = objects[0].SeriesDescription
        assert len(description) <= 64 and description.isascii()


def test_sr_and_seg_speak_of_the_same_segments(home: dict[ResultKind, list[Dataset]]) -> None:
    """Tracking UIDs of the report are those of the Segmentation that it refers to."""
    [seg], [sr] = home[ResultKind.SEG], home[ResultKind.SR]
    tracked = [str(item.value) for item in sr.iterall() if item.tag == 0x0040A124]
    for segment in seg.SegmentSequence:
        assert segment.TrackingUID in tracked
    referred = [str(item.value) for item in sr.iterall() if item.tag == 0x00081155]
    assert seg.SOPInstanceUID in referred


def test_captures_share_the_frame_of_reference(
    journey: Journey, home: dict[ResultKind, list[Dataset]]
) -> None:
    """A viewer scrolls them with the source; so do the Segmentation's and the contours' frames."""
    source = read(journey.received.streams["0000"])
    captures = home[ResultKind.CAPTURE]
    assert len(captures) > 10
    for one in [*captures, *home[ResultKind.SEG], *home[ResultKind.RTSTRUCT]]:
        assert one.FrameOfReferenceUID == source.FrameOfReferenceUID


def test_each_destination_gets_its_kinds_and_no_more(tmp_path: Path) -> None:
    """Two profiles with different pictures: the union is made once, each gets its share."""
    profiles = {
        "numbers": Profile((ResultKind.SEG, ResultKind.SR)),
        "thirds": Profile((ResultKind.CAPTURE,), capture_every=3),
        "halves": Profile((ResultKind.CAPTURE, ResultKind.TEXT_SR), capture_every=2),
    }
    journey = Journey(tmp_path, ct_series(), profiles)
    journey.segmented()
    names = journey.encoded()
    assert not any("rtstruct" in name or "pdf" in name for name in names)
    made = sum("capture" in name for name in names)
    journey.reidentified()
    taken = {name: journey.reidentified(name) for name in profiles}
    assert [*taken["numbers"]] == [ResultKind.SEG, ResultKind.SR]
    assert [*taken["halves"]] == [ResultKind.TEXT_SR, ResultKind.CAPTURE]
    for name, every in (("thirds", 3), ("halves", 2)):
        pictures = [read(one) for one in taken[name][ResultKind.CAPTURE]]
        assert len(pictures) == -(-made // every)
        numbers = [int(one.InstanceNumber) for one in pictures]
        gaps = [after - before for before, after in pairwise(numbers)]
        assert gaps == [every] * (len(numbers) - 1)


def test_encoding_again_leaves_nothing_of_the_first_time(tmp_path: Path) -> None:
    """A destination that refused the SEG: pictures take its place, the report goes with it."""
    journey = Journey(tmp_path, ct_series(), {"pacs": Profile((ResultKind.SEG, ResultKind.SR))})
    journey.segmented()
    assert [*journey.encoded()] == ["seg.dcm", "sr.dcm"]
    refused = {"delivery": {"pacs": {"fallback": "status 0x0122, SOP class not supported"}}}
    journey.job = replace(journey.job, facts={**journey.job.facts, **refused})
    assert all(name.startswith("capture-") for name in journey.encoded())
    assert [*journey.reidentified("pacs")] == [ResultKind.CAPTURE]
