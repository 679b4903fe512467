"""Every kind of result, and the page that explains a missing one: read back by programs that are
not ours."""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pypdfium2
import pytest
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from node.kinds import ResultKind
from node.packages import find_models
from node.results.measurements import measure
from node.results.objects import Found
from node.results.report import NOTICE
from node.sdk import LabelMap
from tests.part10 import part10
from tests.result_case import EXPLAINED, IODS, KINDS, MODELS, UNKNOWN_TO_DCIODVFY, Case


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(
    kind: str, encoded: Callable[[str], list[Dataset]], tmp_path: Path
) -> None:
    """dicom3tools knows each IOD and names what is missing or wrong in it."""
    path = tmp_path / "instance.dcm"
    path.write_bytes(part10(encoded(kind)[0]))
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
    errors = {line.strip() for line in done.stderr.splitlines() if "Error" in line}
    assert errors <= UNKNOWN_TO_DCIODVFY.get(kind, set())
    iod = IODS.get(ResultKind(kind.removeprefix("explained by ")))
    assert iod is None or done.stderr.splitlines()[0] == iod


@pytest.mark.parametrize("kind", KINDS)
def test_dcmtk_reads_every_element(
    kind: str, encoded: Callable[[str], list[Dataset]], tmp_path: Path
) -> None:
    """dcmdump comments on what it cannot parse, on wrong lengths and on unknown values."""
    for number, one in enumerate(encoded(kind)):
        (tmp_path / f"{number}.dcm").write_bytes(part10(one))
    command = ["/usr/bin/dcmdump", "--quiet", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_pydicom_reads_every_value_strictly(
    kind: str, encoded: Callable[[str], list[Dataset]]
) -> None:
    """No value breaks the rules of its VR."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with config.disable_value_validation():
            data = [part10(instance) for instance in encoded(kind)]
        config.settings.reading_validation_mode = config.RAISE
        try:
            for one in data:
                for _ in dcmread(BytesIO(one)).iterall():
                    pass
        finally:
            config.settings.reading_validation_mode = config.WARN


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_result_is_the_same_bytes(
    kind: str, case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """A step that runs twice makes the same instances, not second ones."""
    assert [part10(one) for one in case.encoded(kind)] == [part10(one) for one in encoded(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_all_belong_to_the_study_and_to_one_series_of_their_own(
    kind: str, case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Same patient and study as the source; another series and other instances."""
    instances = encoded(kind)
    source = case.sources[0]
    assert {one.StudyInstanceUID for one in instances} == {source.StudyInstanceUID}
    assert {one.PatientID for one in instances} == {source.PatientID}
    (series,) = {one.SeriesInstanceUID for one in instances}
    others = {encoded(other)[0].SeriesInstanceUID for other in KINDS if other != kind}
    assert series not in (source.SeriesInstanceUID, *others)
    assert len({one.SOPInstanceUID for one in instances}) == len(instances)


def test_sr_holds_the_numbers_and_points_at_the_segments(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Read by highdicom's own parser of TID 1500, which is what a machine would use."""
    report = hd.sr.Comprehensive3DSR.from_dataset(encoded("sr")[0])
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(case.found.measurements) == 2
    (seg,) = encoded("seg")
    for group, found, item in zip(
        groups, case.found.measurements, seg.SegmentSequence, strict=True
    ):
        assert group.tracking_uid == item.TrackingUID
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        (volume,) = group.get_measurements(name=hd.sr.CodedConcept("118565006", "SCT", "Volume"))
        assert volume.value == found.volume_ml
        assert (volume.unit.value, volume.unit.scheme_designator) == ("mL", "UCUM")
        values = {one.derivation.value: one.value for one in group.get_measurements()
                  if one.derivation is not None}  # fmt: skip
        assert values == {"373098007": found.mean, "386136009": found.standard_deviation}
    assert report.VerificationFlag == "UNVERIFIED"


def test_sr_names_all_sources_and_the_seg_as_evidence(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """What the numbers were made from can be found from them."""
    named = {
        instance.ReferencedSOPInstanceUID
        for study in encoded("sr")[0].CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert named == {one.SOPInstanceUID for one in [*case.sources, encoded("seg")[0]]}


@pytest.mark.parametrize("kind", ["sr", "text_sr", "explained by text_sr"])
def test_dcmtk_prints_the_report(
    kind: str, encoded: Callable[[str], list[Dataset]], tmp_path: Path
) -> None:
    """DCMTK parses the whole tree, which it refuses when a relationship is not allowed."""
    path = tmp_path / "report.dcm"
    path.write_bytes(part10(encoded(kind)[0]))
    command = ["/usr/bin/dsrdump", "+Pl", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "E:" not in done.stderr
    said = ["What to do"] if kind in EXPLAINED else ["Left lung", "Right lung"]
    assert all(words in done.stdout for words in said)
    assert "Language of Content Item and Descendants" in done.stdout  # TID 1204, mandatory
    assert "Device Observer Name" in done.stdout  # TID 1001, mandatory


def test_text_says_what_a_person_must_know(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """The notice, and each segment with its volume."""
    section = encoded("text_sr")[0].ContentSequence[-1]
    said = "\n".join(item.TextValue for item in section.ContentSequence)
    assert NOTICE in said
    for segment, found in zip(case.segments, case.found.measurements, strict=True):
        assert f"{segment.label}: volume {found.volume_ml:,.1f} ml" in said


def test_pdf_is_a_page_with_text(case: Case, encoded: Callable[[str], list[Dataset]]) -> None:
    """PDFium, which is not what wrote it, finds the words on its one page."""
    with pypdfium2.PdfDocument(encoded("pdf")[0].EncapsulatedDocument) as document:
        (page,) = document
        said = page.get_textpage().get_text_bounded()
    for words in (NOTICE, "Left lung", f"volume {case.found.measurements[0].volume_ml:,.1f} ml"):
        assert words in said


def test_a_single_small_voxel_is_a_finding(case: Case) -> None:
    """A third of a cubic millimetre is in the SEG, so no report says that it was not found."""
    small = replace(case.volume, affine=case.volume.affine.copy(), spacing_mm=(0.36, 1.0, 1.0))
    labels = np.zeros_like(case.labels)
    labels[3, 20, 20] = 1
    label_map = LabelMap(labels, case.volume.sop_instance_uids)
    measured = measure(small, label_map, case.segments)
    assert measured[0].volume_ml == pytest.approx(0.00036)
    found = replace(case.found, labels=labels, measurements=measured)
    (text,) = found.encoded(ResultKind.TEXT_SR)
    said = [item.TextValue for item in text.ContentSequence[-1].ContentSequence]
    assert "Left lung: volume 0.00036 ml" in said
    assert "Right lung: not found" in said
    (report,) = found.encoded(ResultKind.SR)
    parsed = hd.sr.Comprehensive3DSR.from_dataset(report)
    (group,) = parsed.content.get_volumetric_roi_measurement_groups()
    (volume,) = group.get_measurements(name=hd.sr.CodedConcept("118565006", "SCT", "Volume"))
    assert volume.value == pytest.approx(0.00036)


def test_forty_segments_leave_the_picture_half_a_page(many: Found) -> None:
    """The table goes on overleaf, and loses no row."""
    (made,) = many.encoded(ResultKind.PDF)
    with pypdfium2.PdfDocument(made.EncapsulatedDocument) as document:
        said = "\n".join(page.get_textpage().get_text_bounded() for page in document)
        first = np.asarray(document[0].render(grayscale=True).to_numpy()).squeeze()
    assert {int(number) for number in re.findall(r"Part (\d+)", said)} == set(range(1, 41))
    assert 0.4 < (first < 64).any(axis=1).mean() < 0.7  # the picture is dark, the page is white


def test_series_are_told_apart(case: Case) -> None:
    """Two models, two series of one study, and all kinds: no number or description twice, and each
    description begins with the model's name."""
    models = find_models(MODELS)
    identities = [
        replace(case.found.origin, manifest=models[model]).identity(kind, source)
        for model in ("ct_lungs", "cxr_lungs")
        for kind in ResultKind
        for source in (Dataset(), _numbered(3), _numbered(4))
    ]
    assert len({one.series_number for one in identities}) == len(identities)
    assert len({one.series_description for one in identities}) == len(identities)
    for one in identities:
        assert one.series_description.startswith(("ct_lungs ", "cxr_lungs "))
        assert len(one.series_description) <= 64


def _numbered(series_number: int) -> Dataset:
    source = Dataset()
    source.SeriesNumber = series_number
    return source
