"""The node's console on a port of its own, over a real ledger."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn

from node.edges.artifacts import FolderArtifacts
from node.edges.console import console_app
from node.edges.ledger import Ledger
from node.edges.space import Forecast
from node.jobs import Event, Job, StepName, Wish
from node.manifest import NetworkManifest
from node.pipeline.working_data import PICTURE
from tests.ledger_case import claimed

REVIEW_KEY = bytes(range(32))
WISH = Wish("ct-to-lungs", "1", "lungs", "digest", ("sender",))


class ConsoleNode:
    """A console that listens between ``start()`` and ``stop()``, always on the same port."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = secrets.token_urlsafe(16)
        self.token_file = folder / "console_token"
        self.token_file.write_text(self.token + "\n")
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.artifacts = FolderArtifacts(folder / "artifacts")
        self.models = {"lungs": manifest("lungs", "CT"), "brain": manifest("brain", "MR")}
        self.orthanc: Any = None  # the tests that need one set it
        self.disks: list[Forecast] = []
        self.nudges = 0
        self.nudged = threading.Event()
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> ConsoleNode:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What the bridge inside Orthanc is told."""
        return {
            "SEGNODE_CONSOLE_URL": self.url,
            "SEGNODE_CONSOLE_TOKEN_FILE": str(self.token_file),
        }

    def start(self) -> None:
        app = console_app(
            self.ledger, self.orthanc, self.artifacts, self.models, self.token, self._nudge,
            destinations=("sender", "pacs"), disks=lambda: self.disks, review_key=REVIEW_KEY,
        )  # fmt: skip
        server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(30)
            self._server = None

    def call(self, method: str, path: str, **keywords: Any) -> httpx.Response:
        """One call with the right token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(method, self.url + path, headers=headers, timeout=30, **keywords)

    def job(
        self,
        study_id: str = "study",
        step: StepName = StepName.RECEIVE,
        instance_id: str = "instance",
    ) -> Job:
        """A new job of one instance that a worker runs at ``step``."""
        job = self.ledger.open_jobs(secrets.token_hex(8), study_id, [instance_id])
        assert job is not None
        for name in StepName:
            held = claimed(self.ledger, job, 600)
            if name is step:
                return held
            if name is StepName.ROUTE:
                job = self.ledger.fork(held, [WISH])[0]
            else:
                finished = self.ledger.finish(held, {"instances": 1, "study": "hidden"})
                assert finished is not None
                job = finished
        return job

    def draw(self, job: Job, png: bytes) -> None:
        """What step encode leaves for the console."""
        self.artifacts.put(f"{job.id}/overlay.png", png)
        assert self.ledger.note(job, {PICTURE: hashlib.sha256(png).hexdigest()})

    def failed_job(self, study_id: str = "study") -> Job:
        """A job that a person may retry."""
        job = self.job(study_id, StepName.INFER)
        self.ledger.end(job, Event.FAULT, cause="It broke", remedy="Mend it.", error="Fault")
        return self.reread(job)

    def reread(self, job: Job) -> Job:
        """The job as the ledger has it now."""
        found = self.ledger.job(job.id)
        assert found is not None
        return found

    def _nudge(self) -> None:
        self.nudges += 1
        self.nudged.set()


def manifest(name: str, modality: str) -> NetworkManifest:
    """A model's manifest, as far as the console reads it."""
    code = {"value": "39607008", "scheme": "SCT", "meaning": "Lung"}
    return NetworkManifest.model_validate(
        {
            "name": name, "version": "1.2.3", "description": "d", "licence": "l",
            "training_data": "t", "intended_use": "i", "weights": {"sha256": "0" * 64},
            "input": {
                "modality": modality, "min_slices": 2, "min_extent_mm": 1, "wanted": "w",
                "slice_spacing_mm": (0.1, 10), "pixel_spacing_mm": (0.1, 10),
            },
            "preprocessing": {
                "window_hu": (-1000, 400), "in_plane_size": 64, "in_plane_spacing_mm": 1,
                "body_above_hu": -400, "context_slices": 1, "context_mm": 1,
            },
            "postprocessing": {
                "min_component_ml": 0, "min_component_share": 0, "min_segment_ml": 0,
            },
            "results": {"series_number": 1, "series_description": "s"},
            "segments": [
                {"number": 1, "label": "Lung", "category": code, "type": code, "rgb": (1, 2, 3)}
            ],
            "digest": hashlib.sha256(name.encode()).hexdigest(),
        }
    )  # fmt: skip
