"""What a person looks at before images that may show the patient are released.

An image is held because of its pixels. Where the site has chosen ``clean-pixel-data``, step
``deidentify`` finds what would have to be blanked and writes it down: rectangles, the rule that
wants each, and whether text would still be legible. No pixel and no word of it is kept. The console
draws the pictures from Orthanc's copy. A person releases exactly what was shown, by its digest.
The compute zone can write where it is kept, so it is sealed: what somebody else has written there,
as fewer frames to look at, is no review.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from anonymizer.deidentify import DeidentifiedInstance
from anonymizer.errors import AnonymizerError, BurnedInText, OcrUnavailable
from anonymizer.keys import PseudonymKeys
from anonymizer.pixel_cleaning import Region, deidentify_blanked, find_regions, preview_png
from anonymizer.profile import Policy
from node.errors import IdentityUnsafe, ReplacedSinceReview
from node.jobs import Job
from node.ports import Artifacts

#: More pictures than a person will look at one by one.
MAX_PICTURES = 64
#: The fact that holds the digest of the review that a person has released.
RELEASED = "released"
_SEAL_LENGTH = 65
_STILL_LEGIBLE = "Text can still be read after everything that was found is blanked"


@dataclass(frozen=True)
class HeldImage:
    """One image that is held, and what blanking would do to it."""

    number: int
    """Its place among the job's instances, from 1: Orthanc's ids stay out of the artifacts."""
    reason: str
    """Why it is held."""
    problem: str
    """Why it may not even leave blanked; empty if it may."""
    frames: int
    regions: tuple[Region, ...]
    mark: str
    """Keyed hash of the instance as it was examined: another under its UID is another image."""


@dataclass(frozen=True)
class Review:
    """All held images of one job, in the order of the job's instances."""

    images: tuple[HeldImage, ...]

    @property
    def releasable(self) -> bool:
        """Whether a person may release all of them."""
        return not any(image.problem for image in self.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in it: what a person has seen and nothing else is released."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """JSON that :meth:`from_bytes` reads."""
        return json.dumps([asdict(image) for image in self.images], sort_keys=True).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Review:
        """The review that :meth:`to_bytes` wrote."""
        return cls(tuple(_held_image(plain) for plain in json.loads(data)))


def examined(
    number: int, data: bytes, reason: str, policy: Policy, keys: PseudonymKeys, review_key: bytes
) -> HeldImage:
    """What to blank in a held image, tried out: its problem is what would still hold it.

    ``review_key`` makes the image's mark.

    Raises
    ------
    OcrUnavailable
        tesseract is not installed.
    """
    image = HeldImage(number, reason, "", 1, (), mark_of(data, review_key))
    try:
        findings = find_regions(data)
        image = replace(image, frames=findings.frames, regions=findings.regions)
        deidentify_blanked(data, findings.regions, policy, keys)
    except OcrUnavailable:
        raise
    except AnonymizerError as error:
        return replace(image, problem=str(error))
    return replace(image, problem=_STILL_LEGIBLE if findings.still_legible else "")


def mark_of(data: bytes, review_key: bytes) -> str:
    """HMAC-SHA256 of an instance, every byte of it: keyed, because the compute zone reads it."""
    return hmac.new(review_key, data, hashlib.sha256).hexdigest()


def refuse_too_many(images: Sequence[HeldImage]) -> None:
    """Raise IdentityUnsafe if nobody would look at so many pictures."""
    if sum(image.frames for image in images) > MAX_PICTURES:
        raise IdentityUnsafe(
            f"The pixels may show the patient's identity in more than {MAX_PICTURES} pictures, too "
            f"many to look at: {images[0].reason}",
            remedy="If no identifying text is in them, set Burned In Annotation (0028,0301) to NO "
            "at the source and send the series again.",
        )


def forget_review(job: Job, artifacts: Artifacts) -> None:
    """The next run examines every held image anew, and a person looks again."""
    artifacts.delete(_name(job))


def store_review(
    job: Job, images: Iterable[HeldImage], artifacts: Artifacts, review_key: bytes
) -> Review:
    """Write down what a person has to look at."""
    review = Review(tuple(images))
    data = review.to_bytes()
    artifacts.put(_name(job), _seal(job, data, review_key) + data)
    return review


def read_review(job: Job, artifacts: Artifacts, review_key: bytes) -> Review | None:
    """What a person has to look at before the job goes on, if it waits for that.

    One that was damaged or altered is none: retried, the job is examined again.
    """
    try:
        stored = artifacts.get(_name(job))
    except KeyError:
        return None
    seal, data = stored[:_SEAL_LENGTH], stored[_SEAL_LENGTH:]
    if not hmac.compare_digest(seal, _seal(job, data, review_key)):
        return None
    return Review.from_bytes(data)


def released_review(job: Job, artifacts: Artifacts, review_key: bytes) -> Review | None:
    """The review that a person has released for this job, if it is still the same."""
    review = read_review(job, artifacts, review_key)
    if review is None or not review.releasable or job.facts.get(RELEASED) != review.digest:
        return None
    return review


def deidentified_as_released(
    number: int,
    data: bytes,
    review: Review,
    policy: Policy,
    keys: PseudonymKeys,
    review_key: bytes,
) -> DeidentifiedInstance:
    """The de-identified instance with the regions blanked that a person has seen.

    Raises
    ------
    ReplacedSinceReview
        The instance is not the one that was examined.
    BurnedInText
        It was not held then.
    """
    for image in review.images:
        if image.number == number:
            refuse_replaced(image, data, review_key)
            return deidentify_blanked(data, image.regions, policy, keys)
    raise BurnedInText("The image is not among those that a person has released")


def refuse_replaced(image: HeldImage, data: bytes, review_key: bytes) -> None:
    """Raise ReplacedSinceReview unless ``data`` is the instance that was examined."""
    if not hmac.compare_digest(image.mark, mark_of(data, review_key)):
        raise ReplacedSinceReview("An image is not the one that was examined: Orthanc has another")


def picture_of(image: HeldImage, data: bytes, frame: int, review_key: bytes) -> bytes:
    """PNG of one frame as it would leave, regions outlined; IndexError if there is no such frame.

    Raises
    ------
    ReplacedSinceReview
        The instance is not the one that was examined.
    IdentityUnsafe
        There is nothing that may be shown: the pixels cannot be decoded or blanked.
    """
    refuse_replaced(image, data, review_key)
    try:
        return preview_png(data, image.regions, frame)
    except AnonymizerError as error:
        raise IdentityUnsafe(str(error), remedy=error.remedy) from None


def held_for_review(review: Review) -> IdentityUnsafe:
    """What stops the job until a person has looked."""
    count = len(review.images)
    images = "1 image" if count == 1 else f"{count} images"
    stuck = sum(bool(image.problem) for image in review.images)
    if stuck:
        return IdentityUnsafe(
            f"The pixels of {images} may show the patient's identity; {stuck} of them cannot be "
            "released even with text blanked",
            remedy="See Details for each; if no identifying text is in them, set Burned In "
            "Annotation (0028,0301) to NO at the source and send them again.",
        )
    return IdentityUnsafe(
        f"The pixels of {images} may show the patient's identity: a person has to look",
        remedy="Look at the pictures under Details; release them with what is outlined blanked, "
        "or leave them here.",
    )


def _held_image(plain: Mapping[str, Any]) -> HeldImage:
    regions = tuple(Region(**region) for region in plain["regions"])
    return HeldImage(**{**plain, "regions": regions})


def _seal(job: Job, data: bytes, review_key: bytes) -> bytes:
    """A line of its own before the review, of this job and no other."""
    message = f"review of {job.id}\n".encode() + data
    return hmac.new(review_key, message, hashlib.sha256).hexdigest().encode() + b"\n"


def _name(job: Job) -> str:
    return f"{job.id}/review.json"
