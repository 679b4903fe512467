"""Orthanc's changes feed, read into the arrivals: which series have received something.

Correctness rests on the feed and a cursor. The cursor remembers which line it stands on: an index
that was made anew or restored from a backup counts from a lower number, and may have passed it.
"""

from __future__ import annotations

from collections.abc import Iterable

from node import log
from node.edges.arrivals import Arrivals, Cursor, Origin
from node.edges.orthanc import Change, Orthanc
from node.errors import Gone, OrthancUnavailable

FEED = "orthanc"


class Feed:
    """One reader; ``read()`` is called again and again."""

    def __init__(self, orthanc: Orthanc, arrivals: Arrivals, *, longest_pause_s: float) -> None:
        self._orthanc, self._arrivals = orthanc, arrivals
        self._longest_pause_s = longest_pause_s
        self._seen_at: float | None = None
        #: At the start, and whenever a line could not be trusted or read.
        self._compare = True

    def read(self) -> None:
        """Note what has arrived since the last time.

        Raises
        ------
        OrthancUnavailable
            What was read so far is noted; the rest is read next time.
        """
        cursor = self._checked(self._arrivals.cursor(FEED))
        while True:
            asked_at = self._arrivals.now
            page = self._orthanc.changes(cursor.value)
            received = [one.resource_id for one in page.changes if one.kind == "NewInstance"]
            line = _line(page.changes[-1]) if page.changes else cursor.line
            if page.last != cursor.value:
                cursor = Cursor(page.last, line)
                self._note(cursor, self._series_of(received))
            if page.done:
                break
        if self._compare:
            self._compare_series(cursor)
        self._seen_at = asked_at

    def _checked(self, cursor: Cursor) -> Cursor:
        """The cursor, if the feed is still the one that it belongs to; otherwise its start."""
        if cursor.value == 0:
            return cursor
        page = self._orthanc.changes(cursor.value - 1, limit=1)
        first = page.changes[0] if page.changes else None
        if first is None and page.last < cursor.value:
            return self._from_the_start()
        if not cursor.line:
            return cursor
        if first is None or first.sequence_number != cursor.value:
            # A person deleted what stood there, or the index is another one.
            self._compare = True
            return Cursor(cursor.value)
        return cursor if cursor.line == _line(first) else self._from_the_start()

    def _from_the_start(self) -> Cursor:
        log.get().warning("Orthanc's index is not the one that was read; reading from the start")
        self._seen_at = None
        return Cursor()

    def _series_of(self, instance_ids: Iterable[str]) -> dict[str, str]:
        """Series → one of its instances that have just come."""
        found: dict[str, str] = {}
        for instance_id in instance_ids:
            try:
                found.setdefault(self._orthanc.series_of_instance(instance_id), instance_id)
            except Gone:  # deleted by a person since
                continue
            except OrthancUnavailable:
                self._orthanc.system()  # raises when it is Orthanc that is unwell
                log.get().warning("an instance cannot be asked for; its series is looked for")
                self._compare = True
        return found

    def _note(self, cursor: Cursor, received: dict[str, str]) -> None:
        known = self._arrivals.known(received)
        origins = {
            series_id: None if series_id in known else self._origin(instance_id)
            for series_id, instance_id in received.items()
        }
        self._arrivals.record(
            FEED, cursor, origins, seen_at=self._seen_at, longest_s=self._longest_pause_s
        )

    def _origin(self, instance_id: str) -> Origin:
        try:
            noted = self._orthanc.metadata(instance_id)
        except (Gone, OrthancUnavailable):  # the series counts, wherever it came from
            return Origin()
        if noted.get("Origin") != "DicomProtocol":
            return Origin()
        return Origin(noted.get("RemoteAET", ""), noted.get("RemoteIP", ""))

    def _compare_series(self, cursor: Cursor) -> None:
        """Note every series that Orthanc has and that never arrived here."""
        held = self._orthanc.series_ids()
        unknown = set(held) - self._arrivals.known(held)
        if unknown:
            log.get().warning("series that the feed did not show", series_count=len(unknown))
        self._arrivals.record(FEED, cursor, dict.fromkeys(unknown))
        self._compare = False


def _line(change: Change) -> str:
    return f"{change.kind} {change.resource_id}"
