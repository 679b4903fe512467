"""The sandbox of a program: bubblewrap with no network and next to nothing of the file system.

The program sees the system's programs and libraries, the folders that its manifest names
(read-only) and the folder of its run. It has process numbers of its own, so that nothing of it
outlives it. GPUs are passed through.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

_BWRAP = "bwrap"
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys",
    "/etc/alternatives", "/etc/group", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/ssl",
)  # fmt: skip
_GPUS = ("nvidia*", "dri", "kfd", "accel")
"""Below /dev: NVIDIA; Intel and AMD; AMD's compute; accelerators."""


def sandboxed(arguments: Sequence[str], work: Path, readable: Iterable[Path]) -> list[str]:
    """The command line that runs ``arguments`` in ``work``, the one folder it may write."""
    line = [_BWRAP, "--die-with-parent", "--unshare-all", "--new-session", "--cap-drop", "ALL"]
    for place in _SYSTEM:
        line += ["--ro-bind-try", place, place]
    line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - its own
    for device in sorted(path for name in _GPUS for path in Path("/dev").glob(name)):
        line += ["--dev-bind", str(device), str(device)]
    for folder in readable:
        line += ["--ro-bind", str(folder), str(folder)]
    return [*line, "--bind", str(work), str(work), "--chdir", str(work), "--", *arguments]


def why_not() -> str | None:
    """What stands against a sandbox on this machine; None if nothing does."""
    if shutil.which(_BWRAP) is None:
        return "bubblewrap (bwrap) is not installed"
    tried = subprocess.run(
        sandboxed(["true"], Path("/usr"), ()), capture_output=True, check=False, timeout=30
    )
    return None if tried.returncode == 0 else "bubblewrap may not make namespaces here"
