"""The tree keeps its shape: what is imported, what is loaded, what a zone may know."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from node.pipeline import STEPS

REPOSITORY = Path(__file__).resolve().parents[1]

#: Distributions of the hospital zone: a compute worker must start without any of them.
HOSPITAL_ONLY = (
    "anonymizer", "cryptography", "deid", "highdicom", "httpx", "pynetdicom", "sqlalchemy",
    "starlette", "supervisor", "uvicorn", "node.edges.ledger", "node.edges.orthanc",
)  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has after ``statement``."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_step_is_the_function_of_its_name_in_the_module_of_its_name(step) -> None:  # type: ignore[no-untyped-def]
    """A newcomer who has read STEPS finds the code."""
    module = importlib.import_module(f"node.pipeline.{step.name}")
    assert callable(getattr(module, step.name))


def test_the_compute_zone_imports_nothing_of_the_hospital_zone() -> None:
    """The compute worker's own code needs no package of the hospital, so it is not installed."""
    modules = loaded_by(
        "import sys, node.cli, node.programs, node.pipeline.infer, node.edges.compute\n"
        "sys.argv = ['segnode', 'run', 'compute']\n"  # without a broker it stops at its settings
        "try: node.cli.main()\n"
        "except SystemExit: pass"
    )
    assert sorted(name for name in HOSPITAL_ONLY if name in modules) == []


def test_the_hospital_zone_does_not_import_torch() -> None:
    """A hospital worker is small and starts fast: only manifests of models are read there."""
    modules = loaded_by("from node.wiring import Hospital; import node.pipeline.encode")
    assert "torch" not in modules


@pytest.mark.parametrize("name", ["models", "plugins"])
def test_no_distribution_owns_the_name_of_a_loaded_folder(name: str) -> None:
    """A wheel with a top-level package `models` would shadow or be shadowed by our folder."""
    assert name not in packages_distributions()


def test_the_top_level_holds_what_the_design_names_and_what_is_customary() -> None:
    """Nothing grows beside the tree."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    design = {
        "node", "plugins", "anonymizer", "models", "tests", "orthanc.json", "Dockerfile",
        "pyproject.toml", "README.md",
    }  # fmt: skip
    customary = {
        "LICENSE", "CHANGELOG.md", "Makefile", "compose.yaml", "deploy", "bench", "docs", ".ci",
        ".gitignore", ".dockerignore", "requirements.lock", "segnode.example.toml",
    }  # fmt: skip
    assert design <= top
    assert top <= design | customary
