"""`segnode up` and `down`: supervisord starts, restarts and stops the node's processes.

One group: Redis and Orthanc (unless the settings name others), the watch, the console, the
hospital workers and the compute workers. The compute workers start from an empty environment:
a broker, a folder of artifacts and a folder of models are all they ever learn.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from configparser import RawConfigParser
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from node.edges import leftovers
from node.errors import NodeError

#: Stopping one process may take supervisord its ``stop_wait_s``; it answers after that.
_ANSWER_S = 60.0


class NotRunning(NodeError):
    """No supervisor of this node answers."""

    default_remedy = "Start the node with `segnode up`."


@dataclass(frozen=True)
class Program:
    """One process that supervisord keeps running.

    Attributes
    ----------
    environment
        Added to the supervisor's own; with ``alone`` it is all that the process gets.
    log_folder
        Where its output goes, if not beside the others'.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    priority: int
    alone: bool = False
    stop_wait_s: int = 20
    log_folder: Path | None = None


@dataclass(frozen=True)
class ProcessInfo:
    """How one process is doing, in supervisord's words."""

    name: str
    state: str
    pid: int
    since_s: float
    description: str


class Supervisor:
    """The supervisor of one ``var`` folder."""

    def __init__(self, var_dir: Path, answer_s: float = _ANSWER_S) -> None:
        self._answer_s = answer_s
        self._var = var_dir.absolute()
        self._configuration = self._var / "run" / "supervisord.conf"
        self._pid_file = self._var / "run" / "supervisord.pid"
        self._boot = self._var / "run" / "boot"
        self._log = self._var / "log"

    def start(self, programs: Sequence[Program]) -> bool:
        """Write the configuration and start supervisord; False when it runs already."""
        if self.is_running():
            return False
        self.end_leftovers()
        for folder in (self._var / "run", self._log):
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        with self._configuration.open("w") as file:
            self._configuration.chmod(0o600)  # command lines name files of secrets
            self._configured(programs).write(file)
        self._boot.write_text(leftovers.boot_id())
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NodeError(
                "supervisord did not start: " + (done.stdout + done.stderr).strip()[-400:],
                remedy=f"See {self._log / 'supervisord.log'}.",
            )
        return True

    def stop(self, timeout_s: float = 60.0) -> bool:
        """Stop every process and supervisord itself; False when nothing was running."""
        pid = self._pid()
        if pid is None or not self.is_running():
            return self.end_leftovers() > 0
        self._call("supervisor.shutdown")
        deadline = time.monotonic() + timeout_s
        while _alive(pid):
            if time.monotonic() > deadline:
                raise NodeError(
                    f"supervisord (process {pid}) did not stop within {timeout_s:.0f} s",
                    remedy=f"See {self._log / 'supervisord.log'}; end process {pid} by hand.",
                )
            time.sleep(0.1)
        return True

    def end_leftovers(self) -> int:
        """End what a supervisor that was killed has left running; how many processes."""
        pid = self._pid()
        if pid is None or not self._boot.exists():
            return 0
        if self._boot.read_text() != leftovers.boot_id():
            return 0
        return leftovers.end(pid, (self._var, self._socket()))

    def is_running(self) -> bool:
        """Whether a supervisor answers."""
        try:
            self._call("supervisor.getState")
        except NotRunning:
            return False
        return True

    def processes(self) -> list[ProcessInfo]:
        """How each process is doing.

        Raises
        ------
        NotRunning
            The node is down.
        """
        return [
            ProcessInfo(
                name=str(info["name"]),
                state=str(info["statename"]),
                pid=int(info["pid"]),
                since_s=float(info["now"] - info["start"]),
                description=str(info["description"]),
            )
            for info in self._call("supervisor.getAllProcessInfo")
        ]

    def restart(self, name: str) -> None:
        """Stop and start one process."""
        with contextlib.suppress(Fault):  # it was not running
            self._call("supervisor.stopProcess", name)
        self._call("supervisor.startProcess", name)

    def _configured(self, programs: Sequence[Program]) -> RawConfigParser:
        parser = RawConfigParser()
        parser.read_dict(
            {
                "unix_http_server": {"file": str(self._socket()), "chmod": "0700"},
                "supervisord": {
                    "logfile": str(self._log / "supervisord.log"),
                    "pidfile": str(self._pid_file),
                    "childlogdir": str(self._log),
                    "directory": str(Path.cwd()),
                    "umask": "027",
                },
                "rpcinterface:supervisor": {
                    "supervisor.rpcinterface_factory": (
                        "supervisor.rpcinterface:make_main_rpcinterface"
                    )
                },
            }
        )
        for program in programs:
            command = list(program.command)
            if program.alone:
                command = self._with_nothing_else(program)
            section = {
                "command": " ".join(map(_quoted, command)),
                "priority": str(program.priority),
                "autorestart": "true",
                "startsecs": "1",
                "startretries": "1000",
                "stopasgroup": "true",
                "killasgroup": "true",
                "stopwaitsecs": str(program.stop_wait_s),
                "redirect_stderr": "true",
                "stdout_logfile": str((program.log_folder or self._log) / f"{program.name}.log"),
                "stdout_logfile_maxbytes": "20MB",
                "stdout_logfile_backups": "5",
            }
            if program.environment and not program.alone:
                section["environment"] = ",".join(
                    f'{name}="{_escaped(value)}"' for name, value in program.environment.items()
                )
            parser[f"program:{program.name}"] = section
        return parser

    def _with_nothing_else(self, program: Program) -> list[str]:
        """Its environment comes from a file: everybody can read a command line, passwords too."""
        file = self._var / "run" / f"{program.name}.env"
        file.touch(mode=0o600)
        file.write_text(
            "".join(f"{name}={shlex.quote(value)}\n" for name, value in program.environment.items())
        )
        read = 'set -a && . "$0" && unset PWD && exec "$@"'
        return ["/usr/bin/env", "-i", "/bin/sh", "-c", read, str(file), *program.command]

    def _socket(self) -> Path:
        path = self._var / "run" / "supervisor.sock"
        if len(str(path)) < 100:  # sun_path holds 108 bytes
            return path
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"segnode-{name}.sock"

    def _call(self, method: str, *arguments: object) -> Any:
        transport = _Transport(self._socket(), self._answer_s)
        proxy = ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy, method)(*arguments)
        except TimeoutError:
            pid = self._pid()
            raise NodeError(
                f"supervisord (process {pid}) does not answer",
                remedy=f"End it with `kill -9 {pid}`; `segnode up` ends what it leaves running and "
                "starts everything afresh.",
            ) from None
        except OSError:
            raise NotRunning("The node is not running") from None
        finally:
            transport.close()

    def _pid(self) -> int | None:
        try:
            return int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None


class _Transport(SupervisorTransport):  # type: ignore[misc]  # supervisor has no types
    """supervisord's own, which would wait for ever."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__(serverurl=f"unix://{path}")
        self._get_connection = lambda: _Connection(path, timeout_s)


class _Connection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _quoted(word: str) -> str:
    return '"' + _escaped(word).replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # supervisord expands %(name)s


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
