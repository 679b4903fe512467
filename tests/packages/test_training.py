"""`segnode train`: what a run leaves, a kill in the middle of an epoch, and who judges whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from node.errors import ModelFault, UnsuitableInput
from node.sdk import Volume
from node.training.examples import Example
from node.training.measure_model import roles_in
from node.training.names import NAMES_FILE
from node.training.recipe import Case, digest_of, load_recipe
from node.training.split import split_by_patient

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parent / "trainable" / "tiny"
CASES = [
    (f"Quirin{patient}", f"Doe{patient}-{series}") for patient in range(5) for series in (1, 2)
]
SAMPLES_PER_EPOCH = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases of five patients."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cases.txt").write_text("\n".join(" ".join(case) for case in CASES))
    for _, name in CASES:
        (folder / name).write_text(f"what {name} shows")
    return folder


def train(
    data: Path, out: Path, *options: str, kill_after_draws: int = 0
) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own, on one thread."""
    command = [sys.executable, "-m", "node.cli", "train", str(TINY)]
    command += ["--data", str(data), "--out", str(out), "--accelerator", "cpu", *options]
    environment = {**os.environ, "KILL_AFTER_DRAWS": str(kill_after_draws), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    done = train(data, out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_leaves_weights_a_record_and_a_report(finished: Path) -> None:
    """The record holds what makes the run again, the report every held-out case."""
    record = json.loads((finished / "training.json").read_text())
    assert record["seed"] == 20261121
    assert record["settings"]["samples_per_epoch"] == SAMPLES_PER_EPOCH
    assert record["command"].startswith("segnode train ")
    assert "torch" in record["versions"]
    assert [entry["epoch"] for entry in record["history"]] == [1, 2, 3, 4]
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]
    assert all(len(case["sha256"]) == 64 for case in record["training"] + record["validation"])
    assert record["validation_dice"] == max(
        round(entry["validation_dice"], 4) for entry in record["history"]
    )
    assert record["validation_dice"] > 0.9
    report = (finished / "report.md").read_text()
    held_out = [case["case"] for case in record["validation"]]
    assert held_out
    assert all(name in report for name in held_out)
    for picture in ("curves.png", "worst_1.png"):
        assert (finished / "pictures" / picture).read_bytes().startswith(b"\x89PNG")


def test_nothing_to_publish_names_a_patient_or_a_folder(data: Path, finished: Path) -> None:
    """Record, plan and report have numbers; who has the data finds the case by them."""
    private = {word for case in CASES for word in case} | {data.name, str(data), str(finished)}
    written = [path for path in finished.rglob("*") if path.suffix in (".json", ".md")]
    assert {"training.json", "plan.json", "report.md"} <= {path.name for path in written}
    names = finished / NAMES_FILE
    for path in written:
        text = path.read_text()
        assert path == names or not [word for word in private if word in text], path.name
    assert names.stat().st_mode & 0o077 == 0
    record = json.loads((finished / "training.json").read_text())
    behind = json.loads(names.read_text())
    assert sorted((one["patient"], one["case"]) for one in behind.values()) == sorted(CASES)
    for case in record["training"] + record["validation"]:
        assert case["sha256"] == digest_of([data / behind[case["case"]]["case"]])
    assert record["command"] == "segnode train tiny --data DATA --out RUN --accelerator cpu"


def test_a_record_tells_what_a_case_was_by_its_digest(data: Path, finished: Path) -> None:
    """By no name: the same files under another name are the same case."""
    role_of = roles_in(finished / "training.json")
    record = json.loads((finished / "training.json").read_text())
    for role in ("training", "validation"):
        for case in record[role]:
            assert role_of(example("renamed", "somebody", case["sha256"])) == role
    assert role_of(example("case 1", "patient 1", digest_of([data / "cases.txt"]))) == "test"
    with pytest.raises(UnsuitableInput, match="have no digest"):
        role_of(example("case 1", "patient 1", ""))
    assert roles_in(data / "none.json")(example("case 1", "patient 1", "")) == "test"


def test_records_of_the_shipped_models_still_tell_by_patient() -> None:
    """Public data, named before cases had numbers."""
    for folder in (ROOT / "models" / "ct_lungs", ROOT / "models" / "cxr_lungs"):
        role_of = roles_in(folder / "training.json")
        case = json.loads((folder / "training.json").read_text())["training"][0]
        assert role_of(example("another series", case["patient"], "")) == "training"
        assert role_of(example("renamed", "renamed", case["sha256"])) == "training"
        assert role_of(example("renamed", "renamed", "")) == "test"


def example(name: str, patient: str, digest: str) -> Example:
    """A labelled image of which only this matters."""
    volume = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4), (1.0, 1.0, 1.0), ("1", "2"))
    return Example(name, patient, volume, np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0), "",
                   digest=digest)  # fmt: skip


def test_no_patient_is_on_both_sides(finished: Path) -> None:
    """Both series of a patient train, or both judge."""
    record = json.loads((finished / "training.json").read_text())
    training = {case["patient"] for case in record["training"]}
    validation = {case["patient"] for case in record["validation"]}
    assert len(training) == 4
    assert len(validation) == 1
    assert not training & validation
    assert len(record["training"]) + len(record["validation"]) == len(CASES)


@pytest.mark.parametrize("epochs_before", [0, 1, 3])
def test_killed_in_an_epoch_the_same_command_ends_with_the_same_bytes(
    data: Path, finished: Path, tmp_path: Path, epochs_before: int
) -> None:
    """SIGKILL in the middle of an epoch: the run goes on, and nobody could tell afterwards."""
    out = tmp_path / "run"
    draws = epochs_before * SAMPLES_PER_EPOCH + SAMPLES_PER_EPOCH // 2
    killed = train(data, out, kill_after_draws=draws)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "weights.safetensors").exists()
    assert (out / "checkpoints" / "last.ckpt").is_file() == (epochs_before > 0)

    assert train(data, out).returncode == 0
    one, other = (load_file(run / "weights.safetensors") for run in (finished, out))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    records = [json.loads((run / "training.json").read_text()) for run in (finished, out)]
    assert records[0]["history"] == records[1]["history"]
    assert records[0]["best_epoch"] == records[1]["best_epoch"]
    assert records[1]["resumed"] == (epochs_before > 0)


def test_another_seed_in_the_same_folder_is_refused(data: Path, finished: Path) -> None:
    """Two runs are never mixed; the finished one stays as it is."""
    before = (finished / "weights.safetensors").read_bytes()
    refused = train(data, finished, "--seed", "1")
    assert refused.returncode == 1
    assert "other settings, data or seed" in refused.stderr
    assert (finished / "weights.safetensors").read_bytes() == before


def test_two_processes_train_together(data: Path, tmp_path: Path) -> None:
    """DDP through Lightning: half of each batch in each process, one set of weights."""
    done = train(data, tmp_path / "run", "--devices", "2", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["devices"] == 2
    assert len(record["history"]) == 2
    assert load_file(tmp_path / "run" / "weights.safetensors")


def test_empty_data_and_unknown_presets_are_refused_in_words(tmp_path: Path) -> None:
    """Two lines, what is wrong and what to do, and no traceback."""
    (tmp_path / "cases.txt").write_text("")
    refused = train(tmp_path, tmp_path / "run")
    assert refused.returncode == 1
    assert "No labelled case" in refused.stderr
    assert "Traceback" not in refused.stderr
    refused = train(tmp_path, tmp_path / "run", "--preset", "fastest")
    assert "no preset fastest" in refused.stderr


def case(patient: str, name: str) -> Case:
    nothing = np.zeros((1, 4, 4))
    return Case(
        name, patient, nothing.astype(np.float32), nothing.astype(np.uint8), (1.0, 1.0, 1.0)
    )


def test_the_share_held_out_depends_on_patients_alone() -> None:
    """Not on their order, not on how many series each has."""
    cases = [case(f"patient{number}", f"a{number}") for number in range(20)]
    split = split_by_patient(cases, share=0.2)
    held_out = {one.patient for one in split.validation}
    assert len(held_out) == 4
    more = [*reversed(cases), *(replace(one, name="b") for one in cases[:7])]
    again = split_by_patient(more, share=0.2)
    assert {one.patient for one in again.validation} == held_out
    assert len(again.training) + len(again.validation) == 27


def test_patients_held_out_by_name_must_be_there() -> None:
    """A misspelt name would silently put the patient into training."""
    cases = [case("one", "a"), case("two", "b")]
    assert [c.patient for c in split_by_patient(cases, ["two"]).validation] == ["two"]
    with pytest.raises(UnsuitableInput, match="not in the data"):
        split_by_patient(cases, ["tow"])
    with pytest.raises(UnsuitableInput, match="cannot be split"):
        split_by_patient(cases[:1])


def test_a_recipe_that_lacks_a_name_is_a_fault_of_the_model(tmp_path: Path) -> None:
    """Which name, before any data are read."""
    (tmp_path / "training.py").write_text("PRESETS = {}\n")
    with pytest.raises(ModelFault, match="lacks read_cases, draw, inputs"):
        load_recipe(tmp_path)
    (tmp_path / "training.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ModelFault, match="does not import"):
        load_recipe(tmp_path)
