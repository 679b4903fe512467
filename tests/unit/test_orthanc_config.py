"""The generated part of Orthanc's configuration."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from node.edges.orthanc_config import (
    DicomPeer,
    modalities_section,
    users_section,
    write_configuration,
)


def test_a_peer_may_store_and_never_query_unless_asked_for() -> None:
    """Proves that each right is written out: what is left out, Orthanc allows."""
    peer = DicomPeer("pacs", "PACS", "10.0.0.5", 104)
    assert modalities_section([peer])["DicomModalities"]["pacs"] == {
        "AET": "PACS",
        "Host": "10.0.0.5",
        "Port": 104,
        "AllowEcho": True,
        "AllowStore": True,
        "AllowFind": False,
        "AllowFindWorklist": False,
        "AllowGet": False,
        "AllowMove": False,
        "AllowStorageCommitment": True,
        "UseDicomTls": False,
    }


@pytest.mark.parametrize(
    "peer",
    [
        {"name": "a/b"},
        {"name": ""},
        {"ae_title": "SEVENTEENLETTERS1"},
        {"ae_title": " PACS"},
        {"ae_title": "A\\B"},
        {"ae_title": ""},
        {"host": ""},
        {"port": 0},
        {"port": 65536},
    ],
)
def test_a_peer_that_orthanc_could_not_use_is_refused(peer: dict[str, object]) -> None:
    """Proves that a mistake is found before Orthanc starts."""
    good: dict[str, object] = {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 104}
    with pytest.raises(ValueError, match="peer"):
        DicomPeer(**(good | peer))  # type: ignore[arg-type]


def test_two_peers_of_one_name_are_refused() -> None:
    """Proves that no peer silently replaces another."""
    peer = DicomPeer("pacs", "PACS", "10.0.0.5", 104)
    with pytest.raises(ValueError, match="same name"):
        modalities_section([peer, peer])


@pytest.mark.parametrize("users", [{}, {"node": ""}, {"": "secret"}])
def test_no_user_or_an_empty_password_is_refused(users: dict[str, str]) -> None:
    """Proves that Orthanc cannot be started open by an empty secret."""
    with pytest.raises(ValueError, match="password"):
        users_section(users)


def test_the_folder_holds_passwords_for_the_owner_only_and_keeps_a_sites_own_files(
    tmp_path: Path,
) -> None:
    """Proves the layout, twice in a row."""
    base = tmp_path / "base.json"
    base.write_text("// comment\n{}\n")
    folder = tmp_path / "configuration"
    folder.mkdir()
    (folder / "tls.json").write_text('{"DicomTlsEnabled": true}')
    peers = [DicomPeer("pacs", "PACS", "localhost", 104)]
    for password in ("first", "second"):
        write_configuration(folder, base, peers=peers, users={"node": password})
    assert sorted(file.name for file in folder.iterdir()) == [
        "modalities.json", "orthanc.json", "tls.json", "users.json",
    ]  # fmt: skip
    assert (folder / "orthanc.json").read_bytes() == base.read_bytes()
    assert json.loads((folder / "users.json").read_text()) == {
        "RegisteredUsers": {"node": "second"}
    }
    assert stat.S_IMODE((folder / "users.json").stat().st_mode) == 0o600
    modalities = json.loads((folder / "modalities.json").read_text())["DicomModalities"]
    assert modalities["pacs"]["Host"] == "127.0.0.1"


def test_a_host_name_without_an_address_stops_the_start(tmp_path: Path) -> None:
    """Proves that the message names the peer."""
    base = tmp_path / "base.json"
    base.write_text("{}")
    peers = [DicomPeer("pacs", "PACS", "no-such-host.invalid", 104)]
    with pytest.raises(ValueError, match="DICOM peer pacs"):
        write_configuration(tmp_path / "c", base, peers=peers, users={"node": "x"})
