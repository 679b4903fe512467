"""The node's client of Orthanc against a real one, and storage commitment with a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from node.edges.orthanc import LOOK_AHEAD, Orthanc
from node.edges.orthanc_config import DicomPeer
from node.errors import (
    DamagedInstance,
    DeliveryRefused,
    OrthancUnavailable,
    OutOfSpace,
    PacsUnavailable,
    Rejected,
)
from node.ports import CommitmentReport, Instances, StorageCommitment
from tests.orthanc_server import REPOSITORY, OrthancServer, free_port

CTS = sorted((REPOSITORY / "deploy" / "demo" / "ct").glob("*.dcm"))
HERE = "127.0.0.1"
NOBODY = "00000000-00000000-00000000-00000000-00000000"


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[OrthancServer, OrthancServer]]:
    """The node's Orthanc and a PACS that know each other."""
    ports = {"node": free_port(), "pacs": free_port()}
    node = OrthancServer(
        tmp_path_factory.mktemp("node"),
        ae_title="NODE",
        peers=[
            DicomPeer("pacs", "PACS", HERE, ports["pacs"]),
            DicomPeer("down", "DOWN", HERE, free_port()),
        ],
        dicom_port=ports["node"],
    )
    pacs = OrthancServer(
        tmp_path_factory.mktemp("pacs"),
        ae_title="PACS",
        peers=[DicomPeer("node", "NODE", HERE, ports["node"])],
        dicom_port=ports["pacs"],
    )
    with node, pacs:
        yield node, pacs


@pytest.fixture
def orthanc(servers: tuple[OrthancServer, OrthancServer]) -> Iterator[Orthanc]:
    """A client of the node's Orthanc."""
    with closing(Orthanc(servers[0].url, *servers[0].auth)) as client:
        yield client


@pytest.fixture(scope="module")
def ids(servers: tuple[OrthancServer, OrthancServer]) -> dict[str, Path]:
    """Twenty stored instances: Orthanc's id and the file that it came from."""
    with closing(Orthanc(servers[0].url, *servers[0].auth)) as client:
        return {client.store(file.read_bytes()): file for file in CTS[:20]}


def report(orthanc: Orthanc, transaction: str) -> CommitmentReport:
    """The report once it is no longer pending."""
    deadline = time.monotonic() + 30
    while (answer := orthanc.commitment(transaction)).status == "pending":
        assert time.monotonic() < deadline, "no report of the storage commitment"
        time.sleep(0.05)
    return answer


def reference(file: Path) -> tuple[str, str]:
    """SOP class and instance UID of a file."""
    instance = dcmread(file, stop_before_pixels=True)
    return instance.SOPClassUID, instance.SOPInstanceUID


def test_the_client_is_what_the_steps_ask_for(orthanc: Orthanc) -> None:
    """Proves by assignment (mypy) and by name that both ports are implemented."""
    instances: Instances = orthanc
    commitment: StorageCommitment = orthanc
    assert instances is commitment


def test_system_tells_version_and_ae_title(orthanc: Orthanc) -> None:
    """Proves that address and password are right."""
    assert orthanc.system()["DicomAet"] == "NODE"


def test_storing_twice_gives_one_instance(orthanc: Orthanc, ids: dict[str, Path]) -> None:
    """Proves that a repeated POST does no harm."""
    first = next(iter(ids))
    assert orthanc.store(ids[first].read_bytes()) == first


def test_garbage_is_damaged_and_orthanc_lives_on(orthanc: Orthanc) -> None:
    """Proves that what is not DICOM is rejected as such."""
    for garbage in (b"garbage", CTS[0].read_bytes()[:400]):
        with pytest.raises(DamagedInstance):
            orthanc.store(garbage)
    assert orthanc.system()["DicomAet"] == "NODE"


def test_full_storage_is_out_of_space(tmp_path: Path) -> None:
    """Proves that HTTP 507 becomes an error that is tried again later."""
    limit = {"SEGNODE_ORTHANC_MAXIMUM_STORAGE_MB": "1"}
    with (
        OrthancServer(tmp_path, environment=limit) as server,
        closing(Orthanc(server.url, *server.auth)) as client,
        pytest.raises(OutOfSpace),
    ):
        for file in CTS:
            client.store(file.read_bytes())


def test_fetch_gives_every_file_byte_for_byte_in_the_order_asked(
    orthanc: Orthanc, ids: dict[str, Path]
) -> None:
    """Proves order and content with more instances than the look-ahead."""
    assert len(ids) > LOOK_AHEAD
    wanted = list(reversed(ids))
    fetched = list(orthanc.fetch(wanted))
    assert [instance_id for instance_id, _ in fetched] == wanted
    assert all(data == ids[instance_id].read_bytes() for instance_id, data in fetched)


def test_fetch_can_be_left_early_and_reports_a_missing_instance(
    orthanc: Orthanc, ids: dict[str, Path]
) -> None:
    """Proves that a broken loop leaves nothing running and that a gap is not skipped."""
    stream = orthanc.fetch(list(ids))
    assert next(stream)[0] == next(iter(ids))
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(Rejected, match="no longer has"):
        list(orthanc.fetch([next(iter(ids)), NOBODY]))


def test_header_ends_before_the_pixel_data_and_holds_all_before_it(
    orthanc: Orthanc, ids: dict[str, Path]
) -> None:
    """Proves against pydicom's reading of the whole file."""
    for instance_id, file in list(ids.items())[:3]:
        header = orthanc.instance_header(instance_id)
        assert len(header) < file.stat().st_size / 10
        assert dcmread(BytesIO(header)) == dcmread(file, stop_before_pixels=True)


def test_header_of_an_object_without_pixel_data_is_the_object(orthanc: Orthanc) -> None:
    """Proves that a report needs no special treatment."""
    instance = dcmread(CTS[0])
    del instance.PixelData
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = "2.25.4711"
    buffer = BytesIO()
    instance.save_as(buffer)
    instance_id = orthanc.store(buffer.getvalue())
    assert orthanc.instance_header(instance_id) == buffer.getvalue()


def test_parents_and_children(orthanc: Orthanc, ids: dict[str, Path]) -> None:
    """Proves the way up and down: instance, series, study."""
    series = orthanc.series_of_instance(next(iter(ids)))
    assert set(ids) <= set(orthanc.instances_of_series(series))
    study = orthanc.study_of_series(series)
    assert orthanc.modality_of_series(study) == {series: "CT"}


def test_metadata_tells_who_sent_it(orthanc: Orthanc, ids: dict[str, Path]) -> None:
    """Proves the facts that routing back to the sender relies on."""
    metadata = orthanc.metadata(next(iter(ids)))
    assert metadata["Origin"] == "RestApi"
    assert metadata["RemoteIP"] == HERE
    assert metadata["SopClassUid"] == reference(CTS[0])[0]


def test_changes_come_in_pages_that_join_without_gap_or_repeat(
    orthanc: Orthanc, ids: dict[str, Path]
) -> None:
    """Proves the cursor: pages of seven give the same as one page."""
    whole = orthanc.changes(0)
    assert whole.done
    joined, cursor, done = [], 0, False
    while not done:
        page = orthanc.changes(cursor, limit=7)
        joined += page.changes
        cursor, done = page.last, page.done
    assert tuple(joined) == whole.changes
    assert cursor == whole.last
    new = {change.resource_id for change in joined if change.kind == "NewInstance"}
    assert set(ids) <= new


def test_a_cursor_beyond_the_end_tells_the_real_end(orthanc: Orthanc, ids: dict[str, Path]) -> None:
    """Proves how a node learns that Orthanc's index was created anew."""
    end = orthanc.changes(0).last
    page = orthanc.changes(end + 1000)
    assert page.changes == ()
    assert page.done
    assert page.last == end


def test_sequence_numbers_survive_a_crash_and_the_client_a_restart(tmp_path: Path) -> None:
    """Proves that a killed Orthanc goes on counting, and that a dead connection is replaced."""
    with OrthancServer(tmp_path) as server, closing(Orthanc(server.url, *server.auth)) as client:
        client.store(CTS[0].read_bytes())
        before = client.changes(0)
        server.kill()
        server.start()
        after = client.changes(0)  # on a pooled connection that the kernel has closed meanwhile
        assert after.changes[: len(before.changes)] == before.changes
        client.store(CTS[1].read_bytes())
        assert client.changes(before.last).last > before.last


def test_orthanc_that_is_down_is_unavailable(tmp_path: Path) -> None:
    """Proves the class that makes a step try again, and that no address is in the message."""
    with closing(Orthanc(f"http://{HERE}:{free_port()}", "node", "x")) as client:
        with pytest.raises(OrthancUnavailable, match="ConnectError") as caught:
            client.instances_of_series(NOBODY)
        assert NOBODY not in str(caught.value)


def test_wrong_password_says_so(servers: tuple[OrthancServer, OrthancServer]) -> None:
    """Proves that the remedy speaks of the password."""
    with (
        closing(Orthanc(servers[0].url, "node", "wrong")) as client,
        pytest.raises(OrthancUnavailable, match="login") as caught,
    ):
        client.system()
    assert "password" in caught.value.remedy


@pytest.mark.parametrize("wrong", ["", "../system", "1.2.840.113619.2", NOBODY + "/file", "x" * 44])
def test_what_is_no_orthanc_id_never_becomes_a_path(orthanc: Orthanc, wrong: str) -> None:
    """Proves that a UID or a path cannot be put into a URL by mistake, or shown in a message."""
    for ask in (orthanc.instance_file, orthanc.instances_of_series, orthanc.metadata):
        with pytest.raises(ValueError, match="not the id") as caught:
            ask(wrong)
        assert not wrong or wrong not in str(caught.value)


def test_commitment_of_what_the_pacs_holds_succeeds(
    orthanc: Orthanc, servers: tuple[OrthancServer, OrthancServer]
) -> None:
    """Proves request, report and the PACS's call back, with a second Orthanc as PACS."""
    for file in CTS[:2]:
        servers[1].upload(file)
    transaction = orthanc.request_commitment("pacs", [reference(file) for file in CTS[:2]])
    assert report(orthanc, transaction) == CommitmentReport("success")


def test_commitment_of_what_the_pacs_lacks_names_it(
    orthanc: Orthanc, servers: tuple[OrthancServer, OrthancServer]
) -> None:
    """Proves that a partial failure names the missing instance only."""
    servers[1].upload(CTS[0])
    missing = (reference(CTS[0])[0], "2.25.99")
    transaction = orthanc.request_commitment("pacs", [reference(CTS[0]), missing])
    assert report(orthanc, transaction) == CommitmentReport("failure", ("2.25.99",))


def test_commitment_that_a_restart_forgot_is_lost(tmp_path: Path) -> None:
    """Proves that a lost report is told apart from a pending one."""

    def accept(event: evt.Event) -> tuple[int, Dataset | None]:
        return 0x0000, None  # and never reports

    pacs = AE(ae_title="PACS")
    pacs.add_supported_context(StorageCommitmentPushModel)
    listener = pacs.start_server((HERE, 0), block=False, evt_handlers=[(evt.EVT_N_ACTION, accept)])
    try:
        peer = DicomPeer("pacs", "PACS", HERE, listener.server_address[1])
        with (
            OrthancServer(tmp_path, peers=[peer]) as server,
            closing(Orthanc(server.url, *server.auth)) as client,
        ):
            transaction = client.request_commitment("pacs", [reference(CTS[0])])
            assert client.commitment(transaction) == CommitmentReport("pending")
            server.kill()
            server.start()
            assert client.commitment(transaction) == CommitmentReport("lost")
    finally:
        listener.shutdown()


def test_commitment_asked_of_a_peer_that_is_down_is_tried_again(orthanc: Orthanc) -> None:
    """Proves the class that makes the step try again."""
    with pytest.raises(PacsUnavailable):
        orthanc.request_commitment("down", [reference(CTS[0])])


def test_commitment_asked_of_a_peer_that_offers_none(tmp_path: Path) -> None:
    """Proves that such a PACS is not asked again and again."""
    pacs = AE(ae_title="PACS")
    pacs.add_supported_context(Verification)
    listener = pacs.start_server((HERE, 0), block=False)
    try:
        peer = DicomPeer("pacs", "PACS", HERE, listener.server_address[1])
        with (
            OrthancServer(tmp_path, peers=[peer]) as server,
            closing(Orthanc(server.url, *server.auth)) as client,
            pytest.raises(DeliveryRefused, match="storage commitment"),
        ):
            client.request_commitment("pacs", [reference(CTS[0])])
    finally:
        listener.shutdown()


def test_commitment_asked_of_an_unknown_peer_is_refused(orthanc: Orthanc) -> None:
    """Proves that a name which only segnode.toml knows does not wait for ever."""
    with pytest.raises(DeliveryRefused):
        orthanc.request_commitment("nobody", [reference(CTS[0])])


def test_requests_ask_for_no_compression(
    orthanc: Orthanc, servers: tuple[OrthancServer, OrthancServer], ids: dict[str, Path]
) -> None:
    """Proves that Orthanc does not compress even for a client that offers to take it."""
    response = httpx.get(
        f"{servers[0].url}/instances/{next(iter(ids))}/file",
        auth=servers[0].auth,
        headers={"Accept-Encoding": "gzip, deflate"},
    )
    assert "content-encoding" not in response.headers
