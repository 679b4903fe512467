"""DICOM over TLS in both directions, with DCMTK, pynetdicom and Orthanc as the other side."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dicom_peers import ct_instance, running_storescp
from moody_pacs import MoodyPacs, Outbox

from node import service
from node.destination_check import check_destination
from node.edges import secret_files
from node.edges.dicom_tls import DicomTls, tls_context
from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.edges.orthanc_tls import OrthancTls, write_tls
from node.errors import DeliveryRefused, PacsUnavailable
from node.jobs import State
from node.settings import BadSettings, Dicom, Settings
from node.settings import DicomPeer as PeerSettings
from node.wiring import Hospital
from tests.certificates import certificate
from tests.conftest import NO_BRIDGE
from tests.integration.test_delivery import reached
from tests.orthanc_server import OrthancServer

HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the node, of a PACS, and of somebody whom nobody trusts."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("node", "pacs", "rogue"):
        certificate(folder, name)
    return folder


def of_the_node(files: Path, trusted: str = "pacs", shown: str = "node") -> DicomTls:
    """The node's side: whom it trusts, and what it shows."""
    return DicomTls(files / f"{trusted}.crt", files / f"{shown}.crt", files / f"{shown}.key")


def of_the_pacs(files: Path) -> ssl.SSLContext:
    """A server that wants to see the node's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files / "node.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files / "pacs.crt", files / "pacs.key")
    return context


@pytest.fixture(scope="module")
def pacs(files: Path) -> Iterator[MoodyPacs]:
    """Storage and storage commitment, by TLS alone."""
    with MoodyPacs(finds=False, commits=True, tls=of_the_pacs(files)) as peer:
        yield peer


@pytest.fixture(scope="module")
def orthanc(
    files: Path, pacs: MoodyPacs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OrthancServer]:
    """The node's Orthanc, with the configuration that `tls` makes."""
    ours = OrthancTls(files / "node.crt", files / "node.key", [files / "pacs.crt"], listens=True)
    with OrthancServer(
        tmp_path_factory.mktemp("orthanc"),
        ae_title="SEGNODE",
        peers=[DicomPeer("pacs", "HOSPITAL", HERE, pacs.port, use_tls=True)],
        bridge=NO_BRIDGE,
        tls=ours,
    ) as server:
        yield server


def test_results_go_out_and_proof_comes_back_by_tls(
    files: Path, pacs: MoodyPacs, orthanc: OrthancServer, tmp_path: Path
) -> None:
    """C-STORE by the node, N-ACTION by Orthanc, N-EVENT-REPORT by the PACS: none in plain text."""
    destination = reached(pacs.port, tls=of_the_node(files))
    with closing(Orthanc(orthanc.url, *orthanc.auth)) as client:
        outbox = Outbox(tmp_path, {"pacs": destination}, commitment=client)
        assert outbox.run().state is State.WAITING
        back = tls_context(DicomTls(files / "node.crt", files / "pacs.crt", files / "pacs.key"))
        pacs.report(HERE, orthanc.dicom_port, tls=back)
        assert outbox.run().state is State.CONFIRMED
    assert outbox.delivery("pacs")["proof"] == "storage commitment"


def test_only_what_goes_out_may_be_by_tls(files: Path, pacs: MoodyPacs, tmp_path: Path) -> None:
    """The PACS is asked for commitment by TLS; who sends to the node does so in plain text."""
    ours = OrthancTls(files / "node.crt", files / "node.key", [files / "pacs.crt"], listens=False)
    peer = DicomPeer("pacs", "HOSPITAL", HERE, pacs.port, use_tls=True)
    with (
        OrthancServer(
            tmp_path / "o", ae_title="SEGNODE", peers=[peer], bridge=NO_BRIDGE, tls=ours
        ) as server,
        closing(Orthanc(server.url, *server.auth)) as client,
    ):
        asked = client.request_commitment("pacs", [("1.2.3", "2.25.1")])
        assert pacs.transactions[-1][0] == asked
        pacs.report(HERE, server.dicom_port)
        assert client.commitment(asked).status == "success"


def test_a_sender_without_a_trusted_certificate_cannot_send(
    files: Path, orthanc: OrthancServer, tmp_path: Path
) -> None:
    """storescu of DCMTK: by TLS with the PACS's certificate it goes, otherwise not."""
    instance = tmp_path / "one.dcm"
    instance.write_bytes(ct_instance(1))

    def sent(*options: str) -> bool:
        done = subprocess.run(
            ["/usr/bin/storescu", *options, "-aet", "HOSPITAL", "-aec", "SEGNODE", HERE,
             str(orthanc.dicom_port), str(instance)],
            capture_output=True, timeout=60,
        )  # fmt: skip
        return done.returncode == 0

    def shows(name: str) -> list[str]:
        keys = [str(files / f"{name}.key"), str(files / f"{name}.crt")]
        return ["+tls", *keys, "+cf", str(files / "node.crt")]

    assert sent(*shows("pacs"))
    assert not sent(*shows("rogue"))
    assert not sent()


def test_dcmtk_receives_by_tls(files: Path, tmp_path: Path) -> None:
    """storescp +tls, which wants our certificate, stores what the node sends."""
    options = [
        "+tls", str(files / "pacs.key"), str(files / "pacs.crt"),
        "+cf", str(files / "node.crt"), "--accept-all",
    ]  # fmt: skip
    received = tmp_path / "received"
    received.mkdir()
    with running_storescp(received, *options) as port:
        (status,) = reached(port, tls=of_the_node(files)).store([ct_instance(1)])
    assert status.accepted
    assert len(list(received.iterdir())) == 1


@pytest.mark.parametrize(
    ("trusted", "shown", "said"),
    [("rogue", "node", "certificate that is not trusted"), ("pacs", "rogue", "does not speak TLS")],
    ids=["theirs", "ours"],
)
def test_what_is_wrong_with_a_certificate_is_said(
    files: Path, pacs: MoodyPacs, trusted: str, shown: str, said: str
) -> None:
    """Whose certificate is not trusted; nothing is sent, and it is tried again."""
    tls = of_the_node(files, trusted, shown)
    with pytest.raises(PacsUnavailable, match=said) as caught:
        reached(pacs.port, tls=tls).store([ct_instance(1)])
    assert "certificate_authority" in caught.value.remedy


def test_a_certificate_file_that_is_missing_is_a_refusal_with_a_remedy(files: Path) -> None:
    """Not a defect of the node's."""
    tls = DicomTls(files / "missing.crt", files / "node.crt", files / "node.key")
    with pytest.raises(DeliveryRefused, match="cannot be read") as caught:
        reached(104, tls=tls).echo()
    assert "PEM" in caught.value.remedy


def test_pacs_check_shows_tls(files: Path, pacs: MoodyPacs) -> None:
    """Version and end of the certificate; a certificate that is not trusted is wrong."""

    def check(authority: str) -> dict[str, tuple[str, str]]:
        settings = Settings(
            dicom=Dicom(certificate=files / "node.crt", private_key=files / "node.key"),
            dicom_peers=(
                PeerSettings(
                    name="pacs", ae_title="HOSPITAL", host=HERE, port=pacs.port, tls=True,
                    certificate_authority=files / authority,
                ),
            ),
        )  # fmt: skip
        found = check_destination(Hospital(settings), "pacs").findings
        return {one.subject: (one.level, one.found) for one in found}

    level, found = check("pacs.crt")["TLS"]
    assert level == "note", "it ends within the hour"
    assert found.startswith("TLSv1.3; its certificate is trusted, until ")
    level, found = check("rogue.crt")["TLS"]
    assert level == "wrong" and "not trusted" in found


def test_switching_tls_off_leaves_nothing_of_it(files: Path, tmp_path: Path) -> None:
    """A key that is not needed does not lie about; a site's own files stay."""
    (tmp_path / "own.json").write_text("{}")
    write_tls(tmp_path, OrthancTls(files / "node.crt", files / "node.key", [], listens=False))
    assert (tmp_path / "dicom_tls.key").stat().st_mode & 0o777 == 0o600
    write_tls(tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


def test_tls_of_the_settings_reaches_orthanc(tmp_path: Path) -> None:
    """Its own port, the peer that it asks for commitment, and the files; a missing one is named."""
    for name in ("node", "pacs"):
        certificate(tmp_path, name)
    dicom = {
        "tls": True, "certificate": tmp_path / "node.crt", "private_key": tmp_path / "node.key",
        "certificate_authority": tmp_path / "pacs.crt",
    }  # fmt: skip
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104, "tls": True}
    settings = Settings.model_validate(
        {"var_dir": tmp_path / "var", "dicom": dicom, "dicom_peers": [pacs]}
    )
    secret_files.read_or_create(tmp_path / "var" / "secrets" / "orthanc_password")
    service._orthanc_program(Hospital(settings))
    folder = tmp_path / "var" / "orthanc" / "configuration"
    modalities = json.loads((folder / "modalities.json").read_text())
    assert modalities["DicomModalities"]["pacs"]["UseDicomTls"] is True
    tls = json.loads((folder / "dicom_tls.json").read_text())
    assert tls["DicomTlsEnabled"] is True
    for key in ("DicomTlsCertificate", "DicomTlsPrivateKey", "DicomTlsTrustedCertificates"):
        assert (folder / tls[key]).read_bytes().startswith(b"-----BEGIN ")
    (tmp_path / "pacs.crt").unlink()
    with pytest.raises(BadSettings, match=r"pacs\.crt cannot be read"):
        service._orthanc_program(Hospital(settings))
