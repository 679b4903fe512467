"""Become somebody else's program: ``python -I -S launch.py PROGRAM ARGUMENT...``.

What must happen between fork and exec, in a process of its own: a function run there (preexec_fn)
may deadlock beside the threads of a worker. Standard library only.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)


def become(arguments: list[str]) -> None:
    """Die with the worker, go first when memory runs out, dump no core of a patient's pixels."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execvp(arguments[0], arguments)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    become(sys.argv[1:])
