"""Run somebody else's program within limits of time, memory and disk, and end all of it.

Memory is what its processes hold together (proportional set size of /proc/PID/smaps_rollup),
looked at every half second. The kernel's own limits do not fit: RLIMIT_AS counts address space,
of which CUDA and compilers reserve many times what they use; RLIMIT_DATA counts one process, and a
program has many; a cgroup needs rights that a worker seldom has. Disk is what lies in the folder of
the run, looked at as often. Between two looks a program may
exceed the limit, therefore it is also the first that the kernel ends when memory runs out
(``launch.py``).

Ended are all descendants of the program, and every process with its ``SEGNODE_RUN`` in the
environment, though it has made itself a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from node.errors import ProgramFailed
from node.words import fit_to_show

RUN_VARIABLE = "SEGNODE_RUN"
LAST_WORDS = 600
"""Characters of its output that a program's failure is told with."""

_LAUNCHER = Path(__file__).with_name("launch.py")
_LOOK_S = 0.5
_GRACE_S = 5.0
_KEPT_BYTES = 16384
_PROC = Path("/proc")


@dataclass(frozen=True)
class Limits:
    """What one run may take, all its processes together."""

    time_s: float
    memory_mib: int
    disk_mib: int


@dataclass(frozen=True)
class Ended:
    """How a program ended by itself.

    ``status`` is its exit status, or 128 and the number of the signal that ended it, as shells,
    bubblewrap and container engines count; ``words`` the end of what it wrote, fit to be shown.
    """

    status: int
    words: str


def run_program(
    arguments: Sequence[str],
    *,
    run: str,
    work: Path,
    environment: Mapping[str, str],
    limits: Limits,
    waiting: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a program in the folder ``work`` until it ends; nothing of it is left running.

    Parameters
    ----------
    run
        Name of this run and of no other: marks its processes.
    environment
        All variables that it gets.
    waiting
        Called at every look, twice a second.

    Raises
    ------
    ProgramFailed
        It took more time, memory or disk than it may, and was ended.
    """
    line = [sys.executable, "-I", "-S", str(_LAUNCHER), *arguments]
    process = subprocess.Popen(
        line,
        cwd=work,
        env={**environment, RUN_VARIABLE: run},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    with _Tail(process.stdout) as tail:
        try:
            exceeded = _watch(process, run, work, limits, waiting)
        finally:
            _end(process, run)
        words = shown(tail.text(), work)
    if exceeded:
        told = f"; it wrote: {words}" if words else ""
        raise ProgramFailed(
            f"The program took more than {exceeded} and was ended{told}",
            remedy="Raise the limit in [command] of model.toml, or send a smaller series.",
        )
    status = process.returncode
    return Ended(status if status >= 0 else 128 - status, words)


def shown(output: str, work: Path) -> str:
    """The end of a program's output as it may be stored and shown."""
    return fit_to_show(output.replace(str(work), ""))[-LAST_WORDS:]


class _Tail:
    """Reads all that a program writes, so that it never waits, and keeps the end of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._read, name="program output", daemon=True)

    def __enter__(self) -> _Tail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():
            self._stream.close()

    def text(self) -> str:
        """What was kept, after all who could write are gone."""
        self._thread.join(_GRACE_S)
        return self._kept.decode("utf-8", "replace")

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # closed
            while block := os.read(self._stream.fileno(), 65536):
                self._kept = (self._kept + block)[-_KEPT_BYTES:]


def _watch(
    process: subprocess.Popen[bytes],
    run: str,
    work: Path,
    limits: Limits,
    waiting: Callable[[], None],
) -> str | None:
    """Wait for the end; the limit that was exceeded, in words."""
    deadline = time.monotonic() + limits.time_s
    while True:
        waiting()
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return f"its {limits.time_s:g} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_LOOK_S, left_s))
            return None
        if _memory_mib(_members(process, run)) > limits.memory_mib:
            return f"its {limits.memory_mib} MiB of memory"
        if _disk_mib(work) > limits.disk_mib:
            return f"its {limits.disk_mib} MiB of disk"


def _end(process: subprocess.Popen[bytes], run: str) -> None:
    """End whatever is left: politely, and after five seconds for good."""
    for signal_number, again in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
        deadline = time.monotonic() + _GRACE_S
        sent = False
        while (members := _members(process, run)) and time.monotonic() < deadline:
            if again or not sent:
                for pid in members:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal_number)
                sent = True
            time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)  # else it is stuck in the kernel, as on a dead network drive


def _members(process: subprocess.Popen[bytes], run: str) -> set[int]:
    """The living processes of a run."""
    marker = f"{RUN_VARIABLE}={run}".encode()
    parents = dict(_living())
    found = {pid for pid in parents if marker in _environment(pid)}
    if process.poll() is None:  # else its number may be another's by now
        found.add(process.pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found & parents.keys()


def _living() -> Iterator[tuple[int, int]]:
    """Number and parent's number of every process that is not dead (proc(5), stat)."""
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    yield int(folder.name), int(parent)


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _disk_mib(folder: Path) -> float:
    """What a folder takes on the disk; files come and go while it is looked at."""
    used = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                used += Path(place, name).lstat().st_blocks * 512
    return used / 2**20


def _memory_mib(pids: set[int]) -> float:
    return sum(_memory_kib(pid) for pid in pids) / 1024


def _memory_kib(pid: int) -> int:
    """Memory and swap of one process; what it shares is divided by those who share it."""
    with contextlib.suppress(OSError):
        fields = dict(
            line.split(":", 1)
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
        )
        return sum(int(fields[name].split()[0]) for name in ("Pss", "SwapPss") if name in fields)
    return 0
