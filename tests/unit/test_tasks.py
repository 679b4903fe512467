"""What the compute zone may say of a job, and what it may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from node.edges.ledger import Ledger
from node.edges.tasks import compute_news
from node.jobs import Job, State, StepName
from node.pipeline.run import Terms

Heard = Callable[[Mapping[str, Any]], None]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.fixture
def inferring(ledger: Ledger) -> Job:
    """A job of the peer HOSPITAL that the compute zone works on."""
    job = ledger.open_jobs("series", "study", ("a",))
    while job is not None and job.step is not StepName.INFER:
        held = ledger.claim(job.id, job.step, 30)
        assert held is not None
        job = ledger.finish(held, {"sender": "HOSPITAL", "crosswalk": "ours"})
    assert job is not None
    held = ledger.claim(job.id, job.step, 30)
    assert held is not None
    return held


@pytest.fixture
def heard(ledger: Ledger) -> Heard:
    return compute_news(ledger, lambda job: None, lambda: None, Terms())


def test_a_compute_worker_says_what_it_has_left_and_nothing_else(
    heard: Heard, ledger: Ledger, inferring: Job
) -> None:
    """A worker that was broken into cannot say where results go, or whose they are."""
    facts = {"sender": "ELSEWHERE", "crosswalk": "theirs", "unsuitable": {}}
    done_news = {"kind": "done", "job_id": inferring.id, "attempt": 1}
    for forged in (facts, "../../vault", "", None, ["0" * 64]):
        heard({**done_news, "label_map": forged, "facts": facts})
        job = ledger.job(inferring.id)
        assert job is not None
        assert (job.step, job.state) == (StepName.INFER, State.RUNNING)
        assert dict(job.facts) == dict(inferring.facts)

    heard({**done_news, "label_map": "0" * 64, "facts": facts})
    done = ledger.job(inferring.id)
    assert done is not None
    assert (done.step, done.state) == (StepName.ENCODE, State.QUEUED)
    assert dict(done.facts) == {**inferring.facts, "label_map_digest": "0" * 64}
