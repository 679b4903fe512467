"""Some of the trials of ``bench/faults.py``: nothing lost, nothing twice, nothing stuck.

A test that fails prints its seed; ``bench/faults.py --seed N --trials 1`` makes that trial alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS
from tests.faults.site import Site
from tests.faults.trial import Undisturbed, plan_of, run_trial
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
