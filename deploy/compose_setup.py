"""Write what compose.yaml mounts, below ``var/compose``: secrets, peers, folders and ``env``.

    python3 deploy/compose_setup.py [folder of the repository]

Needs Python 3.11 and nothing else. Reads the peers from ``segnode.toml``. Run it again after a
change of the peers: secrets that exist are kept. Run it as the user that the containers shall run
as; not as root.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from node.edges.orthanc_config import DicomPeer, write_configuration

FOLDERS = ("artifacts", "vault", "orthanc/storage", "orthanc/index", "postgres", "secrets")
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
        DicomPeer(p["name"], p["ae_title"], p["host"], p["port"], may_store=p.get("may_send", True))
        for p in settings.get("dicom_peers", ())
    ]


def main(repository: Path) -> None:
    """Write everything below ``var/compose``."""
    with (repository / "segnode.toml").open("rb") as file:
        settings = tomllib.load(file)
    home = repository / "var" / "compose"
    for name in FOLDERS:
        (home / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    made = random_secrets(home / "secrets")
    for name, derive in DERIVED.items():
        write_private(home / "secrets" / name, derive(made))
    staging = home / "orthanc" / "configuration"
    users = {"segnode": made["orthanc_password"]}
    base = repository / "orthanc.json"
    write_configuration(staging, base, peers=peers(settings), users=users)
    (staging / "modalities.json").replace(home / "orthanc" / "modalities.json")
    (staging / "users.json").replace(home / "secrets" / "users.json")
    (staging / "orthanc.json").unlink()
    staging.rmdir()
    dicom = settings.get("dicom", {})
    environment = {
        "SEGNODE_UID": os.getuid(),
        "SEGNODE_GID": os.getgid(),
        "SEGNODE_AE_TITLE": dicom.get("ae_title", "SEGNODE"),
        "SEGNODE_DICOM_PORT": dicom.get("port", 4242),
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
