"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_test_that_the_security_page_names_exists() -> None:
    """Proves that no rule is said to be checked by a test that was renamed or removed."""
    page = (REPOSITORY / "docs" / "security.md").read_text()
    folder = REPOSITORY / "tests" / "integration"
    source = "\n".join(file.read_text() for file in folder.glob("test_orthanc_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in source} == set()
    files = set(re.findall(r"`(test_\w+\.py)`", page))
    assert {name for name in files if not (folder / name).exists()} == set()
