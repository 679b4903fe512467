"""Orthanc's disks and files: how much is free, and what a power cut left outside its index.

Orthanc flushes every file before it answers a sender, and its index only now and then: a power
cut takes the last seconds of the index, and the files stay. The bridge, while Orthanc starts, puts
aside the files that the index does not know; here they are imported again. An instance gets the
same id as before. What Orthanc noted of its reception (who sent it) stood in the index alone, and
is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from node import log
from node.edges.orthanc import Orthanc
from node.errors import DamagedInstance, Gone, OutOfSpace, Rejected, Unavailable
from node.imaging.whole import is_whole

_STORAGE = "/segnode/storage"
_FROM_THE_NODE = {"X-Segnode-Console": "1"}
#: The bridge lets these in when the disk is full: they lie on it already.
_IMPORT = {"X-Segnode-Import": "1"}
#: Files in a row that Orthanc did not take: it may be down, or full.
_GIVE_UP_AFTER = 3
#: 600 instances take a second. Who deletes holds the ledger, which others wait for (30 s).
_DELETION_TIMEOUT_S = 15.0
#: So many series, with the ids of thousands of instances each, are in memory at once.
_PAGE = 200


@dataclass(frozen=True)
class Disk:
    """One disk that the node writes to, by a folder on it."""

    folder: str
    free_bytes: int
    total_bytes: int
    keep_free_bytes: int

    @property
    def is_full(self) -> bool:
        """Whether the node refuses what comes because of this disk."""
        return self.free_bytes < self.keep_free_bytes


@dataclass(frozen=True)
class StorageState:
    """What the bridge says of Orthanc's disks and files.

    Attributes
    ----------
    disks
        Every disk that must not get full, once.
    refusing
        Senders are answered with 0xA700 (C-STORE) or 403 (HTTP) at this moment.
    orphans
        Files that are not in the index and wait to be imported.
    unreadable
        Files of which no instance can be made; kept for a person.
    fileless
        Ids of instances that the index has and whose file was gone when Orthanc started; one that
        has left the index since is not among them.
    """

    disks: tuple[Disk, ...]
    refusing: bool
    orphans: tuple[str, ...]
    unreadable: tuple[str, ...]
    fileless: tuple[str, ...]


@dataclass(frozen=True)
class Restored:
    """What became of one file that the index did not know."""

    file: str
    outcome: Literal["imported", "unreadable", "waiting"]
    reason: str = ""


class OrthancStorage:
    """Asks the bridge inside Orthanc, and Orthanc itself."""

    def __init__(self, orthanc: Orthanc) -> None:
        self._orthanc = orthanc
        self._looked = threading.Event()

    @property
    def has_looked(self) -> bool:
        """Whether :meth:`restore` has been through once: until then a series may lack instances."""
        return self._looked.is_set()

    def state(self) -> StorageState:
        """How things stand.

        Raises
        ------
        Rejected
            This Orthanc runs without the node's bridge.
        """
        answer: dict[str, Any] = self._orthanc.request("GET", _STORAGE).json()
        return StorageState(
            disks=tuple(Disk(**disk) for disk in answer["disks"]),
            refusing=answer["refusing"],
            orphans=tuple(answer["orphans"]),
            unreadable=tuple(answer["unreadable"]),
            fileless=tuple(answer["fileless"]),
        )

    def restore(self) -> list[Restored]:
        """Import every file that the index does not know; each with what became of it.

        A file is removed only when Orthanc gives back the same bytes; what the index says of them
        is no proof. What cannot be read, or is not what Orthanc has under the same UID, is kept for
        a person. A file that Orthanc fails over waits for the next time and holds up no other.
        """
        try:
            orphans = self.state().orphans
        except Rejected:  # an Orthanc without our bridge
            self._looked.set()
            raise
        try:
            done = self._restore(orphans)
        except OutOfSpace:  # that may last; series that are whole do not wait for it
            self._looked.set()
            raise
        self._looked.set()
        return done

    def is_fileless(self, instance_id: str) -> bool:
        """Whether the instance is in Orthanc's index and its file is not on the disk."""
        try:
            return self._orthanc.kept_file(instance_id) is None
        except Gone:
            return False

    def parents_of(self, instance_id: str) -> tuple[str, str]:
        """Ids of its study and its series; Gone if it is not in the index."""
        series_id = self._orthanc.series_of_instance(instance_id)
        return self._orthanc.study_of_series(series_id), series_id

    def delete_instance(self, instance_id: str) -> None:
        """Remove an instance from Orthanc; one that is not there is no error."""
        self._delete(f"/instances/{instance_id}")

    def delete_instances(self, instance_ids: Sequence[str]) -> None:
        """Remove these and no others; one that is not there is no error.

        Raises
        ------
        OrthancUnavailable
            It takes longer than the ledger can be kept waiting; Orthanc may be done with it later.
        """
        self._orthanc.request(
            "POST", "/tools/bulk-delete",
            json={"Resources": list(instance_ids)}, timeout=_DELETION_TIMEOUT_S,
        )  # fmt: skip

    def series_ids(self) -> list[str]:
        """Ids of all series, in any order."""
        return list(self._orthanc.request("GET", "/series").json())

    def instances_of(self, series_id: str) -> frozenset[str]:
        """Ids of the instances of a series; none if it is not there."""
        try:
            return frozenset(self._orthanc.instances_of_series(series_id))
        except Rejected:
            return frozenset()

    def series(self) -> Iterator[Mapping[str, frozenset[str]]]:
        """Id of every series → ids of its instances, a few hundred series at once.

        Who looks while others are deleted may miss one, and finds it the next time.
        """
        since = 0
        while True:
            page = self._orthanc.request(
                "GET", "/series", params={"expand": "", "since": since, "limit": _PAGE}
            ).json()
            yield {one["ID"]: frozenset(one["Instances"]) for one in page}
            if len(page) < _PAGE:
                return
            since += _PAGE

    def _restore(self, names: Sequence[str]) -> list[Restored]:
        done: list[Restored] = []
        failed = 0
        for name in names:
            try:
                done.append(self._restored(name))
                failed = 0
            except Unavailable as error:
                failed += 1
                if failed == _GIVE_UP_AFTER:
                    if isinstance(error, OutOfSpace):
                        raise
                    self._orthanc.system()  # raises when it is Orthanc, and not these files
                    failed = 0
                done.append(Restored(name, "waiting", str(error)))
            log.get().warning("file without index", outcome=done[-1].outcome)
        return done

    def _restored(self, name: str) -> Restored:
        found = self._imported(name)
        verb = "unreadable" if found.outcome == "unreadable" else "imported"
        self._orthanc.request("POST", f"{_STORAGE}/{name}/{verb}", headers=_FROM_THE_NODE)
        return found

    def _imported(self, name: str) -> Restored:
        data = self._orthanc.request("GET", f"{_STORAGE}/{name}").content
        if not is_whole(data):
            return Restored(name, "unreadable", "it ends early, or is no DICOM object")
        try:
            instance_id = self._orthanc.store(data, _IMPORT)
        except DamagedInstance as error:
            return Restored(name, "unreadable", str(error))
        kept = self._orthanc.kept_file(instance_id)
        if kept is None:  # an older index believes in a file that was deleted: this one came after
            self.delete_instance(instance_id)
            kept = self._orthanc.kept_file(self._orthanc.store(data, _IMPORT))
        if kept != data:
            return Restored(name, "unreadable", "Orthanc has another object of the same UID")
        return Restored(name, "imported")

    def _delete(self, path: str) -> None:
        try:
            self._orthanc.request("DELETE", path)
        except Rejected:
            return
