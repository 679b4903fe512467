"""What DICOM TLS of Orthanc lets in: trusted certificates, and no version before 1.2."""

from __future__ import annotations

import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.edges.orthanc_config import DicomPeer
from tests.certificates import certificate
from tests.orthanc_server import OrthancServer

HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the node, of a peer it trusts, and of one that it does not."""
    made = tmp_path_factory.mktemp("bridge")
    for name in ("node", "peer", "rogue"):
        certificate(made, name)
    (made / "bridge.py").write_text("")  # the bridge's folder is one that Orthanc can read
    return made


@pytest.fixture(scope="module")
def orthanc(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    """The node's Orthanc with DICOM TLS."""
    with OrthancServer(
        tmp_path_factory.mktemp("orthanc"),
        ae_title="NODE",
        peers=[DicomPeer("peer", "PEER", HERE, 11112)],
        bridge=folder / "bridge.py",
        config_overrides={
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(folder / "node.crt"),
            "DicomTlsPrivateKey": str(folder / "node.key"),
            "DicomTlsTrustedCertificates": str(folder / "peer.crt"),
            "DicomTlsRemoteCertificateRequired": True,
        },
    ) as server:
        yield server


def echo(orthanc: OrthancServer, *options: str) -> int:
    """Exit status of a C-ECHO."""
    return subprocess.run(
        ["/usr/bin/echoscu", "-aet", "PEER", "-aec", "NODE", *options, HERE,
         str(orthanc.dicom_port)],
        capture_output=True, timeout=60,
    ).returncode  # fmt: skip


def tls_options(folder: Path, name: str) -> list[str]:
    """echoscu with the certificate of ``name``, trusting the node's."""
    files = [str(folder / f"{name}.key"), str(folder / f"{name}.crt")]
    return ["+tls", *files, "+cf", str(folder / "node.crt")]


def handshake(orthanc: OrthancServer, folder: Path, newest: ssl.TLSVersion) -> str | None:
    """The TLS version agreed on by a client that knows none newer than ``newest``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "node.crt")
    context.load_cert_chain(folder / "peer.crt", folder / "peer.key")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = newest
    with (
        socket.create_connection((HERE, orthanc.dicom_port), timeout=10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return secure.version()


def test_a_peer_with_a_trusted_certificate_is_let_in(orthanc: OrthancServer, folder: Path) -> None:
    """Proves that the refusals below are refusals of something that otherwise works."""
    assert echo(orthanc, *tls_options(folder, "peer")) == 0


def test_without_tls_with_no_or_a_foreign_certificate_nobody_gets_in(
    orthanc: OrthancServer, folder: Path
) -> None:
    """Proves that the port speaks TLS only, to certificates that it trusts."""
    assert echo(orthanc) != 0
    assert echo(orthanc, "+tla", "+cf", str(folder / "node.crt")) != 0
    assert echo(orthanc, *tls_options(folder, "rogue")) != 0


def test_tls_older_than_1_2_is_refused(orthanc: OrthancServer, folder: Path) -> None:
    """Proves the limit with a client that would agree to anything."""
    assert handshake(orthanc, folder, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        oldest = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="alert protocol version"):  # the server's own words
        handshake(orthanc, folder, oldest)
