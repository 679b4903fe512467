"""A series goes the hospital's way without servers: de-identified, encoded, given its patient back.

The steps are the node's own, with a folder of artifacts and a vault; only the model is left out: a
label map that the test knows is laid where ``infer`` would lay it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from anonymizer.keys import PseudonymKeys
from anonymizer.vault import FolderRecords, Keyring, Vault
from node.edges.artifacts import FolderArtifacts
from node.imaging.volume import volume_from_series
from node.jobs import Done, Job
from node.kinds import ResultKind
from node.packages import find_models
from node.pipeline.deidentify import deidentify
from node.pipeline.encode import encode
from node.pipeline.outbound import Profile, outbound_record, outgoing
from node.pipeline.reidentify import reidentify
from node.results.measurements import as_json, measure_case
from node.sdk import LabelMap
from node.settings import Deidentify
from node.wiring import policy_with
from tests.phantoms import chest_truth

MODELS = Path(__file__).resolve().parents[1] / "models"
ALL_KINDS = tuple(ResultKind)


class Received:
    """``node.ports.Instances`` over instances in memory."""

    def __init__(self, streams: Sequence[bytes]) -> None:
        self.streams = {f"{number:04}": data for number, data in enumerate(streams)}

    def instances_of_series(self, series_id: str) -> tuple[str, ...]:
        return tuple(self.streams)

    def instance_header(self, instance_id: str) -> bytes:
        return self.streams[instance_id]

    def fetch(self, instance_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        return ((one, self.streams[one]) for one in instance_ids)

    def metadata(self, instance_id: str) -> Mapping[str, str]:
        return {}


def part10(instance: Dataset) -> bytes:
    """An instance as a file."""
    stream = io.BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


class Journey:
    """One series on its way, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        series: Sequence[Dataset],
        profiles: Mapping[str, Profile],
        **facts: Any,
    ) -> None:
        self.received = Received([part10(one) for one in series])
        self.artifacts = FolderArtifacts(folder / "artifacts")
        self.vault = Vault(FolderRecords(folder / "vault"), Keyring("k", {"k": b"k" * 32}))
        self.models = find_models(MODELS)
        self.profiles = profiles
        self.job = Job(
            id="job",
            series_id="series",
            study_id="study",
            instance_ids=tuple(self.received.streams),
            model="ct_lungs",
            model_digest=self.models["ct_lungs"].digest,
            rule="rule",
            rule_version="1",
            destinations=tuple(profiles),
            facts=facts,
            created_at=1_800_000_000.0,
        )

    def deidentified(self) -> list[Dataset]:
        """After ``deidentify``: what the model would see."""
        self._do(
            lambda job: deidentify(
                job,
                instances=self.received,
                artifacts=self.artifacts,
                vault=self.vault,
                policy=policy_with(Deidentify()),
                keys=PseudonymKeys.from_secret(b"p" * 32),
            )
        )
        names = self.artifacts.names("job/instances/")
        return [dcmread(io.BytesIO(self.artifacts.get(name))) for name in names]

    def segmented(self) -> None:
        """Lay down the truth of the phantom as the model's label map."""
        instances = self.deidentified()
        volume = volume_from_series(instances)
        by_uid = {str(one.SOPInstanceUID): one for one in instances}
        labels = chest_truth([by_uid[uid] for uid in volume.sop_instance_uids])
        segments = self.models["ct_lungs"].segments
        label_map = LabelMap(labels, volume.sop_instance_uids)
        stream = io.BytesIO()
        np.savez(stream, labels=labels, sop_instance_uids=np.array(volume.sop_instance_uids))
        self.artifacts.put("job/label_map.npz", stream.getvalue())
        measured = {"segments": as_json(measure_case(volume, label_map, segments))}
        self.artifacts.put("job/measurements.json", json.dumps(measured).encode())

    def encoded(self) -> dict[str, bytes]:
        """After ``encode``: file name → pseudonymous object."""
        self._do(
            lambda job: encode(
                job,
                artifacts=self.artifacts,
                models=self.models,
                profiles=self.profiles,
                senders={},
            )
        )
        names = self.artifacts.names("job/results/")
        return {name: self.artifacts.get(name) for name in names}

    def reidentified(self, destination: str | None = None) -> dict[ResultKind, list[bytes]]:
        """After ``reidentify`` and its gate: kind → objects as they go to the destination."""
        self._do(lambda job: reidentify(job, artifacts=self.artifacts, vault=self.vault))
        found: dict[ResultKind, list[bytes]] = {}
        for one in outgoing(self.job, destination):
            record = outbound_record(self.job, one.name)
            data = self.vault.open(self.job.facts["study"], record)
            found.setdefault(one.kind, []).append(data)
        return found

    def _do(self, step: Callable[[Job], Done]) -> None:
        self.job = replace(self.job, facts={**self.job.facts, **step(self.job).facts})
