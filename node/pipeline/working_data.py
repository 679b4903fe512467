"""What steps leave for each other in the artifact store, and what it is called there.

Every folder holds bundles; which of them is a job's own stands in its facts, by digest. Orthanc
keeps the originals: what is damaged or gone here is made again from them.
"""

from __future__ import annotations

import re

from node.jobs import Job
from node.ports import Artifacts, Bundle

#: Facts with the digest of a bundle.
INSTANCES = "instances_digest"
LABEL_MAP = "label_map_digest"
RESULTS = "results_digest"
#: Fact: SHA-256 of the picture, which the compute zone could exchange.
PICTURE = "picture_digest"
#: Fact: what the UIDs of the results derive from.
RESULT_KEY = "result_key"

LABEL_MAP_FILE = "label_map.npz"
MEASUREMENTS_FILE = "measurements.json"


_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(value: object) -> bool:
    """Whether it can be the digest of a bundle, and nothing else."""
    return isinstance(value, str) and bool(_DIGEST.fullmatch(value))


def instances_folder(job_id: str) -> str:
    """``000001.dcm`` …: the de-identified instances, in the order of Orthanc's ids."""
    return f"{job_id}/instances"


def label_map_folder(job_id: str, instances_digest: str) -> str:
    """``label_map.npz`` and ``measurements.json``, made of exactly these instances."""
    return f"{job_id}/label_map/{instances_digest or 'none'}"


def results_folder(job_id: str) -> str:
    """The objects to send, pseudonymous."""
    return f"{job_id}/results"


def instances_of(job: Job, artifacts: Artifacts) -> Bundle:
    """What ``deidentify`` has made; DamagedArtifact if it is not there."""
    return artifacts.bundle(instances_folder(job.id), job.facts.get(INSTANCES, ""))


def label_map_of(job: Job, artifacts: Artifacts) -> Bundle:
    """What ``infer`` has made; DamagedArtifact if it is not there."""
    folder = label_map_folder(job.id, job.facts.get(INSTANCES, ""))
    return artifacts.bundle(folder, job.facts.get(LABEL_MAP, ""))


def results_of(job: Job, artifacts: Artifacts) -> Bundle:
    """What ``encode`` has made; DamagedArtifact if it is not there."""
    return artifacts.bundle(results_folder(job.id), job.facts.get(RESULTS, ""))


def purge(job_id: str, artifacts: Artifacts) -> None:
    """Remove everything but the picture; whoever still needs it makes it again."""
    for folder in ("instances", "label_map", "results"):
        artifacts.delete(f"{job_id}/{folder}")
