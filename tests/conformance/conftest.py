"""One series with what was found in it, for all tests of results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydicom.dataset import Dataset

from node.results.objects import Found
from tests.result_case import Case, make_case, with_forty_segments


@pytest.fixture(scope="session")
def case() -> Case:
    return make_case()


@pytest.fixture(scope="session")
def encoded(case: Case) -> Callable[[str], list[Dataset]]:
    made: dict[str, list[Dataset]] = {}

    def once(kind: str) -> list[Dataset]:
        if kind not in made:
            made[kind] = case.encoded(kind)
        return made[kind]

    return once


@pytest.fixture(scope="session")
def many(case: Case) -> Found:
    return with_forty_segments(case)
