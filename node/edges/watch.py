"""The watch: reads Orthanc's changes feed, makes jobs of quiet series, sweeps what got lost.

Correctness rests on the feed and a cursor in the ledger. A nudge from the bridge only shortens the
wait; StableSeries events are not used, because Orthanc forgets them at every restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import redis

from node import log
from node.edges.arrivals import Arrivals
from node.edges.ledger import Ledger
from node.edges.orthanc import Orthanc
from node.errors import OrthancUnavailable, Rejected
from node.pipeline import STEPS
from node.pipeline.run import Wake

_FEED = "orthanc"
_NUDGE_CHANNEL = "segnode:nudge"
_MAX_ATTEMPTS = {step.name: step.max_attempts for step in STEPS}


class Watch:
    """One pass is ``once()``; ``run()`` repeats it until told to stop."""

    def __init__(self, orthanc: Orthanc, ledger: Ledger, wake: Wake, *, quiet_s: float) -> None:
        self._orthanc, self._ledger, self._wake = orthanc, ledger, wake
        self._arrivals = Arrivals(ledger.database)
        self._quiet_s = quiet_s

    def once(self) -> bool:
        """Read the feed, open jobs, sweep. True when a series is waiting to become quiet."""
        try:
            self._read_feed()
            self._open_quiet()
        except OrthancUnavailable:
            log.get().warning("Orthanc does not answer; trying again")
        self._sweep()
        return bool(self._arrivals.quiet_series(0))

    def run(self, stop: threading.Event, wait: Callable[[float], None], poll_s: float) -> None:
        """Repeat until ``stop``; ``wait(seconds)`` returns early on a nudge."""
        while not stop.is_set():
            pending = self.once()
            wait(min(poll_s, self._quiet_s / 10) if pending else poll_s)

    def _read_feed(self) -> None:
        cursor = self._arrivals.cursor(_FEED)
        while True:
            page = self._orthanc.changes(cursor)
            if page.last < cursor:  # the index was made anew: everything in it is new to us
                log.get().warning("Orthanc's index is younger than the cursor; reading from start")
                cursor = 0
                continue
            received = [one.resource_id for one in page.changes if one.kind == "NewInstance"]
            if page.last != cursor:
                self._arrivals.record(_FEED, page.last, self._series_of(received))
            cursor = page.last
            if page.done:
                return

    def _series_of(self, instance_ids: Iterable[str]) -> set[str]:
        found = set()
        for instance_id in instance_ids:
            with suppress(Rejected):  # deleted by a person since
                found.add(self._orthanc.series_of_instance(instance_id))
        return found

    def _open_quiet(self) -> None:
        for series_id in self._arrivals.quiet_series(self._quiet_s):
            study_id = ""
            instance_ids: tuple[str, ...] = ()
            with suppress(Rejected):  # deleted by a person since: no instances, no job
                instance_ids = self._orthanc.instances_of_series(series_id)
                study_id = self._orthanc.study_of_series(series_id)
            job = self._ledger.open_jobs(series_id, study_id, instance_ids)
            if job:
                log.get().info("series is quiet", job_id=job.id, instances=len(instance_ids))
                self._wake(job)

    def _sweep(self) -> None:
        for job in self._ledger.release_lost_leases(_MAX_ATTEMPTS):
            log.get().warning("lease ran out", job_id=job.id, step=str(job.step))
        for job in self._ledger.due():
            self._wake(job)


class Nudges:
    """Nudges over Redis: ``send()`` by the console, ``wait()`` by the watch."""

    def __init__(self, broker_url: str) -> None:
        self._client = redis.Redis.from_url(broker_url, socket_timeout=5)
        self._pubsub: redis.client.PubSub | None = None

    def send(self) -> None:
        """Wake the watch; without a broker it wakes by itself a little later."""
        try:
            self._client.publish(_NUDGE_CHANNEL, b"")
        except redis.RedisError:
            return

    def wait(self, seconds: float) -> None:
        """Return on a nudge, or after ``seconds``."""
        try:
            if self._pubsub is None:
                pubsub = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
                pubsub.subscribe(_NUDGE_CHANNEL)
                self._pubsub = pubsub
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                if self._pubsub.get_message(timeout=left):
                    return
        except redis.RedisError:
            self._pubsub = None
            time.sleep(seconds)
