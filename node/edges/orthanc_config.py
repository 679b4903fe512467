"""The part of Orthanc's configuration that differs from site to site.

Orthanc reads a folder of JSON files and refuses to start when a key stands in two of them. The
folder holds ``orthanc.json`` of the repository, unchanged, two files written here, and with TLS
``dicom_tls.json`` (:mod:`node.edges.orthanc_tls`)::

    orthanc.json       everything that is the same everywhere (0644)
    modalities.json    DicomModalities: who may speak DICOM to us, and what each may do (0644)
    users.json         RegisteredUsers: HTTP users and passwords (0600)

Ports and paths reach ``orthanc.json`` through the variables of :func:`orthanc_environment`.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# PS3.5 6.2, VR AE: at most 16 characters of the default repertoire, no backslash, and by
# Orthanc's "StrictAetComparison" compared as they are, so no padding.
_AE_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")
# Becomes a path segment of Orthanc's REST interface: /modalities/{name}.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class DicomPeer:
    """One system that may speak DICOM to Orthanc.

    Parameters
    ----------
    name
        What the node calls it, for example ``pacs``; letters, digits, ``-`` and ``_``.
    ae_title, host, port
        How it presents itself, the address that it calls from and is called at. A host name is
        looked up when the configuration is written: Orthanc compares addresses, not names.
    may_store
        Whether it may send objects by C-STORE.
    may_query
        Whether it may use C-FIND, C-MOVE and C-GET. Never needed by the node: the stand-in PACS of
        the demo grants it to the node.
    use_tls
        Whether Orthanc speaks TLS when it calls this system (``node.edges.orthanc_tls``).
    """

    name: str
    ae_title: str
    host: str
    port: int
    may_store: bool = True
    may_query: bool = False
    use_tls: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"peer name {self.name!r}: letters, digits, '-' and '_' only")
        if not _AE_TITLE.fullmatch(self.ae_title):
            raise ValueError(f"peer {self.name}: an AE title has 1 to 16 ASCII characters, no '\\'")
        if not self.host:
            raise ValueError(f"peer {self.name}: host is empty")
        if not 0 < self.port < 65536:
            raise ValueError(f"peer {self.name}: port {self.port} is not between 1 and 65535")


def modalities_section(peers: Sequence[DicomPeer]) -> dict[str, Any]:
    """``DicomModalities`` with every right written out, because Orthanc's default for each is yes.

    Storage commitment stands open in both directions to every peer: a peer that sends may ask
    whether we keep the object, and a destination reports on what we sent it.
    """
    names = [peer.name for peer in peers]
    if len(set(names)) != len(names):
        raise ValueError("two DICOM peers have the same name")
    return {
        "DicomModalities": {
            peer.name: {
                "AET": peer.ae_title,
                "Host": peer.host,
                "Port": peer.port,
                "AllowEcho": True,
                "AllowStore": peer.may_store,
                "AllowFind": peer.may_query,
                "AllowFindWorklist": False,
                "AllowGet": peer.may_query,
                "AllowMove": peer.may_query,
                "AllowStorageCommitment": True,
                "UseDicomTls": peer.use_tls,
            }
            for peer in peers
        }
    }


def users_section(users: Mapping[str, str]) -> dict[str, Any]:
    """``RegisteredUsers``: name to password. Every user may do everything in Orthanc."""
    if not users or not all(name and password for name, password in users.items()):
        raise ValueError("Orthanc needs at least one HTTP user, each with a password")
    return {"RegisteredUsers": dict(users)}


def write_configuration(
    folder: Path, base: Path, *, peers: Sequence[DicomPeer], users: Mapping[str, str]
) -> None:
    """Make ``folder`` the configuration to start Orthanc on: ``base`` and the two generated files.

    Raises ``ValueError`` when a peer's host name has no address.

    Files that a site has put there for keys of its own stay. Each file is replaced as a whole, so
    that an Orthanc which starts meanwhile reads the old or the new one.
    """
    peers = [replace(peer, host=_ipv4_address(peer)) for peer in peers]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(folder / "orthanc.json", base.read_bytes(), 0o644)
    replace_file(folder / "modalities.json", _as_json(modalities_section(peers)), 0o644)
    replace_file(folder / "users.json", _as_json(users_section(users)), 0o600)


def orthanc_environment(
    *,
    ae_title: str,
    dicom_port: int,
    http_port: int,
    storage: Path,
    index: Path,
    bridge: Path | None = None,
    maximum_storage_mb: int = 0,
    keep_free_bytes: int = 0,
    keep_free_in: Sequence[Path] = (),
) -> dict[str, str]:
    """The variables that fill the ``${...}`` of ``orthanc.json``, for ``deploy/run-orthanc``.

    ``maximum_storage_mb`` 0 means no limit; above a limit Orthanc refuses what comes. So does the
    bridge while a disk has less than ``keep_free_bytes`` free: of the storage, of the index, and of
    the empty folders ``keep_free_in``.
    """
    if any(":" in str(folder) for folder in keep_free_in):
        raise ValueError("a folder whose free space is watched may have no ':' in its path")
    if not _AE_TITLE.fullmatch(ae_title):
        raise ValueError("an AE title has 1 to 16 ASCII characters, no backslash, no outer blanks")
    environment = {
        "SEGNODE_ORTHANC_AE_TITLE": ae_title,
        "SEGNODE_ORTHANC_DICOM_PORT": str(dicom_port),
        "SEGNODE_ORTHANC_HTTP_PORT": str(http_port),
        "SEGNODE_ORTHANC_HTTP_ADDRESS": "127.0.0.1",
        "SEGNODE_ORTHANC_STORAGE": str(storage),
        "SEGNODE_ORTHANC_INDEX": str(index),
        "SEGNODE_ORTHANC_MAXIMUM_STORAGE_MB": str(maximum_storage_mb),
        "SEGNODE_ORTHANC_KEEP_FREE_BYTES": str(keep_free_bytes),
        "SEGNODE_ORTHANC_KEEP_FREE_IN": ":".join(map(str, keep_free_in)),
    }
    if bridge is not None:
        environment["SEGNODE_ORTHANC_BRIDGE"] = str(bridge)
    return environment


def _ipv4_address(peer: DicomPeer) -> str:
    # Orthanc's DICOM server listens on IPv4 only.
    try:
        return socket.gethostbyname(peer.host)
    except OSError:
        raise ValueError(
            f"DICOM peer {peer.name}: its host name has no IPv4 address; correct it"
        ) from None


def _as_json(section: Mapping[str, Any]) -> bytes:
    return json.dumps(section, indent=2).encode("ascii") + b"\n"


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Put ``data`` in the place of a file of the folder, readable as ``mode`` says."""
    # A leading dot and no ".json" at its end: Orthanc does not read the half-written file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.chmod(mode)
    temporary.replace(path)
