"""The compiled recipe against deid's own executor, wherever deid works.

``python bench/recipe_parity.py FOLDER`` does the same on a whole folder and prints the counts.
"""

from __future__ import annotations

import collections
import warnings
from pathlib import Path

import pytest

from bench.recipe_parity import CHANGED, NOT_READ, RECIPES, SAME, compare, written
from tests.identified_ct import ct_instance, ct_with_planted_identity, part10

SHARED = Path(__file__).parents[3] / "shared" / "data"
EVERY = 12  # of the shared files: what runs in some twenty seconds


def findings(paths: list[Path], recipe: Path) -> collections.Counter[str]:
    """How often each finding was made, and that every difference is one that is documented."""
    counts: collections.Counter[str] = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            for finding, tag in compare(path, recipe):
                assert finding, f"{path.name}: {tag:08X} differs from what deid does"
                counts[finding] += 1
    return counts


@pytest.mark.parametrize("name", RECIPES)
def test_synthetic_instances_come_out_as_from_deid(name: str, tmp_path: Path) -> None:
    """Every element that the recipe names, at every depth; some are changed, none differs."""
    recipe = written(RECIPES[name], tmp_path / "site.deid")
    full = ct_instance(
        StudyDescription="Thorax", SeriesDescription="thin", StationName="S1", PatientAge="097Y",
        InstitutionName="Overbrook", ImageComments="c", RequestedProcedureDescription="p",
        PatientAddress="a", OtherPatientIDs="X", AdditionalPatientHistory="h",
    )  # fmt: skip
    (tmp_path / "full.dcm").write_bytes(part10(full))
    (tmp_path / "planted.dcm").write_bytes(ct_with_planted_identity())
    counts = findings([tmp_path / "full.dcm", tmp_path / "planted.dcm"], recipe)
    assert counts[CHANGED] >= 3
    assert not any(finding.startswith("file") for finding in counts)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", RECIPES)
def test_real_instances_come_out_as_from_deid(name: str, tmp_path: Path) -> None:
    """A share of all kinds of files in ../shared/data: no undocumented difference."""
    paths = sorted(path for path in SHARED.rglob("*") if path.is_file())[::EVERY]
    counts = findings(paths, written(RECIPES[name], tmp_path / "site.deid"))
    assert len(paths) - counts[NOT_READ] >= 15
    assert counts[CHANGED] >= 10
    documented = [counts[finding] for finding in counts if not finding.startswith(("same", "file"))]
    assert sum(documented) <= 0.1 * (counts[SAME] + counts[CHANGED])
