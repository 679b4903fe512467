"""`segnode keys`: which keys there are, new ones, and the end of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from anonymizer.epochs import begun_epochs
from anonymizer.errors import AnonymizerError, KeyFileError, KeyMissing
from anonymizer.keys import NumberedKeys
from anonymizer.vault import Vault
from node.errors import NodeError, NotPossible
from node.pipeline.identity_errors import as_node_errors
from node.settings import BadSettings
from node.wiring import Hospital

Identifier = Literal["study", "patient", "accession"]
_KEYWORDS = {
    "study": "StudyInstanceUID",
    "patient": "PatientID",
    "accession": "AccessionNumber",
}
#: A worker that read the old current key just before the new one came may still seal one study.
_PASSES = 3


@dataclass(frozen=True)
class KeyUse:
    """One key-encryption key of the vault and what is sealed with it."""

    name: str
    place: Literal["file", "environment", "missing"]
    current: bool
    data_keys: int  #: one per study, and one of the vault's own
    problem: str = ""


@dataclass(frozen=True)
class Rotated:
    """What a rotation did."""

    name: str
    made: bool
    rewrapped: int
    problems: tuple[str, ...]
    """Causes of the data keys that stay under an old key, with how many each."""


def make_first_keys(hospital: Hospital) -> None:
    """A vault key and a pseudonym key, if this is the first start.

    Raises
    ------
    BadSettings
        There is none although the vault holds records: it was lost, and a new one would not do.
    """
    for keys in (hospital.vault_keys, hospital.pseudonym_secrets):
        if keys.names():
            continue
        if hospital.vault.records.studies():
            raise BadSettings(
                f"{keys.stem} is missing, and the vault holds records that were made with it",
                remedy=f"Put {keys.folder / keys.stem} back from its backup (docs/security.md).",
            )
        keys.create(1)


def key_uses(hospital: Hospital) -> list[KeyUse]:
    """Every key-encryption key that is here or that a data key needs, the oldest first."""
    keys, vault = hospital.vault_keys, hospital.vault
    used: Counter[str] = Counter()
    unreadable = 0
    for study in vault.keyed():
        try:
            name = vault.sealed_with(study)
        except AnonymizerError:
            unreadable += 1
            continue
        if name is not None:
            used[name] += 1
    here = keys.names()
    uses = [
        KeyUse(name, "file" if keys.is_in_file(name) else "environment", name == here[-1],
               used[name], _problem(keys, name))
        for name in here
    ]  # fmt: skip
    uses += [
        KeyUse(name, "missing", False, count, f"{count} data keys do not open without it")
        for name, count in sorted(used.items())
        if name not in here
    ]
    if unreadable:
        uses.append(KeyUse("?", "missing", False, unreadable, "their key records are damaged"))
    return uses


def rotate(hospital: Hospital, report: Callable[[int, int], None]) -> Rotated:
    """Seal every data key under the newest key; a newer one is made if all are already.

    Studies stay readable all the time, also for a node that runs. Killed and run again, it goes
    on where it was.

    Parameters
    ----------
    report
        Called with how many data keys are done, and of how many.
    """
    keys, vault = hospital.vault_keys, hospital.vault
    with as_node_errors():
        made = not _outdated(vault)
        if made:
            with suppress(FileExistsError):  # a second rotation, at the same moment, was first
                keys.create(1 + max(_numbers(keys, vault), default=0))
        name = keys.current
        rewrapped, problems = 0, Counter[str]()
        for _ in range(_PASSES):
            outdated = _outdated(vault)
            problems.clear()
            for number, study in enumerate(outdated, start=1):
                try:
                    rewrapped += vault.rewrap([study])
                except AnonymizerError as error:
                    problems[str(error)] += 1
                report(number, len(outdated))
            if len(outdated) == problems.total():
                break
    told = tuple(f"{count} data keys: {cause}" for cause, count in problems.items())
    return Rotated(name, made, rewrapped, told)


def studies_of(hospital: Hospital, wanted: str, by: Identifier) -> list[str]:
    """Pseudonymous studies that a person means; ``wanted`` is nowhere written or repeated.

    Parameters
    ----------
    wanted
        An original identifier; by study also the pseudonymous UID, or the id of a job.

    Raises
    ------
    NodeError
        There is no such study.
    """
    wanted = wanted.strip()
    with as_node_errors():
        if by == "study" and hospital.vault.knows(wanted):
            return [wanted]
        found = hospital.vault.find(_KEYWORDS[by], wanted)
        if not found and by == "study" and "." not in wanted:
            found = _study_of_job(hospital, wanted)
    if not found:
        raise NodeError(
            f"The vault knows no study by this {_KEYWORDS[by]}",
            remedy="Give an original or pseudonymous Study Instance UID, or the id of a job; "
            "--by patient and --by accession take the original ones.",
        )
    return found


def destroy(hospital: Hospital, studies: Sequence[str]) -> None:
    """Destroy the data keys of studies and all that is sealed with them. There is no way back."""
    with as_node_errors():
        for study in studies:
            hospital.vault.shred(study)


def new_epoch(hospital: Hospital) -> int:
    """Make the pseudonym key of the next epoch, which the next start begins; its number.

    Raises
    ------
    NotPossible
        One is made already and the node has not started with it yet.
    """
    secrets = hospital.pseudonym_secrets
    with as_node_errors():
        begun = begun_epochs(hospital.vault)
        newest = max([secrets.number(name) for name in secrets.names()], default=0)
        if newest > max(begun, default=0):
            raise NotPossible(
                f"The key of epoch {newest} is there and the epoch has not begun",
                remedy="Start the node (`segnode up`): it begins the epoch.",
            )
        with suppress(FileExistsError):  # somebody else was first
            secrets.create(1 + max(newest, *begun, 0))
        return secrets.number(secrets.current)


def _outdated(vault: Vault) -> list[str]:
    """What has a data key that is not sealed with the current key, or not readable."""
    current, found = vault.keyring.current, []
    for study in vault.keyed():
        try:
            if vault.sealed_with(study) not in (None, current):
                found.append(study)
        except AnonymizerError:
            found.append(study)
    return found


def _numbers(keys: NumberedKeys, vault: Vault) -> list[int]:
    """Numbers of the keys that are here or in use."""
    used = {vault.sealed_with(study) for study in vault.keyed()} - {None}
    names = {*keys.names(), *(name for name in used if name is not None and keys.owns(name))}
    return [keys.number(name) for name in names]


def _problem(keys: NumberedKeys, name: str) -> str:
    try:
        keys.key(name)
    except (KeyFileError, KeyMissing) as error:
        return str(error)
    return ""


def _study_of_job(hospital: Hospital, job_id: str) -> list[str]:
    try:
        study = hospital.ledger.find(job_id).facts.get("study")
    except NodeError:  # its message would repeat what was given
        return []
    return [study] if study is not None and hospital.vault.knows(study) else []
