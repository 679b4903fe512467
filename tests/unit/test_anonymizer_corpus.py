"""Every file of other people's collections is de-identified, or refused by name; none slips by."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pydicom
import pytest

ROOT = Path(__file__).parents[2]
PYDICOM = Path(pydicom.__file__).parent / "data"
SHARED = ROOT.parent / "shared" / "data"
# As many as a test may take; the command judges all of them.
JUDGED = ("seg_sr_highdicom", "pydicom_data_odd", "head_ct_mr_sr_adit_1005")


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    """The command ``bench/deidentify_corpus.py`` as a module."""
    path = ROOT / "bench" / "deidentify_corpus.py"
    spec = importlib.util.spec_from_file_location("deidentify_corpus", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def counted(corpus: ModuleType, folders: list[Path], *, judge: bool) -> Counter[str]:
    found = list(corpus.outcomes(folders, judge=judge))
    bad = [(outcome.path.name, outcome.cause) for outcome in found if outcome.kind in corpus.BAD]
    assert bad == []
    return Counter(outcome.kind for outcome in found)


def test_pydicoms_own_files(corpus: ModuleType) -> None:
    """The files that pydicom's wheel carries: CT, MR, SR, DICOMDIRs, text, damaged files."""
    counts = counted(corpus, [PYDICOM], judge=False)
    assert counts["de-identified"] >= 10
    assert counts["refused"] >= 50


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_pydicoms_own_files_stay_as_valid_as_they_were(corpus: ModuleType) -> None:
    """dcmdump reads every output; dciodvfy reports no error that the input did not have."""
    assert counted(corpus, [PYDICOM], judge=True)["de-identified"] >= 10


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_shared_collection(corpus: ModuleType) -> None:
    """CT, MR, CR, DX, enhanced, SEG, SR, US, SC, whole slides of fifteen transfer syntaxes."""
    counts = counted(corpus, [SHARED], judge=False)
    assert counts["de-identified"] >= 150


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("name", JUDGED)
def test_the_shared_collection_stays_as_valid_as_it_was(corpus: ModuleType, name: str) -> None:
    """As above, judged by dcmdump and dciodvfy."""
    assert counted(corpus, [SHARED / name], judge=True)["de-identified"] > 0
