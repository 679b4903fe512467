"""Celery: one application for the hospital zone, one for the compute zone, one broker.

The broker only wakes workers. A message is acknowledged when it is taken, because whatever is
lost with it is sent again by the sweeper: the ledger knows (measured: ``acks_late`` loses a job
with a killed pool child, or runs it for ever).
"""

from __future__ import annotations

from celery import Celery

HOSPITAL_QUEUES = ("io", "cpu")
COMPUTE_QUEUE = "gpu"

#: Task names, shared by both zones. Their arguments are ids of ours, never a patient's value.
RUN_STEP = "segnode.run_step"
INFER = "segnode.infer"
INFER_ALIVE = "segnode.infer_alive"
INFER_DONE = "segnode.infer_done"
INFER_FAILED = "segnode.infer_failed"


def celery_app(name: str, broker_url: str) -> Celery:
    """A Celery application that keeps no results, and speaks JSON only."""
    app = Celery(name, broker=broker_url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue="io",
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_keepalive": True, "retry_on_timeout": True},
        broker_connection_max_retries=None,
    )
    return app
