"""`segnode keys`: list, rotate, destroy, new epochs, on a real vault through the real command."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anonymizer import Crosswalk, PseudonymKeys, basic_policy
from anonymizer.errors import StudyDestroyed
from anonymizer.keys import NumberedKeys, create_key_file
from anonymizer.sealed_crosswalk import Sealed, seal_crosswalk
from anonymizer.series import Deidentifier
from node.doctor import examine
from node.edges.artifacts import FolderArtifacts
from node.errors import IdentityUnsafe, NodeError, NotPossible, OutOfSpace, Rejected
from node.findings import Finding
from node.jobs import Job
from node.pipeline.deidentify import deidentify
from node.pipeline.identity_errors import as_node_errors
from node.pipeline.reidentify import original_study_instance_uid
from node.settings import BadSettings, Settings
from node.vault_keys import (
    destroy,
    key_uses,
    make_first_keys,
    new_epoch,
    rotate,
    studies_of,
)
from node.wiring import Hospital
from tests.identified_ct import ACCESSION, PATIENT_ID, ROOT, STUDY, ct_bytes
from tests.ledger_case import claimed

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """A node that was never started, with its first keys."""
    made = Hospital(Settings(var_dir=tmp_path / "var"))
    make_first_keys(made)
    return made


def again(hospital: Hospital) -> Hospital:
    """The same node, started anew."""
    return Hospital(hospital.settings)


def sealed_study(hospital: Hospital, number: int = 0) -> Sealed:
    """One of many studies of the made-up patient, sealed as the pipeline does."""
    keys = hospital.pseudonym_keys
    data = ct_bytes(1, StudyInstanceUID=STUDY if not number else f"{ROOT}.5.{number}")
    crosswalk = Crosswalk.collect([Deidentifier(basic_policy(), keys).deidentify(data).original])
    return seal_crosswalk(hospital.vault, crosswalk, epoch=keys.epoch)


def many_studies(hospital: Hospital, count: int) -> list[str]:
    """Studies with a small record each."""
    studies = [f"2.25.{1000 + number}" for number in range(count)]
    for study in studies:
        hospital.vault.seal(study, "record", study.encode())
    return studies


def silent(_number: int, _of: int) -> None:
    """No progress bar."""


@pytest.fixture
def segnode(hospital: Hospital, tmp_path: Path) -> Iterator[list[str]]:
    """The command line of `segnode keys` for this node."""
    configuration = tmp_path / "segnode.toml"
    configuration.write_text(f'var_dir = "{hospital.settings.var_dir}"\n')
    before = os.environ.get("SEGNODE_CONFIG")
    os.environ["SEGNODE_CONFIG"] = str(configuration)
    yield [sys.executable, "-m", "node.cli", "keys"]
    os.environ.pop("SEGNODE_CONFIG")
    if before is not None:
        os.environ["SEGNODE_CONFIG"] = before


def run(command: list[str], said: str = "") -> tuple[int, str]:
    """Exit status and everything printed."""
    done = subprocess.run(
        command, cwd=REPOSITORY, input=said, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


# ---------------------------------------------------------------- key files


def test_keys_are_numbered_files_and_the_last_is_current(tmp_path: Path) -> None:
    """Ten comes after nine; other files, and halves of a crash, are no keys."""
    keys = NumberedKeys(tmp_path, "vault_key")
    for number in (1, 2, 9, 10):
        assert keys.create(number) == ("vault_key" if number == 1 else f"vault_key.{number}")
    for other in ("vault_key.1", "vault_key.02", "vault_key.x", "vault_keys", ".vault_key.3"):
        (tmp_path / other).write_text("x")
    assert keys.names() == ["vault_key", "vault_key.2", "vault_key.9", "vault_key.10"]
    assert keys.current == "vault_key.10"
    assert len({keys.key(name) for name in keys.names()}) == 4
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in keys.names())
    with pytest.raises(FileExistsError):
        keys.create(9)


def test_keys_come_from_the_environment_too(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of its own beside the files; the same number must have the same value."""
    sealed = sealed_study(hospital)
    monkeypatch.setenv("SEGNODE_VAULT_KEY_2", "ab" * 32)
    hospital = again(hospital)
    assert [(use.name, use.place, use.current) for use in key_uses(hospital)] == [
        ("vault_key", "file", False),
        ("vault_key.2", "environment", True),
    ]
    done = rotate(hospital, silent)
    assert (done.name, done.made, done.problems) == ("vault_key.2", False, ())
    (hospital.secret_path("vault_key")).unlink()
    assert again(hospital).vault.open(sealed.study, sealed.record)
    create_key_file(hospital.secret_path("vault_key.2"))
    with pytest.raises(NodeError, match="given twice"):
        studies_of(hospital, STUDY, "study")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_use_is_refused(hospital: Hospital, mode: int) -> None:
    """By everything that needs it, naming the file and the command."""
    hospital.secret_path("vault_key").chmod(mode)
    with pytest.raises(BadSettings, match="vault_key") as caught:
        _ = hospital.pseudonym_keys
    assert "chmod 600" in caught.value.remedy
    [use] = key_uses(hospital)
    assert "mode" in use.problem


def test_the_first_start_makes_keys_and_a_later_one_never_does(hospital: Hospital) -> None:
    """A key that is lost is asked for; a new one would hide that nothing opens any more."""
    names = {path.name for path in hospital.secret_path("vault_key").parent.iterdir()}
    assert names == {"vault_key", "pseudonym_key"}
    make_first_keys(hospital)
    _ = hospital.pseudonym_keys
    for name in sorted(names):
        path = hospital.secret_path(name)
        kept = path.rename(path.with_name(f"kept-{name}"))
        with pytest.raises(BadSettings, match=f"{name} is missing"):
            make_first_keys(again(hospital))
        assert not path.exists()
        kept.rename(path)
    assert again(hospital).pseudonym_keys == hospital.pseudonym_keys


def test_a_changed_pseudonym_key_stops_the_start(hospital: Hospital) -> None:
    """With what would break, and the way to change it on purpose."""
    _ = hospital.pseudonym_keys
    path = hospital.secret_path("pseudonym_key")
    path.unlink()
    create_key_file(path)
    with pytest.raises(BadSettings, match="other pseudonyms") as caught:
        _ = again(hospital).pseudonym_keys
    assert "segnode keys new-epoch" in caught.value.remedy


def test_a_new_epoch_begins_at_the_next_start(hospital: Hospital) -> None:
    """Once asked for it waits; begun, the old key alone is not enough, and the old study opens."""
    old = sealed_study(hospital)
    assert new_epoch(hospital) == 2
    with pytest.raises(NotPossible, match="has not begun"):
        new_epoch(hospital)
    started = again(hospital)
    assert started.pseudonym_keys.epoch == 2
    new = sealed_study(started)
    assert new.study != old.study
    assert started.vault.open(old.study, old.record)
    assert set(studies_of(started, STUDY, "study")) == {old.study, new.study}
    hospital.secret_path("pseudonym_key.2").unlink()
    with pytest.raises(BadSettings, match="Epoch 2"):
        _ = again(hospital).pseudonym_keys


# ---------------------------------------------------------------- rotate


def test_rotating_makes_a_key_and_rewraps_every_study(hospital: Hospital) -> None:
    """Records stay the same bytes; the old key may go; what opens needs the new one only."""
    sealed = sealed_study(hospital)
    studies = many_studies(hospital, 5)
    records = {study: hospital.vault.records.read(study, "record") for study in studies}
    seen: list[tuple[int, int]] = []
    done = rotate(hospital, lambda number, of: seen.append((number, of)))
    assert (done.name, done.made, done.problems) == ("vault_key.2", True, ())
    assert done.rewrapped == 7  # five, the patient's, and the vault's own
    assert seen == [(number, 7) for number in range(1, 8)]
    hospital.secret_path("vault_key").unlink()
    assert [(use.name, use.data_keys) for use in key_uses(hospital)] == [("vault_key.2", 7)]
    fresh = again(hospital)
    assert fresh.pseudonym_keys == hospital.pseudonym_keys
    assert studies_of(fresh, PATIENT_ID, "patient") == [sealed.study]
    for study in studies:
        assert fresh.vault.open(study, "record") == study.encode()
        assert fresh.vault.records.read(study, "record") == records[study]


def test_a_running_node_reads_and_seals_during_a_rotation(hospital: Hospital) -> None:
    """Its vault was made before the key was; nothing has to start again."""
    running = again(hospital)
    studies = many_studies(hospital, 12)
    assert running.vault.open(studies[0], "record")
    late: list[str] = []

    def work(number: int, _of: int) -> None:
        assert running.vault.open(studies[number % 12], "record")
        late.append(f"2.25.{5000 + number}")
        running.vault.seal(late[-1], "record", b"late")

    done = rotate(hospital, work)
    assert done.problems == ()
    assert len(late) == 12
    assert {running.vault.sealed_with(study) for study in studies + late} == {done.name}


def test_a_killed_rotation_goes_on_where_it_was(hospital: Hospital, segnode: list[str]) -> None:
    """SIGKILL in the middle; every study opens at once; the next run makes no third key."""
    studies = many_studies(hospital, 120)
    keys = [hospital.vault.records.read(study, "key") for study in studies]
    with subprocess.Popen([*segnode, "rotate"], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as one:
        while hospital.vault.records.read(studies[8], "key") == keys[8]:
            assert one.poll() is None, "the rotation ended by itself"
            time.sleep(0.001)
        one.send_signal(signal.SIGKILL)
    wrapped = [hospital.vault.sealed_with(study) for study in studies]
    assert set(wrapped) == {"vault_key", "vault_key.2"}
    for study in studies:
        assert again(hospital).vault.open(study, "record") == study.encode()
    status, said = run([*segnode, "rotate"])
    assert status == 0, said
    assert f"{wrapped.count('vault_key')} data keys" in said
    assert "is new" not in said
    assert hospital.vault_keys.names() == ["vault_key", "vault_key.2"]
    assert {hospital.vault.sealed_with(study) for study in studies} == {"vault_key.2"}


def test_a_damaged_study_does_not_stop_a_rotation(hospital: Hospital) -> None:
    """It is told, the others are re-wrapped, and nothing of it is overwritten."""
    studies = many_studies(hospital, 4)
    hospital.vault.records.write(studies[1], "key", b"SNK2 damaged")
    hospital.vault_keys.create(2)
    done = rotate(hospital, silent)
    assert (done.made, done.rewrapped) == (False, 3)
    assert len(done.problems) == 1
    assert "1 data keys: The key record" in done.problems[0]
    assert hospital.vault.records.read(studies[1], "key") == b"SNK2 damaged"
    assert [(use.name, use.data_keys) for use in key_uses(hospital)][-1] == ("?", 1)


def test_list_shows_what_is_current_used_and_missing(
    hospital: Hospital, segnode: list[str]
) -> None:
    """As a table; a key that studies need and that is not here is an error."""
    many_studies(hospital, 3)
    rotate(hospital, silent)
    many_studies(again(hospital), 4)
    status, said = run([*segnode, "list"])
    assert status == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines() if "vault_key" in line]
    assert [row[:3] for row in rows] == [["vault_key", "file", "0"], ["vault_key.2", "file", "4"]]
    assert "current" in rows[1][3]
    hospital.secret_path("vault_key.2").unlink()
    status, said = run([*segnode, "list"])
    assert status == 1
    assert "4 data keys do not open without it" in said


# ---------------------------------------------------------------- destroy


@pytest.mark.parametrize(
    ("wanted", "by"),
    [(STUDY, "study"), (PATIENT_ID, "patient"), (ACCESSION, "accession"), ("pseudonym", "study")],
)
def test_destroy_takes_original_and_pseudonymous_identifiers(
    hospital: Hospital, segnode: list[str], wanted: str, by: str
) -> None:
    """The study is gone, others stay; the original is never repeated."""
    sealed = sealed_study(hospital)
    [other] = many_studies(hospital, 1)
    wanted = sealed.study if wanted == "pseudonym" else wanted
    status, said = run([*segnode, "destroy", wanted, "--by", by, "--yes"])
    assert status == 0, said
    assert sealed.study in said
    assert wanted == sealed.study or wanted not in said
    with pytest.raises(StudyDestroyed):
        hospital.vault.open(sealed.study, sealed.record)
    assert hospital.vault.records.names(sealed.study) == ["destroyed"]
    assert hospital.vault.open(other, "record")


def test_destroy_asks_first_and_takes_the_identifier_from_a_prompt(
    hospital: Hospital, segnode: list[str]
) -> None:
    """No is no; with `-` nothing of it stands in the list of processes or the shell's history."""
    sealed = sealed_study(hospital)
    status, said = run([*segnode, "destroy", STUDY], said="n\n")
    assert status == 1
    assert "For good?" in said
    assert hospital.vault.open(sealed.study, sealed.record)
    status, said = run([*segnode, "destroy", "-", "--yes"], said=f"{STUDY}\n")
    assert status == 0, said
    assert STUDY not in said
    assert hospital.vault.destroyed(sealed.study)


@pytest.mark.parametrize("wanted", ["1.2.3.99", "MRN-unknown", "0", ""])
def test_an_unknown_study_is_refused_without_repeating_it(
    hospital: Hospital, segnode: list[str], wanted: str
) -> None:
    """What was typed may be a patient's; the remedy says what can be given."""
    sealed_study(hospital)
    status, said = run([*segnode, "destroy", wanted, "--yes"])
    assert status == 1
    assert "knows no study" in said
    assert not wanted or wanted not in said.replace("StudyInstanceUID", "")
    assert "job" in said


def test_destroy_takes_a_job(hospital: Hospital) -> None:
    """By the id that `segnode jobs` shows, or its beginning."""
    sealed = sealed_study(hospital)
    job = hospital.ledger.open_jobs("series", "study", ("instance",))
    assert job is not None
    hospital.ledger.finish(claimed(hospital.ledger, job), {"study": sealed.study})
    assert studies_of(hospital, job.id[:8], "study") == [sealed.study]


class Received:
    """One instance as Orthanc would hand it out."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def fetch(self, instance_ids: object) -> Iterator[tuple[str, bytes]]:
        """The instance."""
        yield "1", self.data


def test_steps_of_a_destroyed_study_are_rejected_and_say_why(
    hospital: Hospital, tmp_path: Path
) -> None:
    """Re-identification, delivery, and the study sent once more: never retried, never begun."""
    artifacts = FolderArtifacts(tmp_path / "artifacts")

    def step(job: Job) -> dict[str, object]:
        done = deidentify(
            job,
            instances=Received(ct_bytes(1)),  # type: ignore[arg-type]
            artifacts=artifacts,
            vault=hospital.vault,
            policy=basic_policy(),
            keys=hospital.pseudonym_keys,
            review_key=bytes(32),
        )
        return dict(done.facts)

    job = Job(id="j", series_id="s", study_id="t", instance_ids=("1",))
    facts = step(job)
    assert facts["epoch"] == 1
    later = Job(id="j", series_id="s", study_id="t", instance_ids=("1",), facts=facts)
    assert original_study_instance_uid(later, vault=hospital.vault) == STUDY
    destroy(hospital, studies_of(hospital, STUDY, "study"))
    for act in (
        lambda: original_study_instance_uid(later, vault=hospital.vault),
        lambda: step(job),
    ):
        with pytest.raises(Rejected, match="was destroyed on") as caught:
            act()
        assert "docs/security.md" in caught.value.remedy


def test_a_wrong_vault_key_holds_the_job_for_a_person(hospital: Hospital) -> None:
    """Quarantined, not rejected: with the right key back, the retry succeeds."""
    sealed = sealed_study(hospital)
    facts = {"study": sealed.study, "crosswalk": sealed.record}
    job = Job(id="j", series_id="s", study_id="t", instance_ids=("1",), facts=facts)
    path = hospital.secret_path("vault_key")
    right = path.rename(path.with_name("right"))
    create_key_file(path)
    with pytest.raises(IdentityUnsafe, match="'vault_key' is not the one") as caught:
        original_study_instance_uid(job, vault=hospital.vault)
    assert "original key back" in caught.value.remedy
    path.unlink()
    with pytest.raises(IdentityUnsafe, match="'vault_key' is not here"):
        original_study_instance_uid(job, vault=hospital.vault)
    right.rename(path)
    assert original_study_instance_uid(job, vault=hospital.vault) == STUDY


def test_a_full_disk_is_waited_for(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for a record is tried again later; what was sealed before stays whole."""
    sealed = sealed_study(hospital)
    before = hospital.vault.records.read(sealed.study, sealed.record)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the kernel's answer, not our code
    with pytest.raises(OutOfSpace), as_node_errors():
        hospital.vault.seal(sealed.study, sealed.record, b"more")
    assert hospital.vault.records.read(sealed.study, sealed.record) == before
    folder = hospital.settings.folder("vault") / sealed.study
    assert [path.name for path in folder.glob(".*")] == [".lock"]


# ---------------------------------------------------------------- doctor


def doctors_keys(hospital: Hospital) -> dict[str, Finding]:
    """What the doctor says of keys."""
    found = examine(again(hospital).settings)
    return {one.subject: one for one in found if "key" in one.subject}


def test_the_doctor_reports_the_keys(hospital: Hospital) -> None:
    """Good; readable by others; one that studies need and that is gone; a changed pseudonym key."""
    assert PseudonymKeys.from_secret(bytes(32)) != hospital.pseudonym_keys
    many_studies(hospital, 3)
    good = doctors_keys(hospital)
    assert {name: one.level for name, one in good.items()} == {
        "key vault_key": "good",
        "pseudonym key": "good",
    }
    assert "4 data keys" in good["key vault_key"].found

    path = hospital.secret_path("vault_key")
    path.chmod(0o644)
    assert doctors_keys(hospital)["key vault_key"].level == "wrong"
    path.chmod(0o600)

    rotate(hospital, silent)
    hospital.secret_path("vault_key.2").unlink()
    gone = doctors_keys(hospital)
    assert gone["key vault_key.2"].level == "wrong"
    assert "4 data keys do not open" in gone["key vault_key.2"].found
    assert gone["pseudonym key"].level == "wrong"
