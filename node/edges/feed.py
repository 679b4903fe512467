"""Orthanc's changes feed, read into the arrivals: which series have received something.

Correctness rests on the feed and a cursor. The cursor remembers which line it stands on: an index
that was made anew, restored from a backup or cut short by a power cut counts from a lower number,
and may have passed it. Such a feed is read from its start, and what it repeats is no new arrival.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from node import log
from node.edges.arrivals import Arrivals, Cursor, Origin
from node.edges.orthanc import Change, Orthanc
from node.edges.orthanc_storage import OrthancStorage
from node.errors import Gone, OrthancUnavailable, Rejected

FEED = "orthanc"
#: A cursor of its own: 1 while the feed repeats what it has shown before.
REPLAY = "orthanc replay"


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
        replays = self._arrivals.cursor(REPLAY).value > 0
        more = replays and self._restoring()  # what is imported from here on is read next time
        while True:
            asked_at = self._arrivals.now
            page = self._orthanc.changes(cursor.value)
            received = [one.resource_id for one in page.changes if one.kind == "NewInstance"]
            line = _line(page.changes[-1]) if page.changes else cursor.line
            if page.last != cursor.value:
                cursor = Cursor(page.last, line)
                series = self._series_of(received)
                self._note(cursor, self._unseen(series) if replays else series)
            if page.done:
                break
        if replays and not more:
            self._arrivals.record(FEED, cursor, {})
            self._arrivals.record(REPLAY, Cursor(), {})
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
        self._arrivals.record(REPLAY, Cursor(1), {})
        # At once: what is imported may bring another feed to the old place, with the same line.
        self._arrivals.record(FEED, Cursor(), {})
        return Cursor()

    def _restoring(self) -> bool:
        """Whether files that the index has lost are still to be imported: they have been here."""
        try:
            return bool(OrthancStorage(self._orthanc).state().orphans)
        except Rejected:  # an Orthanc without our bridge
            return False

    def _unseen(self, series: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """Those with an instance that no job has seen.

        The others are there again, and nobody has sent them: a job that was canceled stays so.
        """
        seen = self._arrivals.seen(series)
        return {one: ids for one, ids in series.items() if not seen.issuperset(ids)}

    def _series_of(self, instance_ids: Iterable[str]) -> dict[str, list[str]]:
        """Series → its instances that have just come."""
        found: dict[str, list[str]] = {}
        for instance_id in instance_ids:
            try:
                series_id = self._orthanc.series_of_instance(instance_id)
                found.setdefault(series_id, []).append(instance_id)
            except Gone:  # deleted by a person since
                continue
            except OrthancUnavailable:
                self._orthanc.system()  # raises when it is Orthanc that is unwell
                log.get().warning("an instance cannot be asked for; its series is looked for")
                self._compare = True
        return found

    def _note(self, cursor: Cursor, received: Mapping[str, Sequence[str]]) -> None:
        known = self._arrivals.known(received)
        origins = {
            series_id: None if series_id in known else self._origin(instance_ids[0])
            for series_id, instance_ids in received.items()
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
