"""What the compute zone may say of a job, and what it may not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from node.edges.ledger import Ledger
from node.edges.tasks import compute_news
from node.jobs import Job, State, StepName
from node.pipeline.run import Terms
from tests.ledger_case import claimed

Heard = Callable[[Mapping[str, Any]], None]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.fixture
def inferring(ledger: Ledger) -> Job:
    """A job of the peer HOSPITAL that the compute zone works on."""
    job = ledger.open_jobs("series", "study", ("a",))
    while job is not None and job.step is not StepName.INFER:
        job = ledger.finish(claimed(ledger, job), {"sender": "HOSPITAL", "crosswalk": "ours"})
    assert job is not None
    return claimed(ledger, job)


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


@pytest.mark.parametrize("said", ["NaN", "Infinity", "-Infinity", "1e300", "-3", "0"])
def test_progress_is_a_share_whatever_the_compute_zone_says(
    heard: Heard, ledger: Ledger, inferring: Job, said: str
) -> None:
    """The console writes it as JSON, which knows no infinity; 0 would say that nobody has begun."""
    news = {"kind": "alive", "job_id": inferring.id, "attempt": inferring.lease}
    heard({**news, "progress": json.loads(said)})
    job = ledger.job(inferring.id)
    assert job is not None
    assert 0 < job.progress <= 1


@pytest.mark.parametrize(
    ("said", "error", "state"),
    [
        ("UnsuitableInput", "UnsuitableInput", State.REJECTED),
        ("ProgramInterrupted", "ProgramInterrupted", State.WAITING),
        # What only the hospital zone may find, what is no class of ours, and what is no class.
        ("IdentityUnsafe", "NodeError", State.FAILED),
        ("Incomplete", "NodeError", State.FAILED),
        ("DeliveryRefused", "NodeError", State.FAILED),
        ("KeyboardInterrupt", "NodeError", State.FAILED),
        ("annotations", "NodeError", State.FAILED),
    ],
)
def test_the_compute_zone_can_fail_only_as_a_model_fails(
    heard: Heard, ledger: Ledger, inferring: Job, said: str, error: str, state: State
) -> None:
    """The class decides what becomes of the job: it cannot have it quarantined, or held."""
    news = {"kind": "failed", "job_id": inferring.id, "attempt": inferring.lease}
    heard({**news, "error": said, "cause": "Slice gap 7.5 mm", "remedy": "Send it again."})
    job = ledger.job(inferring.id)
    assert job is not None
    assert (job.state, job.error, job.cause) == (state, error, "Slice gap 7.5 mm")


def test_words_of_the_compute_zone_are_short_and_hold_nothing_like_an_identifier(
    heard: Heard, ledger: Ledger, inferring: Job
) -> None:
    """They go to a person and, on a page that explains, to a PACS. The standard's UIDs stay."""
    cause = "No JPEG (1.2.840.10008.1.2.4.50) \x00\u202e\ud800of 1.2.840.113619.2.55.3, 20240131\n"
    news = {"kind": "failed", "job_id": inferring.id, "attempt": inferring.lease}
    long = {"cause": cause + "and more " * 1_000_000, "remedy": "1." * 1_000_000}
    heard({**news, "error": "UnsuitableInput", **long})
    job = ledger.job(inferring.id)
    assert job is not None
    assert job.cause.startswith("No JPEG (1.2.840.10008.1.2.4.50) of [uid], # | and more and")
    assert len(job.cause) <= 800
    assert len(job.remedy) <= 800
