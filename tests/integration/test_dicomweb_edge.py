"""Sending to a PACS by DICOMweb: Orthanc, and services that answer as a bad day makes them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicom_peers import (
    SERIES,
    STUDY,
    ct_instance,
    instance_uids,
    running_orthanc,
    seg_instance,
)
from pydicom import dcmread
from pydicom.uid import RLELossless

from node.edges.dicomweb import DicomWebDestination, DicomWebPacs
from node.edges.source import DicomWebSource
from node.errors import DamagedInstance, DeliveryRefused, NodeError, PacsUnavailable
from node.ports import Answer
from node.settings import DicomWebPeer, Settings
from node.wiring import Hospital
from tests.orthanc_server import OrthancServer, free_port


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer


@pytest.fixture
def password_file(orthanc: OrthancServer, tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{orthanc.auth[1]}\n")
    return path


def orthanc_by_web(peer: OrthancServer, password_file: Path) -> DicomWebPacs:
    return DicomWebPacs(
        DicomWebDestination(
            name="web",
            url=f"{peer.url}/dicom-web",
            username=peer.auth[0],
            password_file=password_file,
        )
    )


class Service(ThreadingHTTPServer):
    """An HTTP service that gives one prepared answer and keeps what it was asked."""

    def __init__(self, code: int, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.code, self.body = code, body
        self.limit = 2**30
        self.awake = threading.Event()
        self.awake.set()
        self.headers: dict[str, str] = {}
        self.pages: list[str] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers), content))
        self.server.awake.wait(20)
        body = self.server.pages.pop(0).encode() if self.server.pages else self.server.body
        self.send_response(self.server.code if len(content) <= self.server.limit else 413)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def answering(code: int, body: bytes = b"") -> Iterator[tuple[Service, DicomWebPacs]]:
    service = Service(code, body)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{service.server_address[1]}/rs"
    try:
        yield service, DicomWebPacs(DicomWebDestination(name="web", url=url))
    finally:
        service.shutdown()
        service.server_close()


def store_response(
    stored: dict[int, int | None], failed: dict[int, int | None] | None = None
) -> bytes:
    """A Store Instances Response for CT numbers → warning or failure reason (PS3.18 Annex I)."""

    def items(outcomes: dict[int, int | None], reason: str) -> list[Any]:
        return [
            {"00081155": {"vr": "UI", "Value": [f"2.25.{7000 + number}"]}}
            | ({} if code is None else {reason: {"vr": "US", "Value": [code]}})
            for number, code in outcomes.items()
        ]

    document = {}
    if stored:
        document["00081199"] = {"vr": "SQ", "Value": items(stored, "00081196")}
    if failed:
        document["00081198"] = {"vr": "SQ", "Value": items(failed, "00081197")}
    return json.dumps(document).encode()


def assert_says_no_identifier(error: NodeError) -> None:
    for identifier in (STUDY, SERIES, "2.25.70", "PSEUDO", "secret"):
        assert identifier not in f"{error} {error.remedy} {error.__cause__} {error.__context__}"


def test_orthanc_takes_what_it_is_sent_and_names_what_it_holds(
    orthanc: OrthancServer, password_file: Path
) -> None:
    """Native and encapsulated CT and a SEG arrive in one request, and are found by query."""
    pacs = orthanc_by_web(orthanc, password_file)
    pacs.echo()
    sent = [ct_instance(1), ct_instance(3, syntax=RLELossless), seg_instance()]
    uids = [dcmread(BytesIO(instance)).SOPInstanceUID for instance in sent]
    for _ in range(2):  # the second time it holds them already
        statuses = pacs.store(sent)
        assert [status.sop_instance_uid for status in statuses] == uids
        assert all(status.accepted for status in statuses)
    assert instance_uids(orthanc) == set(uids)
    assert pacs.find_instances(STUDY, SERIES) == set(uids[:2])
    assert pacs.find_instances(STUDY, "2.25.73") == {uids[2]}
    assert pacs.find_instances("2.25.404", SERIES) == set()


def test_wrong_password_is_refused(orthanc: OrthancServer, tmp_path: Path) -> None:
    """A login that fails is a configuration mistake, not a reason to try for ever."""
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    pacs = orthanc_by_web(orthanc, wrong)
    with pytest.raises(DeliveryRefused, match="HTTP 401 to STOW-RS") as caught:
        pacs.store([ct_instance(1)])
    assert "login" in caught.value.remedy
    with pytest.raises(DeliveryRefused, match="HTTP 401 to QIDO-RS"):
        pacs.echo()


def test_uids_of_requests_stay_out_of_the_log(
    orthanc: OrthancServer, password_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The HTTP library logs every URL; ours hold original UIDs and are not logged."""
    with caplog.at_level(logging.DEBUG):
        orthanc_by_web(orthanc, password_file).find_instances(STUDY, SERIES)
    assert STUDY not in caplog.text


def test_request_is_multipart_related_with_one_part_for_each_instance(tmp_path: Path) -> None:
    """Another parser finds the same streams, typed application/dicom, and the bearer token."""
    token = tmp_path / "token"
    token.write_text("a-token\n")
    sent = [ct_instance(1), ct_instance(2)]
    with answering(200) as (service, _):
        url = f"http://127.0.0.1:{service.server_address[1]}/rs"
        pacs = DicomWebPacs(DicomWebDestination(name="web", url=url, token_file=token))
        statuses = pacs.store(sent)
    assert all(status.accepted for status in statuses)
    ((path, headers, body),) = service.requests
    assert path == "/rs/studies"
    assert headers["Authorization"] == "Bearer a-token"
    assert headers["Accept"] == "application/dicom+json"
    message = message_from_bytes(
        f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body, policy=HTTP
    )
    assert message.get_content_type() == "multipart/related"
    parts = list(message.iter_parts())  # type: ignore[attr-defined]
    assert [part.get_content_type() for part in parts] == ["application/dicom"] * 2
    for instance in sent:
        assert b"\r\n\r\n" + instance + b"\r\n--" in body


def test_token_and_patience_are_those_of_the_settings(tmp_path: Path) -> None:
    """A site logs in by a bearer token, and says how long its service may think."""
    token = tmp_path / "token"
    token.write_text("a-token\n")
    with answering(200, b"[]") as (service, _):
        url = f"http://127.0.0.1:{service.server_address[1]}/rs"
        peer = DicomWebPeer(name="web", url=url, token_file=token, answer_timeout_s=0.1)
        service.awake.clear()
        with pytest.raises(PacsUnavailable, match="ReadTimeout"):
            Hospital(Settings(dicomweb_peers=(peer,))).dicomweb(peer).echo()
        service.awake.set()
    ((_, headers, _),) = service.requests
    assert headers["Authorization"] == "Bearer a-token"


def test_each_instance_gets_its_own_reason() -> None:
    """202: one stored, one stored with a warning, one refused."""
    body = store_response({1: None, 2: 0xB000}, {3: 0xA900})
    with answering(202, body) as (_, pacs):
        statuses = pacs.store([ct_instance(1), ct_instance(2), ct_instance(3)])
    assert [(status.status, status.accepted) for status in statuses] == [
        (0x0000, True),
        (0xB000, True),
        (0xA900, False),
    ]


def test_conflict_names_the_reason_of_each_instance() -> None:
    """409: nothing stored; what a retry cannot change comes back as statuses."""
    with answering(409, store_response({}, {1: 0x0122})) as (_, pacs):
        (status,) = pacs.store([ct_instance(1)])
    assert (status.status, status.accepted) == (0x0122, False)


def test_conflict_over_a_duplicate_is_accepted() -> None:
    """The destination holds it already: that was the goal."""
    with answering(409, store_response({}, {1: 0x0111})) as (_, pacs):
        (status,) = pacs.store([ct_instance(1)])
    assert status.accepted


@pytest.mark.parametrize(
    "body",
    [store_response({1: None}, {2: 0xA700}), store_response({1: None}), b"<xml/>", b""],
    ids=["out of resources", "not mentioned", "not JSON", "empty"],
)
def test_instance_that_may_not_have_arrived_is_sent_again(body: bytes) -> None:
    """202 promises nothing for an instance that the answer does not name as stored."""
    with answering(202, body) as (_, pacs):
        statuses = pacs.store([ct_instance(1), ct_instance(2)])
    assert statuses[1].answer in (Answer.TRY_AGAIN, Answer.BUSY)
    assert statuses[0].accepted == (b"2.25.7001" in body)


@pytest.mark.parametrize("code", [400, 406, 409, 413, 415, 422])
def test_refused_content_is_a_status_of_each_instance(code: int) -> None:
    """A service that will not have a SEG says so to the whole request: captures can follow."""
    with answering(code, b"<html>PSEUDO^ONE</html>") as (_, pacs):
        (status,) = pacs.store([seg_instance()])
    assert (status.answer, status.status) == (Answer.REFUSED, code)
    assert status.said.startswith(f"HTTP {code}, ")
    assert "PSEUDO" not in status.said


def test_too_large_a_request_is_sent_in_halves() -> None:
    """A proxy with a limit on the size of a body takes one instance after the other."""
    with answering(200) as (service, pacs):
        service.limit = 2 * len(ct_instance(1))
        statuses = pacs.store([ct_instance(number) for number in range(1, 6)])
    assert [status.answer for status in statuses] == [Answer.ACCEPTED] * 5
    taken = [body for _, _, body in service.requests if len(body) <= service.limit]
    assert sum(body.count(b"application/dicom") for body in taken) == 5


@pytest.mark.parametrize(
    ("said", "expected"),
    [("120", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("soon", None), (None, None)],
)
def test_retry_after_is_heard(said: str | None, expected: float | None) -> None:
    """Seconds, a date that is past, something else, nothing (RFC 9110 10.2.3)."""
    with answering(503) as (service, pacs):
        service.headers = {} if said is None else {"Retry-After": said}
        with pytest.raises(PacsUnavailable) as caught:
            pacs.store([ct_instance(1)])
    assert caught.value.retry_after_s == expected


def test_pages_of_a_query_are_put_together() -> None:
    """A service that gives two matches at a time is asked until there are no more."""
    uids = [f"2.25.{number}" for number in range(5)]
    with answering(200) as (service, pacs):
        service.pages = [
            json.dumps([{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids[n : n + 2]])
            for n in (0, 2, 4, 6)
        ]
        assert pacs.find_instances(STUDY, SERIES) == set(uids)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 507])
def test_busy_service_is_tried_again(code: int) -> None:
    """What passes by itself is unavailable, for storing and for asking."""
    with answering(code, b"PSEUDO^ONE") as (_, pacs):
        with pytest.raises(PacsUnavailable, match=f"HTTP {code}") as caught:
            pacs.store([ct_instance(1)])
        assert_says_no_identifier(caught.value)
        with pytest.raises(PacsUnavailable, match=f"HTTP {code}"):
            pacs.find_instances(STUDY, SERIES)


@pytest.mark.parametrize("code", [301, 401, 403, 404, 405, 501])
def test_refused_request_is_not_tried_again(code: int) -> None:
    """What stays wrong until a person corrects it is a refusal."""
    with answering(code) as (_, pacs), pytest.raises(DeliveryRefused, match=f"HTTP {code}"):
        pacs.store([ct_instance(1)])


@pytest.mark.parametrize(("code", "body"), [(204, b""), (404, b""), (200, b"[]")])
def test_nothing_found_is_an_empty_set(code: int, body: bytes) -> None:
    """Services differ in how they say that nothing matches."""
    with answering(code, body) as (_, pacs):
        assert pacs.find_instances(STUDY, SERIES) == set()


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ((STUDY, SERIES, "2.25.7001"), None),
        ((STUDY, SERIES, "2.25.7002"), "another instance"),
        ((STUDY, "2.25.404", "2.25.7001"), "another instance"),
        (("2.25.404", SERIES, "2.25.7001"), "another instance"),
    ],
)
def test_only_the_instance_that_was_asked_for_is_kept(
    asked: tuple[str, str, str], error: str | None
) -> None:
    """What a service answers to WADO-RS is stored as a part of the series, so it must be one."""
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + ct_instance(1) + b"\r\n--b--\r\n"
    kept: list[bytes] = []
    with answering(200, part) as (_, pacs):
        source = DicomWebSource("web", pacs, kept.append)
        if error is None:
            assert source.send(asked[0], asked[1], asked[2:]) == 1
        else:
            with pytest.raises(DeliveryRefused, match=error) as caught:
                source.send(asked[0], asked[1], asked[2:])
            assert_says_no_identifier(caught.value)
    assert kept == ([] if error else [ct_instance(1)])


def test_an_answer_that_is_no_instance_is_not_kept() -> None:
    """A part that cannot be read as DICOM is named as damaged."""
    kept: list[bytes] = []
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\nPSEUDO^ONE\r\n--b--\r\n"
    with answering(200, part) as (_, pacs), pytest.raises(DamagedInstance) as caught:
        DicomWebSource("web", pacs, kept.append).send(STUDY, SERIES, ["2.25.7001"])
    assert_says_no_identifier(caught.value)
    assert not kept


@pytest.mark.parametrize("named", ["../../../../system", "2.25.7001?x=", "2.25.7001/frames/1", ""])
def test_what_is_no_uid_enters_no_url(named: str) -> None:
    """A service cannot choose which of its other addresses the node asks, with its login."""
    with answering(200) as (service, pacs), pytest.raises(DeliveryRefused, match="no UID"):
        DicomWebSource("web", pacs, lambda _: None).send(STUDY, SERIES, [named])
    assert not service.requests


def test_page_that_is_not_dicom_is_refused() -> None:
    """A login page with status 200 is not an empty result."""
    with answering(200, b"<html>") as (_, pacs), pytest.raises(DeliveryRefused, match="DICOM JSON"):
        pacs.find_instances(STUDY, SERIES)


def test_nothing_listening_is_tried_again() -> None:
    """A service that is down is unavailable, and the message holds no URL."""
    url = f"http://127.0.0.1:{free_port()}/{STUDY}"
    pacs = DicomWebPacs(DicomWebDestination(name="web", url=url))
    with pytest.raises(PacsUnavailable, match="could not be reached") as caught:
        pacs.find_instances(STUDY, SERIES)
    assert STUDY not in str(caught.value)
    assert caught.value.__cause__ is None
