"""The folder of one run, removed after it; and after a worker that died, by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "segnode-program-"
_LOCK = ".lock"


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A new folder below the temporary folder, for its owner only.

    Beside it lies a file that is locked while the folder is in use. The kernel unlocks it when the
    worker dies, however it dies, and whoever comes next can tell and removes what was left.
    """
    root = Path(tempfile.gettempdir()).resolve()
    _remove_abandoned(root)
    handle, name = tempfile.mkstemp(suffix=_LOCK, prefix=_PREFIX, dir=root)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        folder = Path(name.removesuffix(_LOCK))
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(Path(name))
        os.close(handle)


def _remove_abandoned(root: Path) -> None:
    for lock in root.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:  # in use, or another's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock)


def _remove(lock: Path) -> None:
    # A container that ran as another user may leave what we cannot remove.
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
