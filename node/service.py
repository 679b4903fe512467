"""`segnode up` and `segnode down`: secrets, configuration files, processes, and the wait."""

from __future__ import annotations

import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from node.edges import secret_files
from node.edges.orthanc_config import DicomPeer, orthanc_environment, write_configuration
from node.edges.orthanc_tls import OrthancTls, write_tls
from node.edges.supervisor import Program, Supervisor
from node.errors import NodeError
from node.settings import BadSettings, Settings
from node.vault_keys import make_first_keys
from node.wiring import ORTHANC_USER, Hospital

SECRETS = ("orthanc_password", "broker_password", "console_token")


_TOO_FULL_TO_START_BYTES = 16 * 2**20

#: torch has the threads of a compute worker. BLAS threads that spin beside them made a run of 4 s
#: take up to 40 s on busy cores.
COMPUTE_LIBRARIES = {"OPENBLAS_NUM_THREADS": "1"}


class DidNotStart(NodeError):
    """A process of the node did not come up."""

    default_remedy = "See its log below the var folder, then run `segnode up` again."


@dataclass(frozen=True)
class Part:
    """One part of the node, the question whether it answers, and the log to read if not."""

    name: str
    answers: Callable[[], bool]
    log: str


def up(settings: Settings, timeout_s: float = 180.0) -> Iterator[str]:
    """Start what is not running, and yield the name of each part as soon as it answers.

    What a killed supervisor has left running is ended first, and said.

    Raises
    ------
    BadSettings
        Something is configured that cannot work; nothing was started.
    DidNotStart
        A part does not answer in time; the message names it and its log.
    """
    if settings.orthanc.url is not None and settings.dicom.tls:
        raise BadSettings(
            "dicom.tls: the Orthanc of orthanc.url is not started by the node, which cannot make "
            "its port speak TLS",
            remedy="Set TLS up in that Orthanc (docs/security.md), and take `tls` out of [dicom].",
        )
    hospital = Hospital(settings)
    _ = hospital.models  # a rule that names an unknown model stops the start here
    supervisor = Supervisor(settings.var_dir)
    if not supervisor.is_running():
        if left := supervisor.end_leftovers():
            yield f"ended {left} processes of a supervisor that had been killed"
        _check_ports_are_free(settings)
        _write_secrets(settings)
        _ = hospital.policy  # so does a recipe that cannot be understood
        make_first_keys(hospital)
        _ = hospital.pseudonym_keys  # and a key that is not the one its epoch began with
        supervisor.start(_programs(hospital))
    deadline = time.monotonic() + timeout_s
    for part in parts(hospital):
        while not part.answers():
            if time.monotonic() > deadline:
                _explain_full_disk(settings)
                raise DidNotStart(
                    f"{part.name} does not answer after {timeout_s:.0f} s",
                    remedy=f"See {settings.var_dir / part.log}, then run `segnode up` again.",
                )
            time.sleep(0.1)
        yield part.name


def _explain_full_disk(settings: Settings) -> None:
    """Nothing starts on a full disk; Orthanc cannot even open its index there."""
    for folder in (settings.var_dir / "orthanc" / "index", settings.var_dir):
        if folder.exists() and shutil.disk_usage(folder).free < _TOO_FULL_TO_START_BYTES:
            raise DidNotStart(
                f"The disk of {folder} is full: Orthanc cannot open its index, nor the node its "
                "ledger",
                remedy="Free some space there, then run `segnode up` again. Nothing is lost.",
            )


def down(settings: Settings) -> bool:
    """Stop every process; False when nothing was running."""
    return Supervisor(settings.var_dir).stop()


def parts(hospital: Hospital) -> Sequence[Part]:
    """Everything that must answer, in the order of starting."""
    return (
        Part("broker", lambda: _redis_answers(hospital.broker_url), "log/redis.log"),
        Part("orthanc", lambda: _orthanc_answers(hospital), "orthanc/orthanc.log"),
        Part("console", lambda: _console_answers(hospital.settings), "log/console.log"),
        Part("hospital worker", lambda: _worker_answers(hospital, "hospital"), "log/worker.log"),
        Part("delivery worker", lambda: _worker_answers(hospital, "delivery"), "log/delivery.log"),
        Part("compute worker", lambda: _worker_answers(hospital, "compute"), "log/compute.log"),
    )


def _programs(hospital: Hospital) -> list[Program]:
    settings = hospital.settings
    segnode = [sys.executable, "-m", "node.cli", "run"]
    configured = os.environ.get("SEGNODE_CONFIG", "segnode.toml")
    own = {"SEGNODE_CONFIG": str(Path(configured).absolute()), "PYTHONUNBUFFERED": "1"}
    programs = [
        Program("watch", [*segnode, "watch"], own, priority=30),
        Program("console", [*segnode, "console"], own, priority=30),
        Program("worker", [*segnode, "worker"], own, priority=30, stop_wait_s=30),
        Program("delivery", [*segnode, "delivery"], own, priority=30, stop_wait_s=30),
        Program("compute", [*segnode, "compute"], _compute_environment(hospital), 30, alone=True),
    ]
    if settings.broker.url is None:
        path = {"PATH": os.environ.get("PATH", os.defpath)}  # and no key of ours
        command = ["redis-server", _redis_file(hospital)]
        programs.append(Program("redis", command, path, priority=10, alone=True))
    if settings.orthanc.url is None:
        programs.append(_orthanc_program(hospital))
    return programs


def _compute_environment(hospital: Hospital) -> dict[str, str]:
    """All that the compute zone is told: no ledger, no vault, no Orthanc, no peer."""
    settings = hospital.settings
    return {
        "PATH": os.defpath,
        "HOME": "/nonexistent",
        "PYTHONUNBUFFERED": "1",
        "SEGNODE_COMPUTE_BROKER_URL": hospital.broker_url,
        "SEGNODE_COMPUTE_ARTIFACTS_DIR": str(settings.folder("artifacts").absolute()),
        "SEGNODE_COMPUTE_MODELS_DIR": str(settings.models_dir.absolute()),
        "SEGNODE_COMPUTE_EXPORTS_DIR": str(settings.folder("exports").absolute()),
        "SEGNODE_COMPUTE_PROCESSES": str(settings.workers.compute_processes),
        "SEGNODE_COMPUTE_THREADS": str(settings.workers.compute_threads),
        **COMPUTE_LIBRARIES,
    }


def _redis_file(hospital: Hospital) -> str:
    """Redis on loopback, with a password, and without files: the ledger remembers."""
    folder = (hospital.settings.var_dir / "redis").absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = [
        "bind 127.0.0.1",
        f"port {hospital.settings.broker.port}",
        f"requirepass {hospital.secret('broker_password')}",
        f'dir "{folder}"',
        'save ""',
        "appendonly no",
        "daemonize no",
    ]
    return _private_file(folder / "redis.conf", "\n".join(lines) + "\n")


def _orthanc_program(hospital: Hospital) -> Program:
    settings = hospital.settings
    folder = (settings.var_dir / "orthanc").absolute()
    write_configuration(
        folder / "configuration",
        settings.orthanc.configuration,
        peers=[
            DicomPeer(
                peer.name, peer.ae_title, peer.host, peer.port, may_store=peer.may_send,
                use_tls=peer.tls,
            )
            for peer in settings.dicom_peers
        ],
        users={ORTHANC_USER: hospital.secret("orthanc_password")},
    )  # fmt: skip
    write_tls(folder / "configuration", _tls_of(settings))
    environment = orthanc_environment(
        ae_title=settings.dicom.ae_title,
        dicom_port=settings.dicom.port,
        http_port=settings.orthanc.http_port,
        storage=folder / "storage",
        index=folder / "index",
        bridge=settings.orthanc.bridge.absolute(),
        maximum_storage_mb=math.ceil((settings.storage.at_most_gib or 0) * 1024),
        keep_free_bytes=settings.storage.keep_free_bytes,
        keep_free_in=_folders_to_measure(settings),
    ) | {
        "SEGNODE_CONSOLE_URL": console_url(settings),
        "SEGNODE_CONSOLE_TOKEN_FILE": str(hospital.secret_path("console_token")),
    }
    command = [str(settings.orthanc.launcher.absolute()), str(folder / "configuration")]
    # Orthanc writes original UIDs of objects that it refuses: its log stays with its data.
    return Program("orthanc", command, environment, priority=20, stop_wait_s=30, log_folder=folder)


def _tls_of(settings: Settings) -> OrthancTls | None:
    dicom = settings.dicom
    by_tls = [peer for peer in settings.dicom_peers if peer.tls]
    if not (dicom.tls or by_tls) or not (dicom.certificate and dicom.private_key):
        return None
    authorities = [dicom.certificate_authority, *[peer.certificate_authority for peer in by_tls]]
    named = [path for path in authorities if path]
    for path in (dicom.certificate, dicom.private_key, *named):
        if not os.access(path, os.R_OK):
            raise BadSettings(
                f"The TLS file {path} cannot be read",
                remedy="Correct certificate, private_key or certificate_authority.",
            )
    return OrthancTls(dicom.certificate, dicom.private_key, named, dicom.tls)


def _folders_to_measure(settings: Settings) -> list[Path]:
    """An empty folder on each disk that the node writes to: all that the bridge sees of it."""
    modes = {settings.var_dir: 0o755, settings.folder("artifacts"): 0o750}
    measured = []
    for folder in (settings.var_dir, settings.folder("artifacts"), settings.folder("vault")):
        folder.mkdir(parents=True, exist_ok=True, mode=modes.get(folder, 0o700))
        empty = folder.absolute() / ".space"
        empty.mkdir(exist_ok=True, mode=0o700)
        measured.append(empty)
    return measured


def console_url(settings: Settings) -> str:
    """Where the node's HTTP interface answers."""
    return f"http://{settings.console.host}:{settings.console.port}"


def _write_secrets(settings: Settings) -> None:
    for name in SECRETS:
        secret_files.read_or_create(settings.folder("secrets") / name)


def _private_file(path: Path, text: str) -> str:
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    path.write_text(text)
    return str(path)


def _check_ports_are_free(settings: Settings) -> None:
    wanted = {"dicom.port": settings.dicom.port, "console.port": settings.console.port}
    if settings.orthanc.url is None:
        wanted["orthanc.http_port"] = settings.orthanc.http_port
    if settings.broker.url is None:
        wanted["broker.port"] = settings.broker.port
    for field, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise BadSettings(
                    f"{field}: port {port} is in use by another program",
                    remedy=f"Set {field} in segnode.toml to a free port, or stop that program.",
                ) from None


def _redis_answers(url: str) -> bool:
    try:
        return bool(redis.Redis.from_url(url, socket_timeout=1).ping())
    except redis.RedisError:
        return False


def _orthanc_answers(hospital: Hospital) -> bool:
    try:
        hospital.orthanc.system()
    except NodeError:
        return False
    return True


def _console_answers(settings: Settings) -> bool:
    try:
        return httpx.get(f"{console_url(settings)}/health", timeout=1).is_success
    except httpx.HTTPError:
        return False


def _worker_answers(hospital: Hospital, name: str) -> bool:
    try:
        answers = hospital.celery.control.ping(timeout=1.0)
    except Exception:  # noqa: BLE001 - whatever kombu raises, the worker does not answer
        return False
    return any(key.startswith(f"{name}@") for answer in answers for key in answer)
