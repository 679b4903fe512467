"""deploy/run-orthanc: what Orthanc can see and touch, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.orthanc_server import LAUNCHER, REPOSITORY, OrthancServer

# Runs inside Orthanc's own Python: what the process is, and what it may do.
PROBE = """
import json, os, orthanc
def allowed(path):
    try:
        with open(path, "w"):
            pass
        os.unlink(path)
        return True
    except OSError:
        return False
def probe(output, uri, **request):
    home = request["get"]["folder"]
    output.AnswerBuffer(json.dumps({
        "environment": dict(os.environ),
        "etc": allowed("/etc/x"), "root": allowed("/x"), "usr": allowed("/usr/x"),
        "configuration": allowed(home + "/configuration/x.json"),
        "storage": allowed(home + "/storage/x"), "index": allowed(home + "/index/x"),
        "repository": os.path.exists(request["get"]["repository"] + "/node"),
        "processes": sorted(p for p in os.listdir("/proc") if p.isdigit()),
        "capabilities": [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")],
    }), "application/json")
orthanc.RegisterRestCallback("/probe", probe)
"""


def processes_of(folder: Path) -> list[int]:
    """Ids of all processes whose command line names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(process.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_until(condition: Callable[[], bool], message: str) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def test_orthanc_sees_its_own_folders_and_no_secret(tmp_path: Path) -> None:
    """Proves the sandbox from inside: environment, file system, processes, capabilities."""
    bridge = tmp_path / "bridge"
    bridge.mkdir()
    (bridge / "bridge.py").write_text(PROBE)
    secrets = {"SEGNODE_VAULT_KEY": "sentinel", "AWS_SECRET_ACCESS_KEY": "sentinel"}
    home = tmp_path / "orthanc"
    with OrthancServer(home, bridge=bridge / "bridge.py", environment=secrets) as server:
        folders = {"folder": str(home), "repository": str(REPOSITORY)}
        seen = server.get("/probe", params=folders).json()
    assert seen["storage"]
    assert seen["index"]
    for closed in ("etc", "root", "usr", "configuration", "repository"):
        assert not seen[closed], closed
    assert "sentinel" not in str(seen["environment"])
    assert seen["environment"]["TCP_NODELAY"] == "1"
    assert seen["environment"]["OPENSSL_CONF"].endswith("openssl.cnf")
    assert len(seen["processes"]) == 2  # bwrap's init and Orthanc
    assert seen["capabilities"] == ["0000000000000000"]


def test_received_objects_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    """Proves the modes of folders and files below the storage."""
    with OrthancServer(tmp_path / "orthanc") as server:
        server.upload(sorted((REPOSITORY / "deploy" / "demo" / "ct").glob("*.dcm"))[0])
        for folder in (server.storage, server.index):
            for path in (folder, *folder.rglob("*")):
                assert path.stat().st_mode & 0o077 == 0, path


def test_sigterm_to_the_group_stops_orthanc_gracefully(tmp_path: Path) -> None:
    """Proves that what the supervisor does ends every process, and that Orthanc had its say."""
    bridge = tmp_path / "bridge.py"
    bridge.write_text("")
    server = OrthancServer(tmp_path / "orthanc", bridge=bridge)
    server.start()
    assert server.stop() == 0
    assert "Orthanc has stopped" in server.log.read_text()
    wait_until(lambda: processes_of(server.folder) == [], "a process is left")


def test_bridge_of_the_repository_lets_orthanc_stop_gracefully(tmp_path: Path) -> None:
    """Proves that our own bridge does not crash Orthanc while its Python is taken down."""
    server = OrthancServer(tmp_path / "orthanc")
    server.start()
    assert server.stop() == 0
    assert "Orthanc has stopped" in server.log.read_text()


def test_sigkill_of_the_group_leaves_nothing(tmp_path: Path) -> None:
    """Proves that Orthanc does not survive in its own process namespace."""
    server = OrthancServer(tmp_path / "orthanc")
    server.start()
    server.kill()
    wait_until(lambda: processes_of(server.folder) == [], "a process is left")
    with pytest.raises(httpx.TransportError):
        server.get("/system")


def test_orthanc_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Proves that a killed supervisor leaves no Orthanc behind."""
    starter = (
        "import sys; from pathlib import Path; from tests.orthanc_server import OrthancServer; "
        "OrthancServer(Path(sys.argv[1])).start(); print('up', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "orthanc"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", starter, str(folder)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert supervisor.stdout is not None
    assert supervisor.stdin is not None
    try:
        assert supervisor.stdout.readline() == b"up\n"
        assert processes_of(folder) != [supervisor.pid]
    finally:
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
        supervisor.stdout.close()
        supervisor.stdin.close()
    wait_until(lambda: processes_of(folder) == [], "Orthanc survived its supervisor")


@pytest.mark.parametrize("arguments", [[], ["/no/such/folder"], ["a", "b"]])
def test_launcher_says_how_to_use_it(arguments: list[str]) -> None:
    """Proves that a wrong call ends at once with a usage line."""
    done = subprocess.run([str(LAUNCHER), *arguments], capture_output=True, text=True)
    assert done.returncode == 78
    assert "usage: run-orthanc" in done.stderr


def test_orthanc_does_not_start_without_users(tmp_path: Path) -> None:
    """Proves that a forgotten file does not open Orthanc with its well-known default password."""
    (tmp_path / "orthanc.json").write_text((REPOSITORY / "orthanc.json").read_text())
    done = subprocess.run([str(LAUNCHER), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 78
    assert "users.json" in done.stderr


def test_missing_root_names_the_remedy(tmp_path: Path) -> None:
    """Proves the message of a clone where setup has not run."""
    bridge = tmp_path / "bridge.py"
    bridge.write_text("")
    (tmp_path / "users.json").write_text("{}")
    done = subprocess.run(
        [str(LAUNCHER), str(tmp_path)],
        env={
            "PATH": os.environ["PATH"],
            "SEGNODE_ORTHANC_ROOT": str(tmp_path / "nothing"),
            "SEGNODE_ORTHANC_BRIDGE": str(bridge),
            "SEGNODE_ORTHANC_STORAGE": str(tmp_path / "storage"),
            "SEGNODE_ORTHANC_INDEX": str(tmp_path / "index"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    assert "make setup" in done.stderr
