"""Orthanc as the node starts it is closed: every rule of docs/security.md, tried from outside."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from node.edges.orthanc_config import DicomPeer
from tests.orthanc_server import REPOSITORY, OrthancServer

CT = sorted((REPOSITORY / "deploy" / "demo" / "ct").glob("*.dcm"))[0]
# Each an address of this machine: 127.0.0.0/8 is all loopback, and a caller may bind to any of it.
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
QUERY = ["-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="]
NOT_ONE_OF_US = "Calling AE Title Not Recognized"
ABORTED = "Peer aborted Association"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    """The node's Orthanc with a sender, a sender at another address, and one that may not send."""
    peers = [
        DicomPeer("pacs", "PACS", HERE, 11112),
        DicomPeer("elsewhere", "ELSEWHERE", ELSEWHERE, 11112),
        DicomPeer("viewer", "VIEWER", "localhost", 11112, may_store=False),
    ]
    folder = tmp_path_factory.mktemp("orthanc")
    with OrthancServer(folder, ae_title="NODE", peers=peers) as server:
        server.upload(CT)
        yield server


def dcmtk(
    tool: str,
    orthanc: OrthancServer,
    calling: str,
    *options: str,
    called: str = "NODE",
    files: tuple[Path, ...] = (),
) -> tuple[int, str]:
    """Exit status and output of one DCMTK tool that calls Orthanc as ``calling``."""
    address = [HERE, str(orthanc.dicom_port)]
    done = subprocess.run(
        [f"/usr/bin/{tool}", "-aet", calling, "-aec", called, *options, *address, *map(str, files)],
        capture_output=True,
        text=True,
        env={"TCP_NODELAY": "1", "LC_ALL": "C"},
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def store_status(orthanc: OrthancServer, calling: str, address: str) -> int | None:
    """The C-STORE status of one CT sent from ``address``; None when there was no association."""
    instance = dcmread(CT)
    ae = AE(ae_title=calling)
    ae.add_requested_context(CTImageStorage, instance.file_meta.TransferSyntaxUID)
    association = ae.associate(
        HERE, orthanc.dicom_port, ae_title=orthanc.ae_title, bind_address=(address, 0)
    )
    if not association.is_established:
        return None
    try:
        return int(association.send_c_store(instance).Status)
    finally:
        association.release()


def test_known_peer_is_let_in(orthanc: OrthancServer) -> None:
    """Proves that the refusals below are refusals of something that otherwise works."""
    assert dcmtk("echoscu", orthanc, "PACS")[0] == 0
    assert store_status(orthanc, "PACS", HERE) == 0x0000
    assert store_status(orthanc, "ELSEWHERE", ELSEWHERE) == 0x0000


def test_wrong_called_ae_title_is_refused(orthanc: OrthancServer) -> None:
    """Proves that a peer must name the node's AE title."""
    status, output = dcmtk("echoscu", orthanc, "PACS", called="ORTHANC")
    assert status != 0
    assert "Called AE Title Not Recognized" in output


@pytest.mark.parametrize("calling", ["STRANGER", "pacs"], ids=["unknown", "other case"])
@pytest.mark.parametrize(
    ("tool", "options", "files"),
    [
        ("echoscu", [], ()),
        ("storescu", ["-R", "-xt"], (CT,)),
        ("findscu", QUERY, ()),
        ("movescu", [*QUERY, "-aem", "PACS"], ()),
        ("getscu", QUERY, ()),
    ],
    ids=["C-ECHO", "C-STORE", "C-FIND", "C-MOVE", "C-GET"],
)
def test_unknown_calling_ae_title_is_refused(
    orthanc: OrthancServer, calling: str, tool: str, options: list[str], files: tuple[Path, ...]
) -> None:
    """Proves that only listed AE titles get an association, compared with their case."""
    status, output = dcmtk(tool, orthanc, calling, *options, files=files)
    assert status != 0
    assert "Rejected" in output


def test_known_ae_title_from_another_address_is_refused(orthanc: OrthancServer) -> None:
    """Proves that an AE title is worth nothing without its address, in both directions."""
    assert store_status(orthanc, "PACS", ELSEWHERE) is None
    assert store_status(orthanc, "ELSEWHERE", HERE) is None
    assert NOT_ONE_OF_US in dcmtk("echoscu", orthanc, "ELSEWHERE")[1]


def test_peer_without_the_right_cannot_store(orthanc: OrthancServer) -> None:
    """Proves that a listed peer stores only if its entry says so, and that host names work."""
    assert dcmtk("echoscu", orthanc, "VIEWER")[0] == 0
    instance = dcmread(CT)
    ae = AE(ae_title="VIEWER")
    ae.add_requested_context(CTImageStorage, instance.file_meta.TransferSyntaxUID)
    association = ae.associate(HERE, orthanc.dicom_port, ae_title=orthanc.ae_title)
    assert association.is_established
    assert "Status" not in association.send_c_store(instance)
    association.join(10)
    assert association.is_aborted


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("findscu", QUERY), ("movescu", [*QUERY, "-aem", "PACS"]), ("getscu", QUERY)],
    ids=["C-FIND", "C-MOVE", "C-GET"],
)
def test_known_peer_cannot_query_or_retrieve(
    orthanc: OrthancServer, tool: str, arguments: list[str]
) -> None:
    """Proves that nobody reads from the node by DICOM, not even who may send to it."""
    _, output = dcmtk(tool, orthanc, "PACS", *arguments)
    assert ABORTED in output


def test_worklists_are_not_offered(orthanc: OrthancServer) -> None:
    """Proves that no worklist provider is loaded."""
    status, output = dcmtk("findscu", orthanc, "PACS", "-W", "-k", "PatientName=")
    assert status != 0
    assert "No Acceptable Presentation Contexts" in output


def test_unknown_sop_classes_are_not_accepted(orthanc: OrthancServer) -> None:
    """Proves that a sender learns at the association that a class is not taken."""
    ae = AE(ae_title="PACS")
    ae.add_requested_context(CTImageStorage)
    ae.add_requested_context("1.2.826.0.1.3680043.10.1499.1")
    association = ae.associate(HERE, orthanc.dicom_port, ae_title=orthanc.ae_title)
    taken = {context.abstract_syntax for context in association.accepted_contexts}
    association.release()
    assert taken == {CTImageStorage}


@pytest.mark.parametrize(
    "path",
    ["/", "/system", "/instances", "/changes", "/app/explorer.html", "/dicom-web/studies",
     "/tools/shutdown", "/webdav/", "/wado", "/segnode/", "/segnode/api/jobs", "/metrics"],
)  # fmt: skip
def test_http_without_or_with_a_wrong_password_is_401(orthanc: OrthancServer, path: str) -> None:
    """Proves that every route wants the password, pages and plugins included."""
    assert httpx.get(orthanc.url + path).status_code == 401
    assert httpx.get(orthanc.url + path, auth=("node", "wrong")).status_code == 401
    assert httpx.get(orthanc.url + path, auth=("orthanc", "orthanc")).status_code == 401


def test_http_listens_on_loopback_only(orthanc: OrthancServer) -> None:
    """Proves with the kernel's own table that no other address reaches the HTTP port."""
    # proc(5): the local address is hexadecimal in the machine's byte order, state 0A is listening.
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    lines += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    port = f":{orthanc.http_port:04X}"
    listening = {line[1] for line in lines if line[3] == "0A" and line[1].endswith(port)}
    loopback = f"{int.from_bytes(socket.inet_aton(HERE), sys.byteorder):08X}"
    assert listening == {loopback + port}


def test_http_refuses_other_addresses_even_with_the_password(orthanc: OrthancServer) -> None:
    """Proves that 127.0.0.2, which stands for another host, gets no connection."""
    with pytest.raises(OSError, match="refused"), socket.socket() as caller:
        caller.connect((ELSEWHERE, orthanc.http_port))


def test_lua_cannot_be_executed(orthanc: OrthancServer) -> None:
    """Proves that not even the node's own user runs scripts."""
    assert orthanc.post("/tools/execute-script", content="print(1)").status_code == 403


def test_webdav_and_wado_uri_are_off(orthanc: OrthancServer) -> None:
    """Proves that the two forgotten doors are not there."""
    assert orthanc.get("/webdav/").status_code == 404
    assert orthanc.get("/wado", params={"requestType": "WADO"}).status_code == 404


def test_rest_cannot_write_files(orthanc: OrthancServer, tmp_path: Path) -> None:
    """Proves that the export route writes nothing."""
    instance = orthanc.get("/instances").json()[0]
    target = orthanc.storage / "exported.dcm"
    assert orthanc.post(f"/instances/{instance}/export", content=str(target)).status_code == 403
    assert not target.exists()


def test_exactly_the_listed_plugins_are_loaded(orthanc: OrthancServer) -> None:
    """Proves that no plugin comes along with a Debian package."""
    assert set(orthanc.get("/plugins").json()) == {"explorer.js", "python", "dicom-web"}


def test_received_objects_are_never_replaced_or_recycled(orthanc: OrthancServer) -> None:
    """Proves the storage rules as Orthanc itself reports them."""
    system = orthanc.get("/system").json()
    assert system["Version"].startswith("1.13.")
    assert system["MaximumStorageMode"] == "Reject"
    assert system["OverwriteInstancesMode"] == "Never"
    assert system["StorageAreaPlugin"] is None


def test_second_object_with_the_same_uid_does_not_replace_the_first(
    orthanc: OrthancServer,
) -> None:
    """Proves it by sending a changed copy."""
    first = orthanc.upload(CT)
    changed = dcmread(CT)
    changed.SeriesDescription = "changed"
    changed.save_as(orthanc.folder / "changed.dcm")
    assert orthanc.upload(orthanc.folder / "changed.dcm") == first
    assert orthanc.get(f"/instances/{first}/file").content == CT.read_bytes()


def test_full_storage_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    """Proves that a limit makes Orthanc answer out-of-resources instead of deleting old studies."""
    peers = [DicomPeer("pacs", "PACS", HERE, 11112)]
    limit = {"SEGNODE_ORTHANC_MAXIMUM_STORAGE_MB": "1"}
    with OrthancServer(tmp_path, ae_title="NODE", peers=peers, environment=limit) as server:
        first = server.upload(CT)
        statuses = {
            server.post("/instances", content=file.read_bytes()).status_code
            for file in sorted(CT.parent.glob("*.dcm"))[1:40]
        }
        assert statuses == {200, 507}
        other = sorted(CT.parent.glob("*.dcm"))[40]
        ae = AE(ae_title="PACS")
        instance = dcmread(other)
        ae.add_requested_context(CTImageStorage, instance.file_meta.TransferSyntaxUID)
        association = ae.associate(HERE, server.dicom_port, ae_title="NODE")
        assert association.send_c_store(instance).Status == 0xA700  # PS3.4 B.2.3, out of resources
        association.release()
        assert server.get(f"/instances/{first}/file").content == CT.read_bytes()
