"""`segnode process`: the same steps without servers, for someone with a folder of DICOM.

Nothing outlives the call but the results: vault, keys and working data live in a temporary folder.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from anonymizer.keys import PseudonymKeys
from anonymizer.vault import FolderRecords, Keyring, Vault
from node.edges.artifacts import FolderArtifacts
from node.errors import DamagedInstance, NodeError, Rejected
from node.imaging.decoding import Decoders, decoding_processes
from node.jobs import BY_HAND, Done, Job, StepName, Wish
from node.kinds import ResultKind
from node.manifest import ModelManifest
from node.packages import Model, find_models, load_model
from node.pipeline.deidentify import deidentify
from node.pipeline.encode import encode
from node.pipeline.headers import read_header
from node.pipeline.infer import infer
from node.pipeline.outbound import Profile, outbound_record, outgoing
from node.pipeline.receive import receive
from node.pipeline.reidentify import reidentify
from node.pipeline.route import route
from node.pipeline.run import StepFunction
from node.pipeline.working_data import INSTANCES, LABEL_MAP
from node.settings import Settings
from node.wiring import policy_with

#: The only destination: the folder.
_OUT = "out"
#: ``report(text, share of the whole)``.
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Written:
    """What `segnode process` made of one series."""

    ok: bool
    series: str
    outcome: str
    files: tuple[Path, ...] = ()


@dataclass
class FolderInstances:
    """``node.ports.Instances`` over the files of a folder; what is no DICOM is counted."""

    series: dict[str, dict[str, Path]] = field(default_factory=dict)
    not_dicom: int = 0

    @classmethod
    def scan(cls, folder: Path) -> FolderInstances:
        """Every DICOM file at any depth, grouped by series under opaque ids."""
        found = cls()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                header = read_header(path.read_bytes())
            except DamagedInstance:
                found.not_dicom += 1
                continue
            series = _opaque(header.get("StudyInstanceUID"), header.get("SeriesInstanceUID"))
            instance = _opaque(series, header.get("SOPInstanceUID"))
            found.series.setdefault(series, {})[instance] = path
        return found

    def instances_of_series(self, series_id: str) -> tuple[str, ...]:
        """Ids of the instances of one series."""
        return tuple(self.series[series_id])

    def instance_header(self, instance_id: str) -> bytes:
        """The whole file: a header is at its beginning."""
        return self._path(instance_id).read_bytes()

    def fetch(self, instance_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Each id with the bytes of its file."""
        for instance_id in instance_ids:
            yield instance_id, self._path(instance_id).read_bytes()

    def metadata(self, instance_id: str) -> Mapping[str, str]:
        """A folder knows no sender."""
        return {"Origin": "Folder"}

    def _path(self, instance_id: str) -> Path:
        return next(paths[instance_id] for paths in self.series.values() if instance_id in paths)


def process_folder(
    settings: Settings,
    folder: Path,
    model_name: str,
    out: Path,
    report: Report,
    results: Sequence[ResultKind] = (ResultKind.SEG,),
) -> list[Written]:
    """Run the model over each series of ``folder`` and write its ``results`` to ``out``.

    Raises
    ------
    Rejected
        The folder holds no DICOM, or there is no such model.
    """
    instances = FolderInstances.scan(folder)
    if not instances.series:
        raise Rejected(
            f"There is no DICOM instance among the {instances.not_dicom} files of the folder",
            remedy="Name the folder that holds the series.",
        )
    models = find_models(settings.models_dir)
    if model_name not in models:
        raise Rejected(
            f"There is no model {model_name!r} in {settings.models_dir}",
            remedy=f"Use one of: {', '.join(models) or 'none is installed'}.",
        )
    report("loading the model", 0.0)
    model = load_model(
        settings.models_dir / model_name,
        threads=settings.workers.compute_threads,
        exports=settings.folder("exports"),
    )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(prefix="segnode-") as scratch:
        decoders = Decoders(decoding_processes(settings.workers.compute_threads))
        bench = _Bench(
            settings, Path(scratch), instances, models, model, decoders, Profile(tuple(results))
        )
        for number, series_id in enumerate(instances.series, start=1):
            label = f"series {number} of {len(instances.series)}"
            job = Job(
                id=f"series-{number}",
                series_id=series_id,
                study_id="",
                instance_ids=instances.instances_of_series(series_id),
                model=model_name,
                model_digest=models[model_name].digest,
                rule=BY_HAND,
                rule_version=BY_HAND,
                destinations=(_OUT,),
                facts={"wish": _wish(models[model_name])},
                created_at=time.time(),
            )
            try:
                done = bench.run(job, partial(_tell, report, label))
            except NodeError as error:
                written.append(Written(False, label, f"{error}\n→ {error.remedy}"))
            else:
                written.append(Written(True, label, "segmented", bench.save(done, out)))
        decoders.close()
    report("done", 1.0)
    return written


class _Bench:
    """Steps, vault and working data of one call."""

    def __init__(
        self,
        settings: Settings,
        scratch: Path,
        instances: FolderInstances,
        models: Mapping[str, ModelManifest],
        model: Model,
        decoders: Decoders,
        profile: Profile,
    ) -> None:
        self._artifacts = FolderArtifacts(scratch / "artifacts")
        keyring = Keyring("scratch", {"scratch": secrets.token_bytes(32)})
        self._vault = Vault(FolderRecords(scratch / "vault"), keyring)
        self._model = model
        self._decoders = decoders
        self._steps: Mapping[StepName, StepFunction] = {
            StepName.RECEIVE: partial(receive, instances=instances),
            StepName.ROUTE: partial(
                route, instances=instances, rules=(), match_all=False, models=models
            ),
            StepName.DEIDENTIFY: partial(
                deidentify,
                instances=instances,
                policy=policy_with(settings.deidentify),
                keys=PseudonymKeys.from_secret(secrets.token_bytes(32)),
                review_key=secrets.token_bytes(32),
                artifacts=self._artifacts,
                vault=self._vault,
            ),
            StepName.INFER: self._infer,
            StepName.ENCODE: partial(
                encode,
                artifacts=self._artifacts,
                models=models,
                profiles={_OUT: profile},
                senders={},
            ),
            StepName.REIDENTIFY: partial(reidentify, artifacts=self._artifacts, vault=self._vault),
        }
        self._report: Report = lambda _step, _share: None

    def run(self, job: Job, report: Report) -> Job:
        """The job after all steps; ``report(text, share of the series)``."""
        self._report = report
        for number, (step, function) in enumerate(self._steps.items()):
            report(step, number / len(self._steps))
            outcome = function(job)
            if isinstance(outcome, Done):
                job = replace(job, facts={**job.facts, **outcome.facts})
        return job

    def save(self, job: Job, out: Path) -> tuple[Path, ...]:
        """Write the results and the picture of a finished job."""
        stem = f"{job.id}-{job.model}"
        files = {out / f"{stem}.png": self._artifacts.get(f"{job.id}/overlay.png")}
        for one in outgoing(job):
            record = outbound_record(job, one.name)
            files[out / f"{stem}-{one.name}.dcm"] = self._vault.open(job.facts["study"], record)
        for path, data in files.items():
            path.write_bytes(data)
        return tuple(files)

    def _infer(self, job: Job) -> Done:
        start, width = 3 / len(self._steps), 1 / len(self._steps)
        digest = infer(
            self._artifacts,
            job.id,
            job.facts[INSTANCES],
            self._model,
            lambda share: self._report(StepName.INFER, start + share * width),
            self._decoders,
        )
        return Done({LABEL_MAP: digest})


def _tell(report: Report, label: str, step: str, share: float) -> None:
    report(f"{label}: {step}", share)


def _wish(manifest: ModelManifest) -> dict[str, Any]:
    return vars(Wish(BY_HAND, BY_HAND, manifest.name, manifest.digest, (_OUT,)))


def _opaque(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:40]
