"""The node's processes, each of which is one call: watch, console, workers, compute workers.

``segnode run ROLE`` runs one in the foreground; the supervisor and the containers start it so.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from node.edges.artifacts import FolderArtifacts
from node.edges.celery_app import (
    COMPUTE_QUEUE,
    DELIVERY_QUEUES,
    HOSPITAL_QUEUES,
    celery_app,
    message_counter,
)
from node.packages import find_models
from node.settings import ComputeSettings
from node.wiring import Hospital

if TYPE_CHECKING:
    from celery import Celery


def run_watch(hospital: Hospital) -> None:
    """The watch and its chores, until the process is told to stop."""
    from node.edges.watch import Watch
    from node.upkeep import chores

    receive = hospital.settings.receive
    stop = threading.Event()
    _sweep(hospital, stop)
    chores(hospital).start(stop)
    watch = Watch(
        hospital.orthanc,
        hospital.ledger,
        hospital.wake,
        quiet_s=receive.quiet_s,
        max_quiet_s=receive.longest_quiet_s,
        may_open=lambda: hospital.orthanc_storage.has_looked,
    )
    watch.run(stop, hospital.nudges.wait, receive.poll_s)


def _sweep(hospital: Hospital, stop: threading.Event) -> None:
    """The sweeper, and the ear for the compute zone, each in a thread of its own."""
    from node.edges.compute_news import listen
    from node.edges.sweeper import Sweeper
    from node.edges.tasks import compute_news, wake_queue

    def wake(queue: str) -> None:
        wake_queue(hospital.celery, hospital.terms, queue)

    counter = message_counter(hospital.broker_url)
    sweeper = Sweeper(hospital.ledger, hospital.terms, counter, wake)
    heard = compute_news(
        hospital.ledger, hospital.wake, lambda: wake(COMPUTE_QUEUE), hospital.terms
    )
    every_s = hospital.settings.workers.recovery_s * 0.15
    for target, arguments in (
        (sweeper.run, (stop, every_s)),
        (listen, (hospital.celery, heard, stop)),
    ):
        threading.Thread(target=target, args=arguments, daemon=True).start()


def run_console(hospital: Hospital) -> None:
    """The console's HTTP interface."""
    from node.edges.console import console_app
    from node.edges.serving import serve
    from node.upkeep import forecasts

    app = console_app(
        hospital.ledger,
        hospital.orthanc,
        hospital.artifacts,
        hospital.models,
        hospital.secret("console_token"),
        hospital.nudges.send,
        destinations=("sender", *hospital.destinations),
        review_key=hospital.review_key,
        disks=partial(forecasts, hospital),
    )
    console = hospital.settings.console
    serve(app, console.host, console.port)


def run_worker(hospital: Hospital) -> None:
    """The hospital workers: everything but talking to destinations."""
    _run_worker(hospital, "hospital", HOSPITAL_QUEUES, hospital.settings.workers.hospital_processes)


def run_delivery(hospital: Hospital) -> None:
    """The workers that talk to destinations, and may have to wait for them."""
    _run_worker(hospital, "delivery", DELIVERY_QUEUES, hospital.settings.workers.delivery_processes)


def _run_worker(hospital: Hospital, name: str, queues: tuple[str, ...], processes: int) -> None:
    from celery.signals import worker_process_init

    from node.edges.tasks import end_process, register_hospital_tasks

    terms = replace(hospital.terms, end_process=end_process)
    register_hospital_tasks(
        hospital.celery, hospital.ledger, hospital.steps(), hospital.wake, terms
    )
    worker_process_init.connect(
        lambda **_: hospital.ledger.database.forget_connections(), weak=False
    )
    _run_celery(hospital.celery, hospital.broker_url, name, queues, processes)


def run_compute(settings: ComputeSettings) -> None:
    """The compute workers: a model is loaded in the pool child, at its first job.

    Raises
    ------
    ModelFault
        A model is somebody else's program that cannot run on this machine.
    """
    from node.edges.compute import register_compute_task
    from node.foreign.check import require_runnable
    from node.imaging.decoding import Decoders, decoding_processes
    from node.manifest import CommandManifest
    from node.packages import Models
    from node.pipeline.infer import already_inferred, infer

    for name, manifest in find_models(settings.models_dir).items():
        if isinstance(manifest, CommandManifest):
            require_runnable(settings.models_dir / name, manifest, hashes=False)
    artifacts = FolderArtifacts(settings.artifacts_dir)
    models = Models(settings.models_dir, threads=settings.threads, exports=settings.exports_dir)
    models.prepare()  # a job that comes before it is done makes its own export
    decoders = Decoders(processes=decoding_processes(settings.threads))

    def run(
        job_id: str, instances: str, model: str, digest: str, report: Callable[[float], None]
    ) -> str:
        found = already_inferred(artifacts, job_id, instances)
        if found is None:
            loaded = models.loaded(model, digest)
            found = infer(artifacts, job_id, instances, loaded, report, decoders)
        return found

    app = celery_app("segnode-compute", settings.broker_url)
    register_compute_task(app, run)
    _run_celery(app, settings.broker_url, "compute", (COMPUTE_QUEUE,), settings.processes)


def _run_celery(
    app: Celery, broker_url: str, name: str, queues: tuple[str, ...], processes: int
) -> None:
    from celery.signals import worker_before_create_process

    from node.edges.deaf import end_when_deaf

    end_when_deaf(queues, message_counter(broker_url))
    # The collector writes to each object it looks at: a child's first full collection would make
    # copies of all pages that it shares with its parent (50 MiB in each of a hospital's children).
    worker_before_create_process.connect(lambda **_: gc.freeze(), weak=False)
    app.worker_main(
        [
            "worker",
            f"--queues={','.join(queues)}",
            f"--hostname={name}@%h",
            f"--concurrency={processes}",
            "--loglevel=WARNING",
            "--without-mingle",
            "--without-gossip",
        ]
    )
