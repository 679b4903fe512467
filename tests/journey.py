"""A series goes the hospital's way without servers: de-identified, encoded, given its patient back.

The steps are the node's own, with a folder of artifacts and a vault; only the model is left out: a
label map that the test knows is laid where ``infer`` would lay it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from anonymizer.keys import PseudonymKeys
from anonymizer.vault import FolderRecords, Keyring, Vault
from node.edges.artifacts import FolderArtifacts
from node.imaging.volume import volume_from_series
from node.jobs import Done, Job, StepName
from node.kinds import ResultKind
from node.packages import find_models
from node.pipeline.deidentify import deidentify
from node.pipeline.encode import encode
from node.pipeline.outbound import Profile, outbound_record, outgoing
from node.pipeline.reidentify import reidentify
from node.pipeline.run import StepFunction
from node.pipeline.working_data import (
    INSTANCES,
    LABEL_MAP,
    LABEL_MAP_FILE,
    MEASUREMENTS_FILE,
    instances_of,
    label_map_folder,
    results_of,
)
from node.results.measurements import as_json, measure_case
from node.sdk import LabelMap
from node.settings import Deidentify
from node.wiring import policy_with
from tests.part10 import part10
from tests.phantoms import chest_truth

MODELS = Path(__file__).resolve().parents[1] / "models"
ALL_KINDS = tuple(kind for kind in ResultKind if kind is not ResultKind.REJECTION)


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


class Journey:
    """One series on its way, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        series: Sequence[Dataset],
        profiles: Mapping[str, Profile],
        earlier: Sequence[Job] = (),
        **facts: Any,
    ) -> None:
        self.folder, self.earlier = folder, earlier
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

    def steps(self) -> Mapping[StepName, StepFunction]:
        """The steps from ``deidentify`` to ``reidentify``; ``infer`` knows the phantom's truth."""
        return {
            StepName.DEIDENTIFY: partial(
                deidentify,
                instances=self.received,
                artifacts=self.artifacts,
                vault=self.vault,
                policy=policy_with(Deidentify()),
                keys=PseudonymKeys.from_secret(b"p" * 32),
                review_key=b"r" * 32,
            ),
            StepName.INFER: self._infer,
            StepName.ENCODE: partial(
                encode,
                artifacts=self.artifacts,
                models=self.models,
                profiles=self.profiles,
                senders={},
                jobs_of_series=lambda _: self.earlier,
            ),
            StepName.REIDENTIFY: partial(reidentify, artifacts=self.artifacts, vault=self.vault),
        }

    def deidentified(self) -> list[Dataset]:
        """After ``deidentify``: what the model would see."""
        self._do(StepName.DEIDENTIFY)
        return self._instances(self.job)

    def segmented(self) -> None:
        """Lay down the truth of the phantom as the model's label map."""
        self.deidentified()
        self._do(StepName.INFER)

    def encoded(self) -> dict[str, bytes]:
        """After ``encode``: file name → pseudonymous object."""
        self._do(StepName.ENCODE)
        results = results_of(self.job, self.artifacts)
        return {name: results.get(name) for name in results.names}

    def reidentified(self, destination: str | None = None) -> dict[ResultKind, list[bytes]]:
        """After ``reidentify`` and its gate: kind → objects as they go to the destination."""
        self._do(StepName.REIDENTIFY)
        found: dict[ResultKind, list[bytes]] = {}
        for one in outgoing(self.job, destination):
            record = outbound_record(self.job, one.name)
            data = self.vault.open(self.job.facts["study"], record)
            found.setdefault(one.kind, []).append(data)
        return found

    def _instances(self, job: Job) -> list[Dataset]:
        streams = instances_of(job, self.artifacts).contents()
        return [dcmread(io.BytesIO(stream)) for stream in streams]

    def _infer(self, job: Job) -> Done:
        instances = self._instances(job)
        volume = volume_from_series(instances)
        by_uid = {str(one.SOPInstanceUID): one for one in instances}
        labels = chest_truth([by_uid[uid] for uid in volume.sop_instance_uids])
        segments = self.models["ct_lungs"].segments
        label_map = LabelMap(labels, volume.sop_instance_uids)
        stream = io.BytesIO()
        np.savez(stream, labels=labels, sop_instance_uids=np.array(volume.sop_instance_uids))
        measured = {"segments": as_json(measure_case(volume, label_map, segments))}
        with self.artifacts.writing(label_map_folder(job.id, job.facts[INSTANCES])) as bundle:
            bundle.add(LABEL_MAP_FILE, stream.getvalue())
            bundle.add(MEASUREMENTS_FILE, json.dumps(measured).encode())
        return Done({LABEL_MAP: bundle.digest})

    def _do(self, step: StepName) -> None:
        outcome = self.steps()[step](self.job)
        assert isinstance(outcome, Done)
        self.job = replace(self.job, facts={**self.job.facts, **outcome.facts})
