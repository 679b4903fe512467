"""Celery: one application for the hospital zone, one for the compute zone, one broker.

The broker only wakes workers. A message is acknowledged when it is taken, because whatever is
lost with it is sent again by the sweeper: the ledger knows (measured: ``acks_late`` loses a job
with a killed pool child, or runs it for ever).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

COMPUTE_QUEUE = "gpu"
#: What the hospital does of ``infer``: it hands a job over to the compute queue.
HAND_OVER_QUEUE = "hand-over"
#: What the hospital's workers do, and what those do that wait for destinations.
HOSPITAL_QUEUES = ("io", "cpu", HAND_OVER_QUEUE)
DELIVERY_QUEUES = ("pacs",)

#: Task names. Their arguments are names and ids of ours, never a patient's value.
RUN_NEXT = "segnode.run_next"
INFER = "segnode.infer"

#: A broker that says nothing for so long does not answer: nobody waits for it for ever.
_TIMEOUT_S = 5.0


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
        # What no process is free for stays in the broker, where it can be counted.
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "socket_keepalive": True,
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            # Never ``retry_on_timeout``: it has redis-py repair a broken subscription while kombu
            # reads from it, and then wait for a message for ever. The worker takes nothing more.
        },
        broker_connection_max_retries=None,
    )
    return app


def message_counter(broker_url: str) -> Callable[[str], int]:
    """How many messages of a queue nobody has taken yet, asked of Redis.

    What it gives raises OperationalError when the broker does not answer.
    """
    import redis  # here: it imports what the compute zone must not have

    client = redis.Redis.from_url(
        broker_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
    )

    def messages_in(queue: str) -> int:
        try:
            return int(client.llen(queue))
        except redis.RedisError:
            raise OperationalError("Redis does not answer") from None

    return messages_in


def wake_up_queue(queue: str) -> str:
    """Where the wake-ups for the steps of a queue go."""
    return HAND_OVER_QUEUE if queue == COMPUTE_QUEUE else queue


def send(app: Celery, task: str, arguments: list[Any], queue: str, time_limit_s: float) -> None:
    """One message, tried once. Its task is killed, with its process, after ``time_limit_s``.

    Raises
    ------
    OperationalError
        The broker does not answer.
    """
    app.send_task(task, args=arguments, queue=queue, retry=False, time_limit=time_limit_s)
