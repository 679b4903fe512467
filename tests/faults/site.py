"""A hospital for trials: one node, two PACS, and handles on everything that can break.

::

    ┌────────────┐  Wire  ┌─────────────────────┐
    │  HOSPITAL  │◄───────┤                     │   studies are sent by both PACS; results go to
    │ (Orthanc)  ├───────►│   the node, in a    │   the sender, or to both when StationName
    ├────────────┤        │  small file system  │   (0008,1010) is BOTH
    │  ARCHIVE   │◄──────►│                     │
    │(pynetdicom)│        └─────────────────────┘
    └────────────┘
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from node.edges.ledger import Ledger
from node.edges.orthanc_config import DicomPeer
from node.edges.supervisor import NotRunning, Supervisor
from node.jobs import Job
from node.settings import Workers
from tests.faults.archive import Archive
from tests.faults.wire import Wire
from tests.orthanc_server import REPOSITORY, OrthancServer
from tests.phantoms import ct_series
from tests.postgres import PostgresCluster
from tests.running_node import RunningNode, Study, descendants, made_up_study

#: Small disks, so that they can be filled in a moment.
VAR_MIB, ARTIFACTS_MIB = 2500, 128

#: What a study is sent by, and where its results go.
ROUTES: dict[str, tuple[str, ...]] = {
    "HOSPITAL": ("hospital",),
    "ARCHIVE": ("archive",),
    "BOTH": ("hospital", "archive"),
}

#: A sender that pauses is waited for, and small disks may be nearly full.
_SETTINGS = {
    "SEGNODE_RECEIVE__MAX_QUIET_S": "10",
    "SEGNODE_STORAGE__KEEP_FREE_GIB": "0.02",
}

_MORE = """
[[dicom_peers]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
[[rules]]
name = "both"
precedence = 10
model = "ct_lungs"
destinations = ["hospital", "archive"]
when = [{{ tag = "StationName", equals = "BOTH" }}, {{ tag = "Modality", equals = "CT" }}]
"""


@dataclass(frozen=True)
class Sent:
    """A study that the node acknowledged, or will."""

    study: Study
    route: str
    template: int

    @property
    def series_id(self) -> str:
        """Orthanc's id of the series; it can be told without asking Orthanc."""
        return _orthanc_id(self._patient, self.study.study_instance_uid,
                           self.study.series_instance_uid)  # fmt: skip

    @property
    def study_id(self) -> str:
        """Orthanc's id of the study."""
        return _orthanc_id(self._patient, self.study.study_instance_uid)

    @property
    def _patient(self) -> str:
        return f"TEST-{self.study.study_instance_uid[-8:]}"


class Site:
    """Start everything once; each trial sends studies of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        small_disks: bool = True,
        clock: bool = True,
        postgres: PostgresCluster | None = None,
    ) -> None:
        """The ledger is SQLite, or a new database of ``postgres``."""
        self.folder = folder
        self.postgres = postgres
        self.small_disks = small_disks and os.geteuid() == 0
        self.clock_file = folder / "clock" if clock and shutil.which("cc") else None
        #: Template → digest of the pixels of its Segmentation, as an undisturbed run made it.
        self.reference: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Site:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.templates = [
            _template(self.folder / f"template-{number}", position)
            for number, position in enumerate(("HFS", "FFS"))
        ]
        settings = {**_SETTINGS, **self._wrong_clock()}
        if self.postgres:
            settings["SEGNODE_LEDGER_URL"] = self.postgres.database()
        ports = RunningNode.free_ports()
        self.archive = self._stack.enter_context(Archive(ports["dicom"]))
        self.hospital = self._stack.enter_context(
            OrthancServer(
                self.folder / "pacs",
                ae_title="HOSPITAL",
                peers=[DicomPeer("segnode", "SEGNODE", "127.0.0.1", ports["dicom"],
                                 may_query=True)],
                bridge=REPOSITORY / "deploy" / "demo" / "no_bridge" / "bridge.py",
            )
        )  # fmt: skip
        self.wire = self._stack.enter_context(Wire(self.hospital.dicom_port))
        self.node = RunningNode(
            self.folder / "node",
            self.wire,
            ports,
            more=_MORE.format(archive=self.archive.dicom_port),
            environment=settings,
        )
        if self.small_disks:
            for path, mib in ((self.node.var, VAR_MIB), (self.artifacts, ARTIFACTS_MIB)):
                self._stack.enter_context(_small_disk(path, mib))
        self._stack.callback(self._end_what_is_left)
        self._stack.enter_context(self.node)
        self.supervisor = Supervisor(self.node.var)
        in_var = f"sqlite:///{self.node.var / 'ledger.sqlite'}"
        self._ledger = Ledger(settings.get("SEGNODE_LEDGER_URL", in_var))

    @property
    def recovery_s(self) -> float:
        """A step whose worker died begins again so soon: the default."""
        return Workers().recovery_s

    @property
    def artifacts(self) -> Path:
        """The folder of the de-identified working data."""
        return self.node.var / "artifacts"

    # -- studies -----------------------------------------------------------------------------

    def study(self, folder: Path, route: str, template: int) -> Sent:
        """A new study, not sent yet."""
        study = made_up_study(folder, self.templates[template], StationName=route)
        return Sent(study, route, template)

    def send(self, sent: Sent) -> bool:
        """Send it once; whether the node has acknowledged every instance."""
        sender = "HOSPITAL" if sent.route == "BOTH" else sent.route
        return self.node.receive(sent.study, ae_title=sender, options=()).returncode == 0

    def jobs_of(self, sent: Sent) -> list[Job]:
        """Its jobs, the newest first."""
        return [
            job
            for job in self._ledger.jobs(study_id=sent.study_id)
            if job.series_id == sent.series_id
        ]

    def newest_jobs(self) -> list[Job]:
        """The newest jobs of all studies."""
        return self._ledger.jobs(limit=6)

    def attempts(self, job: Job) -> list[Any]:
        """Every try of every step of a job."""
        return self._ledger.attempts(job.id)

    def held_by(self, destination: str, sent: Sent) -> dict[str, Dataset]:
        """SOP Instance UID → object, of all that a PACS holds of the study (it keeps no source)."""
        uid = sent.study.study_instance_uid
        if destination == "archive":
            return self.archive.of_study(uid)
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": uid}}
        found = self.hospital.post("/tools/find", json=query).json()
        objects = [
            pydicom.dcmread(BytesIO(self.hospital.get(f"/instances/{one}/file").content))
            for one in found
        ]
        return {str(one.SOPInstanceUID): one for one in objects}

    # -- processes ---------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """The process id of one of the node's programs; waits until it runs."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(NotRunning, OSError):
                for process in self.supervisor.processes():
                    if process.name == name and process.pid:
                        return process.pid
            time.sleep(0.05)
        raise RuntimeError(f"{name} does not run")

    def pool_child(self, name: str) -> int:
        """The process id of one of a worker's pool children: the one that works most."""
        parent = self.pid(name)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            children = [int(child) for child in _children(parent)]
            if children:
                return max(children, key=_cpu_ticks)
            time.sleep(0.05)
        raise RuntimeError(f"{name} has no children")

    def kill_group(self, name: str) -> None:
        """SIGKILL a program with all its descendants."""
        first = self.pid(name)
        kill([first, *descendants(first)])

    def freeze_group(self, name: str) -> Callable[[], None]:
        """SIGSTOP a program with all its descendants; what lets them go on."""
        return freeze(self.pid(name))

    def kill_everything(self) -> None:
        """SIGKILL every process of the node, as a power cut would."""
        first = int((self.node.var / "run" / "supervisord.pid").read_text())
        kill([first, *descendants(first)])

    def restart_hospital(self) -> None:
        """Start the Orthanc PACS if it was killed; it may find its port taken for a moment."""
        for last in (False, False, True):
            try:
                if self.hospital._process is None:
                    self.hospital.start()
                return
            except RuntimeError:
                if last:
                    raise
                time.sleep(1)

    def wait_until_well(self, timeout_s: float = 120) -> None:
        """Return once every program of the node runs and Orthanc answers."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                states = {process.state for process in self.supervisor.processes()}
                if states == {"RUNNING"} and self.node.orthanc("/system").is_success:
                    return
            time.sleep(0.2)
        raise RuntimeError("the node is not well again")

    def strays(self, within_s: float = 20) -> list[str]:
        """Processes of this node that its supervisor does not know, after some time to end."""
        deadline = time.monotonic() + within_s
        while (found := self._strays()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _strays(self) -> list[str]:
        mark = str(self.node.folder).encode()
        try:
            first = int((self.node.var / "run" / "supervisord.pid").read_text())
        except (OSError, ValueError):
            first = 0
        known = {first, os.getpid(), *descendants(first), *descendants(os.getpid())}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(process.name) in known:
                    continue
                line = (process / "cmdline").read_bytes()
                if mark in line or mark in (process / "environ").read_bytes():
                    found.append(f"{process.name} {line.replace(bytes(1), b' ').decode()[:120]}")
        return found

    def _end_what_is_left(self) -> None:
        kill([int(stray.split()[0]) for stray in self._strays()])

    # -- the clock ---------------------------------------------------------------------------

    def _wrong_clock(self) -> dict[str, str]:
        """Preloads a wall clock that can be set; all other clocks stay true."""
        if self.clock_file is None:
            return {}
        library = self.folder / "wrong_clock.so"
        source = Path(__file__).with_name("wrong_clock.c")
        compiled = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        subprocess.run(compiled, check=True)
        self.clock_file.write_text("0\n")
        return {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(self.clock_file)}

    def set_clock(self, seconds: int) -> None:
        """The node's wall clock is off by so many seconds."""
        assert self.clock_file is not None
        self.clock_file.write_text(f"{seconds}\n")


def kill(pids: Sequence[int], with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal; who is gone already is no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, with_signal)


def freeze(first: int) -> Callable[[], None]:
    """SIGSTOP a process with all its descendants; what lets them go on."""
    frozen = [first, *descendants(first)]
    kill(frozen, signal.SIGSTOP)
    return lambda: kill(frozen, signal.SIGCONT)


def digest_of(result: Dataset) -> str:
    """What a Segmentation shows: its frames and their pixels."""
    told = f"{result.NumberOfFrames} {result.Rows} {result.Columns}".encode()
    return hashlib.sha256(told + result.PixelData).hexdigest()[:16]


@contextlib.contextmanager
def _small_disk(path: Path, mib: int) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=750", "tmpfs", str(path)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _template(folder: Path, position: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, instance in enumerate(
        ct_series(slices=12, rows=160, columns=230, spacing_mm=(6, 1.5, 1.5), position=position)
    ):
        file = folder / f"{number:02}.dcm"
        instance.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def _orthanc_id(*identifiers: str) -> str:
    digest = hashlib.sha1("|".join(identifiers).encode()).hexdigest()  # noqa: S324 - Orthanc's
    return "-".join(digest[start : start + 8] for start in range(0, 40, 8))


def _children(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [
            child
            for task in Path(f"/proc/{pid}/task").glob("*/children")
            for child in task.read_text().split()
        ]
    return []


def _cpu_ticks(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])
    return 0
