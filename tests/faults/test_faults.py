"""Some of the trials of ``bench/faults.py``: nothing lost, nothing twice, nothing stuck.

A test that fails prints its seed; ``bench/faults.py --seed N --trials 1`` makes that trial alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from tests.faults.archive import Kept
from tests.faults.catalogue import FAULTS
from tests.faults.site import Site
from tests.faults.trial import Undisturbed, judged, plan_of, run_trial, wait_for_end
from tests.orthanc_server import require_orthanc

#: A seed for each; all faults are the business of bench/faults.py.
SHORT = (
    "kill orthanc",
    "kill redis, old memory",
    "kill hospital pool child",
    "kill everything",
    "cut connection",
    "status 0xA700",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Undisturbed]]:
    """One hospital for all trials, warmed up by one that nothing disturbs."""
    require_orthanc()
    folder = tmp_path_factory.mktemp("faults")
    with Site(folder, small_disks=False, clock=False) as running:
        undisturbed = Undisturbed()
        outcome = run_trial(running, plan_of(1, ["none"]), folder / "warm-up", undisturbed)
        assert outcome.all_problems == []
        yield running, undisturbed


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_doubled_or_stuck_when(
    fault: str, site: tuple[Site, Undisturbed], tmp_path: Path
) -> None:
    """Every acknowledged study ends confirmed, its result once at each PACS, as if undisturbed."""
    running, undisturbed = site
    seed = list(FAULTS).index(fault)
    outcome = run_trial(running, plan_of(seed), tmp_path / "trial", undisturbed)
    assert outcome.fault == fault
    assert outcome.all_problems == [], f"bench/faults.py --seed {seed} --trials 1"


def test_the_verdict_sees_what_is_missing_doubled_altered_or_lost(
    site: tuple[Site, Undisturbed], tmp_path: Path
) -> None:
    """The trials could fail: each thing that may not be is found when it is made by hand."""
    running, _ = site
    sent = running.study(tmp_path / "study", "ARCHIVE", 0)
    assert judged(running, sent).problems == ["lost: acknowledged, and there is no job"]
    assert running.send(sent)
    wait_for_end(running, [sent])
    assert judged(running, sent).problems == []

    kept = running.archive.kept
    [uid] = running.archive.of_study(sent.study.study_instance_uid)
    original = kept.pop(uid)
    assert "does not hold 1" in judged(running, sent).problems[0]

    altered = copy.deepcopy(original.dataset)
    altered.PixelData = bytes(len(altered.PixelData))
    kept[uid] = Kept(altered)
    assert "not that of these images" in judged(running, sent).problems[0]

    kept[uid] = original
    twin = copy.deepcopy(original.dataset)
    twin.SOPInstanceUID = generate_uid()
    kept[twin.SOPInstanceUID] = Kept(twin)
    assert "no job has made" in judged(running, sent).problems[0]
    del kept[twin.SOPInstanceUID]
    assert judged(running, sent).problems == []
