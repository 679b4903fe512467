"""The supervisor: whatever becomes of it, no process of the node is left behind or taken twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.edges import leftovers
from node.edges.leftovers import members_of
from node.edges.supervisor import Program, Supervisor
from tests.orthanc_server import free_port
from tests.running_node import descendants

PARENT = (
    "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
)
STUBBORN = (
    "import pathlib, signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path('deaf').touch()\n"
    "time.sleep(600)"
)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "var")
    yield made
    made.stop()


def programs(var: Path, port: int) -> list[Program]:
    """One of each way in which the node's own are started."""
    (var / "redis").mkdir(parents=True, exist_ok=True)
    configuration = var / "redis" / "redis.conf"
    configuration.write_text(f'port {port}\ndir "{var / "redis"}"\nsave ""\n')
    return [
        Program("redis", ["redis-server", str(configuration)], {}, 10),
        Program(
            "compute", ["/usr/bin/sleep", "600"], {"STORE": f"{var}/artifacts"}, 30, alone=True
        ),
        Program("worker", [sys.executable, "-c", PARENT], {}, 30),
    ]


def started(supervisor: Supervisor, var: Path, port: int) -> tuple[int, list[int]]:
    """The supervisor's process id, and all processes once the children's children run."""
    assert supervisor.start(programs(var, port))
    deadline = time.monotonic() + 30
    file, found = var / "run" / "supervisord.pid", list[int]()
    while len(found) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        found = members_of(int(file.read_text()), [var]) if file.exists() else []
    pid = int(file.read_text())
    assert len(found) == 5 and found[0] == pid
    return pid, found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while alive([pid]):
        time.sleep(0.01)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]  # noqa: PTH110


def test_what_a_killed_supervisor_left_is_ended_by_the_next_start(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """SIGKILL: its port is free again for a second Redis, and a stranger is let alone."""
    var, port = tmp_path / "var", free_port()
    pid, found = started(supervisor, var, port)
    stranger = subprocess.Popen(["/usr/bin/sleep", "600"], cwd=var)
    try:
        kill(pid)
        again, members = started(supervisor, var, port)
        assert again != pid
        assert alive(found) == []
        assert stranger.poll() is None and stranger.pid not in members
        assert {one.state for one in supervisor.processes()} <= {"RUNNING", "STARTING"}
    finally:
        stranger.kill()
        stranger.wait()


def test_stopping_ends_what_a_killed_supervisor_left(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """`segnode down` finds them too; a second time there is nothing."""
    var = tmp_path / "var"
    pid, found = started(supervisor, var, free_port())
    kill(pid)
    assert supervisor.stop()
    assert alive(found) == []
    assert not supervisor.stop()


def test_a_long_path_hides_no_process(tmp_path: Path) -> None:
    """The socket lies elsewhere then, and a worker speaks of nothing else."""
    var = tmp_path / ("a long name" * 9) / "var"
    supervisor = Supervisor(var)
    assert supervisor.start(programs(var, free_port()))
    file, found = var / "run" / "supervisord.pid", list[int]()
    deadline = time.monotonic() + 30
    while len(found) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
        found = descendants(int(file.read_text())) if file.exists() else []
    pid = int(file.read_text())
    kill(pid)
    assert supervisor.end_leftovers() == 4
    assert alive(found) == []


def test_a_process_number_from_before_the_machine_started_means_nothing(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """After a reboot the same number may be anybody's."""
    var = tmp_path / "var"
    pid, found = started(supervisor, var, free_port())
    kill(pid)
    boot = var / "run" / "boot"
    now = boot.read_text()
    boot.write_text("another boot")
    assert supervisor.end_leftovers() == 0
    assert alive(found) == found[1:]
    boot.write_text(now)
    assert supervisor.end_leftovers() == 4


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    """After the patience of a supervisor."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], cwd=tmp_path, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "deaf").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert leftovers.end(process.pid, [tmp_path], patience_s=0.5) == 1
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()


def test_who_has_spoken_once_is_waited_for_when_it_says_nothing_any_more(tmp_path: Path) -> None:
    """It may have changed what it tells of itself; it still has its ports."""
    command = ["/usr/bin/sleep", "600"]
    with subprocess.Popen(command, env={}, cwd="/", start_new_session=True) as silent:
        try:
            assert members_of(silent.pid, [tmp_path]) == []
            assert members_of(silent.pid, [tmp_path], known={silent.pid}) == [silent.pid]
        finally:
            silent.kill()
