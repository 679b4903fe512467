"""Whether the process of this container does its work; exit status 0 or 1. ROLE says which it is.

Asks the process itself, not only whether it exists: the console over HTTP, the Celery workers
through the broker, the watch by its subscription to nudges.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request

TIMEOUT_S = 10


def console_answers() -> bool:
    """The console's HTTP interface says that it is well."""
    port = os.environ.get("SEGNODE_CONSOLE__PORT", "8043")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT_S) as answer:
        return bool(answer.status == 200)


def celery_answers(name: str, broker_url: str) -> bool:
    """The Celery worker of this host answers a ping through the broker."""
    from celery import Celery

    app = Celery(broker=broker_url, set_as_current=False)
    inspect = app.control.inspect([f"{name}@{socket.gethostname()}"], timeout=TIMEOUT_S)
    return bool(inspect.ping())


def watch_listens(broker_url: str) -> bool:
    """Somebody is subscribed to the nudges: only the watch is."""
    import redis

    client = redis.Redis.from_url(broker_url, socket_timeout=TIMEOUT_S)
    return any(count > 0 for _, count in client.pubsub_numsub("segnode:nudge"))


def healthy(role: str) -> bool:
    """Ask the process that this container runs."""
    match role:
        case "console":
            return console_answers()
        case "watch":
            return watch_listens(os.environ["SEGNODE_BROKER__URL"])
        case "worker":
            return celery_answers("hospital", os.environ["SEGNODE_BROKER__URL"])
        case "delivery":
            return celery_answers("delivery", os.environ["SEGNODE_BROKER__URL"])
        case "compute":
            return celery_answers("compute", os.environ["SEGNODE_COMPUTE_BROKER_URL"])
    raise ValueError("ROLE is watch, console, worker, delivery or compute")


if __name__ == "__main__":
    try:
        well = healthy(os.environ.get("ROLE", ""))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not healthy
        print(f"unhealthy: {type(error).__name__}")
        sys.exit(1)
    print("healthy" if well else "unhealthy: no answer")
    sys.exit(0 if well else 1)
