"""A hospital worker with real Celery, whose step ``receive`` hangs for one series, for ever."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from celery.signals import worker_process_init

from node.edges.celery_app import celery_app
from node.edges.ledger import Ledger
from node.edges.tasks import end_process, register_hospital_tasks, waker
from node.errors import NoMatchingModel
from node.jobs import Done, Job, Outcome, StepName
from node.pipeline import with_deadlines
from node.pipeline.run import Terms

TERMS = Terms(1.0, with_deadlines({"receive": 2.0}), end_process=end_process)


def main(broker_url: str, ledger_url: str, folder: Path) -> None:
    """Serve queue ``io`` until ended; each process that hangs leaves a file with its number."""

    def receive(job: Job) -> Outcome:
        if job.series_id == "hangs":
            (folder / str(os.getpid())).touch()
            while True:
                time.sleep(60)
        return Done()

    def route(job: Job) -> Outcome:
        raise NoMatchingModel("nobody wants it")

    app, ledger = celery_app("segnode-hospital", broker_url), Ledger(ledger_url)
    steps = {StepName.RECEIVE: receive, StepName.ROUTE: route}
    register_hospital_tasks(app, ledger, steps, waker(app, TERMS), TERMS)
    worker_process_init.connect(lambda **_: ledger.database.forget_connections(), weak=False)
    app.worker_main(["worker", "--queues=io", "--concurrency=2", "--loglevel=CRITICAL",
                     "--without-mingle", "--without-gossip"])  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
