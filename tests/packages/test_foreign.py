"""Small real programs as models: the right labels in the right place, or a cause in words."""

from __future__ import annotations

import io
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGLSLossless

from node.edges.artifacts import FolderArtifacts
from node.errors import (
    EmptyResult,
    ProgramFailed,
    ProgramInterrupted,
    UnsupportedTransferSyntax,
)
from node.foreign.model import CommandModel
from node.imaging.volume import volume_from_series
from node.pipeline.infer import infer
from node.pipeline.working_data import LABEL_MAP_FILE, MEASUREMENTS_FILE, label_map_folder
from node.process import process_folder
from node.sdk import LabelMap
from node.settings import Settings
from tests import phantoms
from tests.journey import part10
from tests.packages.foreign_models import (
    OWN,
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


@pytest.mark.parametrize("syntax", [JPEGLSLossless, DeflatedExplicitVRLittleEndian])
def test_compressed_instances_are_decompressed_for_the_program(
    tmp_path: Path, series: list[Dataset], syntax: UID
) -> None:
    """The program reads raw pixels; few programs have all decoders that we have."""
    truth = chest_truth(series)
    for ds in series:
        if syntax.is_encapsulated:
            ds.compress(syntax, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = syntax
    found = segment(load(write_model(tmp_path / "lungs", READS_DICOM)), series)
    np.testing.assert_array_equal(in_order_of(series, found), truth)


def test_what_cannot_be_decompressed_is_told(tmp_path: Path, series: list[Dataset]) -> None:
    """The cause names the syntax, and that a program that reads NIfTI could do."""
    model = load(write_model(tmp_path / "lungs", READS_DICOM))
    volume = volume_from_series(series)
    for ds in series:
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.53")  # retired; pydicom has none
    with pytest.raises(UnsupportedTransferSyntax, match="cannot be decompressed for a program"):
        model.segment(volume, instances=series)


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


def put(artifacts: FolderArtifacts, series: list[Dataset]) -> str:
    with artifacts.writing("job/instances") as bundle:
        for number, ds in enumerate(series, start=1):
            bundle.add(f"{number:06d}.dcm", part10(ds))
    return bundle.digest


@pytest.mark.parametrize("way", WAYS)
def test_the_infer_step_runs_it(tmp_path: Path, series: list[Dataset], way: str) -> None:
    """The same artifacts as from a network of ours, progress that ends at 1."""
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    instances = put(artifacts, series[::-1])
    shares: list[float] = []
    model = load(write_model(tmp_path / "lungs", WAYS[way]))
    digest = infer(artifacts, "job", instances, model, shares.append)
    made = artifacts.bundle(label_map_folder("job", instances), digest)
    stored = np.load(io.BytesIO(made.get(LABEL_MAP_FILE)), allow_pickle=False)
    np.testing.assert_array_equal(stored["labels"], chest_truth(series))
    assert stored["sop_instance_uids"].tolist() == [ds.SOPInstanceUID for ds in series]
    assert made.get(MEASUREMENTS_FILE)
    assert shares[-1] == 1
    assert set(shares[:-1]) == {0}


@pytest.mark.parametrize("position", ["FFS", "CORONAL"])
def test_a_folder_of_dicom_becomes_a_segmentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: str
) -> None:
    """`segnode process --model` with a program: SEG of the patient, on the right slices."""
    monkeypatch.setitem(phantoms.ORIENTATIONS, "CORONAL", (1, 0, 0, 0, 0, -1))  # type: ignore[attr-defined]
    series = ct_series(**SHAPE, position=position)
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
        run_own(tmp_path, series, "print('no GPU for 1.2.840.113619.2.55, 20240131'); sys.exit(3)")


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
    instances = put(artifacts, ct_series(**SHAPE, center_mm=(0, 0, 400)))
    model = load(write_model(tmp_path / "lungs", READS_NIFTI))
    with pytest.raises(EmptyResult, match="found none of: Left lung, Right lung"):
        infer(artifacts, "job", instances, model, lambda _: None)


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
