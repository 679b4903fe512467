"""Orthanc's REST interface: what was received, the changes feed, storage commitment.

Orthanc names its resources by hashes, never by UIDs, and this file keeps it so: no message, log
line or return value holds an original UID, except where :meth:`Orthanc.commitment` repeats UIDs of
objects that we made ourselves.

Measured on Orthanc 1.13 (facts that shaped this file): fetching instance by instance over four
keep-alive connections is as fast as the disk; a ZIP archive of the same series takes 15 s of CPU,
``Accept-Encoding: gzip`` as much.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from node.errors import (
    DamagedInstance,
    DeliveryRefused,
    Gone,
    NodeError,
    OrthancUnavailable,
    OutOfSpace,
    PacsUnavailable,
    Rejected,
)
from node.ports import CommitmentReport

CONNECTIONS = 4
#: Instances fetched before they are asked for: bounds memory, 8 of 0.5 MB for a CT.
LOOK_AHEAD = 8
#: Less than "KeepAliveTimeout" of orthanc.json, so that we hang up before Orthanc does.
IDLE_LIMIT_S = 3.0
CONNECT_TIMEOUT_S = 5.0
#: Storage commitment waits for the PACS's answer, up to Orthanc's "DicomScuTimeout".
READ_TIMEOUT_S = 60.0

# OrthancEnumerations: the code in the JSON body of an error.
_NETWORK_PROTOCOL = 9
_NO_PRESENTATION_CONTEXT = 2015
_NO_FILE = 2006

_ORTHANC_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_TRANSACTION_UID = re.compile(r"[0-9.]{1,64}")
_MODALITY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Change:
    """One line of the changes feed.

    ``kind`` is Orthanc's ChangeType (``NewInstance``, ``NewSeries``, ``StableSeries``, ...),
    ``resource_id`` a hash.
    """

    sequence_number: int
    kind: str
    resource_id: str


@dataclass(frozen=True)
class ChangesPage:
    """Some consecutive changes; ``last`` is the cursor to continue from.

    When ``last`` is below the cursor that was asked for, the index was created anew: start at 0.
    """

    changes: tuple[Change, ...]
    last: int
    done: bool


class Orthanc:
    """One Orthanc by its address, user and password; thread-safe; to be closed.

    Implements the ports ``Instances`` and ``StorageCommitment``. Every method raises
    :class:`~node.errors.OrthancUnavailable` when Orthanc does not answer or fails inside, and
    :class:`~node.errors.Gone` when it does not have what it is asked for.
    """

    def __init__(self, url: str, username: str, password: str) -> None:
        self._client = httpx.Client(
            base_url=url,
            auth=(username, password),
            headers={"Accept-Encoding": "identity"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(
                max_connections=4 * CONNECTIONS,
                max_keepalive_connections=CONNECTIONS,
                keepalive_expiry=IDLE_LIMIT_S,
            ),
            trust_env=False,  # no proxy, no .netrc: Orthanc is on loopback or a private network
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def system(self) -> Mapping[str, Any]:
        """What Orthanc says of itself: Version, DicomAet, DicomPort, ..."""
        answer: Mapping[str, Any] = self._get("/system").json()
        return answer

    def changes(self, since: int, limit: int = 1000) -> ChangesPage:
        """The changes after sequence number ``since``, oldest first, at most ``limit``.

        Sequence numbers survive restarts and are never given twice. Changes of a deleted resource
        disappear from the feed, so numbers may be missing.
        """
        page = self._get("/changes", params={"since": since, "limit": limit}).json()
        changes = tuple(
            Change(line["Seq"], line["ChangeType"], line["ID"]) for line in page["Changes"]
        )
        return ChangesPage(changes, last=page["Last"], done=page["Done"])

    def series_ids(self) -> tuple[str, ...]:
        """The ids of all series that it has, in any order."""
        return tuple(self._get("/series").json())

    def open_associations(self) -> Mapping[str, int]:
        """Address → how many DICOM associations from there are open now, as the bridge sees them.

        Empty without a bridge, and where it cannot know.
        """
        response = self._send("GET", "/segnode/associations", repeatable=True)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return {}
        found: Mapping[str, int] = _accepted(response).json()
        return found

    def series_of_instance(self, instance_id: str) -> str:
        """The id of the series that the instance belongs to."""
        return str(self._get(f"/instances/{_checked(instance_id)}").json()["ParentSeries"])

    def study_of_series(self, series_id: str) -> str:
        """The id of the study that the series belongs to."""
        return str(self._get(f"/series/{_checked(series_id)}").json()["ParentStudy"])

    def modality_of_series(self, study_id: str) -> Mapping[str, str]:
        """Series id → Modality (0008,0060), of every series of a study."""
        answer = self._get(f"/studies/{_checked(study_id)}/series").json()
        return {one["ID"]: one["MainDicomTags"].get("Modality", "") for one in answer}

    def instances_of_series(self, series_id: str) -> tuple[str, ...]:
        """The ids of all instances received for the series, in any order."""
        return tuple(self._get(f"/series/{_checked(series_id)}").json()["Instances"])

    def metadata(self, instance_id: str) -> Mapping[str, str]:
        """What Orthanc noted on reception.

        ``Origin`` is ``DicomProtocol``, ``RestApi`` or ``Plugins`` (STOW-RS); ``RemoteIP`` always,
        ``RemoteAET`` and ``CalledAET`` after a C-STORE, ``HttpUsername`` after HTTP; further
        ``TransferSyntax``, ``SopClassUid``, ``ReceptionDate``, ``PixelDataOffset``.
        """
        answer: Mapping[str, str] = self._get(
            f"/instances/{_checked(instance_id)}/metadata", params={"expand": ""}
        ).json()
        return answer

    def instance_file(self, instance_id: str) -> bytes:
        """The instance as it was received: a Part 10 stream (PS3.10)."""
        return self._get(f"/instances/{_checked(instance_id)}/file").content

    def kept_file(self, instance_id: str) -> bytes | None:
        """The instance as it was received; None where its file is missing, and nothing else."""
        response = self._send("GET", f"/instances/{_checked(instance_id)}/file", repeatable=True)
        return None if _orthanc_status(response) == _NO_FILE else _accepted(response).content

    def instance_header(self, instance_id: str) -> bytes:
        """The Part 10 stream up to its pixel data; all of it when it has none.

        Orthanc noted the offset on reception. Read it with ``stop_before_pixels=True``.
        """
        offset = self.metadata(instance_id).get("PixelDataOffset", "")
        if not offset.isdigit() or offset == "0":  # no pixel data, or deflated: nothing to cut
            return self.instance_file(instance_id)
        return self._get(
            f"/instances/{instance_id}/attachments/dicom/data",
            headers={"Range": f"bytes=0-{int(offset) - 1}"},
        ).content

    def fetch(self, instance_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Each id with its whole Part 10 stream, in the order asked, over four connections.

        At most :data:`LOOK_AHEAD` instances are held beside the one that the caller works on.
        """
        waiting: deque[tuple[str, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="orthanc-fetch")
        try:
            for instance_id in instance_ids:
                waiting.append((instance_id, pool.submit(self.instance_file, instance_id)))
                if len(waiting) > LOOK_AHEAD:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def request(self, method: str, path: str, **request: Any) -> httpx.Response:
        """A call that does no harm twice, for the files beside this one."""
        return _accepted(self._send(method, path, repeatable=True, **request))

    def store(self, instance: bytes, headers: Mapping[str, str] | None = None) -> str:
        """Hand an instance to Orthanc itself; its id. The same one twice is one.

        Raises
        ------
        DamagedInstance
            Orthanc cannot read it as DICOM, or it lacks an identifier that DICOM requires.
        OutOfSpace
            Orthanc is at its storage limit ("MaximumStorageMode": "Reject").
        """
        response = self._send(
            "POST", "/instances", content=instance, headers=headers, repeatable=True
        )
        if response.status_code == HTTPStatus.INSUFFICIENT_STORAGE:
            raise OutOfSpace("Orthanc has reached its storage limit")
        if response.status_code in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND):
            # 404 is "Inexistent tag": no PatientID, Study, Series or SOP Instance UID.
            raise DamagedInstance("Orthanc cannot read the object as a DICOM instance")
        answer = _accepted(response).json()
        if answer.get("Status") not in ("Success", "AlreadyStored"):
            raise Rejected("Orthanc has not kept the object", remedy="See Orthanc's log.")
        return str(answer["ID"])

    def request_commitment(self, destination: str, references: Sequence[tuple[str, str]]) -> str:
        """Ask a DICOM peer to commit to (SOP Class UID, SOP Instance UID) pairs (PS3.4 J.3).

        ``destination`` is the peer's name in ``modalities.json``. Returns the transaction's id
        once the peer has accepted the request (N-ACTION); the peer reports later, on an
        association that it opens itself towards Orthanc.

        Raises
        ------
        PacsUnavailable
            The peer did not answer, or refused this request.
        DeliveryRefused
            The peer offers no storage commitment, or Orthanc does not know the peer.
        """
        if not _MODALITY.fullmatch(destination):
            raise ValueError("not the name of a DICOM peer")
        body = {
            "DicomInstances": [
                {"SOPClassUID": sop_class, "SOPInstanceUID": sop_instance}
                for sop_class, sop_instance in references
            ]
        }
        response = self._send("POST", f"/modalities/{destination}/storage-commitment", json=body)
        if response.status_code == HTTPStatus.NOT_FOUND:
            raise DeliveryRefused(
                "Orthanc does not know the destination",
                remedy="Name the destination among the DICOM peers in segnode.toml.",
            )
        if _orthanc_status(response) == _NO_PRESENTATION_CONTEXT:
            raise DeliveryRefused(
                "The destination offers no storage commitment",
                remedy="Prove delivery by a query instead: set storage_commitment = false.",
            )
        if _orthanc_status(response) == _NETWORK_PROTOCOL:
            raise PacsUnavailable(
                "The destination did not accept a request for storage commitment",
                remedy="Check that it is up and offers storage commitment to the node's AE title.",
            )
        return str(_accepted(response).json()["ID"])

    def commitment(self, transaction_id: str) -> CommitmentReport:
        """The state of a storage commitment transaction.

        ``lost`` when Orthanc does not know it: it keeps reports in memory, so a restart loses them;
        ask again with :meth:`request_commitment`.
        """
        if not _TRANSACTION_UID.fullmatch(transaction_id):
            raise ValueError("not a transaction UID")
        response = self._send("GET", f"/storage-commitment/{transaction_id}", repeatable=True)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return CommitmentReport("lost")
        report = _accepted(response).json()
        match report["Status"]:
            case "Pending":
                return CommitmentReport("pending")
            case "Success":
                return CommitmentReport("success")
            case _:
                failed = tuple(line["SOPInstanceUID"] for line in report.get("Failures", ()))
                return CommitmentReport("failure", failed)

    def _get(
        self,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        return _accepted(self._send("GET", path, params=params, headers=headers, repeatable=True))

    def _send(
        self, method: str, path: str, *, repeatable: bool = False, **request: Any
    ) -> httpx.Response:
        """The answer, whatever its status; OrthancUnavailable when there is none.

        Orthanc may close an idle connection just as we use it, so a request that does no harm twice
        is sent once more.
        """
        try:
            try:
                return self._client.request(method, path, **request)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if not repeatable:
                    raise
                return self._client.request(method, path, **request)
        except httpx.TransportError as error:
            # The error's own text may repeat a URL; its class says enough.
            raise OrthancUnavailable(f"Orthanc did not answer ({type(error).__name__})") from None


def _checked(orthanc_id: str) -> str:
    """The id, if it is one: it becomes part of a path."""
    if not _ORTHANC_ID.fullmatch(orthanc_id):
        raise ValueError("not the id of an Orthanc resource")
    return orthanc_id


def _result(waiting: deque[tuple[str, Future[bytes]]]) -> tuple[str, bytes]:
    instance_id, future = waiting.popleft()
    return instance_id, future.result()


def _orthanc_status(response: httpx.Response) -> int | None:
    """The code of an OrthancException, which Orthanc describes in the body of an error."""
    if response.is_success:
        return None
    try:
        return int(response.json()["OrthancStatus"])
    except (ValueError, KeyError, TypeError):
        return None


def _accepted(response: httpx.Response) -> httpx.Response:
    """The response if it is a success; otherwise what its status means for the job."""
    if response.is_success:
        return response
    raise _failure(response.status_code)


def _failure(status: int) -> NodeError:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return OrthancUnavailable(
            f"Orthanc refuses the node's login (HTTP {status})",
            remedy="Orthanc and the node use different passwords: restart both together.",
        )
    if status == HTTPStatus.NOT_FOUND:
        return Gone("Orthanc no longer has the object")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return OrthancUnavailable(f"Orthanc failed inside (HTTP {status})")
    # Nothing that the node asks for can be wrong for good: what is deleted answers 404.
    return OrthancUnavailable(
        f"Orthanc refused the request (HTTP {status})", remedy="See Orthanc's log."
    )
