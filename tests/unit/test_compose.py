"""compose.yaml and what deploy/compose_setup.py writes for it: who is given what, is it there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml

from anonymizer.keys import Keyring, NumberedKeys
from anonymizer.vault import FolderRecords, Vault
from node import upkeep
from node.settings import Deidentify, Dicom, DicomPeer, DicomWebPeer, Settings, Storage
from node.wiring import Hospital

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
KEYS = {"vault_key", "pseudonym_key"}
#: Service -> what it shares with others, below /var/lib/segnode or the working directory.
SHARED = {
    "watch": {"artifacts", "vault", "state"},
    "console": {"artifacts", "state"},
    "worker": {"artifacts", "vault", "site"},
    "delivery": {"artifacts", "vault", "site"},
    "compute": {"artifacts"},
}
PEER = 'name = "hospital"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'


@pytest.fixture(scope="module")
def compose_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "compose_setup", REPOSITORY / "deploy" / "compose_setup.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone, as far as it is read."""
    shutil.copy(REPOSITORY / "orthanc.json", tmp_path)
    (tmp_path / "segnode.toml").touch()
    return tmp_path


def mounted(service: dict[str, Any]) -> dict[str, str]:
    """Path in the container -> path in the repository."""
    pairs = [volume.split(":")[:2] for volume in service.get("volumes", ())]
    return {inside: outside for outside, inside in pairs}


@pytest.mark.parametrize("role", SHARED)
def test_a_service_is_given_what_its_role_uses_and_nothing_else(role: str) -> None:
    """The watch empties the vault and reads nothing in it; the console shows what it notes."""
    service = COMPOSE["services"][role]
    inside = set(mounted(service)) - {"/etc/segnode/segnode.toml"}
    assert {Path(path).name for path in inside} == SHARED[role]
    has_keys = set(service["secrets"]) >= KEYS
    assert has_keys == (role in ("worker", "delivery"))
    assert has_keys or not KEYS & set(service["secrets"])


def test_everything_that_is_mounted_is_there(compose_setup: ModuleType, repository: Path) -> None:
    """Docker makes what is missing, as a folder of root's, and the container cannot write to it."""
    compose_setup.main(repository)
    for name, service in COMPOSE["services"].items():
        for outside in mounted(service).values():
            assert (repository / outside).exists(), (name, outside)
    for secret in COMPOSE["secrets"].values():
        assert (repository / secret["file"]).stat().st_mode & 0o077 == 0
    users = repository / "var/compose/orthanc/configuration/users.json"
    assert users.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "free", "at_most"),
    [
        ("", Storage().keep_free_bytes, 0),
        ("[storage]\nkeep_free_gib = 0.5\nat_most_gib = 2.5\n", 2**29, 2560),
    ],
)
def test_orthanc_keeps_to_the_storage_that_is_set(
    compose_setup: ModuleType, repository: Path, text: str, free: int, at_most: int
) -> None:
    """By the variables that compose.yaml hands to it."""
    (repository / "segnode.toml").write_text(text)
    compose_setup.main(repository)
    lines = (repository / "var/compose/env").read_text().splitlines()
    assert f"SEGNODE_KEEP_FREE_BYTES={free}" in lines
    assert f"SEGNODE_MAXIMUM_STORAGE_MB={at_most}" in lines
    handed = str(COMPOSE["services"]["orthanc"]["environment"])
    assert "${SEGNODE_KEEP_FREE_BYTES" in handed and "${SEGNODE_MAXIMUM_STORAGE_MB" in handed


def test_tls_is_set_up_as_on_the_machine_and_taken_away_again(
    compose_setup: ModuleType, repository: Path
) -> None:
    """Plain text where a site has asked for TLS would be received silently."""
    (repository / "site").mkdir()
    for name in ("node.crt", "node.key", "ca.pem"):
        (repository / "site" / name).write_text(name)
    (repository / "segnode.toml").write_text(
        '[dicom]\ntls = true\ncertificate = "site/node.crt"\nprivate_key = "site/node.key"\n'
        f'certificate_authority = "site/ca.pem"\n[[dicom_peers]]\n{PEER}tls = true\n'
    )
    compose_setup.main(repository)
    folder = repository / "var/compose/orthanc/configuration"
    assert json.loads((folder / "dicom_tls.json").read_text())["DicomTlsEnabled"] is True
    assert (folder / "dicom_tls_trusted.crt").read_text() == "ca.pem"
    assert (folder / "dicom_tls.key").stat().st_mode & 0o077 == 0
    peers = json.loads((folder / "modalities.json").read_text())["DicomModalities"]
    assert peers["hospital"]["UseDicomTls"] is True
    (repository / "segnode.toml").write_text("")
    compose_setup.main(repository)
    assert not list(folder.glob("dicom_tls*"))


@pytest.mark.parametrize("name", ["/etc/ssl/node.crt", "node.crt", "site/../node.crt", "site/none"])
def test_a_file_that_no_container_would_see_is_refused(
    compose_setup: ModuleType, repository: Path, name: str
) -> None:
    """Before anything is written; the message says where to put it."""
    (repository / "node.crt").touch()
    (repository / "segnode.toml").write_text(f'[deidentify]\nrecipe = "{name}"\n')
    with pytest.raises(ValueError, match=name):
        compose_setup.main(repository)
    assert not (repository / "var").exists()


def test_every_setting_that_names_a_file_is_looked_at(compose_setup: ModuleType) -> None:
    """A new one would otherwise be missing in the containers."""
    named = {
        name
        for section in (Dicom, Deidentify, DicomPeer, DicomWebPeer)
        for name, field in section.model_fields.items()
        if Path in (field.annotation, *get_args(field.annotation))
    }
    assert named == set(compose_setup.FILES)


def test_a_watch_without_a_key_empties_the_vault_and_asks_no_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the watch of compose.yaml may do there; it has no key to ask by original UIDs."""
    monkeypatch.setenv("SEGNODE_CONFIG", str(tmp_path / "segnode.toml"))
    var = tmp_path / "var"
    (var / "secrets").mkdir(parents=True)
    for name in ("orthanc_password", "broker_password"):
        (var / "secrets" / name).touch(mode=0o600)
    (tmp_path / "segnode.toml").write_text(f'var_dir = "{var}"\n[[dicom_peers]]\n{PEER}')
    hospital = Hospital(Settings())
    sealing = Vault(FolderRecords(var / "vault"), Keyring("k", {"k": bytes(32)}), "hospital")
    sealing.seal("2.25.1", "outbound-nobodys-seg", b"x")
    found = upkeep.reconciler(hospital)
    [useless] = found.records()
    assert useless.repair is not None
    useless.repair()
    assert sealing.names("2.25.1") == []
    assert dict(found.destinations) == {}
    upkeep.space_log(hospital).add([])
    assert [file.name for file in (var / "state").iterdir()] == ["space.json"]
    NumberedKeys(var / "secrets", "vault_key").create(1)
    assert set(upkeep.reconciler(Hospital(Settings())).destinations) == {"hospital"}
