"""What keeps a node in order while it runs: files restored, space freed, parts compared."""

from __future__ import annotations

from functools import partial

import redis

from node.edges.celery_app import COMPUTE_QUEUE, DELIVERY_QUEUES, HOSPITAL_QUEUES
from node.edges.chores import Chore, Chores
from node.edges.lost_instances import LostInstances
from node.edges.retention import Keep, Retention
from node.edges.space import Forecast, SpaceLog
from node.pipeline.reidentify import original_study_instance_uid
from node.reconcile import Reconciler, repair_all
from node.wiring import Hospital

_DAY_S = 86400.0


def chores(hospital: Hospital) -> Chores:
    """What the watch does now and then."""
    storage, freeing = hospital.orthanc_storage, retention(hospital)
    lost = LostInstances(hospital.ledger.database, storage)
    space = space_log(hospital)

    def restore() -> None:
        storage.restore()
        # At once: until then Orthanc answers success to whoever sends them again.
        lost.take_out(storage.state().fileless)

    return Chores(
        [
            Chore("restore", 30.0, restore),
            Chore("space", 600.0, lambda: space.add(storage.state().disks)),
            Chore("free working data", 120.0, freeing.free_working_data),
            Chore("delete received", 3600.0, freeing.delete_received),
            # Not while everything starts: a part that does not answer yet says nothing.
            Chore("reconcile", _DAY_S, lambda: repair_all(reconciler(hospital)), first_s=900.0),
        ]
    )


def space_log(hospital: Hospital) -> SpaceLog:
    """How full the disks were."""
    # In a folder of its own: in containers it is all that watch and console share.
    return SpaceLog(hospital.settings.var_dir / "state" / "space.json")


def forecasts(hospital: Hospital) -> list[Forecast]:
    """How full each disk is, and when it will be."""
    return space_log(hospital).forecasts(hospital.orthanc_storage.state().disks)


def retention(hospital: Hospital) -> Retention:
    """What is freed when nothing needs it any more."""
    days = {
        name: None if value == "for ever" else value for name, value in hospital.settings.retention
    }
    return Retention(
        hospital.ledger.database, hospital.artifacts, hospital.vault, hospital.orthanc_storage,
        Keep(**days),
    )  # fmt: skip


def reconciler(hospital: Hospital) -> Reconciler:
    """Compares everything that remembers something of a study."""
    return Reconciler(
        database=hospital.ledger.database,
        storage=hospital.orthanc_storage,
        artifacts=hospital.artifacts,
        vault=hospital.vault,
        vault_studies=hospital.vault.studies,
        broker=redis.Redis.from_url(
            hospital.broker_url, socket_timeout=5, socket_connect_timeout=5
        ),
        queues=(*HOSPITAL_QUEUES, *DELIVERY_QUEUES),
        compute_queue=COMPUTE_QUEUE,
        # To ask them for results takes the study's original UID, and so a key: `segnode doctor`
        # has one, the watch in a container has not.
        destinations=hospital.destinations if hospital.vault_keys.names() else {},
        study_instance_uid=partial(original_study_instance_uid, vault=hospital.vault),
    )
