"""SR, text, PDF, Secondary Capture and structure set: read back by programs that are not ours."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pypdfium2
import pytest
from matplotlib.path import Path as MatplotlibPath
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from node.imaging.volume import volume_from_series
from node.manifest import ModelManifest
from node.packages import find_models
from node.results.capture import FILL_OPACITY, encode_captures
from node.results.measurements import SegmentMeasurements, measure
from node.results.overlay import montage_png
from node.results.pdf import encode_pdf
from node.results.report import NOTICE
from node.results.rtstruct import encode_rtstruct
from node.results.seg import Algorithm, encode_seg
from node.results.sr import encode_sr
from node.results.text_sr import encode_text_sr
from node.results.uids import ResultIdentity
from node.sdk import LabelMap, Volume
from tests.phantoms import chest_truth, ct_series

MODELS = Path(__file__).resolve().parents[2] / "models"
WINDOW = (-1000.0, 400.0)
KINDS = ("sr", "text_sr", "pdf", "capture", "rtstruct")


@dataclass(frozen=True)
class Case:
    """One series with what was found in it."""

    volume: Volume
    labels: np.ndarray
    sources: list[Dataset]
    manifest: ModelManifest
    seg: Dataset
    measurements: list[SegmentMeasurements]

    def encoded(self, kind: str) -> list[Dataset]:
        common = (self.sources, self.manifest.segments, Algorithm.of(self.manifest), identity(kind))
        if kind == "sr":
            return [encode_sr(self.measurements, self.seg, *common)]
        if kind == "text_sr":
            return [encode_text_sr(self.measurements, *common)]
        if kind == "pdf":
            picture = montage_png(self.volume, self.labels, self.manifest)
            return [encode_pdf(picture, self.measurements, *common)]
        if kind == "rtstruct":
            return [encode_rtstruct(self.labels, *common)]
        return list(encode_captures(self.volume.array, self.labels, *common, window=WINDOW))


def identity(kind: str) -> ResultIdentity:
    return ResultIdentity.for_job(
        "a job's key",
        series_number=9001,
        series_description=f"ct_lungs {kind}",
        created=datetime(2026, 11, 3, 12, 30, 1),
        software_version="0.1.0",
        kind=kind,
    )


@pytest.fixture(scope="module")
def case() -> Case:
    series = ct_series()
    volume = volume_from_series(series)
    by_uid = {instance.SOPInstanceUID: instance for instance in series}
    sources = [by_uid[uid] for uid in volume.sop_instance_uids]
    labels = chest_truth(sources)
    labels[0] = 0  # a slice with nothing to show
    manifest = find_models(MODELS)["ct_lungs"]
    seg = encode_seg(labels, sources, manifest.segments, Algorithm.of(manifest), identity("seg"))
    found = measure(volume, LabelMap(labels, volume.sop_instance_uids), manifest.segments)
    return Case(volume, labels, sources, manifest, seg, found)


@pytest.fixture(scope="module")
def encoded(case: Case) -> Callable[[str], list[Dataset]]:
    made: dict[str, list[Dataset]] = {}

    def once(kind: str) -> list[Dataset]:
        if kind not in made:
            made[kind] = case.encoded(kind)
        return made[kind]

    return once


def part10(instance: Dataset) -> bytes:
    stream = BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(
    kind: str, encoded: Callable[[str], list[Dataset]], tmp_path: Path
) -> None:
    """dicom3tools knows each IOD and names what is missing or wrong in it."""
    path = tmp_path / "instance.dcm"
    path.write_bytes(part10(encoded(kind)[0]))
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60)
    assert "Error" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[0] in {
        "Comprehensive3DSR", "BasicTextSR", "EncapsulatedPDF", "SCImage", "RTStructureSet",
    }  # fmt: skip


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
    assert series not in (source.SeriesInstanceUID, case.seg.SeriesInstanceUID)
    assert len({one.SOPInstanceUID for one in instances}) == len(instances)


def test_sr_holds_the_numbers_and_points_at_the_segments(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Read by highdicom's own parser of TID 1500, which is what a machine would use."""
    report = hd.sr.Comprehensive3DSR.from_dataset(encoded("sr")[0])
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(case.measurements) == 2
    for group, found, item in zip(groups, case.measurements, case.seg.SegmentSequence, strict=True):
        assert group.tracking_uid == item.TrackingUID
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == case.seg.SOPInstanceUID
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
    assert named == {one.SOPInstanceUID for one in [*case.sources, case.seg]}


@pytest.mark.parametrize("kind", ["sr", "text_sr"])
def test_dcmtk_prints_the_report(
    kind: str, encoded: Callable[[str], list[Dataset]], tmp_path: Path
) -> None:
    """DCMTK parses the whole tree, which it refuses when a relationship is not allowed."""
    path = tmp_path / "report.dcm"
    path.write_bytes(part10(encoded(kind)[0]))
    command = ["/usr/bin/dsrdump", "+Pl", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "E:" not in done.stderr
    for said in ("Left lung", "Right lung"):
        assert said in done.stdout


def test_text_says_what_a_person_must_know(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """The notice, and each segment with its volume."""
    section = encoded("text_sr")[0].ContentSequence[0]
    said = "\n".join(item.TextValue for item in section.ContentSequence)
    assert NOTICE in said
    for segment, found in zip(case.manifest.segments, case.measurements, strict=True):
        assert f"{segment.label}: volume {found.volume_ml:,.1f} ml" in said


def test_pdf_is_a_page_with_text(case: Case, encoded: Callable[[str], list[Dataset]]) -> None:
    """PDFium, which is not what wrote it, finds the words on its one page."""
    with pypdfium2.PdfDocument(encoded("pdf")[0].EncapsulatedDocument) as document:
        (page,) = document
        said = page.get_textpage().get_text_bounded()
    for words in (NOTICE, "Left lung", f"volume {case.measurements[0].volume_ml:,.1f} ml"):
        assert words in said


def test_captures_lie_where_their_sources_lie(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Each slice with a segment has one picture, at its place, that names it as its source."""
    shown = [case.sources[i] for i in np.flatnonzero(case.labels.any(axis=(1, 2)))]
    for picture, source in zip(encoded("capture"), shown, strict=True):
        for keyword in (
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
            "FrameOfReferenceUID", "Rows", "Columns",
        ):  # fmt: skip
            assert picture[keyword].value == source[keyword].value, keyword
        (item,) = picture.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert picture.BurnedInAnnotation == "YES"


def test_anatomy_stays_visible_under_the_colour(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Inside a segment at most a fifth of a pixel is colour; outside nothing is."""
    index = len(case.labels) // 2
    (picture,) = [
        one for one in encoded("capture")
        if one.ImagePositionPatient == case.sources[index].ImagePositionPatient
    ]  # fmt: skip
    pixels = picture.pixel_array.astype(float)
    low, high = WINDOW
    grey = np.round(255 * np.clip((case.volume.array[index] - low) / (high - low), 0, 1))
    labels = case.labels[index]
    middle = slice(len(labels) * 2 // 5, len(labels) * 19 // 40)  # no text there
    outside = labels[middle] == 0
    assert np.array_equal(pixels[middle][outside], np.repeat(grey[middle][outside, None], 3, 1))
    for segment in case.manifest.segments:
        inner = np.zeros(labels.shape, bool)
        inner[middle] = _eroded(labels == segment.number)[middle]
        assert inner.any()
        expected = (1 - FILL_OPACITY) * grey[inner, None] + FILL_OPACITY * np.array(segment.rgb)
        assert np.abs(pixels[inner] - expected).max() <= 1


def test_contours_enclose_the_label_map(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Filled again by another library with the even-odd rule, the contours give the masks."""
    rows, columns = np.indices(case.labels.shape[1:])
    centres = np.c_[columns.ravel(), rows.ravel()]
    positions = {one.SOPInstanceUID: index for index, one in enumerate(case.sources)}
    to_index = np.linalg.inv(case.volume.affine)
    for roi in encoded("rtstruct")[0].ROIContourSequence:
        filled = np.zeros(case.labels.shape, bool)
        for contour in roi.ContourSequence:
            (reference,) = contour.ContourImageSequence
            index = positions[reference.ReferencedSOPInstanceUID]
            points_mm = np.reshape(np.asarray(contour.ContourData, float), (-1, 3))
            points = (np.c_[points_mm, np.ones(len(points_mm))] @ to_index.T)[:, :3]
            assert np.allclose(points[:, 0], index, atol=1e-3)
            outline = MatplotlibPath(points[:, [2, 1]])
            filled[index] ^= outline.contains_points(centres).reshape(rows.shape)
        assert np.array_equal(filled, case.labels == roi.ReferencedROINumber)


def _eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
