"""What a supervisor that was killed has left running: found without doubt, and ended.

supervisord leads a session of its own, and its children stay in it. The kernel gives the number of
a session to nobody else while one process of it lives; that a process also speaks of this node's
folder or socket (environment, command line or working directory) guards against a number from
another time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
#: As long as supervisord itself waits for the slowest of them.
_PATIENCE_S = 30.0


def boot_id() -> str:
    """Changes when the machine starts: process numbers from before mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def members_of(session: int, paths: Sequence[Path], known: Collection[int] = ()) -> list[int]:
    """Process ids of a session that speak of one of the node's paths, its leader first if it lives.

    ``known`` are those that have spoken before and need not again.
    """
    found = []
    for directory in _PROC.glob("[0-9]*"):
        with suppress(OSError, IndexError):  # it ended meanwhile, or is somebody else's
            # The fields after the name, which may hold anything: state, parent, group, session.
            state, _, _, its_session = (
                (directory / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            )
            if int(its_session) != session or state == "Z":
                continue
            if int(directory.name) in known or _speaks_of(directory, paths):
                found.append(int(directory.name))
    return sorted(found, key=lambda pid: (pid != session, pid))


def end(session: int, paths: Sequence[Path], patience_s: float = _PATIENCE_S) -> int:
    """End every member of the session, kindly at first; how many there were.

    A leader that still lives is asked alone: it ends its children itself.
    """
    begun = time.monotonic()
    first = members_of(session, paths)
    members, asked = first, set[int]()
    while members:
        kind = time.monotonic() - begun < patience_s
        wanted = members[:1] if kind and members[0] == session else members
        for pid in wanted:
            if kind and pid in asked:
                continue
            asked.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if kind else signal.SIGKILL)
        time.sleep(0.1)
        members = members_of(session, paths, known=asked.union(first))
    return len(first)


def _speaks_of(directory: Path, paths: Sequence[Path]) -> bool:
    command = (directory / "cmdline").read_bytes()
    if not command:
        return True  # it is ending: its memory goes before its ports
    said = command + b"\0" + (directory / "environ").read_bytes() + b"\0"
    if any(os.fsencode(path) + end in said for path in paths for end in (b"/", b"\0")):
        return True
    at = (directory / "cwd").readlink()
    return any(at.is_relative_to(path) for path in paths)
