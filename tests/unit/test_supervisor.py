"""The supervisor: whatever becomes of it, no process of the node is left behind or taken twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.edges import leftovers
from node.edges.leftovers import members_of
from node.edges.supervisor import NotRunning, Program, Supervisor
from node.errors import NodeError
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


def test_a_supervisor_that_hangs_is_named_and_not_taken_for_none(tmp_path: Path) -> None:
    """It takes the connection and says nothing: who took it for none would start a second one."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "supervisord.pid").write_text("4711")
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(run / "supervisor.sock"))
        hanging.listen()
        with pytest.raises(NodeError, match=r"4711.* does not answer") as raised:
            Supervisor(tmp_path, answer_s=0.1).is_running()
    assert not isinstance(raised.value, NotRunning)
    assert "kill -9 4711" in raised.value.remedy


def test_a_password_reaches_a_process_by_no_command_line(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """What is `alone` gets its environment whole and nothing beside it."""
    told, password = tmp_path / "told", 'it\'s 100% "so $ecret" ; #'
    script = f"/usr/bin/env > {told}.tmp; mv {told}.tmp {told}; exec sleep 600"
    given = {"PATH": os.defpath, "PASSWORD": password}
    supervisor.start([Program("compute", ["/bin/bash", "-c", script], given, 10, alone=True)])
    deadline = time.monotonic() + 30
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    heard = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert {name: heard[name] for name in given} == given
    assert set(heard) - set(given) <= {"PWD", "SHLVL", "_"}  # bash's own
    run = tmp_path / "var" / "run"
    assert "ecret" not in (run / "supervisord.conf").read_text()
    assert (run / "compute.env").stat().st_mode & 0o077 == 0


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
