"""Sending to a PACS by DIMSE: Orthanc, DCMTK, and peers that answer as a bad day makes them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicom_peers import (
    LABEL_MAP_SEGMENTATION,
    SERIES,
    STUDY,
    ct_instance,
    instance_uids,
    running_orthanc,
    running_storescp,
    seg_instance,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, build_context, evt

from node.edges.pacs import STUDY_ROOT_FIND, VERIFICATION, DicomDestination, DicomPacs
from node.errors import DeliveryRefused, NodeError, PacsUnavailable
from node.ports import Answer
from tests.orthanc_server import OrthancServer, free_port


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer


def pacs_at(port: int, ae_title: str = "HOSPITAL", **changes: Any) -> DicomPacs:
    changes = {"dimse_timeout_s": 60, **changes}
    return DicomPacs(DicomDestination("pacs", ae_title, "127.0.0.1", port, **changes))


@contextmanager
def answering(
    handlers: list[tuple[Any, Callable[..., Any]]],
    *,
    syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless),
    services: tuple[str, ...] = (CTImageStorage, SegmentationStorage, STUDY_ROOT_FIND),
    required_called: bool = False,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """A pynetdicom SCP with these handlers; yields its port."""
    entity = AE(ae_title="HOSPITAL")
    entity.require_called_aet = required_called
    for service in services:
        entity.add_supported_context(service, list(syntaxes))
    entity.add_supported_context(VERIFICATION)
    port = free_port()
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=tls
    )
    try:
        yield port
    finally:
        server.shutdown()


def assert_says_no_identifier(error: NodeError) -> None:
    for identifier in (STUDY, SERIES, "2.25.70", "PSEUDO"):
        assert identifier not in f"{error} {error.remedy} {error.__cause__}"


def test_orthanc_takes_every_syntax_and_names_what_it_holds(orthanc: OrthancServer) -> None:
    """Native, implicit and encapsulated CT and a SEG arrive on one association, and are found."""
    pacs = pacs_at(orthanc.dicom_port)
    pacs.echo()
    sent = [
        ct_instance(1),
        ct_instance(2, syntax=ImplicitVRLittleEndian),
        ct_instance(3, syntax=RLELossless),
        seg_instance(),
    ]
    statuses = pacs.store(sent)
    uids = [dcmread(BytesIO(instance)).SOPInstanceUID for instance in sent]
    assert [status.sop_instance_uid for status in statuses] == uids
    assert all(status.accepted and status.status == 0 for status in statuses)
    assert instance_uids(orthanc) == set(uids)
    assert pacs.find_instances(STUDY, SERIES) == set(uids[:3])
    assert pacs.find_instances(STUDY, "2.25.73") == {uids[3]}
    assert pacs.find_instances(STUDY, "2.25.404") == set()
    assert pacs.count_instances(STUDY, SERIES) == 3
    assert pacs.count_instances(STUDY, "2.25.404") == 0


def test_sending_again_is_accepted(orthanc: OrthancServer) -> None:
    """A step that runs twice sends twice; the destination still holds one instance."""
    pacs = pacs_at(orthanc.dicom_port)
    for _ in range(2):
        (status,) = pacs.store([ct_instance(1)])
        assert status.accepted


def test_refused_sop_class_does_not_stop_the_others(orthanc: OrthancServer) -> None:
    """This PACS refuses label map Segmentations; the CT beside it still goes."""
    statuses = pacs_at(orthanc.dicom_port).store(
        [seg_instance(sop_class=LABEL_MAP_SEGMENTATION), ct_instance(4)]
    )
    assert [(status.accepted, status.status) for status in statuses] == [(False, 0x0122), (True, 0)]


def test_only_refused_sop_classes_are_statuses_too(orthanc: OrthancServer) -> None:
    """When nothing of the proposal is accepted, each instance is answered all the same."""
    (status,) = pacs_at(orthanc.dicom_port).store([seg_instance(sop_class=LABEL_MAP_SEGMENTATION)])
    assert (status.accepted, status.status) == (False, 0x0122)


def test_negotiation_tells_what_orthanc_offers(orthanc: OrthancServer) -> None:
    """`segnode pacs check` sees services and each SOP class with each transfer syntax."""
    found = pacs_at(orthanc.dicom_port).negotiate(
        [SegmentationStorage, LABEL_MAP_SEGMENTATION], [ExplicitVRLittleEndian, JPEG2000Lossless]
    )
    assert (found.verification, found.study_root_find, found.storage_commitment) == (True,) * 3
    assert found.storage == {
        (SegmentationStorage, ExplicitVRLittleEndian): True,
        (SegmentationStorage, JPEG2000Lossless): True,
        (LABEL_MAP_SEGMENTATION, ExplicitVRLittleEndian): False,
        (LABEL_MAP_SEGMENTATION, JPEG2000Lossless): False,
    }


def test_negotiation_of_a_peer_that_only_stores() -> None:
    """No storage commitment and no query is a finding, not a failure."""
    with answering([], services=(SegmentationStorage,)) as port:
        found = pacs_at(port).negotiate([SegmentationStorage], [ExplicitVRLittleEndian])
    assert (found.verification, found.study_root_find, found.storage_commitment) == (
        True,
        False,
        False,
    )
    assert found.storage == {(SegmentationStorage, ExplicitVRLittleEndian): True}


def test_wrong_called_ae_title_is_refused_with_its_name(orthanc: OrthancServer) -> None:
    """A configuration mistake is not retried for ever; it is named.

    On a busy machine Orthanc may close before its refusal is read, which is a reason to try again.
    """
    pacs = pacs_at(orthanc.dicom_port, ae_title="WRONG")
    with pytest.raises(DeliveryRefused, match="called AE title"):
        for _ in range(5):
            with suppress(PacsUnavailable):
                pacs.echo()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_dcmtk_receives_what_was_sent(syntax: str, tmp_path: Path) -> None:
    """storescp stores the same elements in the same transfer syntax."""
    sent = ct_instance(5, syntax=syntax)
    with running_storescp(tmp_path, "--accept-all") as port:
        pacs = pacs_at(port)
        pacs.echo()
        (status,) = pacs.store([sent])
    assert status.accepted
    (path,) = tmp_path.iterdir()
    received = dcmread(path)
    assert received.file_meta.TransferSyntaxUID == syntax
    assert received == dcmread(BytesIO(sent))


def test_peer_that_knows_only_implicit_vr_gets_implicit_vr() -> None:
    """The default transfer syntax is offered for everything that is not compressed."""
    received: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        received.append(event.dataset)
        assert event.context.transfer_syntax == ImplicitVRLittleEndian
        return 0x0000

    with answering([(evt.EVT_C_STORE, keep)], syntaxes=(ImplicitVRLittleEndian,)) as port:
        (status,) = pacs_at(port).store([ct_instance(1)])
        (refused,) = pacs_at(port).store([ct_instance(2, syntax=RLELossless)])
    assert status.accepted
    assert received[0].PixelData == dcmread(BytesIO(ct_instance(1))).PixelData
    assert (refused.accepted, refused.status) == (False, 0x0122)


@pytest.mark.parametrize(
    ("code", "accepted"),
    [
        (0x0000, True),
        (0x0111, True),
        (0xB000, True),
        (0xB006, True),
        (0xB007, True),
        (0xBFFF, True),
        (0x0107, True),
        (0xA800, False),
        (0x0122, False),
        (0x0124, False),
        (0xA900, False),
        (0xA9FF, False),
        (0xC000, False),
        (0xCFFF, False),
        (0x1234, False),
    ],
)
def test_status_of_the_peer_is_reported_for_each_instance(code: int, accepted: bool) -> None:
    """What a retry cannot change comes back as that instance's status; the next one still goes."""
    answers = iter([code, 0x0000])
    with answering([(evt.EVT_C_STORE, lambda event: next(answers))]) as port:
        first, second = pacs_at(port).store([ct_instance(1), ct_instance(2)])
    assert (first.status, first.accepted) == (code, accepted)
    assert second.accepted


@pytest.mark.parametrize("code", [0xA700, 0xA7FF, 0x0213])
def test_a_peer_out_of_resources_is_left_alone_and_tried_again(code: int) -> None:
    """A full PACS is sent nothing more; what it took before stands, and no identifier is told."""
    answers = iter([0x0000, code])
    with answering([(evt.EVT_C_STORE, lambda event: next(answers))]) as port:
        first, second, third = pacs_at(port).store([ct_instance(n) for n in (1, 2, 3)])
    assert first.accepted
    assert (second.answer, second.status) == (Answer.BUSY, code)
    assert (third.answer, third.status) == (Answer.TRY_AGAIN, None)
    assert f"0x{code:04X}" in third.said
    assert not any(uid in third.said for uid in ("2.25.70", STUDY))


@pytest.mark.parametrize("code", [0x0110, 0x0210])
def test_a_failure_of_one_instance_does_not_stop_the_others(code: int) -> None:
    """It is tried again later, alone."""
    answers = iter([code, 0x0000])
    with answering([(evt.EVT_C_STORE, lambda event: next(answers))]) as port:
        first, second = pacs_at(port).store([ct_instance(1), ct_instance(2)])
    assert (first.answer, second.answer) == (Answer.TRY_AGAIN, Answer.ACCEPTED)


@pytest.mark.parametrize("how", ["abort", "cut"])
def test_what_was_answered_before_a_break_stands(how: str) -> None:
    """A-ABORT or a cut connection at the second instance: the first is not to be sent again."""
    answered = 0

    def break_off(event: evt.Event) -> int:
        nonlocal answered
        answered += 1
        if answered == 2 and how == "abort":
            event.assoc.abort()
        elif answered == 2:
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        return 0x0000

    with answering([(evt.EVT_C_STORE, break_off)]) as port:
        statuses = pacs_at(port).store([ct_instance(n) for n in (1, 2, 3)])
    assert [status.answer for status in statuses] == [Answer.ACCEPTED, *[Answer.TRY_AGAIN] * 2]
    assert statuses[1].said.startswith("no answer")
    assert statuses[2].said.startswith("not sent")


def test_silent_peer_is_tried_again() -> None:
    """No answer within the DIMSE timeout ends the association and the try."""
    end = threading.Event()

    def wait(event: evt.Event) -> int:
        end.wait(30)
        return 0x0000

    with answering([(evt.EVT_C_STORE, wait)]) as port:
        (status,) = pacs_at(port, dimse_timeout_s=0.5).store([ct_instance(1)])
        end.set()
    assert status.answer is Answer.TRY_AGAIN


def test_a_port_that_accepts_and_says_nothing_is_tried_again() -> None:
    """A hung PACS still completes TCP handshakes: the association timeout ends the wait."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        pacs = pacs_at(hung.getsockname()[1], association_timeout_s=0.5)
        with pytest.raises(PacsUnavailable):
            pacs.store([ct_instance(1)])


@pytest.mark.parametrize(
    ("result", "error"), [(2, PacsUnavailable), (1, DeliveryRefused)], ids=["for now", "for good"]
)
def test_a_rejected_association_is_told_apart(result: int, error: type[NodeError]) -> None:
    """PS3.8 9.3.4: "no reason given", once transient and once permanent."""

    def reject(event: evt.Event) -> None:
        event.assoc.acse.send_reject(result, 1, 1)
        event.assoc.kill()

    with answering([(evt.EVT_REQUESTED, reject)]) as port, pytest.raises(error, match="rejected"):
        for _ in range(5):  # a rejection may be overtaken by the end of its connection
            with suppress(PacsUnavailable if error is DeliveryRefused else ZeroDivisionError):
                pacs_at(port).store([ct_instance(1)])


def test_nothing_listening_is_tried_again() -> None:
    """A PACS that is down is unavailable."""
    with pytest.raises(PacsUnavailable, match="could not be reached"):
        pacs_at(free_port()).echo()


def test_listener_that_is_no_dicom_peer_is_tried_again() -> None:
    """A port that accepts and says nothing does not hold the step for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(PacsUnavailable):
        pacs_at(listener.getsockname()[1], association_timeout_s=0.5).echo()


def test_query_that_the_peer_refuses_is_a_refusal() -> None:
    """A PACS without IMAGE level answers with a failure; the count at SERIES level still works."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.QueryRetrieveLevel == "IMAGE":
            yield 0xA900, None
            return
        match = Dataset()
        match.QueryRetrieveLevel = "SERIES"
        match.StudyInstanceUID, match.SeriesInstanceUID = STUDY, SERIES
        match.NumberOfSeriesRelatedInstances = 7
        yield 0xFF00, match

    with answering([(evt.EVT_C_FIND, find)]) as port:
        with pytest.raises(DeliveryRefused, match="0xA900 to C-FIND at IMAGE") as caught:
            pacs_at(port).find_instances(STUDY, SERIES)
        assert_says_no_identifier(caught.value)
        assert pacs_at(port).count_instances(STUDY, SERIES) == 7


def test_matches_of_another_series_are_not_taken_for_ours() -> None:
    """A PACS that ignores a key returns the whole study; only our series counts."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for series, uid in ((SERIES, "2.25.7001"), ("2.25.9", "2.25.7002")):
            match = Dataset()
            match.SeriesInstanceUID, match.SOPInstanceUID = series, uid
            yield 0xFF00, match

    with answering([(evt.EVT_C_FIND, find)]) as port:
        assert pacs_at(port).find_instances(STUDY, SERIES) == {"2.25.7001"}


def test_busy_query_is_tried_again() -> None:
    """Out of resources for C-FIND is unavailable."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xA700, None

    with answering([(evt.EVT_C_FIND, find)]) as port, pytest.raises(PacsUnavailable):
        pacs_at(port).find_instances(STUDY, SERIES)


def test_peer_without_query_is_named() -> None:
    """A destination that cannot be asked says which service is missing."""
    with (
        answering([], services=(CTImageStorage,)) as port,
        pytest.raises(DeliveryRefused, match="no SOP class"),
    ):
        pacs_at(port).find_instances(STUDY, SERIES)


def test_messages_leave_without_delay() -> None:
    """Nagle's algorithm is off on our socket: it costs 40 ms for every instance."""
    with answering([]) as port:
        pacs = pacs_at(port)
        with pacs._association([build_context(VERIFICATION)]) as association:
            connection = association.dul.socket.socket
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
