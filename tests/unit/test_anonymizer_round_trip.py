"""Objects that come in beside the images, there and back: same references, same shape."""

from __future__ import annotations

import functools
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from anonymizer import (
    Crosswalk,
    PseudonymKeys,
    basic_policy,
    deidentify_instance,
    reidentify_object,
)
from anonymizer.errors import BurnedInText, Unsupported
from anonymizer.profile import patient_study_attributes
from anonymizer.uids import pseudonymous_uid
from tests.derived_objects import MAKERS, measurement_report, saved, segmentation_dataset
from tests.identified_ct import ct_instance, part10
from tests.part10 import errors_of

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
SHARED = Path(__file__).parents[3] / "shared" / "data"
# Pictures and documents are held; floating point maps have no table of Types.
HELD = {"SC": BurnedInText, "PDF": BurnedInText, "parametric map": Unsupported}
KINDS = [kind for kind in MAKERS if kind not in HELD]
REAL = [
    *sorted(SHARED.glob("seg_sr_highdicom/sr_document*.dcm")),
    *sorted(SHARED.glob("seg_sr_highdicom/seg_image_c*.dcm")),
    *sorted(SHARED.glob("seg_sr_dcmqi/*/s*.dcm")),
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def read(data: bytes) -> Dataset:
    """As pydicom reads it."""
    return pydicom.dcmread(io.BytesIO(data))


@functools.cache
def original(kind: str) -> bytes:
    """An object of this kind as the hospital's own programs make it, in UTF-8."""
    sources = []
    for number in (1, 2, 3):
        image = ct_instance(number, charset="ISO_IR 192", name="Müller^Jürgen=山田")
        sources.append(read(part10(image)))
    with tempfile.TemporaryDirectory() as folder:
        return MAKERS[kind](sources, Path(folder))


def there_and_back(data: bytes) -> tuple[Dataset, Dataset]:
    """The object de-identified, and that re-identified."""
    result = deidentify_instance(data, basic_policy(), KEYS)
    crosswalk = Crosswalk.from_bytes(Crosswalk.collect([result.original]).to_bytes())
    return read(result.data), read(reidentify_object(result.data, crosswalk))


def uids(ds: Dataset, path: str = "") -> Iterator[tuple[str, str]]:
    """Where each UID stands, items counted, and which it is."""
    for element in ds:
        place = f"{path}/{element.keyword}"
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from uids(item, f"{place}[{number}]")
        elif element.VR == "UI" and element.value:
            yield place, str(element.value)


def tree(ds: Dataset) -> list[object]:
    """The content tree of a report: relation and type of each node, in order."""
    return [
        (node.get("RelationshipType"), node.ValueType, tree(node))
        for node in ds.get("ContentSequence", [])
    ]


def concepts(ds: Dataset) -> list[tuple[str, str]]:
    """What the nodes of a report are about, in order: scheme and code of each."""
    return [
        (item.CodingSchemeDesignator, item.CodeValue)
        for element in ds.iterall()
        if element.keyword == "ConceptNameCodeSequence"
        for item in element.value
    ]


def check_round_trip(data: bytes) -> None:
    """References return, none is lost on the way there, the tree keeps its shape."""
    before = read(data)
    away, back = there_and_back(data)
    there = dict(uids(away))
    assert dict(uids(back)) == {place: dict(uids(before))[place] for place in there}
    lost = {place for place, _ in uids(before) if place not in there}
    assert not {place for place in lost if "ReferencedSOPInstanceUID" in place}
    assert len(there) > 8
    for place, uid in uids(before):
        if place.endswith("ReferencedSOPInstanceUID"):
            assert there[place] == pseudonymous_uid(uid, KEYS.uid)
    assert tree(away) == tree(back) == tree(before)
    assert concepts(away) == concepts(back)
    for there_code, code in zip(concepts(away), concepts(before), strict=True):
        assert there_code == code or code[0].startswith("99")  # of a local scheme: unknown
    for tag in patient_study_attributes():
        assert str(back.get(tag, "")) == str(before.get(tag, "")) or not before.get(tag), hex(tag)
    assert back.file_meta.MediaStorageSOPInstanceUID == back.SOPInstanceUID == before.SOPInstanceUID


@pytest.mark.parametrize("kind", KINDS)
def test_object_of_this_kind_goes_there_and_back(kind: str) -> None:
    """A report, structure set, presentation state, selection or segmentation of these CT."""
    check_round_trip(original(kind))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_object_of_another_library_goes_there_and_back(path: Path) -> None:
    """What highdicom's and dcmqi's own test data hold."""
    check_round_trip(path.read_bytes())


def test_real_objects_are_there_to_be_tried() -> None:
    """The list above is not empty where the data are."""
    assert not SHARED.is_dir() or len(REAL) >= 8


@pytest.mark.parametrize("kind", HELD)
def test_pictures_and_documents_do_not_leave(kind: str) -> None:
    """What may show the patient, or has no rules, is not de-identified."""
    with pytest.raises(HELD[kind]):
        deidentify_instance(original(kind), basic_policy(), KEYS)


def test_report_and_segmentation_share_their_finding_there_and_back() -> None:
    """The SR's UIDREF is the SEG's TrackingUID before, outside and after."""
    sources = [read(part10(ct_instance(number))) for number in (1, 2, 3)]
    segment = segmentation_dataset(sources)
    report = measurement_report(sources, Path(), segment)
    segments = [segment, *there_and_back(saved(segment))]
    reports = [read(report), *there_and_back(report)]
    found = set()
    for seg, sr in zip(segments, reports, strict=True):
        tracking = seg.SegmentSequence[0].TrackingUID
        assert tracking in [element.value for element in sr.iterall() if element.keyword == "UID"]
        found.add(str(tracking))
    assert len(found) == 2


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
@pytest.mark.parametrize("kind", KINDS)
def test_going_there_and_back_adds_no_error(kind: str, tmp_path: Path) -> None:
    """dciodvfy finds nothing in either that the original did not have."""
    file = tmp_path / "checked.dcm"
    file.write_bytes(original(kind))
    before = errors_of(file)
    for ds in there_and_back(original(kind)):
        file.write_bytes(saved(ds))
        assert errors_of(file) - before == set()
