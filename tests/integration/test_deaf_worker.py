"""A worker takes its messages whatever happens to its connections; one that does not, ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from celery import Celery
from test_compute_news import eventually, redis_on

from node.edges.celery_app import celery_app, message_counter
from tests.orthanc_server import free_port

_WORKER = """
import sys, time
from celery.signals import worker_ready
from node.edges.celery_app import celery_app, message_counter
from node.edges.deaf import end_when_deaf

url, watched, loop_stops_after_s = sys.argv[1], *map(float, sys.argv[2:])
app = celery_app("worker", url)

@app.task(name="sleep")
def sleep(seconds):
    time.sleep(seconds)

@worker_ready.connect
def ready(sender, **_):
    if loop_stops_after_s:
        sender.hub.call_later(loop_stops_after_s, time.sleep, 3600)

if watched:
    end_when_deaf(["pacs"], message_counter(url), every_s=0.1)
app.worker_main(["worker", "--queues=pacs", "--concurrency=1", "--hostname=deaf@here",
                 "--loglevel=WARNING", "--without-mingle", "--without-gossip"])
"""


@dataclass
class Worker:
    """A worker of the queue ``pacs`` with one process, and its Redis."""

    process: subprocess.Popen[bytes]
    redis: redis.Redis
    app: Celery
    messages_in: Callable[[str], int]

    def send(self, seconds: float = 0.0) -> None:
        self.app.send_task("sleep", [seconds], queue="pacs")

    def takes_all(self) -> None:
        eventually(lambda: self.messages_in("pacs") == 0)


@contextmanager
def _worker(folder: Path, *, watched: bool, loop_stops_after_s: float = 0.0) -> Iterator[Worker]:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    arguments = [url, str(int(watched)), str(loop_stops_after_s)]
    with redis_on(port, folder):
        process = subprocess.Popen([sys.executable, "-c", _WORKER, *arguments])
        try:
            client = redis.Redis.from_url(url)
            yield Worker(process, client, celery_app("sender", url), message_counter(url))
        finally:
            process.kill()
            process.wait()


def test_a_worker_that_has_gone_deaf_ends(tmp_path: Path) -> None:
    """One that takes its messages, or has none, goes on."""
    with _worker(tmp_path, watched=True) as worker:
        for _ in range(40):  # more looks than it is given
            worker.send()
            worker.takes_all()
        assert worker.process.poll() is None
        worker.app.control.cancel_consumer("pacs", reply=True, timeout=10)
        worker.send()
        assert worker.process.wait(30) == -signal.SIGKILL


def test_a_worker_whose_loop_stands_still_while_it_has_a_task_ends(tmp_path: Path) -> None:
    """The loop does not hear that the task is done; a long task alone is no reason."""
    with _worker(tmp_path, watched=True, loop_stops_after_s=5.0) as worker:
        worker.send(4.0)
        worker.takes_all()
        worker.send()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(3.0)
        worker.takes_all()
        worker.send(1.0)
        worker.send()
        assert worker.process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("kinds", [["pubsub"], ["normal"], ["pubsub", "normal"]])
def test_a_worker_whose_connections_are_cut_while_it_has_a_task_takes_the_next(
    tmp_path: Path, kinds: list[str]
) -> None:
    """Redis was restarted at once, say. The worker stands on its own: nothing restarts it."""
    with _worker(tmp_path, watched=False) as worker:
        for _ in range(3):
            worker.send(1.0)
            worker.takes_all()
            for kind in kinds:
                worker.redis.client_kill_filter(_type=kind, skipme=True)
            worker.send()
            worker.takes_all()
        assert worker.process.poll() is None
