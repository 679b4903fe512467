"""The one place where settings become a ledger, a vault, a broker, a PACS and eight steps.

Everything is made when asked for: ``segnode jobs`` opens the ledger and nothing else. The compute
zone is made of settings of its own (``node.programs.run_compute``): it cannot reach the hospital's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from node.edges import secret_files
from node.edges.artifacts import FolderArtifacts
from node.edges.celery_app import (
    COMPUTE_QUEUE,
    celery_app,
)
from node.jobs import Job, StepName
from node.packages import find_models
from node.settings import (
    BadSettings,
    Deidentify,
    DicomPeer,
    DicomWebPeer,
    Settings,
)

if TYPE_CHECKING:
    from celery import Celery

    from anonymizer.keys import NumberedKeys, PseudonymKeys
    from anonymizer.profile import Policy
    from anonymizer.vault import Vault
    from node.edges.dicomweb import DicomWebPacs
    from node.edges.ledger import Ledger
    from node.edges.orthanc import Orthanc
    from node.edges.orthanc_storage import OrthancStorage
    from node.edges.pacs import DicomPacs
    from node.edges.watch import Nudges
    from node.manifest import ModelManifest
    from node.pipeline.outbound import Profile
    from node.pipeline.run import StepFunction, Terms
    from node.ports import Pacs, Source

#: Orthanc's user for the node itself and for the person at the console.
ORTHANC_USER = "segnode"


def policy_with(settings: Deidentify) -> Policy:
    """The basic profile of PS3.15, the options of PS3.15 E.3, and a site's recipe over them."""
    from anonymizer.errors import AnonymizerError
    from anonymizer.options import options_named
    from anonymizer.profile import profile_with
    from anonymizer.recipe import apply_recipe

    try:
        policy = profile_with(options_named(settings.options))
    except AnonymizerError as error:
        raise BadSettings(f"deidentify.options: {error}", remedy=error.remedy) from None
    if policy.retains_uids:
        raise BadSettings(
            "deidentify.options: retain-uids would let original UIDs reach the compute zone, and "
            "a result could not be told from its source on the way back",
            remedy="Leave it out here; `python -m anonymizer` has it for exports.",
        )
    try:
        return apply_recipe(policy, settings.recipe) if settings.recipe else policy
    except AnonymizerError as error:
        raise BadSettings(f"deidentify.recipe: {error}", remedy=error.remedy) from None


class Hospital:
    """The hospital zone: everything that may know a patient."""

    def __init__(self, settings: Settings, who: str = "person at the command line") -> None:
        self.settings, self.who = settings, who

    def secret(self, name: str) -> str:
        """The secret of that name, from its file; `segnode up` makes the files."""
        return secret_files.read(self.secret_path(name))

    def secret_path(self, name: str) -> Path:
        """The file of a secret."""
        return (self.settings.folder("secrets") / name).absolute()

    @cached_property
    def models(self) -> Mapping[str, ModelManifest]:
        """Every model found, checked against the rules that name them."""
        models = find_models(self.settings.models_dir)
        for number, rule in enumerate(self.settings.rules):
            if rule.model not in models:
                raise BadSettings(
                    f"rules.{number} ({rule.name}): there is no model {rule.model!r} in "
                    f"{self.settings.models_dir}",
                    remedy=f"Use one of: {', '.join(models) or 'none is installed'}.",
                )
        return models

    @cached_property
    def ledger(self) -> Ledger:
        """Jobs, leases, attempts."""
        from node.edges.ledger import Ledger

        if self.settings.ledger_url is None:
            self.settings.var_dir.mkdir(parents=True, exist_ok=True)
        return Ledger(self.settings.ledger, who=self.who)

    @cached_property
    def orthanc(self) -> Orthanc:
        """Orthanc's REST interface."""
        from node.edges.orthanc import Orthanc

        return Orthanc(self.settings.orthanc_url, ORTHANC_USER, self.secret("orthanc_password"))

    @cached_property
    def artifacts(self) -> FolderArtifacts:
        """De-identified working data."""
        return FolderArtifacts(self.settings.folder("artifacts"))

    @cached_property
    def vault(self) -> Vault:
        """Crosswalks and outbound objects, encrypted."""
        from anonymizer.vault import FolderRecords, Vault

        records = FolderRecords(self.settings.folder("vault"))
        return Vault(records, self.vault_keys, tenant=self.settings.deidentify.tenant)

    @cached_property
    def vault_keys(self) -> NumberedKeys:
        """The key-encryption keys: ``vault_key``, ``vault_key.2`` …, the last one is current."""
        return self._numbered_keys("vault_key")

    @cached_property
    def pseudonym_secrets(self) -> NumberedKeys:
        """The secrets of the epochs: ``pseudonym_key``, ``pseudonym_key.2`` …."""
        return self._numbered_keys("pseudonym_key")

    @cached_property
    def policy(self) -> Policy:
        """PS3.15 basic profile with the site's options, and its recipe over them."""
        return policy_with(self.settings.deidentify)

    @cached_property
    def pseudonym_keys(self) -> PseudonymKeys:
        """The keys of UIDs, patient IDs and date shifts, in their last epoch.

        Raises
        ------
        BadSettings
            They are not the ones that the epoch began with, or the vault does not open.
        """
        from anonymizer.epochs import confirm_epoch
        from anonymizer.errors import AnonymizerError
        from anonymizer.keys import PseudonymKeys

        secrets = self.pseudonym_secrets
        try:
            name = secrets.current
            keys = PseudonymKeys.from_secret(secrets.key(name), secrets.number(name))
            confirm_epoch(self.vault, keys)
        except AnonymizerError as error:
            raise BadSettings(str(error), remedy=error.remedy) from None
        return keys

    @property
    def review_key(self) -> bytes:
        """Marks held images. Who has Orthanc's password can read them there: he learns no more."""
        from anonymizer.keys import derived_key

        return derived_key(self.secret("orthanc_password").encode(), b"segnode held image v1")

    @cached_property
    def destinations(self) -> Mapping[str, Pacs]:
        """Name → destination, of every peer."""
        from node.edges.rested import Rested

        made: dict[str, Pacs] = {peer.name: self.dicom(peer) for peer in self.settings.dicom_peers}
        if self.settings.dicomweb_peers:
            made |= {peer.name: self.dicomweb(peer) for peer in self.settings.dicomweb_peers}
        return {name: Rested(name, pacs) for name, pacs in made.items()}

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """Name → what it takes, of every peer."""
        from node.pipeline.outbound import Profile

        return {
            peer.name: Profile(peer.results, peer.capture_every, peer.segmentation_type)
            for peer in self.settings.peers
        }

    @property
    def senders(self) -> Mapping[str, str]:
        """AE title → name, of every DICOM peer."""
        return {peer.ae_title: peer.name for peer in self.settings.dicom_peers}

    def source_of(self, sender: str) -> Source | None:
        """Who can be asked for what this sender sends: the first peer that says so."""
        peers = self.settings.peers
        named = [peer for peer in peers if sender and sender in peer.holds_series_of]
        anybody = [peer for peer in peers if "*" in peer.holds_series_of]
        for peer in (*named, *anybody):
            from node.edges.source import DicomSource, DicomWebSource

            if isinstance(peer, DicomPeer):
                return DicomSource(peer.name, self.dicom(peer), self.settings.dicom.ae_title)
            return DicomWebSource(peer.name, self.dicomweb(peer), self.orthanc.store)
        return None

    @property
    def broker_url(self) -> str:
        """Redis, with its password."""
        broker = self.settings.broker
        if broker.url is not None:
            return broker.url
        password = quote(self.secret("broker_password"), safe="")
        return f"redis://:{password}@127.0.0.1:{broker.port}/0"

    @cached_property
    def celery(self) -> Celery:
        """The hospital zone's Celery application."""
        return celery_app("segnode-hospital", self.broker_url)

    @cached_property
    def nudges(self) -> Nudges:
        """Wakes the watch."""
        from node.edges.watch import Nudges

        return Nudges(self.broker_url)

    @cached_property
    def wake(self) -> Callable[[Job], None]:
        """Sends the wake-up of a job's step."""
        from node.edges.tasks import waker

        return waker(self.celery, self.terms)

    @cached_property
    def terms(self) -> Terms:
        """On which terms steps run: leases, deadlines, how many jobs the compute zone gets."""
        from node.pipeline import with_deadlines
        from node.pipeline.run import Terms

        workers = self.settings.workers
        return Terms(
            lease_s=workers.recovery_s * 0.7,  # the rest is the sweeper's
            steps=with_deadlines(self.settings.deadlines_s.model_dump(exclude_none=True)),
            at_most={COMPUTE_QUEUE: workers.compute_ahead or workers.compute_processes + 1},
        )

    def steps(self) -> Mapping[StepName, StepFunction]:
        """The eight steps with the real outside; ``infer`` is handed to the compute zone."""
        from node.edges.tasks import hand_over

        handed = hand_over(self.celery, self.ledger, self.terms)
        return {**self.local_steps(), StepName.INFER: handed}

    def local_steps(self) -> Mapping[StepName, StepFunction]:
        """All steps but ``infer``."""
        from node.edges.arrivals import Arrivals
        from node.pipeline.confirm import confirm
        from node.pipeline.deidentify import deidentify
        from node.pipeline.deliver import deliver
        from node.pipeline.encode import encode
        from node.pipeline.proof import Prover
        from node.pipeline.receive import Patience, receive
        from node.pipeline.reidentify import original_study_instance_uid, reidentify
        from node.pipeline.route import need_of, route

        settings = self.settings
        prover = Prover(
            destinations=self.destinations,
            commitment=self.orthanc,
            commits=frozenset(
                peer.name for peer in settings.dicom_peers if peer.storage_commitment
            ),
            study_instance_uid=partial(original_study_instance_uid, vault=self.vault),
        )
        rules: dict[str, Any] = {
            "rules": settings.rules,
            "match_all": settings.routing.match == "all",
            "models": self.models,
        }

        def jobs_of_series(job: Job) -> list[Job]:
            return self.ledger.jobs_of_series(job.series_id)

        return {
            StepName.RECEIVE: partial(
                receive,
                instances=self.orthanc,
                source_of=self.source_of,
                need=partial(need_of, **rules),
                patience=Patience(settings.receive.patience_s),
                sender_seen=Arrivals(self.ledger.database).sender,
            ),
            StepName.ROUTE: partial(route, instances=self.orthanc, **rules),
            StepName.DEIDENTIFY: partial(
                deidentify,
                instances=self.orthanc,
                artifacts=self.artifacts,
                vault=self.vault,
                policy=self.policy,
                keys=self.pseudonym_keys,
                review_key=self.review_key,
            ),
            StepName.ENCODE: partial(
                encode,
                artifacts=self.artifacts,
                models=self.models,
                profiles=self.profiles,
                senders=self.senders,
                jobs_of_series=jobs_of_series,
            ),
            StepName.REIDENTIFY: partial(reidentify, artifacts=self.artifacts, vault=self.vault),
            StepName.DELIVER: partial(
                deliver,
                vault=self.vault,
                destinations=self.destinations,
                prover=prover,
                note=self.ledger.note,
                paused=self.ledger.paused,
                jobs_of_series=jobs_of_series,
            ),
            StepName.CONFIRM: partial(
                confirm,
                vault=self.vault,
                artifacts=self.artifacts,
                prover=prover,
                note=self.ledger.note,
                paused=self.ledger.paused,
                jobs_of_series=jobs_of_series,
            ),
        }

    def _numbered_keys(self, stem: str) -> NumberedKeys:
        """Keys from the folder of secrets, ``SEGNODE_<STEM>``, ``SEGNODE_<STEM>_2`` …."""
        from anonymizer.keys import NumberedKeys

        variable = f"SEGNODE_{stem.upper()}"
        given = {}
        for name, value in os.environ.items():
            if name == variable:
                given[stem] = value
            elif name.startswith(f"{variable}_"):
                given[f"{stem}.{name[len(variable) + 1 :]}"] = value
        return NumberedKeys(self.secret_path(stem).parent, stem, given)

    def dicom(self, peer: DicomPeer) -> DicomPacs:
        """The SCU of one DICOM peer."""
        from node.edges.dicom_tls import DicomTls
        from node.edges.pacs import DicomDestination, DicomPacs

        ours = self.settings.dicom
        authority = peer.certificate_authority or ours.certificate_authority
        tls = None
        if peer.tls and authority:
            tls = DicomTls(authority, ours.certificate, ours.private_key)
        return DicomPacs(
            DicomDestination(
                name=peer.name,
                ae_title=peer.ae_title,
                host=peer.host,
                port=peer.port,
                calling_ae_title=ours.ae_title,
                tls=tls,
                dimse_timeout_s=peer.answer_timeout_s,
            )
        )

    def dicomweb(self, peer: DicomWebPeer) -> DicomWebPacs:
        """The client of one DICOMweb peer."""
        from node.edges.dicomweb import DicomWebDestination, DicomWebPacs

        return DicomWebPacs(
            DicomWebDestination(
                name=peer.name,
                url=peer.url,
                username=peer.username,
                password_file=peer.password_file,
                token_file=peer.token_file,
                certificate_authority=peer.certificate_authority,
                answer_timeout_s=peer.answer_timeout_s,
            )
        )

    @cached_property
    def orthanc_storage(self) -> OrthancStorage:
        """Orthanc's disks and files."""
        from node.edges.orthanc_storage import OrthancStorage

        return OrthancStorage(self.orthanc)
