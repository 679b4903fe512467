"""Images held for their pixels: what a person is shown, and what a release lets through."""

from __future__ import annotations

import io
import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    VLPhotographicImageStorage,
)

from anonymizer import FolderRecords, Keyring, Policy, PseudonymKeys, Vault
from anonymizer.options import Option
from anonymizer.pixel_cleaning import BY_IDENTIFIER
from anonymizer.profile import profile_with
from node.edges.artifacts import FolderArtifacts
from node.errors import IdentityUnsafe, ReplacedSinceReview
from node.jobs import Done, Job
from node.pipeline.deidentify import deidentify
from node.pipeline.pixel_review import RELEASED, picture_of, read_review
from node.process import FolderInstances
from tests.identified_ct import SECRETS, ct_instance, part10
from tests.unit.test_anonymizer_pixel_cleaning import drawn_image

KEYS = PseudonymKeys.from_secret(bytes(range(32)))
REVIEW_KEY = bytes(range(32, 64))
CLOSED = profile_with(frozenset({Option.RETAIN_MODIFIED_DATES}))
OPEN = profile_with(frozenset({Option.RETAIN_MODIFIED_DATES, Option.CLEAN_PIXEL_DATA}))
TEXT = "FEATHERSTONE QUILLON"


@dataclass
class Bench:
    """Step ``deidentify`` with a folder of instances, a real vault and real artifacts."""

    folder: Path
    instances: FolderInstances = field(init=False)
    artifacts: FolderArtifacts = field(init=False)
    vault: Vault = field(init=False)
    job: Job = field(init=False)

    def receive(self, *datasets: Dataset) -> None:
        received = self.folder / "received"
        received.mkdir()
        for number, ds in enumerate(datasets):
            (received / f"{number}.dcm").write_bytes(part10(ds))
        self.instances = FolderInstances.scan(received)
        [series] = self.instances.series
        self.artifacts = FolderArtifacts(self.folder / "artifacts")
        self.vault = Vault(FolderRecords(self.folder / "vault"), Keyring("1", {"1": bytes(32)}))
        ids = self.instances.instances_of_series(series)
        self.job = Job("job", series, "study", ids, created_at=time.time())

    def run(self, policy: Policy) -> Done:
        return deidentify(
            self.job, instances=self.instances, artifacts=self.artifacts, vault=self.vault,
            policy=policy, keys=KEYS, review_key=REVIEW_KEY,
        )  # fmt: skip

    def replace(self, ds: Dataset) -> None:
        """A person deletes the first instance and sends another under the same UIDs."""
        (self.folder / "received" / "0.dcm").write_bytes(part10(ds))

    def release(self) -> str:
        """What the console does for a person."""
        review = read_review(self.job, self.artifacts, REVIEW_KEY)
        assert review is not None
        self.job = replace(self.job, facts={RELEASED: review.digest})
        return review.digest

    def outputs(self) -> list[Dataset]:
        names = self.artifacts.names("job/instances/")
        files = [self.artifacts.get(name) for name in names if name.endswith(".dcm")]
        return [pydicom.dcmread(io.BytesIO(file)) for file in files]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_without_the_option_nothing_is_looked_for(bench: Bench) -> None:
    """Held as ever; the remedy names the option."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe, match="pixels may show") as held:
        bench.run(CLOSED)
    assert "clean-pixel-data" in held.value.remedy
    assert read_review(bench.job, bench.artifacts, REVIEW_KEY) is None


def test_a_held_image_is_shown_as_it_would_leave(bench: Bench) -> None:
    """The review says where the name stands and by which rule, never the name; nothing leaves."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe, match="a person has to look"):
        bench.run(OPEN)
    assert bench.outputs() == []
    review = read_review(bench.job, bench.artifacts, REVIEW_KEY)
    assert review is not None
    assert review.releasable
    [image] = review.images
    assert "Image Type (0008,0008)" in image.reason
    [region] = image.regions
    assert region.rule == BY_IDENTIFIER
    stored = b"".join(
        path.read_bytes() for path in (bench.folder / "artifacts").rglob("*") if path.is_file()
    )
    private = "|".join((*SECRETS, TEXT, *bench.job.instance_ids))
    assert not re.search(private.encode(), stored, re.IGNORECASE)
    [(_, data)] = bench.instances.fetch(bench.job.instance_ids)
    shown = np.asarray(Image.open(io.BytesIO(picture_of(image, data, 0, REVIEW_KEY))))
    inside = shown[region.top : region.bottom, region.left : region.right]
    assert not (inside > 240).all(axis=-1).any()


def test_what_a_person_released_goes_on_blanked(bench: Bench) -> None:
    """Only the image that was held is changed and claims it; the way back leads to the original."""
    plain = ct_instance(7, size=16)
    bench.receive(drawn_image(), plain)
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    bench.release()
    done = bench.run(OPEN)
    assert done.facts["images_released"] == 1
    drawn, other = sorted(bench.outputs(), key=lambda ds: -ds.Rows)
    assert not (drawn.pixel_array == 255).any()
    claims = [
        {item.CodeValue for item in ds.DeidentificationMethodCodeSequence} for ds in (drawn, other)
    ]
    assert ["113101" in claimed for claimed in claims] == [True, False]
    assert drawn.BurnedInAnnotation == "NO"
    assert (other.pixel_array == plain.pixel_array).all()


def test_an_image_without_text_needs_a_person_too(bench: Bench) -> None:
    """OCR finding nothing releases nothing; a person who has looked may, and no pixel changes."""
    ds = ct_instance(SOPClassUID=ComputedRadiographyImageStorage, size=64)
    bench.receive(ds)
    with pytest.raises(IdentityUnsafe, match="a person has to look"):
        bench.run(OPEN)
    bench.release()
    bench.run(OPEN)
    [out] = bench.outputs()
    assert (out.pixel_array == ds.pixel_array).all()


@pytest.mark.parametrize("forged", ["", "0" * 64])
def test_another_digest_releases_nothing(bench: Bench, forged: str) -> None:
    """The job is held again with the same review."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    before = bench.release()
    bench.job = replace(bench.job, facts={RELEASED: forged})
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    assert bench.release() == before


def test_a_review_that_was_altered_is_none(bench: Bench) -> None:
    """The artifact store is the compute zone's too: it may alter it before a person looks, who
    would release frames that nobody has seen, or after."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    bench.release()
    stored = bench.artifacts.get("job/review.json")
    for found, forged in (
        (rb'"problem": ""', b'"problem": "none"'),
        (rb'"frames": 1', b'"frames": 0'),
        (rb'"regions": \[[^]]*\]', b'"regions": []'),
    ):
        altered = re.sub(found, forged, stored)
        assert altered != stored
        bench.artifacts.put("job/review.json", altered)
        assert read_review(bench.job, bench.artifacts, REVIEW_KEY) is None
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    assert bench.outputs() == []
    assert bench.artifacts.get("job/review.json") == stored
    bench.artifacts.put("other/review.json", stored)
    assert read_review(replace(bench.job, id="other"), bench.artifacts, REVIEW_KEY) is None


@pytest.mark.parametrize("left", [b"", b"{", b"[]x", b"[1]", b'[{"number": 1}]'])
def test_a_review_that_was_damaged_is_made_again(bench: Bench, left: bytes) -> None:
    """A power loss or a bad disk: nothing is released, and no defect of ours is reported."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    bench.release()
    stored = bench.artifacts.get("job/review.json")
    bench.artifacts.put("job/review.json", left)
    assert read_review(bench.job, bench.artifacts, REVIEW_KEY) is None
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    assert bench.artifacts.get("job/review.json") == stored


def test_a_release_counts_only_while_the_option_is_chosen(bench: Bench) -> None:
    """A site that takes the option back is held again."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    bench.release()
    with pytest.raises(IdentityUnsafe, match="pixels may show"):
        bench.run(CLOSED)


def test_pixels_that_came_after_the_release_do_not_leave(bench: Bench) -> None:
    """Same UIDs, so the same ids in Orthanc, and text elsewhere: somebody has to look again."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    before = bench.release()
    other = drawn_image()
    other.PixelData = np.flipud(other.pixel_array).tobytes()
    bench.replace(other)
    with pytest.raises(ReplacedSinceReview, match="not the one that was examined"):
        bench.run(OPEN)
    assert bench.outputs() == []
    with pytest.raises(IdentityUnsafe, match="a person has to look"):  # it is retried
        bench.run(OPEN)
    assert bench.release() != before
    bench.run(OPEN)
    [out] = bench.outputs()
    assert not (out.pixel_array == 255).any()


def test_a_picture_is_shown_of_what_was_examined_only(bench: Bench) -> None:
    """Old rectangles over new text are no picture of how it would leave."""
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    review = read_review(bench.job, bench.artifacts, REVIEW_KEY)
    assert review is not None
    with pytest.raises(ReplacedSinceReview):
        picture_of(review.images[0], part10(drawn_image(KVP="80")), 0, REVIEW_KEY)


@pytest.mark.parametrize("kind", [SecondaryCaptureImageStorage, UltrasoundImageStorage])
def test_a_kind_that_is_drawn_goes_on_blanked_once_a_person_released_it(
    bench: Bench, kind: str
) -> None:
    """A capture or ultrasound leaves as it was shown, and not before."""
    bench.receive(drawn_image(SOPClassUID=kind, ConversionType="WSD"))
    with pytest.raises(IdentityUnsafe, match="a person has to look"):
        bench.run(OPEN)
    assert bench.outputs() == []
    bench.release()
    bench.run(OPEN)
    [out] = bench.outputs()
    assert out.SOPClassUID == kind
    assert not (out.pixel_array == 255).any()


def test_a_photograph_is_shown_and_not_released(bench: Bench) -> None:
    """Blanking text leaves a face; the review says so."""
    bench.receive(drawn_image(SOPClassUID=VLPhotographicImageStorage))
    with pytest.raises(IdentityUnsafe, match="cannot be released"):
        bench.run(OPEN)
    review = read_review(bench.job, bench.artifacts, REVIEW_KEY)
    assert review is not None
    assert not review.releasable
    assert "leaves a face" in review.images[0].problem
    bench.release()
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)


def test_missing_tesseract_holds_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No OCR, no review, no release; the remedy names the package."""
    bench.receive(drawn_image())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(IdentityUnsafe, match="tesseract") as held:
        bench.run(OPEN)
    assert "tesseract-ocr" in held.value.remedy
    assert read_review(bench.job, bench.artifacts, REVIEW_KEY) is None


def test_a_tesseract_that_crashes_leaves_nothing_to_release(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is there, with the problem instead of a way out."""
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe, match="cannot be released"):
        bench.run(OPEN)
    review = read_review(bench.job, bench.artifacts, REVIEW_KEY)
    assert review is not None
    assert "tesseract" in review.images[0].problem


def test_tesseract_is_told_no_secret(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site may keep its keys in the environment: a program that reads pictures needs none."""
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SEGNODE_VAULT_KEY", "sentinel")
    bench.receive(drawn_image())
    with pytest.raises(IdentityUnsafe):
        bench.run(OPEN)
    seen = (tmp_path / "seen").read_text()
    assert "OMP_THREAD_LIMIT=1" in seen
    assert "sentinel" not in seen


def test_more_pictures_than_anyone_looks_at_are_not_offered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The series is held without a review, and the remedy is at its source."""
    monkeypatch.setattr("node.pipeline.pixel_review.MAX_PICTURES", 1)
    bench.receive(drawn_image(), drawn_image(SOPInstanceUID="1.2.3"))
    with pytest.raises(IdentityUnsafe, match="too many to look at"):
        bench.run(OPEN)
    assert read_review(bench.job, bench.artifacts, REVIEW_KEY) is None
