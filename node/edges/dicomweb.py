"""A PACS reached by DICOMweb: STOW-RS to store, QIDO-RS to ask, WADO-RS to fetch.

No message names an instance, a study or a series by its UID, and no error of the HTTP library is
passed on: its text may hold a URL, and the URLs of DICOMweb hold UIDs.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from pydicom import dcmread

from node.edges.store_status import (
    PROCESSING_FAILURE,
    REFUSED_CONTENT,
    not_answered,
    refused_over_http,
    store_status,
)
from node.errors import DeliveryRefused, PacsUnavailable
from node.pipeline.headers import read_header
from node.ports import StoreStatus

# Attributes of the DICOM JSON model, PS3.18 F.2.
_SOP_INSTANCE_UID = "00080018"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_WARNING_REASON = "00081196"
_FAILURE_REASON = "00081197"
_FAILED_SOP_SEQUENCE = "00081198"
_REFERENCED_SOP_SEQUENCE = "00081199"


_SERIES_INSTANCE_UID = "0020000E"
_NUMBER_OF_SERIES_RELATED_INSTANCES = "00201209"
_CONTENT_TOO_LARGE = 413
#: What a server may answer while it is busy, restarting, or behind a proxy that is; and 5xx.
_TRY_AGAIN = (408, 425, 429)
#: Of those, what no waiting changes: not implemented, HTTP version not supported.
_NEVER = (501, 505)

#: A service that failed on the way, and one that a proxy did not wait for.
_MAY_HAVE_STORED = (500, 504)

#: What may stand in the path of a URL.
_UID = re.compile(r"[0-9.]{1,64}")

_Json = dict[str, Any]


@dataclass(frozen=True)
class DicomWebDestination:
    """Where a DICOMweb service is, and how we log in: a user with password, or a bearer token.

    The secret stays in its file and is read anew for every call, so that it can be changed.
    """

    name: str
    url: str
    username: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    certificate_authority: Path | None = None
    connect_timeout_s: float = 10
    #: How long the service may think about one request.
    answer_timeout_s: float = 300


class DicomWebPacs:
    """One DICOMweb destination."""

    def __init__(self, destination: DicomWebDestination) -> None:
        self._destination = destination
        # httpx logs the URL of every request, which holds original UIDs.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def echo(self) -> None:
        """Return when the service answers a query, for a study that cannot exist."""
        self._get("/studies", {"StudyInstanceUID": "2.25.0", "limit": "1"})

    def store(self, instances: Sequence[bytes]) -> tuple[StoreStatus, ...]:
        """Send Part 10 streams in one request; one status each, in order.

        A request that is too large for the service is sent in halves. A service that refuses the
        whole content (HTTP 400, 409, 415 …) has refused each instance.

        Raises
        ------
        PacsUnavailable
            No answer, or a busy service: nothing is known to be stored, and it says whether
            something may be.
        DeliveryRefused
            The request itself is refused: login or address.

        References
        ----------
        PS3.18 2026b 10.5 (Store Transaction), Annex I (Store Instances Response).
        """
        if not instances:
            return ()
        uids = [_sop_instance_uid(instance) for instance in instances]
        content_type, body = _multipart(instances)
        headers = {"Content-Type": content_type, "Accept": "application/dicom+json"}
        with self._client() as client:
            response = client.post("/studies", content=body, headers=headers)
        code = response.status_code
        if code == _CONTENT_TOO_LARGE and len(instances) > 1:
            middle = len(instances) // 2
            return self.store(instances[:middle]) + self._rest(instances[middle:])
        if code not in (200, 202, *REFUSED_CONTENT):
            raise self._not_ok(response, "STOW-RS")
        outcomes = self._outcomes(response)
        if code in REFUSED_CONTENT and not outcomes:
            return tuple(refused_over_http(uid, code) for uid in uids)
        if code == 200:
            # 200 is success for all: several services say no more than that.
            outcomes = dict.fromkeys(uids, 0) | outcomes
        return tuple(
            store_status(uid, outcomes[uid])
            if uid in outcomes
            # What is not named may be there or not.
            else replace(store_status(uid, PROCESSING_FAILURE), unsure=True)
            for uid in uids
        )

    def _rest(self, instances: Sequence[bytes]) -> tuple[StoreStatus, ...]:
        """The second half, of which nothing that goes wrong is held against the first."""
        try:
            return self.store(instances)
        except (PacsUnavailable, DeliveryRefused) as error:
            sent = isinstance(error, PacsUnavailable) and error.sent
            return tuple(
                not_answered(_sop_instance_uid(one), str(error), sent=sent) for one in instances
            )

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs of the series that the service says it holds (PS3.18 2026b 10.6)."""
        path = f"/studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        found: set[str] = set()
        while True:  # a service may answer in pages of its own size
            parameters = {"includefield": _SOP_INSTANCE_UID, "offset": str(len(found))}
            matches = self._get(path, parameters)
            uids = {str(uid) for match in matches if (uid := _first(match, _SOP_INSTANCE_UID))}
            if uids <= found:  # none left, or a service that knows no pages has said it all twice
                return frozenset(found)
            found |= uids

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int | None:
        """How many instances of the series the service says it holds; None when it does not count.

        0 when it does not hold the series.
        """
        wanted = {
            _SERIES_INSTANCE_UID: series_instance_uid,
            "includefield": _NUMBER_OF_SERIES_RELATED_INSTANCES,
        }
        matches = self._get(f"/studies/{study_instance_uid}/series", wanted)
        held = [one for one in matches if _first(one, _SERIES_INSTANCE_UID) == series_instance_uid]
        if not held:
            return 0
        count = _first(held[0], _NUMBER_OF_SERIES_RELATED_INSTANCES)
        return None if count is None else int(count)

    def instance(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
    ) -> bytes:
        """One instance as a Part 10 stream, in the syntax it is kept in (PS3.18 2026b 10.4).

        Raises
        ------
        DeliveryRefused
            The service named something that is no UID, or answered with another instance.
        DamagedInstance
            The answer is no DICOM object.
        """
        if not _UID.fullmatch(sop_instance_uid):
            raise DeliveryRefused(f"{self._destination.name} names an instance by what is no UID")
        path = (
            f"/studies/{study_instance_uid}/series/{series_instance_uid}"
            f"/instances/{sop_instance_uid}"
        )
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._client() as client:
            response = client.get(path, headers={"Accept": accept})
        if response.status_code != 200:
            raise self._not_ok(response, "WADO-RS")
        instance = _only_part(response)
        header = read_header(instance)
        came = [
            str(header.get(keyword))
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        ]
        if came != [study_instance_uid, series_instance_uid, sop_instance_uid]:
            raise DeliveryRefused(
                f"{self._destination.name} answered WADO-RS with another instance"
            )
        return instance

    def _outcomes(self, response: httpx.Response) -> dict[str, int]:
        """SOP Instance UID → status, as far as the body tells."""
        if not response.content:
            return {}
        try:
            (document,) = _datasets(response)
            stored = {
                _first(item, _REFERENCED_SOP_INSTANCE_UID): _first(item, _WARNING_REASON) or 0x0000
                for item in _items(document, _REFERENCED_SOP_SEQUENCE)
            }
            failed = {
                _first(item, _REFERENCED_SOP_INSTANCE_UID): _first(item, _FAILURE_REASON)
                or PROCESSING_FAILURE
                for item in _items(document, _FAILED_SOP_SEQUENCE)
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}
        return {str(uid): int(status) for uid, status in (stored | failed).items()}

    def _get(self, path: str, parameters: dict[str, str]) -> list[_Json]:
        with self._client() as client:
            headers = {"Accept": "application/dicom+json"}
            response = client.get(path, params=parameters, headers=headers)
        if response.status_code in (204, 404):  # nothing matches; which of the two differs
            return []
        if response.status_code != 200:
            raise self._not_ok(response, "QIDO-RS")
        try:
            return _datasets(response)
        except ValueError:
            raise DeliveryRefused(
                f"{self._destination.name} did not answer QIDO-RS with DICOM JSON"
            ) from None

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        to = self._destination
        try:
            login, bearer = _basic(to), _bearer(to)
        except OSError as error:
            raise DeliveryRefused(
                f"The login of {to.name} cannot be read ({type(error).__name__})",
                remedy="Put its password_file (or token_file) back, readable to the node.",
            ) from None
        timeout = httpx.Timeout(to.answer_timeout_s, connect=to.connect_timeout_s)
        try:
            with httpx.Client(
                base_url=to.url,
                headers={"Accept-Encoding": "identity"} | bearer,
                auth=login,
                verify=ssl.create_default_context(cafile=to.certificate_authority),
                timeout=timeout,
            ) as client:
                yield client
        except httpx.TransportError as error:
            raise PacsUnavailable(
                f"{to.name} could not be reached or did not answer ({type(error).__name__})",
                sent=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
            ) from None

    def _not_ok(self, response: httpx.Response, request: str) -> Exception:
        code = response.status_code
        what = f"{self._destination.name} answered HTTP {code} to {request}"
        if code in _TRY_AGAIN or (code >= 500 and code not in _NEVER):
            unsure = code in _MAY_HAVE_STORED
            return PacsUnavailable(what, retry_after_s=_retry_after_s(response), sent=unsure)
        if code in (401, 403):
            return DeliveryRefused(what, remedy="Correct the login of this destination.")
        return DeliveryRefused(what, remedy="Correct the `url` of this destination.")


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110 10.2.3): seconds, or a date; None when there is none that is either."""
    said = response.headers.get("Retry-After", "")
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _basic(to: DicomWebDestination) -> httpx.BasicAuth | None:
    if to.username is None or to.password_file is None:
        return None
    return httpx.BasicAuth(to.username, to.password_file.read_text().strip())


def _bearer(to: DicomWebDestination) -> dict[str, str]:
    if to.token_file is None:
        return {}
    return {"Authorization": f"Bearer {to.token_file.read_text().strip()}"}


def _sop_instance_uid(instance: bytes) -> str:
    tags = ["SOPClassUID", "SOPInstanceUID"]
    return str(
        dcmread(BytesIO(instance), stop_before_pixels=True, specific_tags=tags).SOPInstanceUID
    )


def _multipart(instances: Sequence[bytes]) -> tuple[str, bytes]:
    """Content type and body of a STOW-RS request (RFC 2387)."""
    boundary = uuid.uuid4().hex
    parts = []
    for instance in instances:
        parts += [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), instance]
        parts.append(b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return content_type, b"".join(parts)


def _only_part(response: httpx.Response) -> bytes:
    """The body of a multipart answer with one part (RFC 2046 5.1.1)."""
    start = response.content.find(b"\r\n\r\n")
    opening = response.content[:start].lstrip().partition(b"\r\n")[0]
    end = response.content.rfind(b"\r\n" + opening)
    if start < 0 or end < start or not opening.startswith(b"--"):
        raise DeliveryRefused("The service did not answer WADO-RS with one instance")
    return response.content[start + 4 : end]


def _datasets(response: httpx.Response) -> list[_Json]:
    """The body as DICOM JSON: an array, or a single object as some services send."""
    content = json.loads(response.content)
    datasets = content if isinstance(content, list) else [content]
    if not all(isinstance(dataset, dict) for dataset in datasets):
        raise ValueError("not DICOM JSON")
    return datasets


def _items(document: _Json, tag: str) -> list[_Json]:
    return list(document.get(tag, {}).get("Value", []))


def _first(dataset: _Json, tag: str) -> Any:
    values = dataset.get(tag, {}).get("Value", [])
    return values[0] if values else None
