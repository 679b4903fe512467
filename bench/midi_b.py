"""Write the two mapping files that the MIDI-B validator asks for, from sealed crosswalks.

``python bench/midi_b.py VAULT KEY_FILE OUT`` reads every crosswalk of the vault that
``python -m anonymizer IN RESULT --vault VAULT`` wrote, and makes ``OUT/patient_mapping.csv`` and
``OUT/uid_mapping.csv``, columns ``id_old,id_new``. Both hold original identifiers: keep them where
the originals are, and delete them after validation. docs/midi-b.md says how to go on.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from anonymizer import Crosswalk, FolderRecords, Keyring, Vault, read_key_file
from anonymizer.errors import AnonymizerError, ReferenceMismatch
from anonymizer.part10 import decode_text

PATIENT_ID = 0x00100020


def crosswalks(vault: Vault) -> Iterator[Crosswalk]:
    """Every crosswalk in ``vault``."""
    for study in vault.records.studies():
        for name in vault.names(study):
            if name.startswith("crosswalk"):
                yield Crosswalk.from_bytes(vault.open(study, name))


def mappings(found: Iterable[Crosswalk]) -> tuple[dict[str, str], dict[str, str]]:
    """Original PatientID to pseudonym, and original UID to pseudonymous UID.

    Raises
    ------
    ReferenceMismatch
        One identifier has two pseudonyms: the crosswalks were made with different keys.
    """
    patients: dict[str, str] = {}
    uids: dict[str, str] = {}
    for crosswalk in found:
        for element in crosswalk.elements:
            if element.tag == PATIENT_ID and isinstance(element.value, bytes):
                patient_id = decode_text(element.value, b"", "LO").strip()
                _note(patients, patient_id, crosswalk.pseudonym)
        for original, pseudonymous in crosswalk.uids.items():
            _note(uids, original, pseudonymous)
    return patients, uids


def write_mapping(path: Path, mapping: Mapping[str, str]) -> None:
    """``mapping`` as CSV that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id_old", "id_new"))
        writer.writerows(sorted(mapping.items()))


def _note(mapping: dict[str, str], original: str, pseudonym: str) -> None:
    if mapping.setdefault(original, pseudonym) != pseudonym:
        raise ReferenceMismatch("One identifier has two pseudonyms in this vault")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if both files were written, 2 if not."""
    parser = argparse.ArgumentParser(description="Mapping files for the MIDI-B validator.")
    parser.add_argument("vault", type=Path, metavar="VAULT")
    parser.add_argument("key", type=Path, metavar="KEY_FILE")
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    try:
        keyring = Keyring(current="file", keys={"file": read_key_file(options.key)})
        patients, uids = mappings(crosswalks(Vault(FolderRecords(options.vault), keyring)))
    except AnonymizerError as error:
        print(f"{error}. {error.remedy}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_mapping(options.out / "patient_mapping.csv", patients)
    write_mapping(options.out / "uid_mapping.csv", uids)
    print(f"{len(patients)} patients, {len(uids)} UIDs")
    return 0 if patients and uids else 2


if __name__ == "__main__":
    sys.exit(main())
