"""A real Orthanc for a test, closed as the node's is, on ports of its own.

::

    me = DicomPeer("me", "ME", "127.0.0.1", port)
    with OrthancServer(tmp_path / "orthanc", peers=[me]) as orthanc:
        orthanc.url          'http://127.0.0.1:PORT'
        orthanc.auth         ('node', PASSWORD), fits httpx and requests
        orthanc.http_port, orthanc.dicom_port, orthanc.ae_title
        orthanc.get("/system")      httpx.Response, logged in
        orthanc.upload(path)        POST /instances, its Orthanc id

``config_overrides`` replaces keys of ``orthanc.json`` (or adds some), ``bridge`` replaces the
repository's bridge, ``environment`` adds variables. ``stop()`` is graceful, ``kill()`` is SIGKILL;
``start()`` starts the same Orthanc again on the same ports and folders. Only peers that you name
may send: call with ``storescu -aet ME -aec orthanc.ae_title`` from 127.0.0.1.

A stand-in PACS that answers queries of the peer ``NODE``::

    node = DicomPeer("node", "NODE", "127.0.0.1", port, may_query=True)
    OrthancServer(folder, ae_title="PACS", peers=[node])
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

from node.edges.orthanc_config import DicomPeer, orthanc_environment, write_configuration
from node.edges.orthanc_tls import OrthancTls, write_tls

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHER = REPOSITORY / "deploy" / "run-orthanc"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def require_orthanc() -> None:
    """Skip the calling test where ``make setup`` has not run; in CI that is a failure."""
    if (REPOSITORY / ".orthanc" / "usr" / "sbin" / "Orthanc").exists():
        return
    if os.environ.get("CI"):
        pytest.fail("no Orthanc in .orthanc/: run `make setup`")
    pytest.skip("no Orthanc in .orthanc/: run `make setup`")


class OrthancServer:
    """One Orthanc process with its folders below ``folder``; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "ORTHANC",
        peers: Sequence[DicomPeer] = (),
        config_overrides: Mapping[str, Any] | None = None,
        bridge: Path | None = None,
        environment: Mapping[str, str] | None = None,
        http_port: int | None = None,
        dicom_port: int | None = None,
        tls: OrthancTls | None = None,
    ) -> None:
        self._tls = tls
        self.folder = folder
        self.ae_title = ae_title
        self.peers = tuple(peers)
        self.http_port = http_port or free_port()
        self.dicom_port = dicom_port or free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.auth = ("node", secrets.token_urlsafe(16))
        self.storage = folder / "storage"
        self.index = folder / "index"
        self.configuration = folder / "configuration"
        self.log = folder / "orthanc.log"
        self._overrides = dict(config_overrides or {})
        self._bridge = bridge
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OrthancServer:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()  # a graceful stop takes Orthanc four seconds, and a test keeps nothing

    @property
    def pid(self) -> int:
        """The launcher's process id, which is also its process group."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start and return once Orthanc answers; RuntimeError with its log when it does not."""
        require_orthanc()
        assert self._process is None, "already started"
        self._write_configuration()
        variables = orthanc_environment(
            ae_title=self.ae_title,
            dicom_port=self.dicom_port,
            http_port=self.http_port,
            storage=self.storage,
            index=self.index,
            bridge=self._bridge,
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(LAUNCHER), str(self.configuration)],
                env={"PATH": os.environ["PATH"], **variables, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> int | None:
        """Stop gracefully, as the supervisor does; the exit status, None when not running."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int | None:
        """End it as a crash or a power cut would."""
        return self._end(signal.SIGKILL)

    def get(self, path: str, **keywords: Any) -> httpx.Response:
        """GET with the right password."""
        return httpx.get(self.url + path, auth=self.auth, timeout=60, **keywords)

    def post(self, path: str, **keywords: Any) -> httpx.Response:
        """POST with the right password."""
        return httpx.post(self.url + path, auth=self.auth, timeout=60, **keywords)

    def upload(self, instance: Path | bytes) -> str:
        """Put one DICOM object in through REST; its Orthanc id."""
        data = instance if isinstance(instance, bytes) else instance.read_bytes()
        response = self.post("/instances", content=data)
        response.raise_for_status()
        return str(response.json()["ID"])

    def _write_configuration(self) -> None:
        shutil.rmtree(self.configuration, ignore_errors=True)
        users = {self.auth[0]: self.auth[1]}
        write_configuration(
            self.configuration, REPOSITORY / "orthanc.json", peers=self.peers, users=users
        )
        write_tls(self.configuration, self._tls)
        if self._overrides:
            # Orthanc refuses a key that stands in two files, so ours must lose it first.
            base = self.configuration / "orthanc.json"
            base.write_text(without_keys(base.read_text(), self._overrides))
            (self.configuration / "overrides.json").write_text(json.dumps(self._overrides))

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"Orthanc ended at its start:\n{self._end_of_log()}")
            try:
                if self.get("/system").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"Orthanc did not answer:\n{self._end_of_log()}")

    def _end(self, with_signal: signal.Signals) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        if process.poll() is None:
            os.killpg(process.pid, with_signal)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise RuntimeError(f"Orthanc did not stop:\n{self._end_of_log()}") from None

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def without_keys(configuration: str, keys: Mapping[str, Any]) -> str:
    """``orthanc.json`` without some top-level keys; its ``${...}`` make it text, not yet JSON.

    Each key stands on a line of its own with two blanks before it, and so does what follows it.
    """
    text = re.sub(r"(?m)^\s*//.*\n", "", configuration)
    for key in keys:
        pattern = rf'(?ms)^  "{re.escape(key)}":.*?(?=^  "|^\}})'
        text = re.sub(pattern, "", text)
    return re.sub(r",\s*\}\s*$", "\n}\n", text)
