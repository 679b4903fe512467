"""Small real programs as models: the right labels in the right place, or a cause in words."""

from __future__ import annotations

import io
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import JPEGLSLossless

from node.edges.artifacts import FolderArtifacts
from node.errors import EmptyResult, ModelFault, ProgramFailed, ProgramInterrupted
from node.foreign.model import CommandModel
from node.imaging.volume import volume_from_series
from node.pipeline.infer import infer
from node.process import process_folder
from node.sdk import CommandManifest, LabelMap, read_manifest
from node.settings import Settings
from tests import phantoms
from tests.packages.foreign_models import (
    READS_DICOM,
    READS_DICOM_WRITES_SEG,
    READS_NIFTI,
    load,
    write_model,
)
from tests.phantoms import chest_truth, ct_series

SHAPE = {"slices": 14, "rows": 40, "columns": 50, "spacing_mm": (8.0, 6.0, 5.5)}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "dicom to nifti": READS_DICOM,
    "dicom to seg": READS_DICOM_WRITES_SEG,
    "nifti to nifti": READS_NIFTI,
}
#: A program of the test's own; it may do what it likes.
OWN: Mapping[str, Any] = {
    "run": ["{python}", "{model}/program.py", "{input}", "{output}"],
    "reads": "nifti",
    "writes": "nifti",
    "output": "labels.nii.gz",
    "labels": {"1": 1, "2": 2},
    "time_limit_s": 120,
}
BEGIN = "import os, sys; source, target = sys.argv[1:]\n"


@pytest.fixture
def series() -> list[Dataset]:
    return ct_series(**SHAPE)


def segment(model: CommandModel, series: list[Dataset]) -> LabelMap:
    return model.segment(volume_from_series(series), instances=series[::-1])


def in_order_of(series: list[Dataset], found: LabelMap) -> np.ndarray:
    place = {uid: index for index, uid in enumerate(found.sop_instance_uids)}
    return found.array[[place[ds.SOPInstanceUID] for ds in series]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("position", ["HFS", "FFS", "HFP", "FFP", "HFDL", "CORONAL", "SAGITTAL"])
def test_labels_come_back_to_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: str, way: str
) -> None:
    """However the patient lies and the slices run, each voxel gets the program's label for it."""
    monkeypatch.setitem(phantoms.ORIENTATIONS, "CORONAL", (1, 0, 0, 0, 0, -1))  # type: ignore[attr-defined]
    monkeypatch.setitem(phantoms.ORIENTATIONS, "SAGITTAL", (0, 1, 0, 0, 0, -1))  # type: ignore[attr-defined]
    series = ct_series(**SHAPE, position=position)
    truth = chest_truth(series)
    assert set(np.unique(truth)) == {0, 1, 2}
    found = segment(load(write_model(tmp_path / "lungs", WAYS[way])), series)
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(in_order_of(series, found), truth)


def test_paths_with_blanks_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, series: list[Dataset]
) -> None:
    """No shell reads the command line: neither a model's folder nor a working folder breaks it."""
    work = tmp_path / "working $HOME 'folder'"
    work.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    models = tmp_path / 'models of; our "house"'
    for number, way in enumerate(WAYS.values()):
        found = segment(load(write_model(models / f"lungs{number}", way)), series)
        np.testing.assert_array_equal(in_order_of(series, found), chest_truth(series))
    assert list(work.iterdir()) == []


def test_compressed_instances_are_decompressed_for_the_program(
    tmp_path: Path, series: list[Dataset]
) -> None:
    """The program reads raw pixels; few programs have all decoders that we have."""
    truth = chest_truth(series)
    for ds in series:
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
    found = segment(load(write_model(tmp_path / "lungs", READS_DICOM)), series)
    np.testing.assert_array_equal(in_order_of(series, found), truth)


def test_a_coarser_grid_is_taken_where_the_manifest_allows_it(
    tmp_path: Path, series: list[Dataset]
) -> None:
    """A program that works at its own spacing: nearest label, or a refusal."""
    run = [*READS_NIFTI["run"][:2], "--coarse", *READS_NIFTI["run"][2:]]
    coarse = {**READS_NIFTI, "run": run}
    with pytest.raises(ProgramFailed, match="another grid"):
        segment(load(write_model(tmp_path / "lungs", coarse)), series)
    model = load(write_model(tmp_path / "lungs2", {**coarse, "other_grid": "resample"}))
    found, truth = in_order_of(series, segment(model, series)), chest_truth(series)
    for number in (1, 2):
        one, other = found == number, truth == number
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.7
    assert not ((found == 1) & (truth == 2)).any()


def put(artifacts: FolderArtifacts, series: list[Dataset]) -> None:
    for number, ds in enumerate(series, start=1):
        buffer = io.BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        artifacts.put(f"job/instances/{number:06d}.dcm", buffer.getvalue())


@pytest.mark.parametrize("way", WAYS)
def test_the_infer_step_runs_it(tmp_path: Path, series: list[Dataset], way: str) -> None:
    """The same artifacts as from a network of ours, progress that ends at 1."""
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    put(artifacts, series[::-1])
    shares: list[float] = []
    infer(artifacts, "job", load(write_model(tmp_path / "lungs", WAYS[way])), shares.append)
    stored = np.load(io.BytesIO(artifacts.get("job/label_map.npz")), allow_pickle=False)
    np.testing.assert_array_equal(stored["labels"], chest_truth(series))
    assert stored["sop_instance_uids"].tolist() == [ds.SOPInstanceUID for ds in series]
    assert artifacts.get("job/measurements.json")
    assert shares[-1] == 1
    assert set(shares[:-1]) == {0}


def test_a_folder_of_dicom_becomes_a_segmentation(tmp_path: Path) -> None:
    """`segnode process --model` with a program: SEG of the patient, on the right slices."""
    series = ct_series(**SHAPE, position="FFS")
    folder = tmp_path / "series"
    folder.mkdir()
    for number, ds in enumerate(series):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    write_model(tmp_path / "models" / "lungs", READS_DICOM_WRITES_SEG)
    settings = Settings(models_dir=tmp_path / "models", var_dir=tmp_path / "var")
    written = process_folder(settings, folder, "lungs", tmp_path / "out", lambda *_: None)
    assert [one.ok for one in written] == [True], written
    seg = dcmread(next(path for path in written[0].files if path.suffix == ".dcm"))
    assert seg.PatientID == series[0].PatientID
    truth = dict(zip([ds.SOPInstanceUID for ds in series], chest_truth(series), strict=True))
    shown = 0
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(frame, truth[source.ReferencedSOPInstanceUID] == number)
        shown += int(frame.sum())
    assert shown == sum(int((plane > 0).sum()) for plane in truth.values())


# -- what goes wrong ---------------------------------------------------------------------------


def run_own(tmp_path: Path, series: list[Dataset], code: str, **command: Any) -> LabelMap:
    folder = write_model(tmp_path / "own", {**OWN, **command}, program=BEGIN + code)
    return segment(load(folder), series)


def test_a_failure_is_told_with_the_last_words(tmp_path: Path, series: list[Dataset]) -> None:
    """The cause is what the program said, without what looks like an identifier."""
    with pytest.raises(ProgramFailed, match=r"exit status 3; it wrote: no GPU for \[uid\], #$"):
        run_own(tmp_path, series, "print('no GPU for 1.2.840.10008.5.1, 20240131'); sys.exit(3)")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit(75)", "exit status 75"),
        ("os.kill(os.getpid(), 9)", "exit status 137"),
    ],
)
def test_what_may_pass_is_tried_again(
    tmp_path: Path, series: list[Dataset], code: str, message: str
) -> None:
    """EX_TEMPFAIL and the kernel's killer are no verdict on the series: the node retries."""
    for sandbox in (True, False):
        with pytest.raises(ProgramInterrupted, match=message):
            run_own(tmp_path / str(sandbox), series, code, sandbox=sandbox)


def test_a_crash_is_not_tried_again(tmp_path: Path, series: list[Dataset]) -> None:
    """It would crash on the same series five times."""
    for sandbox in (True, False):
        with pytest.raises(ProgramFailed, match="exit status 139"):
            run_own(tmp_path / str(sandbox), series, "os.kill(os.getpid(), 11)", sandbox=sandbox)


@pytest.mark.parametrize("sandbox", [True, False])
def test_time_and_memory_have_limits(tmp_path: Path, series: list[Dataset], sandbox: bool) -> None:
    """In the sandbox and without."""
    with pytest.raises(ProgramFailed, match="more than its 2 s"):
        run_own(tmp_path / "time", series, "import time; time.sleep(600)",
                time_limit_s=2, sandbox=sandbox)  # fmt: skip
    with pytest.raises(ProgramFailed, match="more than its 300 MiB"):
        run_own(tmp_path / "memory", series,
                "import time; held = bytearray(b'x') * (500 << 20); time.sleep(600)",
                memory_limit_mib=300, sandbox=sandbox)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "wrote 0 files"),
        ("open(f'{target}/labels.nii.gz', 'w').write('garbage')", "cannot be read as NIfTI"),
        ("os.symlink('/etc/passwd', f'{target}/labels.nii.gz')", "a link out of its folder"),
        ("os.mkdir(f'{target}/labels.nii.gz')", "wrote 0 files"),
    ],
)
def test_what_cannot_be_labels_is_refused(
    tmp_path: Path, series: list[Dataset], code: str, message: str
) -> None:
    """Nothing, garbage, and a link to what the program may not read."""
    with pytest.raises(ProgramFailed, match=message):
        run_own(tmp_path, series, code)


def test_several_results_are_refused(tmp_path: Path, series: list[Dataset]) -> None:
    """Which of two files holds the labels is for the manifest to say."""
    with pytest.raises(ProgramFailed, match=r"wrote 2 files \*\.nii; one is expected"):
        run_own(tmp_path, series, "[open(f'{target}/{n}.nii', 'w') for n in 'ab']", output="*.nii")


def test_no_labels_are_an_empty_result(tmp_path: Path) -> None:
    """A program that finds nothing has not failed."""
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    put(artifacts, ct_series(**SHAPE, center_mm=(0, 0, 400)))
    with pytest.raises(EmptyResult, match="found none of: Left lung, Right lung"):
        infer(artifacts, "job", load(write_model(tmp_path / "lungs", READS_NIFTI)), lambda _: None)


WRITE_ENVIRONMENT = "print(' '.join(sorted(os.environ))); sys.exit(1)"


def test_the_worker_keeps_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, series: list[Dataset]
) -> None:
    """Only what the manifest names is passed on; home and temporary folder are of this run."""
    monkeypatch.setenv("SEGNODE_COMPUTE_BROKER_URL", "redis://:secret@127.0.0.1/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ProgramFailed) as failure:
        run_own(
            tmp_path, series, WRITE_ENVIRONMENT,
            environment={"WEIGHTS": "{model}/weights"}, pass_environment=["CUDA_VISIBLE_DEVICES"],
        )  # fmt: skip
    names = set(str(failure.value).partition("it wrote: ")[2].split())
    allowed = {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "PWD",
               "OMP_NUM_THREADS", "SEGNODE_RUN", "WEIGHTS", "CUDA_VISIBLE_DEVICES"}  # fmt: skip
    assert names - allowed == set()
    assert {"HOME", "WEIGHTS", "CUDA_VISIBLE_DEVICES"} <= names


def test_the_sandbox_has_no_network_and_no_other_files(
    tmp_path: Path, series: list[Dataset]
) -> None:
    """Without it the program reaches a server and a file of the worker: the test can fail."""
    secret = tmp_path / "secrets" / "vault_key"
    secret.parent.mkdir()
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import socket\n"
            "def reached(what):\n"
            "    try: what(); return 'reached'\n"
            "    except OSError: return 'not reached'\n"
            f"print('server', reached(lambda: socket.create_connection("
            f"('127.0.0.1', {server.getsockname()[1]}), 5)))\n"
            f"print('file', reached(lambda: open({str(secret)!r})))\n"
            "print('model', reached(lambda: open(__file__, 'a')))\n"
            "print('input', reached(lambda: open(f'{source}/series.nii.gz')))\n"
            "sys.exit(1)"
        )
        with pytest.raises(ProgramFailed, match=(
            r"server not reached \| file not reached \| model not reached \| input reached"
        )):  # fmt: skip
            run_own(tmp_path / "closed", series, code)
        with pytest.raises(ProgramFailed, match=(
            r"server reached \| file reached \| model reached \| input reached"
        )):  # fmt: skip
            run_own(tmp_path / "open", series, code, sandbox=False)


def test_what_is_no_child_of_the_program_is_stopped_by_name(
    tmp_path: Path, series: list[Dataset]
) -> None:
    """As a container under an engine: after a failure `stop` runs with the name of the run."""
    note = tmp_path / "stopped"
    stop = ["sh", "-c", f"echo \"$0\" > '{note}'", "{run}"]
    with pytest.raises(ProgramFailed, match="exit status 1; it wrote: segnode-"):
        run_own(tmp_path, series, "print(os.environ['SEGNODE_RUN']); sys.exit(1)", stop=stop)
    assert note.read_text().startswith("segnode-")


# -- what is found before a patient waits --------------------------------------------------------


def test_an_altered_program_is_not_run(tmp_path: Path) -> None:
    """The manifest, and with it the digest of every job, vouches for the program."""
    folder = write_model(tmp_path / "lungs", READS_DICOM)
    load(folder)
    with (folder / "lungs_of_dicom.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ModelFault, match=r"SHA-256 of \{model\}/lungs_of_dicom.py is not"):
        load(folder)


def test_everything_that_is_missing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person installs once, not three times."""
    command = {**OWN, "run": ["no-such-program", "{input}", "{output}"], "readable": ["/no/where"]}
    folder = write_model(tmp_path / "own", command)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelFault) as failure:
        load(folder)
    for phrase in ("no program no-such-program", "bwrap", "/no/where is not there"):
        assert phrase in str(failure.value)


def test_the_hash_of_a_folder_is_that_of_its_listing(tmp_path: Path) -> None:
    """Anybody can make it with sha256sum; a moved or renamed file changes it."""
    from node.foreign.check import sha256_of

    folder = tmp_path / "weights"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "a b.pth").write_bytes(b"1")
    (folder / "Plans.json").write_bytes(b"{}")
    by_shell = os.popen(  # noqa: S605
        f"cd '{folder}' && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum "
        "| sha256sum"
    ).read()
    assert sha256_of(folder) == by_shell.split()[0]
    shutil.move(folder / "Plans.json", folder / "fold_0" / "Plans.json")
    assert sha256_of(folder) != by_shell.split()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": ["prog", "{input}"]}, r"no argument holds \{output\}"),
        ({"run": ["prog", "{input}", "{output}", "{gpu}"]}, r"no placeholder \{gpu\}"),
        ({"labels": {"1": 1}}, "no value means segment 2"),
        ({"labels": {"1": 1, "2": 2, "3": 3}}, "no segment is numbered 3"),
        ({"environment": {"SEGNODE_CONFIG": "x"}}, "SEGNODE_CONFIG"),
        ({"pass_environment": ["A B"]}, "pass_environment"),
        ({"reads": "png"}, "command.reads"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"input_name": "../series.nii"}, "input_name"),
        ({"shell": True}, "command.shell: Extra"),
    ],
)
def test_a_wrong_command_is_told_with_its_field(
    tmp_path: Path, change: Mapping[str, Any], message: str
) -> None:
    """As with every field of a manifest, the start stops and names it."""
    folder = write_model(tmp_path / "own", {**READS_NIFTI, **change})
    with pytest.raises(ModelFault, match=message):
        read_manifest(folder)


def test_a_program_without_a_hash_is_no_model(tmp_path: Path) -> None:
    """What lies in the model's folder is part of the model."""
    folder = write_model(tmp_path / "lungs", READS_DICOM)
    text = (folder / "model.toml").read_text()
    start = text.index("files = ")
    (folder / "model.toml").write_text(text[:start] + text[text.index("\n", start) :])
    with pytest.raises(ModelFault, match=r"SHA-256 of .*lungs_of_dicom\.py is missing"):
        read_manifest(folder)


def test_another_command_line_is_another_model(tmp_path: Path) -> None:
    """The digest, part of a job's key, follows every word of the manifest."""
    one = read_manifest(write_model(tmp_path / "a" / "lungs", READS_NIFTI))
    same = read_manifest(write_model(tmp_path / "b" / "lungs", READS_NIFTI))
    other = read_manifest(
        write_model(tmp_path / "c" / "lungs", {**READS_NIFTI, "other_grid": "resample"})
    )
    assert isinstance(one, CommandManifest)
    assert one.digest == same.digest != other.digest
