"""The watch: makes jobs of series that have become quiet.

A series is quiet when its sender has said nothing for longer than it is known to pause, and has no
association open that may still be in the middle of it. Correctness does not rest on that: what
comes later makes a new job. StableSeries events are not used: Orthanc forgets them at a restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import redis

from node import log
from node.edges.arrivals import Arrival, Arrivals, settle_s, still_sending
from node.edges.feed import Feed
from node.edges.ledger import Ledger
from node.edges.orthanc import Orthanc
from node.errors import Gone, OrthancUnavailable, Unavailable
from node.pipeline.run import Wake

_NUDGE_CHANNEL = "segnode:nudge"
#: What the bridge said of open associations holds for so long.
_ASSOCIATIONS_HOLD_S = 0.5
#: So many series that cannot be asked for are not each one's own fault.
_FAILURES_IN_A_PASS = 3


class Watch:
    """One pass is ``once()``; ``run()`` repeats it until told to stop."""

    def __init__(
        self,
        orthanc: Orthanc,
        ledger: Ledger,
        wake: Wake,
        *,
        quiet_s: float,
        max_quiet_s: float | None = None,
        may_open: Callable[[], bool] = lambda: True,
    ) -> None:
        """``may_open`` is false while Orthanc is known to lack instances that it had."""
        self._may_open = may_open
        self._orthanc, self._ledger, self._wake = orthanc, ledger, wake
        self._quiet_s = quiet_s
        self._max_quiet_s = quiet_s if max_quiet_s is None else max_quiet_s
        self._arrivals = Arrivals(ledger.database)
        self._feed = Feed(orthanc, self._arrivals, longest_pause_s=self._max_quiet_s)
        self._associations: tuple[float, Mapping[str, int]] = (0.0, {})

    def once(self) -> bool:
        """Read the feed, open jobs. True when a series is waiting to become quiet."""
        try:
            self._feed.read()
            if self._may_open():
                self._open_quiet()
        except OrthancUnavailable:
            log.get().warning("Orthanc does not answer; trying again")
        return bool(self._arrivals.waiting())

    def run(self, stop: threading.Event, wait: Callable[[float], None], poll_s: float) -> None:
        """Repeat until ``stop``; ``wait(seconds)`` returns early on a nudge."""
        while not stop.is_set():
            pending = False
            try:
                pending = self.once()
            except Unavailable as error:  # the ledger: its database is being restarted, say
                log.get().warning("the watch tries again", error=type(error).__name__)
            wait(min(poll_s, self._quiet_s / 10) if pending else poll_s)

    def _open_quiet(self) -> None:
        waiting, pauses_s = self._arrivals.waiting(), self._arrivals.pauses_s()
        failures = 0
        for arrival in waiting:
            pause_s = pauses_s.get(arrival.origin.sender, 0.0)
            if arrival.silent_s < settle_s(pause_s, self._quiet_s, self._max_quiet_s):
                continue
            if arrival.silent_s < self._max_quiet_s and self._is_coming(arrival, waiting):
                continue
            try:
                self._open(arrival)
            except OrthancUnavailable as error:  # of one series, perhaps: the others go on
                failures += 1
                log.get().warning("series cannot be asked for", error=type(error).__name__)
                if failures >= _FAILURES_IN_A_PASS:
                    raise

    def _is_coming(self, arrival: Arrival, waiting: Sequence[Arrival]) -> bool:
        """Whether the sender's association is still open and sends nothing else."""
        if not arrival.origin.address:
            return False
        asked_at, found = self._associations
        if time.monotonic() - asked_at > _ASSOCIATIONS_HOLD_S:
            found = self._orthanc.open_associations()
            self._associations = time.monotonic(), found
        return still_sending(arrival, waiting, found.get(arrival.origin.address, 0))

    def _open(self, arrival: Arrival) -> None:
        study_id = ""
        instance_ids: tuple[str, ...] = ()
        with suppress(Gone):  # deleted by a person since: no instances, no job
            instance_ids = self._orthanc.instances_of_series(arrival.series_id)
            study_id = self._orthanc.study_of_series(arrival.series_id)
        job = self._ledger.open_jobs(
            arrival.series_id, study_id, instance_ids, as_of=arrival.last_change_at
        )
        if job:
            log.get().info("series is quiet", job_id=job.id, instances=len(instance_ids))
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
