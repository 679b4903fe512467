"""De-identify: every instance through the anonymizer; the crosswalk goes into the vault."""

from __future__ import annotations

from anonymizer.crosswalk import Crosswalk
from anonymizer.keys import PseudonymKeys
from anonymizer.profile import Policy
from anonymizer.sealed_crosswalk import seal_crosswalk
from anonymizer.series import Deidentifier
from node.jobs import Done, Job
from node.pipeline.identity_errors import as_node_errors
from node.ports import Artifacts, Instances, SealedRecords


def deidentify(
    job: Job,
    *,
    instances: Instances,
    artifacts: Artifacts,
    vault: SealedRecords,
    policy: Policy,
    keys: PseudonymKeys,
) -> Done:
    """Write ``instances/000001.dcm`` … into the job's folder, one for each received instance.

    The files are numbered in the order of Orthanc's ids, which says nothing. The crosswalk is
    sealed before the step is done: what reached the compute zone can always be led back.

    Facts
    -----
    ``study``: the pseudonymous Study Instance UID, under which the vault keeps the crosswalk.
    ``crosswalk``: the vault's record type that holds it.
    ``profile``: digest of the de-identification policy.
    ``epoch``: number of the pseudonym key.

    Raises
    ------
    DamagedInstance, Rejected
        An instance cannot be de-identified, or the study's key was destroyed.
    IdentityUnsafe
        Pixels may show the patient, an identifier survived, or the vault cannot seal.
    """
    artifacts.delete(f"{job.id}/instances")  # an earlier try may have got half-way
    originals = []
    deidentifier = Deidentifier(policy, keys)
    with as_node_errors():
        for number, (_, data) in enumerate(instances.fetch(job.instance_ids), start=1):
            made = deidentifier.deidentify(data)
            artifacts.put(f"{job.id}/instances/{number:06d}.dcm", made.data)
            originals.append(made.original)
        crosswalk = Crosswalk.collect(originals)
        sealed = seal_crosswalk(vault, crosswalk, epoch=keys.epoch)
    return Done(
        {
            "study": sealed.study,
            "crosswalk": sealed.record,
            "profile": crosswalk.profile_digest,
            "epoch": keys.epoch,
        }
    )
