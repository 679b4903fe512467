"""Encode: the label map becomes a DICOM SEG, and a picture for the console. Still pseudonymous."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
from pydicom import Dataset, dcmread

from node.imaging.radiograph import radiograph_from
from node.imaging.views import choose_radiograph
from node.imaging.volume import volume_from_series
from node.jobs import Done, Job
from node.pipeline.outbound import Result
from node.ports import Artifacts
from node.results.overlay import montage_png
from node.results.radiograph_picture import radiograph_png
from node.results.seg import Algorithm, encode_seg
from node.results.uids import ResultIdentity
from node.sdk import ModelManifest, RadiographManifest


def encode(job: Job, *, artifacts: Artifacts, models: Mapping[str, ModelManifest]) -> Done:
    """Write ``results/seg.dcm`` and ``overlay.png`` into the job's folder.

    The job's key decides the UIDs and its creation the dates, so a second run writes the same
    bytes.

    Facts
    -----
    ``results``: name, SOP Class UID, SOP Instance UID and Series Instance UID of each object.
    ``left_out``: what else a series of radiographs holds, and why it was not segmented.
    """
    manifest = models[job.model]
    stored = np.load(io.BytesIO(artifacts.get(f"{job.id}/label_map.npz")), allow_pickle=False)
    labels = stored["labels"]
    instances = _instances(artifacts, job)
    by_uid = {str(instance.SOPInstanceUID): instance for instance in instances}
    sources = [by_uid[str(uid)] for uid in stored["sop_instance_uids"]]
    numbered, segments = manifest.settled(labels)
    seg = encode_seg(
        numbered,
        sources,
        segments,
        Algorithm(manifest.name, manifest.version, manifest.digest),
        ResultIdentity.for_job(
            job.key,
            series_number=manifest.results.series_number,
            series_description=manifest.results.series_description,
            created=datetime.fromtimestamp(job.created_at, UTC).replace(microsecond=0, tzinfo=None),
            software_version=version("segnode"),
        ),
    )
    artifacts.put(f"{job.id}/results/seg.dcm", _part10(seg))
    artifacts.put(f"{job.id}/overlay.png", _picture(sources, labels, manifest))
    result = Result("seg", seg.SOPClassUID, seg.SOPInstanceUID, seg.SeriesInstanceUID)
    return Done({"results": [vars(result)], **_left_out(manifest, instances)})


def _instances(artifacts: Artifacts, job: Job) -> list[Dataset]:
    names = artifacts.names(f"{job.id}/instances/")
    return [dcmread(io.BytesIO(artifacts.get(name))) for name in names]


def _left_out(manifest: ModelManifest, instances: Sequence[Dataset]) -> Mapping[str, list[str]]:
    if not isinstance(manifest, RadiographManifest):
        return {}
    left_out = choose_radiograph(manifest.input, instances).left_out
    return {"left_out": list(left_out)} if left_out else {}


def _picture(sources: Sequence[Dataset], labels: np.ndarray, manifest: ModelManifest) -> bytes:
    if isinstance(manifest, RadiographManifest):
        return radiograph_png(radiograph_from(sources[0]), labels, manifest)
    return montage_png(volume_from_series(sources), labels, manifest)


def _part10(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
