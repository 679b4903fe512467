"""A program that is not ours: it ends, all of it, and says why in words that can be shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from subprocess import PIPE

import pytest

from node.errors import ProgramFailed
from node.foreign.program import LAST_WORDS, Ended, Limits, run_program, shown
from node.foreign.workfolder import work_folder

NO_LIMIT = Limits(time_s=120, memory_mib=8192, disk_mib=8192)


def run(work: Path, code: str, limits: Limits = NO_LIMIT, **environment: str) -> Ended:
    """Run Python code as a program of its own."""
    return run_program(
        [sys.executable, "-c", code],
        run=uuid.uuid4().hex,
        work=work,
        environment={"PATH": os.environ["PATH"], **environment},
        limits=limits,
    )


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def numbers_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


#: A program whose child starts a session and a child of its own, all deaf to SIGTERM.
FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def note():
    with open("pids", "a") as file:
        print(os.getpid(), file=file)
note()
if os.fork() == 0:
    os.setsid()
    note()
    if os.fork() == 0:
        note()
        if os.fork() == 0:
            note()
            open("complete", "w").close()
            time.sleep(600)
        os._exit(0)  # its child is nobody's now
    time.sleep(600)
while not os.path.exists("complete"):
    time.sleep(0.01)
"""


def test_at_its_time_limit_the_whole_family_is_ended(tmp_path: Path) -> None:
    """Grandchildren in a session of their own, orphans and the deaf are ended too."""
    with pytest.raises(ProgramFailed, match=r"more than its 3 s and was ended"):
        run(tmp_path, FAMILY + "time.sleep(600)", Limits(3, 8192, 8192))
    pids = numbers_in(tmp_path / "pids")
    assert len(pids) == 4
    assert not [pid for pid in pids if is_alive(pid)]


def test_what_a_program_leaves_running_is_ended(tmp_path: Path) -> None:
    """A program that succeeds leaves no server behind to eat a GPU."""
    assert run(tmp_path, FAMILY).status == 0
    pids = numbers_in(tmp_path / "pids")
    assert len(pids) == 4
    assert not [pid for pid in pids if is_alive(pid)]


def test_memory_of_all_its_processes_counts_together(tmp_path: Path) -> None:
    """Three children of 150 MiB exceed 400, though none of them does alone."""
    code = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * (150 << 20)
        time.sleep(600)
time.sleep(600)
"""
    with pytest.raises(ProgramFailed, match="more than its 400 MiB of memory"):
        run(tmp_path, code, Limits(120, 400, 8192))


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    """Workers forked over one loaded volume are within the limit, as they are in the machine."""
    code = """
import os, time
held = bytearray(b"x") * (200 << 20)
for _ in range(4):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
time.sleep(2)
"""
    assert run(tmp_path, code, Limits(120, 400, 8192)).status == 0


def test_reserved_address_space_is_no_memory(tmp_path: Path) -> None:
    """CUDA and compilers reserve hundreds of gigabytes and touch few: that is not held."""
    code = "import mmap, time; held = mmap.mmap(-1, 1 << 40, flags=0x4022); time.sleep(1.2)"
    assert run(tmp_path, code, Limits(120, 256, 8192)).status == 0


def test_disk_is_limited_over_all_files(tmp_path: Path) -> None:
    """Many small files count as one large one does, and a file that is removed counts no more."""
    code = """
import os, time
for number in range(4):
    with open(f"file-{number}", "wb") as file:
        file.write(os.urandom(20 << 20))
    time.sleep(0.7)
    AFTER
time.sleep(600 * WAITS)
"""
    with pytest.raises(ProgramFailed, match="more than its 50 MiB of disk"):
        run(tmp_path, code.replace("AFTER", "pass").replace("WAITS", "1"), Limits(120, 8192, 50))
    for file in tmp_path.glob("file-*"):
        file.unlink()
    removes = code.replace("AFTER", 'os.unlink(f"file-{number}")').replace("WAITS", "0")
    assert run(tmp_path, removes, Limits(120, 8192, 50)).status == 0


def test_a_flood_of_output_neither_blocks_nor_is_kept(tmp_path: Path) -> None:
    """100 MB are read, and the last words are what a person sees."""
    code = """
import sys
for _ in range(100):
    sys.stdout.write("noise\\n" * 170_000)
sys.stderr.write("out of cheese")
sys.exit(7)
"""
    ended = run(tmp_path, code)
    assert ended.status == 7
    assert ended.words.endswith("out of cheese")
    assert len(ended.words) <= LAST_WORDS
    assert list(tmp_path.iterdir()) == []


def test_the_signal_that_ended_it_is_told(tmp_path: Path) -> None:
    """As a shell tells it; nine is what the kernel does when memory runs out."""
    assert run(tmp_path, "import os; os.kill(os.getpid(), 9)").status == 128 + signal.SIGKILL


def test_it_gets_the_variables_that_it_is_given_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's broker password stays with the worker."""
    monkeypatch.setenv("SEGNODE_COMPUTE_BROKER_URL", "redis://:secret@127.0.0.1/0")
    run(tmp_path, "import os; open('env', 'wb').write(open('/proc/self/environ', 'rb').read())",
        GIVEN="1")  # fmt: skip
    names = {entry.partition(b"=")[0] for entry in (tmp_path / "env").read_bytes().split(b"\0")}
    python_adds = {b"LC_CTYPE"}  # PEP 538, where no locale is set
    assert names - {b""} - python_adds == {b"PATH", b"GIVEN", b"SEGNODE_RUN"}


def test_it_reads_nothing_from_the_terminal(tmp_path: Path) -> None:
    """A program that asks a question gets no answer instead of waiting for ever."""
    ended = run(tmp_path, "import sys; print(repr(sys.stdin.read()))")
    assert (ended.status, ended.words) == (0, "''")


def test_a_killed_worker_takes_its_program_along(tmp_path: Path) -> None:
    """Otherwise it would hold the GPU while another worker runs the job again."""
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from node.foreign.program import Limits, run_program\n"
            'code = \'import os, time; print(os.getpid(), file=open("pid", "w"), flush=True);\'\n'
            "run_program([sys.executable, '-c', code + 'time.sleep(600)'], run='one', "
            f"work=Path({str(tmp_path)!r}), environment={{}}, limits=Limits(600, 9999, 8192))",
        ]
    )
    note = tmp_path / "pid"
    while not (note.exists() and note.read_text()):
        assert worker.poll() is None
        time.sleep(0.02)
    worker.kill()
    worker.wait()
    while is_alive(int(note.read_text())):
        time.sleep(0.02)


def test_what_a_killed_worker_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """De-identified or not, images do not stay on the disk of a machine; a run at work does."""
    code = (
        "import pathlib, sys\n"
        "from node.foreign.workfolder import work_folder\n"
        "with work_folder() as folder:\n"
        "    (folder / 'series.nii.gz').touch()\n"
        "    print(folder, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True)
        for _ in range(2)
    ]
    folders = [Path(one.stdout.readline().strip()) for one in started if one.stdout]
    assert all((folder / "series.nii.gz").exists() for folder in folders)
    started[0].kill()
    started[0].wait()
    with work_folder() as own:
        assert [folder.exists() for folder in (*folders, own)] == [False, True, True]
    started[1].communicate("")
    assert list(tmp_path.iterdir()) == []


def test_last_words_hold_no_uid_no_date_and_no_path(tmp_path: Path) -> None:
    """What is shown is stored: identifiers go, though they are pseudonymous; the sense stays."""
    output = (
        f"\x1b[31mTraceback\x1b[0m in {tmp_path}/input/000001.dcm\r\n\x07"
        "1.2.840.113619.2.55.3 of 20240131 patient 12345678: slice 41 of 212, 2.5 mm\n\n"
    )
    assert shown(output, tmp_path) == (
        "Traceback in /input/#.dcm | [uid] of # patient #: slice 41 of 212, 2.5 mm"
    )
