"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_test_that_the_security_page_names_exists() -> None:
    """Proves that no rule is said to be checked by a test that was renamed or removed."""
    page = (REPOSITORY / "docs" / "security.md").read_text()
    tests = REPOSITORY / "tests"
    sources = [*tests.glob("integration/test_*.py"), *tests.glob("unit/test_*.py")]
    source = "\n".join(file.read_text() for file in sources)
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 25
    assert {name for name in named if f"def {name}(" not in source} == set()
    files = set(re.findall(r"`(test_\w+\.py)`", page))
    assert files - {file.name for file in sources} == set()
