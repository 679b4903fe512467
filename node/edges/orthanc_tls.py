"""TLS of what Orthanc receives by DICOM, and of what it asks: a file of its configuration.

Orthanc has one certificate and one list of authorities for both directions. It can read its
configuration folder and little else, so the files are copied there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.edges.orthanc_config import replace_file

_NAMES = ("dicom_tls.json", "dicom_tls.crt", "dicom_tls.key", "dicom_tls_trusted.crt")


@dataclass(frozen=True)
class OrthancTls:
    """The node's certificate and whom it trusts, as PEM files.

    Parameters
    ----------
    listens
        Whether the DICOM port itself speaks TLS, and then nothing else.
    """

    certificate: Path
    private_key: Path
    authorities: Sequence[Path]
    listens: bool


def write_tls(folder: Path, tls: OrthancTls | None) -> None:
    """Make the configuration in ``folder`` speak TLS, or not; files of a site's own stay."""
    if tls is None:
        for name in _NAMES:
            (folder / name).unlink(missing_ok=True)
        return
    trusted = b"\n".join(path.read_bytes() for path in dict.fromkeys(tls.authorities))
    replace_file(folder / "dicom_tls.crt", tls.certificate.read_bytes(), 0o644)
    replace_file(folder / "dicom_tls.key", tls.private_key.read_bytes(), 0o600)
    replace_file(folder / "dicom_tls_trusted.crt", trusted, 0o644)
    section = json.dumps(tls_section(listens=tls.listens), indent=2) + "\n"
    replace_file(folder / "dicom_tls.json", section.encode(), 0o644)


def tls_section(*, listens: bool) -> dict[str, Any]:
    """The keys that Orthanc reads; everybody who calls must show a certificate."""
    return {
        "DicomTlsEnabled": listens,
        "DicomTlsCertificate": "dicom_tls.crt",
        "DicomTlsPrivateKey": "dicom_tls.key",
        "DicomTlsTrustedCertificates": "dicom_tls_trusted.crt",
        "DicomTlsRemoteCertificateRequired": True,
        "DicomTlsMinimumProtocolVersion": 4,  # TLS 1.2
    }
