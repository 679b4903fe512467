"""De-identify DICOM and find the way back: keyed pseudonyms, PS3.15 profile, sealed crosswalks.

::

    policy = basic_policy()
    keys = PseudonymKeys.from_secret(read_or_create_key_file(Path("pseudonyms.key")))
    results = [deidentify_instance(path, policy, keys) for path in folder.iterdir()]
    crosswalk = Crosswalk.collect(result.original for result in results)
    sealed = seal_crosswalk(vault, crosswalk, epoch=keys.epoch)
    ...
    crosswalk = open_crosswalk(vault, sealed).crosswalk
    seg = reidentify_object(pseudonymous_seg, crosswalk)
    check_released(seg, crosswalk)
"""

from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import (
    DeidentifiedInstance,
    OriginalIdentity,
    deidentify_instance,
)
from anonymizer.keys import PseudonymKeys, create_key_file, read_key_file, read_or_create_key_file
from anonymizer.profile import Policy, basic_policy
from anonymizer.recipe import apply_recipe
from anonymizer.reidentify import check_released, reidentify_object
from anonymizer.sealed_crosswalk import open_crosswalk, seal_crosswalk
from anonymizer.series import Deidentifier, deidentify_series
from anonymizer.vault import FolderRecords, Keyring, RecordStore, Vault

__all__ = [
    "Crosswalk",
    "Deidentifier",
    "DeidentifiedInstance",
    "FolderRecords",
    "Keyring",
    "OriginalIdentity",
    "Policy",
    "PseudonymKeys",
    "RecordStore",
    "Vault",
    "apply_recipe",
    "basic_policy",
    "check_released",
    "create_key_file",
    "deidentify_instance",
    "deidentify_series",
    "open_crosswalk",
    "read_key_file",
    "read_or_create_key_file",
    "reidentify_object",
    "seal_crosswalk",
]
