"""A slice that rots in the artifact store costs time; the result is made of Orthanc's copy."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.orthanc_server import OrthancServer
from tests.running_node import DEMO_CT, SOME_SLICES, RunningNode, made_up_study, segmentations


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """The processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_slice_that_was_cut_short_before_the_model_read_it_is_made_again(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """Truncated as by a power loss: de-identified a second time, confirmed, one SEG."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    with stopped(node.processes("compute")):
        node.receive(study)
        job = node.wait_for(study, lambda job: job["step"] == "infer")
        [bundle] = (node.var / "artifacts" / job["id"] / "instances").iterdir()
        slices = sorted(bundle.glob("*.dcm"))
        assert len(slices) == len(study.files)
        os.truncate(slices[7], 4096)
    job = node.wait_for(study)
    assert (job["state"], job["cause"]) == ("confirmed", "")
    tries = [one["step"] for one in node.job(job["id"])["attempts"]]
    assert tries.count("deidentify") == 2
    assert len(segmentations(pacs, study)) == 1
    left = [one.name for one in (node.var / "artifacts" / job["id"]).iterdir()]
    assert left == ["overlay.png"]
