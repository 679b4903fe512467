"""A stand-in hospital PACS: a second Orthanc that pushes studies to the node and keeps results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from node.edges import secret_files
from node.edges.orthanc_config import DicomPeer, orthanc_environment, write_configuration
from node.edges.supervisor import Program, Supervisor

REPOSITORY = Path(__file__).resolve().parents[2]


class StandInPacs:
    """Orthanc as the hospital's PACS, under a supervisor of its own, below ``folder``."""

    def __init__(
        self, folder: Path, *, ae_title: str, dicom_port: int, http_port: int, node: DicomPeer
    ) -> None:
        self._folder = folder.absolute()
        self._ae_title, self._dicom_port, self._http_port = ae_title, dicom_port, http_port
        self._node = node
        self._supervisor = Supervisor(self._folder)
        self.url = f"http://127.0.0.1:{http_port}"

    def start(self, timeout_s: float = 60) -> None:
        """Start it and return once it answers; nothing happens when it runs already."""
        password = secret_files.read_or_create(self._folder / "secrets" / "password")
        configuration = self._folder / "configuration"
        write_configuration(
            configuration,
            REPOSITORY / "orthanc.json",
            peers=[self._node],
            users={"hospital": password},
        )
        environment = orthanc_environment(
            ae_title=self._ae_title,
            dicom_port=self._dicom_port,
            http_port=self._http_port,
            storage=self._folder / "storage",
            index=self._folder / "index",
            bridge=Path(__file__).parent / "no_bridge" / "bridge.py",
        )
        command = [str(REPOSITORY / "deploy" / "run-orthanc"), str(configuration)]
        self._supervisor.start([Program("pacs", command, environment, priority=10)])
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the stand-in PACS does not answer; see {self._folder}/log")
            time.sleep(0.1)

    def stop(self) -> bool:
        """Stop it; False when it was not running."""
        return self._supervisor.stop()

    def keep(self, files: Sequence[Path]) -> tuple[str, str]:
        """Put instances into the PACS, as if a scanner had sent them: (study id, series id)."""
        with self._client() as client:
            for file in files:
                answer = client.post("/instances", content=file.read_bytes())
                answer.raise_for_status()
            kept = answer.json()
        return str(kept["ParentStudy"]), str(kept["ParentSeries"])

    def push(self, series_id: str) -> int:
        """Auto-route a series to the node by C-STORE; the number of instances sent."""
        with self._client() as client:
            answer = client.post(f"/modalities/{self._node.name}/store", content=series_id)
            answer.raise_for_status()
            return int(answer.json()["InstancesCount"])

    def results(self, study_id: str) -> list[bytes]:
        """Every SEG of a study, as Part 10 streams."""
        with self._client() as client:
            series = client.get(f"/studies/{study_id}/series").raise_for_status().json()
            return [
                client.get(f"/instances/{instance}/file").raise_for_status().content
                for one in series
                if one["MainDicomTags"].get("Modality") == "SEG"
                for instance in one["Instances"]
            ]

    def _client(self) -> httpx.Client:
        password = secret_files.read(self._folder / "secrets" / "password")
        return httpx.Client(base_url=self.url, auth=("hospital", password), timeout=120)

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return client.get("/system").is_success
        except httpx.HTTPError:
            return False
