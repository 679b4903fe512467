"""DICOM over TLS (PS3.15 B.9 to B.12): our side of it, and what the other side shows.

A DICOM port speaks TLS or plain text, never both. TLS 1.2 is the oldest version (BCP 195).
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

#: How long a server may take to say that it does not like our certificate: TLS 1.3 lets it do so
#: after the handshake.
_OBJECTION_S = 1.0


@dataclass(frozen=True)
class DicomTls:
    """Certificates, as PEM files; the host must match its certificate."""

    ca_file: Path
    certificate_file: Path | None = None
    private_key_file: Path | None = None


@dataclass(frozen=True)
class TlsFound:
    """What a handshake showed: ``TLSv1.3``, and the end of the peer's certificate."""

    version: str
    valid_until: datetime


def tls_context(tls: DicomTls) -> ssl.SSLContext:
    """The client's side, with our certificate for peers that want one."""
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate_file is not None:
        context.load_cert_chain(tls.certificate_file, tls.private_key_file)
    return context


def shake_hands(host: str, port: int, tls: DicomTls, timeout_s: float) -> TlsFound:
    """Connect, show certificates, and end.

    Raises
    ------
    OSError
        Nobody answers, or (``ssl.SSLError``) one side does not trust the other.
    """
    context = tls_context(tls)
    with (
        socket.create_connection((host, port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        certificate = secure.getpeercert() or {}
        secure.settimeout(_OBJECTION_S)
        with suppress(TimeoutError):  # it waits for us to begin, as it should
            secure.recv(1)
        ends_s = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        return TlsFound(secure.version() or "", datetime.fromtimestamp(ends_s, UTC))


def objection(error: OSError) -> str:
    """Why a handshake failed, in words that name no person and no file."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "no reason given").lower().replace("_", " ")
        return f"does not speak TLS with us: {reason}"
    return ""
