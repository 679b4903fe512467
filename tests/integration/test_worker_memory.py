"""The children of a worker share with it what it has imported, for as long as they live."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from test_compute_news import eventually, redis_on

from node.edges.celery_app import celery_app, message_counter
from tests.orthanc_server import free_port
from tests.running_node import descendants

_WORKER = """
import gc, sys, time
import highdicom
from node.edges.celery_app import celery_app
from node.programs import _run_celery
app = celery_app("worker", sys.argv[1])
@app.task(name="collect")
def collect():
    gc.collect()
    time.sleep(0.2)
_run_celery(app, sys.argv[1], "memory", ("q",), 2)
"""


def test_a_collection_in_a_child_copies_nothing_of_its_parent(tmp_path: Path) -> None:
    """Python's collector writes to every object that it looks at."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    app, messages_in = celery_app("sender", url), message_counter(url)
    with redis_on(port, tmp_path):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, url])
        try:
            app.send_task("collect", queue="q")
            eventually(lambda: messages_in("q") == 0)
            children = descendants(worker.pid)
            assert len(children) == 2
            for _ in range(20):
                app.send_task("collect", queue="q")
            eventually(lambda: messages_in("q") == 0)
            time.sleep(1)
            assert max(map(_private_mib, children)) < 30
        finally:
            worker.kill()
            worker.wait()


def _private_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"Private_\w+:\s+(\d+)", text))) / 1024
