"""A whole node and a stand-in PACS for a test: every process real, on ports of their own.

::

    def test_...(node: RunningNode, pacs: OrthancServer):
        study = made_up_study(tmp_path, CT[:40], PatientName=...)
        node.receive(study)                 # storescu (DCMTK), as AE title HOSPITAL
        job = node.wait_for(study)          # until it ends, whatever the end
        objects = segmentations(pacs)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pydicom
from pydicom.uid import generate_uid

from node.edges.console_json import job_shown
from node.edges.ledger import Ledger
from tests.orthanc_server import REPOSITORY, OrthancServer, free_port

DEMO_CT = sorted((REPOSITORY / "deploy" / "demo" / "ct").glob("*.dcm"))
ENDED = {"confirmed", "rejected", "incomplete", "quarantined", "failed", "canceled", "superseded"}
#: Enough slices for ct_lungs, few enough to be quick: 24 from the middle of the lungs.
SOME_SLICES = slice(35, 59)

RULE = """
[[rules]]
name = "chest-ct"
model = "ct_lungs"
destinations = {destinations}
explain = {explain}
when = [
  {{ tag = "Modality", equals = "CT" }},
  {{ tag = "ImageType", none_of = ["LOCALIZER"] }},
]
"""


@dataclass(frozen=True)
class Study:
    """Files of one series under a made-up patient, and what must never leave the hospital zone."""

    files: tuple[Path, ...]
    folder: Path
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    sop_instance_uids: frozenset[str]

    @property
    def instances(self) -> list[pydicom.Dataset]:
        """Headers, in the order of the files."""
        return [pydicom.dcmread(file, stop_before_pixels=True) for file in self.files]


def made_up_study(
    folder: Path,
    sources: Sequence[Path],
    change: Callable[[pydicom.Dataset, int], None] | None = None,
    **attributes: Any,
) -> Study:
    """Copies of ``sources`` with fresh UIDs and the given attributes, as one new study.

    ``change(instance, number)`` may alter each copy further.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (generate_uid(prefix="1.2.826.0.1.3680043.10.1499.") for _ in range(3))
    files, uids = [], set()
    for number, source in enumerate(sources):
        instance = pydicom.dcmread(source)
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
        instance.FrameOfReferenceUID = frame
        instance.SOPInstanceUID = generate_uid(prefix="1.2.826.0.1.3680043.10.1499.")
        instance.PatientID = f"TEST-{study[-8:]}"
        for keyword, value in attributes.items():
            setattr(instance, keyword, value)
        if change:
            change(instance, number)
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
        instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
        file = folder / f"{number:04d}.dcm"
        instance.save_as(file)
        files.append(file)
        uids.add(str(instance.SOPInstanceUID))
    return Study(tuple(files), folder, study, series, frame, frozenset(uids))


class RunningNode:
    """`segnode up` in a folder of its own, with ``pacs`` as its only peer."""

    def __init__(
        self,
        folder: Path,
        pacs: OrthancServer,
        ports: Mapping[str, int],
        *,
        destinations: Sequence[str] = ("sender",),
        quiet_s: float = 1.0,
        explain: bool = False,
        more: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.pacs, self.ports = folder, pacs, dict(ports)
        self._environment = dict(environment or {})
        self.var = folder / "var"
        self._ledger: Ledger | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configuration = folder / "segnode.toml"
        self.configuration.write_text(
            f"""
            var_dir = "{self.var}"
            [dicom]
            port = {ports["dicom"]}
            [orthanc]
            http_port = {ports["http"]}
            [broker]
            port = {ports["broker"]}
            [console]
            port = {ports["console"]}
            [receive]
            quiet_s = {quiet_s}
            patience_s = 2.0
            [[dicom_peers]]
            name = "hospital"
            ae_title = "HOSPITAL"
            host = "127.0.0.1"
            port = {pacs.dicom_port}
            {more}
            """
            + RULE.format(destinations=json.dumps(list(destinations)), explain=json.dumps(explain))
        )

    @staticmethod
    def free_ports() -> dict[str, int]:
        """One free port for each of the node's servers."""
        return {name: free_port() for name in ("dicom", "http", "broker", "console")}

    def segnode(self, *arguments: str, check: bool = True) -> str:
        """Run the command as a person would; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "SEGNODE_CONFIG": str(self.configuration), **self._environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"segnode {arguments} failed:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def __enter__(self) -> RunningNode:
        try:
            self.segnode("up")
        except BaseException:
            self.segnode("down", check=False)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.segnode("down")

    def receive(
        self, study: Study, *, ae_title: str = "HOSPITAL", options: Sequence[str] = ("-xt",)
    ) -> subprocess.CompletedProcess[str]:
        """Send a study by DCMTK's storescu; ``-xt`` proposes JPEG-LS and what is uncompressed."""
        return subprocess.run(
            [
                "/usr/bin/storescu", "-aet", ae_title, "-aec", "SEGNODE", *options,
                "127.0.0.1", str(self.ports["dicom"]), *map(str, study.files),
            ],
            env={**os.environ, "TCP_NODELAY": "1"},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def stow(self, study: Study) -> int:
        """Send a study by STOW-RS with curl; the HTTP status."""
        boundary = "segnode-boundary"
        content_type = f"multipart/related; type=application/dicom; boundary={boundary}"
        body = self.folder / "stow.body"
        with body.open("wb") as file:
            for one in study.files:
                file.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
                file.write(one.read_bytes() + b"\r\n")
            file.write(f"--{boundary}--\r\n".encode())
        done = subprocess.run(
            [
                "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}",
                "-u", f"segnode:{self.secret('orthanc_password')}",
                "-H", f"Content-Type: {content_type}",
                "--data-binary", f"@{body}", f"{self.url}/dicom-web/studies",
            ],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return int(done.stdout)

    def secret(self, name: str) -> str:
        """One of the node's secrets."""
        return (self.var / "secrets" / name).read_text().strip()

    @property
    def url(self) -> str:
        """Orthanc's address."""
        return f"http://127.0.0.1:{self.ports['http']}"

    def orthanc(self, path: str, method: str = "GET", **keywords: Any) -> httpx.Response:
        """Ask the node's Orthanc, logged in."""
        auth = ("segnode", self.secret("orthanc_password"))
        return httpx.request(method, self.url + path, auth=auth, timeout=60, **keywords)

    def jobs(self) -> list[dict[str, Any]]:
        """What `segnode jobs --json` prints, read from the ledger.

        Starting the command for every look would take a core from the node that is being watched.
        """
        if self._ledger is None:
            self._ledger = Ledger(f"sqlite:///{self.var / 'ledger.sqlite'}")
        return [job_shown(job, time.time()) for job in self._ledger.jobs(limit=500)]

    def job(self, job_id: str) -> dict[str, Any]:
        """`segnode job ID --json`."""
        found: dict[str, Any] = json.loads(self.segnode("job", job_id, "--json"))
        return found

    def series_id(self, study: Study) -> str:
        """Orthanc's id of the series; empty when it has none."""
        answer = self.orthanc("/tools/lookup", "POST", content=study.series_instance_uid).json()
        return str(answer[0]["ID"]) if answer else ""

    def jobs_of(self, study: Study) -> list[dict[str, Any]]:
        """All jobs of a study's series, the newest first."""
        series_id = self.series_id(study)
        return [job for job in self.jobs() if job["series_id"] == series_id]

    def wait_for(
        self,
        study: Study,
        until: Callable[[dict[str, Any]], bool] = lambda job: job["state"] in ENDED,
        timeout_s: float = 180,
    ) -> dict[str, Any]:
        """The newest job of a study, once ``until`` holds (by default: once it has ended)."""
        deadline = time.monotonic() + timeout_s
        found: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            found = self.jobs_of(study)
            if found and until(found[0]):
                return found[0]
            time.sleep(0.3)
        raise AssertionError(f"no job got there in {timeout_s:.0f} s: {found[:1]}")

    def processes(self, name: str) -> list[int]:
        """Process ids of one of the node's programs and all its children."""
        status = self.segnode("status", check=False)
        line = next(line for line in status.splitlines() if line.split()[:1] == [name])
        first = next(int(word) for word in line.split() if word.isdigit())
        return [first, *descendants(first)]


def descendants(pid: int) -> list[int]:
    """Process ids of all children, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def segmentations(pacs: OrthancServer, study: Study) -> list[bytes]:
    """Every SEG of a study that the PACS holds, as Part 10 streams."""
    query = {"StudyInstanceUID": study.study_instance_uid, "Modality": "SEG"}
    found = pacs.post("/tools/find", json={"Level": "Instance", "Query": query}).json()
    return [pacs.get(f"/instances/{instance}/file").content for instance in found]
