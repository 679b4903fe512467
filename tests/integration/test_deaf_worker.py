"""A worker that takes nothing although messages wait for it ends, so that it is started again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from test_compute_news import eventually, redis_on

from node.edges.celery_app import celery_app, message_counter
from tests.orthanc_server import free_port

_WORKER = """
import sys
from node.edges.celery_app import celery_app, message_counter
from node.edges.deaf import end_when_deaf
app = celery_app("worker", sys.argv[1])
@app.task(name="nothing")
def nothing():
    pass
end_when_deaf(["pacs"], message_counter(sys.argv[1]), every_s=0.1)
app.worker_main(["worker", "--queues=pacs", "--concurrency=1", "--hostname=deaf@here",
                 "--loglevel=WARNING", "--without-mingle", "--without-gossip"])
"""


def test_a_worker_that_has_gone_deaf_ends(tmp_path: Path) -> None:
    """One that takes its messages, or has none, goes on."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    app, messages_in = celery_app("sender", url), message_counter(url)
    with redis_on(port, tmp_path):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, url])
        try:
            for _ in range(40):  # more looks than it is given
                app.send_task("nothing", queue="pacs")
                eventually(lambda: messages_in("pacs") == 0)
            assert worker.poll() is None
            app.control.cancel_consumer("pacs", reply=True, timeout=10)
            app.send_task("nothing", queue="pacs")
            assert worker.wait(30) == -signal.SIGKILL
        finally:
            worker.kill()
            worker.wait()
