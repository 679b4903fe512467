"""Every kind of result, and the page that explains a missing one: read back by programs that are
not ours."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pypdfium2
import pytest
from matplotlib.path import Path as MatplotlibPath
from PIL import Image
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from node.imaging.volume import volume_from_series
from node.kinds import ResultKind
from node.manifest import Segment
from node.packages import find_models
from node.results.capture import FILL_OPACITY
from node.results.explanation import EXPLAINING, explanation
from node.results.measurements import measure
from node.results.objects import Found, Origin
from node.results.report import NOTICE
from node.results.rtstruct import contours_of
from node.sdk import LabelMap, Volume
from tests.phantoms import chest_truth, ct_series

MODELS = Path(__file__).resolve().parents[2] / "models"
WINDOW = (-1000.0, 400.0)
EXPLAINED = [f"explained by {kind}" for kind in EXPLAINING]
KINDS = [*ResultKind, *EXPLAINED]
#: What dicom3tools calls each.
IODS = {
    ResultKind.SEG: "Segmentation",
    ResultKind.SR: "Comprehensive3DSR",
    ResultKind.TEXT_SR: "BasicTextSR",
    ResultKind.PDF: "EncapsulatedPDF",
    ResultKind.CAPTURE: "SCImage",
    ResultKind.RTSTRUCT: "RTStructureSet",
}
REASON = {"cause": "There are 2 slices; ct_lungs needs 10 or more", "remedy": "Send the series."}


@dataclass(frozen=True)
class Case:
    """One series with what was found in it."""

    volume: Volume
    found: Found

    @property
    def labels(self) -> np.ndarray:
        return self.found.labels

    @property
    def sources(self) -> Sequence[Dataset]:
        return self.found.sources

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.found.origin.manifest.segments

    def encoded(self, kind: str) -> list[Dataset]:
        if kind in EXPLAINED:
            explaining = ResultKind(kind.removeprefix("explained by "))
            return [explanation(explaining, REASON, self.sources, self.found.origin)]
        return list(replace(self.found).encoded(ResultKind(kind)))  # a copy: nothing is cached


@pytest.fixture(scope="module")
def case() -> Case:
    series = ct_series()
    for instance in series:
        instance.SeriesNumber, instance.InstanceNumber = 3, instance.InstanceNumber + 200
    volume = volume_from_series(series)
    by_uid = {instance.SOPInstanceUID: instance for instance in series}
    sources = [by_uid[uid] for uid in volume.sop_instance_uids]
    labels = chest_truth(sources)
    labels[0] = 0  # a slice with nothing to show
    manifest = find_models(MODELS)["ct_lungs"]
    measured = measure(volume, LabelMap(labels, volume.sop_instance_uids), manifest.segments)
    origin = Origin("a job's key", datetime(2026, 11, 3, 12, 30, 1), "0.1.0", manifest)
    return Case(volume, Found(origin, labels, sources, measured))


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
    assert done.stderr.splitlines()[0] == IODS[ResultKind(kind.removeprefix("explained by "))]


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


def test_captures_lie_where_their_sources_lie(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Each slice with a segment has one picture, at its place and with its number, that names it
    as its source."""
    shown = [case.sources[i] for i in np.flatnonzero(case.labels.any(axis=(1, 2)))]
    for picture, source in zip(encoded("capture"), shown, strict=True):
        for keyword in (
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
            "FrameOfReferenceUID", "Rows", "Columns", "InstanceNumber",
        ):  # fmt: skip
            assert picture[keyword].value == source[keyword].value, keyword
        (item,) = picture.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert picture.BurnedInAnnotation == "YES"


def test_pictures_of_sources_with_the_same_number_are_counted(case: Case) -> None:
    """A series whose images all say 1 still has pictures in order."""
    sources = deepcopy(case.sources)
    for source in sources:
        source.InstanceNumber = 1
    pictures = replace(case.found, sources=sources).encoded(ResultKind.CAPTURE)
    shown = np.flatnonzero(case.labels.any(axis=(1, 2))) + 1
    assert [picture.InstanceNumber for picture in pictures] == shown.tolist()


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
    for segment in case.segments:
        inner = np.zeros(labels.shape, bool)
        inner[middle] = _eroded(labels == segment.number)[middle]
        assert inner.any()
        expected = (1 - FILL_OPACITY) * grey[inner, None] + FILL_OPACITY * np.array(segment.rgb)
        assert np.abs(pixels[inner] - expected).max() <= 1


def test_contours_enclose_the_label_map(
    case: Case, encoded: Callable[[str], list[Dataset]]
) -> None:
    """Filled again by another library, the contours give the masks."""
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
            filled[index] |= outline.contains_points(centres).reshape(rows.shape)
        assert np.array_equal(filled, case.labels == roi.ReferencedROINumber)


def test_a_hole_is_not_filled_by_a_reader_that_knows_no_holes() -> None:
    """A ring with an island in it and a second hole: every contour filled, the union is the mask.

    PS3.3 C.8.8.6.3 lets no CLOSED_PLANAR contour cut another out: holes are keyholes.
    """
    mask = np.zeros((40, 50), bool)
    mask[5:30, 5:30] = True
    mask[8:20, 8:20] = mask[22:28, 9:26] = mask[21:27, 21:23] = False
    mask[11:16, 11:16] = True  # the island
    mask[33:38, 2:48] = True
    mask[::7, 33:48] = True
    rows, columns = np.indices(mask.shape)
    centres = np.c_[rows.ravel(), columns.ravel()]
    filled = np.zeros(mask.shape, bool)
    contours = list(contours_of(mask))
    for outline in contours:
        inside = MatplotlibPath(outline).contains_points(centres).reshape(mask.shape)
        assert not (filled & inside).any()
        filled |= inside
    assert np.array_equal(filled, mask)


def _with_labels(case: Case, labels: np.ndarray, segments: Sequence[Segment]) -> Found:
    manifest = case.found.origin.manifest.model_copy(update={"segments": tuple(segments)})
    measured = measure(case.volume, LabelMap(labels, case.volume.sop_instance_uids), segments)
    return Found(replace(case.found.origin, manifest=manifest), labels, case.sources, measured)


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


@pytest.fixture(scope="module")
def many(case: Case) -> Found:
    """Forty segments, side by side in every slice."""
    segments = [
        case.segments[0].model_copy(
            update={"number": number, "label": f"Part {number}", "rgb": (255, 0, 255)}
        )
        for number in range(1, 41)
    ]
    labels = np.zeros_like(case.labels)
    for segment in segments:
        labels[:, 5:30, segment.number] = segment.number
    return _with_labels(case, labels, segments)


def test_forty_segments_leave_the_picture_half_a_page(many: Found) -> None:
    """The table goes on overleaf, and loses no row."""
    (made,) = many.encoded(ResultKind.PDF)
    with pypdfium2.PdfDocument(made.EncapsulatedDocument) as document:
        said = "\n".join(page.get_textpage().get_text_bounded() for page in document)
        first = np.asarray(document[0].render(grayscale=True).to_numpy()).squeeze()
    assert all(f"Part {number}\r\n" in said for number in range(1, 41))
    assert 0.4 < (first < 64).any(axis=1).mean() < 0.7  # the picture is dark, the page is white


def test_forty_segments_leave_the_notice_readable(many: Found) -> None:
    """No label is drawn over the lines at the bottom."""
    picture = next(many.encoded(ResultKind.CAPTURE)).pixel_array
    bottom = picture[-3 * 11 - 4 :]
    assert not (bottom == (255, 0, 255)).all(axis=-1).any()


def test_a_picture_names_only_what_it_shows(case: Case) -> None:
    """The colour of a segment that lies elsewhere is nowhere on the picture."""
    labels = case.labels.copy()
    labels[labels == 2] = 0
    labels[-1][5:9, 5:9] = 2
    found = _with_labels(case, labels, case.segments)
    first = next(found.encoded(ResultKind.CAPTURE)).pixel_array
    left, right = ((first == segment.rgb).all(axis=-1).any() for segment in case.segments)
    assert (left, right) == (True, False)


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


def _eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
