"""Encode: the label map becomes DICOM objects, and a picture for the console. Still pseudonymous.

Which kinds of object is decided by the destinations: each takes what its profile says.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from pydicom import Dataset, dcmread

from node.errors import ModelFault
from node.imaging.views import choose_radiograph
from node.jobs import Done, Job, Reason, unsuitable
from node.kinds import ResultKind
from node.manifest import ModelManifest, RadiographManifest
from node.pipeline.inferred import read_label_map, read_measurements
from node.pipeline.outbound import (
    Outgoing,
    Profile,
    Result,
    facts_of,
    object_name,
    plan_for,
    to_make,
)
from node.pipeline.replaced import replaced_by, replacement_facts
from node.pipeline.working_data import (
    PICTURE,
    RESULT_KEY,
    RESULTS,
    instances_of,
    label_map_of,
    results_folder,
)
from node.ports import Artifacts, BundleWriter
from node.results.explanation import EXPLAINING, explaining_kind, explanation
from node.results.objects import Found, Origin, possible_kinds
from node.results.rejection import Replaced, rejection


def encode(
    job: Job,
    *,
    artifacts: Artifacts,
    models: Mapping[str, ModelManifest],
    profiles: Mapping[str, Profile],
    senders: Mapping[str, str],
    jobs_of_series: Callable[[Job], Iterable[Job]] = lambda _: (),
) -> Done:
    """Write a bundle of results, all kinds that a destination takes, and ``overlay.png``.

    The job's key decides the UIDs and its creation the dates, so a second run writes the same
    bytes. A job without a result gets the document that says why instead. Where a result replaces
    an earlier one, a destination that takes rejection notes is told so.

    Parameters
    ----------
    profiles
        Destination → what it takes.
    senders
        AE title → name, of every peer that can take results.
    jobs_of_series
        All jobs of the job's series, of which some may have delivered earlier results.

    Facts
    -----
    ``results``, ``plan``, ``delivery``: :func:`node.pipeline.outbound.facts_of`.
    ``replaces``: :func:`node.pipeline.replaced.replacement_facts`.
    ``results_digest``: the bundle of results. ``picture_digest``: SHA-256 of ``overlay.png``.
    ``remarks``: what may keep a viewer from showing them.
    ``left_out``: what else a series of radiographs holds, and why it was not segmented.

    Raises
    ------
    DamagedArtifact
        Instances, label map or measurements are not what earlier steps have written.
    DeliveryRefused
        No destination is a peer that takes something that can be made of these images.
    EmptyResult, ModelFault, GeometryError, Rejected, Quarantined
        :meth:`node.results.objects.Found.encoded`.
    """
    if job.model not in models:
        raise ModelFault(f"The model {job.model} is no longer installed")
    manifest = models[job.model]
    origin = Origin(
        job_key=job.facts[RESULT_KEY],
        created=_local_time(job.created_at),
        software_version=version("segnode"),
        manifest=manifest,
    )
    instances = [dcmread(io.BytesIO(stream)) for stream in instances_of(job, artifacts).contents()]
    if reason := unsuitable(job):
        return _explain(job, reason, instances, origin, artifacts, profiles, senders)
    columns = int(instances[0].Columns)
    settled = {name: profile.of_columns(columns) for name, profile in profiles.items()}
    plan, nothing = plan_for(job, settled, senders, possible_kinds(manifest))
    notes = {
        name: objects
        for name, objects in replaced_by(job, jobs_of_series(job)).items()
        if name in plan and ResultKind.REJECTION in profiles[name].kinds
    }
    found = _found(job, instances, origin, artifacts)
    with artifacts.writing(results_folder(job.id)) as bundle:
        results = [
            _stored(kind, found.encoded(kind, every), bundle)
            for kind, every in to_make(plan).items()
        ]
        results += [
            _stored(
                ResultKind.REJECTION,
                [_note(notes[name], name, instances, origin)],
                bundle,
                name,
                number,
            )
            for number, name in enumerate(plan, start=1)
            if name in notes
        ]
    artifacts.put(f"{job.id}/overlay.png", found.picture_png)
    plan = {
        name: {**kinds, ResultKind.REJECTION: 1} if name in notes else kinds
        for name, kinds in plan.items()
    }
    facts = {
        **facts_of(job, plan, nothing, results),
        RESULTS: bundle.digest,
        PICTURE: hashlib.sha256(found.picture_png).hexdigest(),
    }
    if remarks := found.remarks([result.kind for result in results]):
        facts["remarks"] = remarks
    return Done({**facts, **replacement_facts(notes), **_left_out(manifest, instances)})


def _note(
    objects: Sequence[Outgoing], destination: str, instances: Sequence[Dataset], origin: Origin
) -> Dataset:
    replaced = [
        Replaced(one.sop_class_uid, one.series_instance_uid, one.sop_instance_uid)
        for one in objects
    ]
    return rejection(replaced, destination, instances, origin)


def _local_time(timestamp: float) -> datetime:
    """Of this machine, which is the hospital's: the study's own times are local, without offset."""
    return datetime.fromtimestamp(timestamp, UTC).astimezone().replace(microsecond=0, tzinfo=None)


def _explain(
    job: Job,
    reason: Reason,
    instances: Sequence[Dataset],
    origin: Origin,
    artifacts: Artifacts,
    profiles: Mapping[str, Profile],
    senders: Mapping[str, str],
) -> Done:
    """The page that says why, as each destination can show it."""
    wanted = {name: Profile((explaining_kind(takes.kinds),)) for name, takes in profiles.items()}
    plan, nothing = plan_for(job, wanted, senders, EXPLAINING)
    with artifacts.writing(results_folder(job.id)) as bundle:
        results = [
            _stored(kind, [explanation(kind, asdict(reason), instances, origin)], bundle)
            for kind in to_make(plan)
        ]
    return Done({**facts_of(job, plan, nothing, results), RESULTS: bundle.digest})


def _found(job: Job, instances: Sequence[Dataset], origin: Origin, artifacts: Artifacts) -> Found:
    bundle = label_map_of(job, artifacts)
    labels, sources = read_label_map(bundle, instances)
    return Found(
        origin=origin, labels=labels, sources=sources, measurements=read_measurements(bundle)
    )


def _stored(
    kind: ResultKind,
    objects: Iterable[Dataset],
    bundle: BundleWriter,
    destination: str = "",
    first: int = 1,
) -> Result:
    """Write the objects of one kind, one after the other; what to know of them later."""
    uids, series = [], ""
    for number, made in enumerate(objects, start=first):
        bundle.add(f"{object_name(kind, number)}.dcm", _part10(made))
        uids.append(str(made.SOPInstanceUID))
        series = str(made.SeriesInstanceUID)
    return Result(kind, str(kind.sop_class_uid), series, tuple(uids), destination, first)


def _left_out(manifest: ModelManifest, instances: Sequence[Dataset]) -> Mapping[str, list[str]]:
    if not isinstance(manifest, RadiographManifest):
        return {}
    left_out = choose_radiograph(manifest.input, instances).left_out
    return {"left_out": list(left_out)} if left_out else {}


def _part10(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
