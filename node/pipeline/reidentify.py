"""Re-identify: patient, study and every reference come back from the vault; then the gate."""

from __future__ import annotations

from anonymizer.crosswalk import Crosswalk
from anonymizer.reidentify import check_released, reidentify_object
from anonymizer.sealed_crosswalk import Sealed, open_crosswalk
from node.jobs import Done, Job
from node.kinds import ResultKind
from node.pipeline.identity_errors import as_node_errors
from node.pipeline.outbound import outbound_record, outgoing
from node.pipeline.replaced import replaced_uids
from node.pipeline.working_data import results_of
from node.ports import Artifacts, SealedRecords


def reidentify(job: Job, *, artifacts: Artifacts, vault: SealedRecords) -> Done:
    """Seal each result, with its patient put back in, into the vault until it is delivered.

    Raises
    ------
    DamagedArtifact
        A result is not what ``encode`` has written.
    IdentityUnsafe
        A reference does not resolve in the original study, a pseudonym remains, or the vault does
        not open.
    Rejected
        The study's key was destroyed.
    """
    with as_node_errors():
        crosswalk = _crosswalk(job, vault)
        objects = outgoing(job)
        siblings = {
            "siblings": frozenset(one.sop_instance_uid for one in objects),
            "sibling_series": frozenset(one.series_instance_uid for one in objects),
        }
        results = results_of(job, artifacts)
        for one in objects:
            pseudonymous = results.get(f"{one.name}.dcm")
            released = reidentify_object(pseudonymous, crosswalk)
            about = replaced_uids(job) if one.kind is ResultKind.REJECTION else frozenset()
            check_released(released, crosswalk, **siblings, rejected=about)
            vault.seal(job.facts["study"], outbound_record(job, one.name), released)
    return Done()


def original_study_instance_uid(job: Job, *, vault: SealedRecords) -> str:
    """The study that the PACS knows; queries for the results need it."""
    with as_node_errors():
        return _crosswalk(job, vault).study_instance_uid


def _crosswalk(job: Job, vault: SealedRecords) -> Crosswalk:
    sealed = Sealed(job.facts["study"], job.facts["crosswalk"])
    return open_crosswalk(vault, sealed).crosswalk
