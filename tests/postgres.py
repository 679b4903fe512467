"""A PostgreSQL of a test's own: a cluster in a temporary folder, on a Unix socket, no port."""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

#: Who runs PostgreSQL when the tests run as root, which it refuses; Debian's package makes it.
_UNPRIVILEGED = "postgres"


class PostgresCluster:
    """Started when entered, gone when left; :meth:`database` makes an empty database."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._numbers = itertools.count(1)

    def __enter__(self) -> PostgresCluster:
        self._folder = Path(tempfile.mkdtemp(prefix="segnode-pg-"))  # a socket's path must be short
        if os.geteuid() == 0:
            shutil.chown(self._folder, _UNPRIVILEGED)
        # A test's cluster may lose its data: no file is synced.
        self._run("initdb", "--auth=trust", "--username=segnode", "--no-sync", "--encoding=UTF8",
                  "--no-locale", "-D", f"{self._folder}/data")  # fmt: skip
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Begin, or begin again after :meth:`kill`."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-o", options,
                  "-l", f"{self._folder}/log", "-w", "start")  # fmt: skip

    def kill(self) -> None:
        """End at once, every connection cut; what was committed is there at the next start."""
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "-w", "stop")

    @property
    def pid(self) -> int:
        """The process id of the first of its processes."""
        return int((self._folder / "data" / "postmaster.pid").read_text().split()[0])

    def database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self._administer(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://segnode@/{name}?host={self._folder}"

    def drop(self, name: str) -> None:
        """Remove a database under whoever uses it."""
        self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with psycopg.connect(host=str(self._folder), user="segnode", dbname="postgres",
                             autocommit=True) as connection:  # fmt: skip
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", _UNPRIVILEGED, "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


def _programs() -> Path:
    """The newest PostgreSQL of Debian; its programs are not on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise AssertionError(f"no PostgreSQL here for {getpass.getuser()}: run `make setup`")
    return found[-1].parent
