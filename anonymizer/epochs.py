"""The pseudonym key has an epoch, and never changes inside one without being noticed.

A pseudonym is a keyed hash, so another key gives another pseudonym for the same patient and the
same UID. Within one epoch the key is one and the same: its check value is sealed in the vault when
the epoch begins and compared at every start. An epoch is begun on purpose, by a key with the next
number; what earlier epochs made is led back by the crosswalks in the vault, which need no key of
theirs.
"""

from __future__ import annotations

import hmac

from anonymizer.errors import CrosswalkMissing, EpochChanged
from anonymizer.keys import PseudonymKeys
from anonymizer.vault import Vault

_RECORD = "epoch-"
_BREAKS = (
    "the next studies of known patients would get other pseudonyms, UIDs and date shifts, and "
    "nothing would tell"
)


def begun_epochs(vault: Vault) -> list[int]:
    """Numbers of the epochs that the vault has seen, in order."""
    names = vault.names(vault.own)
    return sorted(int(name[len(_RECORD) :]) for name in names if name.startswith(_RECORD))


def confirm_epoch(vault: Vault, keys: PseudonymKeys) -> None:
    """Return if ``keys`` are those of their epoch, the last one; the first start begins it.

    Raises
    ------
    EpochChanged
        The epoch began with another key, or a later epoch has begun.
    VaultError
        The vault's own record does not open: the key-encryption key is missing or another one.
    """
    begun = begun_epochs(vault)
    if begun and begun[-1] > keys.epoch:
        raise EpochChanged(
            f"Epoch {begun[-1]} of the pseudonyms has begun, and the newest pseudonym key here is "
            f"that of epoch {keys.epoch}: {_BREAKS}"
        )
    record = f"{_RECORD}{keys.epoch}"
    try:
        known = vault.open(vault.own, record)
    except CrosswalkMissing:
        vault.seal(vault.own, record, keys.check_value)
        return
    if not hmac.compare_digest(known, keys.check_value):
        raise EpochChanged(
            f"The pseudonym key is not the one that epoch {keys.epoch} began with: {_BREAKS}"
        )
