"""De-identify: every instance through the anonymizer; the crosswalk goes into the vault."""

from __future__ import annotations

from typing import Any

from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import OriginalIdentity
from anonymizer.errors import BurnedInText
from anonymizer.keys import PseudonymKeys
from anonymizer.options import Option
from anonymizer.profile import Policy
from anonymizer.sealed_crosswalk import seal_crosswalk
from anonymizer.series import Deidentifier
from node.errors import ReplacedSinceReview
from node.jobs import Done, Job
from node.pipeline.identity_errors import as_node_errors
from node.pipeline.pixel_review import (
    HeldImage,
    deidentified_as_released,
    examined,
    forget_review,
    held_for_review,
    refuse_too_many,
    released_review,
    store_review,
)
from node.pipeline.working_data import INSTANCES, RESULT_KEY, instances_folder
from node.ports import Artifacts, Instances, SealedRecords

_OPTION = (
    "Or let a person release such images in the console, with text blanked: "
    'options = ["clean-pixel-data", ...] of [deidentify].'
)


def deidentify(
    job: Job,
    *,
    instances: Instances,
    artifacts: Artifacts,
    vault: SealedRecords,
    policy: Policy,
    keys: PseudonymKeys,
    review_key: bytes,
) -> Done:
    """Write a bundle ``000001.dcm`` … below the job's folder, one for each received instance.

    The files are numbered in the order of Orthanc's ids, which says nothing. The crosswalk is
    sealed before the step is done: what reached the compute zone can always be led back.

    An image that is held for its pixels stops the job. Under the option ``clean-pixel-data`` what
    would have to be blanked is found first, for a person to look at; once a person has released
    it, such images go on with exactly that blanked.

    ``review_key`` (32 bytes) tells whether a held image is still the one that was examined,
    and whether what was found there is still what was written down.

    Facts
    -----
    ``study``: the pseudonymous Study Instance UID, under which the vault keeps the crosswalk.
    ``crosswalk``: the vault's record type that holds it.
    ``profile``: digest of the de-identification policy.
    ``epoch``: number of the pseudonym key.
    ``result_key``: what the UIDs of the results derive from; keyed, so that they lead nowhere. It
    is that of instances and model, so whoever asks for them gets the same objects.
    ``instances_digest``: the bundle of instances.
    ``images_released``: how many images a person has released, if any.

    Raises
    ------
    DamagedInstance, Rejected
        An instance cannot be de-identified, or the study's key was destroyed.
    IdentityUnsafe
        Pixels may show the patient, an identifier survived, or the vault cannot seal.
    ReplacedSinceReview
        An image that a person has released is another one now.
    """
    may_release = Option.CLEAN_PIXEL_DATA in policy.options
    released = released_review(job, artifacts, review_key) if may_release else None
    originals: list[OriginalIdentity] = []
    held: list[HeldImage] = []
    deidentifier = Deidentifier(policy, keys)
    with as_node_errors(), artifacts.writing(instances_folder(job.id)) as bundle:
        for number, (_, data) in enumerate(instances.fetch(job.instance_ids), start=1):
            try:
                made = deidentifier.deidentify(data)
            except BurnedInText as error:
                if not may_release:
                    raise BurnedInText(str(error), remedy=f"{error.remedy} {_OPTION}") from None
                if released is None:
                    held.append(examined(number, data, str(error), policy, keys, review_key))
                    refuse_too_many(held)
                    continue
                try:
                    made = deidentified_as_released(
                        number, data, released, policy, keys, review_key
                    )
                except ReplacedSinceReview:
                    forget_review(job, artifacts)
                    raise
            bundle.add(f"{number:06d}.dcm", made.data)
            originals.append(made.original)
        if held:
            raise held_for_review(store_review(job, held, artifacts, review_key))
        crosswalk = Crosswalk.collect(originals)
        sealed = seal_crosswalk(vault, crosswalk, epoch=keys.epoch)
    facts: dict[str, Any] = {
        "study": sealed.study,
        "crosswalk": sealed.record,
        "profile": crosswalk.profile_digest,
        "epoch": keys.epoch,
        # Once made it stays: a new epoch between two runs would make twins of the results.
        RESULT_KEY: job.facts.get(RESULT_KEY)
        or keys.keyed_hash("result", job.result_of.encode("ascii")),
        INSTANCES: bundle.digest,
    }
    if released is not None:
        facts["images_released"] = len(released.images)
    return Done(facts)
