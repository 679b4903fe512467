"""A compute worker whose Redis goes away is heard again when it is back."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.edges.celery_app import INFER, celery_app
from node.edges.compute import register_compute_task
from node.edges.compute_news import listen
from node.errors import LedgerUnavailable
from tests.orthanc_server import free_port


@contextmanager
def redis_on(port: int, folder: Path) -> Iterator[None]:
    """A Redis that forgets everything when it ends."""
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_a_model_that_runs_while_redis_is_away_is_heard_when_it_is_back(tmp_path: Path) -> None:
    """Its heartbeat goes on, and how it ended is told then: no worker is taken for dead for it.

    Nor is it lost on a ledger that is away for a moment.
    """
    port, refused = free_port(), threading.Semaphore(0)
    app = celery_app("compute", f"redis://127.0.0.1:{port}/0")
    # As it is, but without the six seconds that each try takes to fail.
    app.conf.broker_transport_options |= {
        "max_retries": 1, "interval_start": 0.01, "interval_step": 0,
        "errback": lambda *_: refused.release(),
    }  # fmt: skip
    model_ends = threading.Event()

    def infer(*arguments: Any) -> str:
        *_, report = arguments
        report(0.5)
        assert model_ends.wait(60)
        return "0" * 64

    register_compute_task(app, infer)
    heard: list[Mapping[str, Any]] = []
    away: list[str] = []
    stop = threading.Event()

    def hear(news: Mapping[str, Any]) -> None:
        """The ledger is away when it is first told how the model ended."""
        if news["kind"] == "done" and not away:
            away.append("ledger")
            raise LedgerUnavailable("The ledger's database does not answer")
        heard.append(news)

    def heard_of(kind: str) -> bool:
        return any(news["kind"] == kind for news in heard)

    with ThreadPoolExecutor(2) as threads:
        run = threads.submit(app.tasks[INFER], "job", 1, "1" * 64, "ct_lungs", "2" * 64)
        try:
            for _ in range(2):  # beats that get nowhere
                assert refused.acquire(timeout=30)
            with redis_on(port, tmp_path):
                threads.submit(listen, app, hear, stop)
                eventually(lambda: heard_of("alive"))
            model_ends.set()
            while refused.acquire(blocking=False):
                pass
            for _ in range(3):
                assert refused.acquire(timeout=30)
            assert not heard_of("done")
            with redis_on(port, tmp_path):
                eventually(lambda: heard_of("done"))
                run.result(30)
                stop.set()
        finally:
            stop.set()
            model_ends.set()
    [done] = [news for news in heard if news["kind"] == "done"]
    assert done["label_map"] == "0" * 64
