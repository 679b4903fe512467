"""Write what compose.yaml mounts, below ``var/compose``: secrets, folders, Orthanc's part, ``env``.

    python3 deploy/compose_setup.py [folder of the repository]

Needs Python 3.11 and nothing else. Reads peers, TLS and storage from ``segnode.toml``. Run it again
after a change of that file, and after an update: secrets that exist are kept. Run it as the user
that the containers shall run as; not as root.

Files that ``segnode.toml`` names (certificates, a recipe, passwords) lie below ``site``, which is
mounted where the containers look for it.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from node.edges.orthanc_config import DicomPeer, write_configuration
from node.edges.orthanc_tls import OrthancTls, write_tls

FOLDERS = (
    "artifacts", "vault", "state", "orthanc/storage", "orthanc/index", "postgres", "secrets",
)  # fmt: skip
#: Settings that name a file.
FILES = (
    "certificate", "private_key", "certificate_authority", "recipe", "password_file", "token_file",
)  # fmt: skip
RANDOM = (
    "orthanc_password", "console_token", "broker_password", "postgres_password",
    "vault_key", "pseudonym_key",
)  # fmt: skip
#: Made of the random ones; the hosts are the services of compose.yaml.
DERIVED: Mapping[str, Callable[[Mapping[str, str]], str]] = {
    "broker_url": lambda made: f"redis://:{made['broker_password']}@redis:6379/0",
    "ledger_url": lambda made: (
        f"postgresql+psycopg://segnode:{made['postgres_password']}@postgres:5432/segnode"
    ),
    "redis_conf": lambda made: f'requirepass {made["broker_password"]}\nsave ""\nappendonly no\n',
}


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text if text.endswith("\n") else text + "\n")
    path.chmod(0o600)


def random_secrets(folder: Path) -> dict[str, str]:
    """The secrets that are there, and new ones for those that are not."""
    made = {}
    for name in RANDOM:
        path = folder / name
        if not path.exists():
            write_private(path, secrets.token_hex(32))
        made[name] = path.read_text().strip()
    return made


def peers(settings: Mapping[str, Any]) -> list[DicomPeer]:
    """The DICOM peers of segnode.toml, as Orthanc shall know them."""
    return [
        DicomPeer(
            p["name"], p["ae_title"], p["host"], p["port"], may_store=p.get("may_send", True),
            use_tls=p.get("tls", False),
        )
        for p in settings.get("dicom_peers", ())
    ]  # fmt: skip


def files(settings: Mapping[str, Any]) -> Iterator[str]:
    """Every file that segnode.toml names."""
    peers = (*settings.get("dicom_peers", ()), *settings.get("dicomweb_peers", ()))
    for section in (settings.get("dicom", {}), settings.get("deidentify", {}), *peers):
        yield from (section[name] for name in FILES if name in section)


def check_files(settings: Mapping[str, Any], repository: Path) -> None:
    """ValueError if a file is named that no container would see."""
    site = (repository / "site").resolve()
    for name in files(settings):
        if Path(name).is_absolute() or not (repository / name).resolve().is_relative_to(site):
            raise ValueError(f"the containers see no {name}; put it in site/ and name it site/...")
        if not (repository / name).is_file():
            raise ValueError(f"there is no {name}")


def orthanc_tls(settings: Mapping[str, Any], repository: Path) -> OrthancTls | None:
    """DICOM TLS as segnode.toml wants it of Orthanc; None for plain text in both directions."""
    dicom = settings.get("dicom", {})
    called = [peer for peer in settings.get("dicom_peers", ()) if peer.get("tls")]
    if not (dicom.get("tls") or called):
        return None
    key = "certificate_authority"
    authorities = [repository / one[key] for one in (dicom, *called) if key in one]
    if not ("certificate" in dicom and "private_key" in dicom and authorities):
        raise ValueError("`tls` needs `certificate`, `private_key` and `certificate_authority`")
    certificate, private_key = repository / dicom["certificate"], repository / dicom["private_key"]
    return OrthancTls(certificate, private_key, authorities, dicom.get("tls", False))


def main(repository: Path) -> None:
    """Write everything below ``var/compose``."""
    with (repository / "segnode.toml").open("rb") as file:
        settings = tomllib.load(file)
    check_files(settings, repository)
    tls = orthanc_tls(settings, repository)
    (repository / "site").mkdir(exist_ok=True, mode=0o700)
    home = repository / "var" / "compose"
    for name in FOLDERS:
        (home / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    made = random_secrets(home / "secrets")
    for name, derive in DERIVED.items():
        write_private(home / "secrets" / name, derive(made))
    configuration = home / "orthanc" / "configuration"
    users = {"segnode": made["orthanc_password"]}
    base = repository / "orthanc.json"
    write_configuration(configuration, base, peers=peers(settings), users=users)
    write_tls(configuration, tls)
    dicom, storage = settings.get("dicom", {}), settings.get("storage", {})
    environment = {
        "SEGNODE_UID": os.getuid(),
        "SEGNODE_GID": os.getgid(),
        "SEGNODE_AE_TITLE": dicom.get("ae_title", "SEGNODE"),
        "SEGNODE_DICOM_PORT": dicom.get("port", 4242),
        "SEGNODE_KEEP_FREE_BYTES": int(storage.get("keep_free_gib", 5.0) * 2**30),
        "SEGNODE_MAXIMUM_STORAGE_MB": math.ceil(storage.get("at_most_gib", 0) * 1024),
    }
    text = "".join(f"{name}={json.dumps(value)}\n" for name, value in environment.items())
    (home / "env").write_text(text)
    print(f"written: {home}\nnow: docker compose --env-file var/compose/env up --build --detach")


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    try:
        main(root)
    except FileNotFoundError as error:
        sys.exit(f"compose_setup: {error.filename} is missing; copy segnode.example.toml to it")
    except (ValueError, KeyError) as error:
        sys.exit(f"compose_setup: segnode.toml: {error}")
