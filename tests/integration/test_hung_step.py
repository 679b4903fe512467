"""A step that hangs: its process is killed, its job ends in a named state, the others go on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from node.edges.celery_app import celery_app, message_counter
from node.edges.ledger import Ledger
from node.edges.sweeper import Sweeper
from node.edges.tasks import wake_queue
from node.jobs import Job, State
from tests.integration.hanging_worker import TERMS
from tests.orthanc_server import REPOSITORY, free_port


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of the test's own."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
               "--dir", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    try:
        _until(lambda: _answers(client))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def test_a_step_that_hangs_is_killed_and_the_other_jobs_go_on(
    broker_url: str, tmp_path: Path
) -> None:
    """Twice past its deadline, then failed with its cause; no process of it is left behind."""
    ledger_url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    hung = tmp_path / "hung"
    hung.mkdir()
    ledger, app = Ledger(ledger_url), celery_app("segnode-hospital", broker_url)
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.hanging_worker", broker_url, ledger_url, hung],
        cwd=REPOSITORY,
    )
    stop = threading.Event()
    sweeper = Sweeper(
        ledger, TERMS, message_counter(broker_url), lambda queue: wake_queue(app, TERMS, queue)
    )
    sweeps = threading.Thread(target=sweeper.run, args=(stop, 0.3))
    try:
        hanging, other = (_opened(ledger, name) for name in ("hangs", "other"))
        sweeps.start()
        _until(lambda: _now(ledger, other).state is State.REJECTED)
        _until(lambda: _now(ledger, hanging).state is State.FAILED)
        failed = _now(ledger, hanging)
        assert (failed.error, failed.crashes) == ("DeadlinePassed", 2)
        assert "took longer than 2 s" in failed.cause
        late = _opened(ledger, "late")
        _until(lambda: _now(ledger, late).state is State.REJECTED)
        assert len(list(hung.iterdir())) == 2
        _until(lambda: not any(Path(f"/proc/{one.name}").exists() for one in hung.iterdir()))
    finally:
        stop.set()
        sweeps.join()
        worker.terminate()
        worker.wait(60)


def _opened(ledger: Ledger, series: str) -> Job:
    job = ledger.open_jobs(series, f"study of {series}", ("a",))
    assert job is not None
    return job


def _now(ledger: Ledger, job: Job) -> Job:
    found = ledger.job(job.id)
    assert found is not None
    return found


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)
