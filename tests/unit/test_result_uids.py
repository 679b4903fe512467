"""UIDs of results: the same for the same job, and nothing that a guess could be tested by."""

from __future__ import annotations

import io
from pathlib import Path

from pydicom import dcmread

from anonymizer import PseudonymKeys
from node.kinds import ResultKind
from node.pipeline.outbound import Profile
from node.pipeline.working_data import RESULT_KEY
from node.results.uids import result_uid
from tests.journey import Journey
from tests.phantoms import ct_series


def test_a_result_uid_leads_to_nobody_and_a_rerun_makes_the_same(tmp_path: Path) -> None:
    """No UID derives from the job's key, which is a hash of hashes of PatientID and UIDs."""
    profile = Profile(kinds=(ResultKind.SEG, ResultKind.SR))
    journey = Journey(tmp_path, ct_series(slices=8, rows=48, columns=48), {"pacs": profile})
    journey.segmented()
    made = uids_of(journey.encoded())
    assert len(made) == 4
    job = journey.job
    testable = {
        result_uid(job.key, f"{kind}:{what}")
        for kind in ("seg", "sr")
        for what in ("series", "instance")
    }
    assert testable.isdisjoint(made)
    assert result_uid(job.facts[RESULT_KEY], "seg:instance") in made
    assert uids_of(journey.encoded()) == made


def uids_of(objects: dict[str, bytes]) -> set[str]:
    found = [dcmread(io.BytesIO(data)) for data in objects.values()]
    return {ds.SOPInstanceUID for ds in found} | {ds.SeriesInstanceUID for ds in found}


def test_a_keyed_hash_depends_on_secret_kind_and_data() -> None:
    """Two sites, two purposes, two images: nothing can be compared."""
    one, other = (PseudonymKeys.from_secret(bytes([n]) * 32) for n in (1, 2))
    hashes = {
        one.keyed_hash("a", b"x"),
        other.keyed_hash("a", b"x"),
        one.keyed_hash("b", b"x"),
        one.keyed_hash("a", b"y"),
    }
    assert len(hashes) == 4
    assert one.keyed_hash("a", b"x") in hashes
