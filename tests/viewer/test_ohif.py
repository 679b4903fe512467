"""A radiologist's viewer shows our Segmentation: the right pixels, in the right place, by name.

OHIF as it is published, beside a real Orthanc, in a real browser. What it paints is taken from the
screen and mapped to the patient's millimetres with the viewer's own geometry. No validator notices
a mask that a viewer shows on the wrong slice; this does.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext

from tests.conftest import NO_BRIDGE
from tests.orthanc_server import OrthancServer
from tests.viewer.cases import (
    CASES,
    DESCRIPTION,
    SEGMENTS,
    Case,
    on_the_wrong_slices,
    part10,
    phantom,
)
from tests.viewer.ohif import HOME, VERSIONS, Reader, chromium, require_viewer
from tests.viewer.origin import one_origin
from tests.viewer.painted import dice_by_segment

pytestmark = pytest.mark.timeout(600)
CLOSE_ENOUGH = 0.98


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """One browser for all cases, closed before the next module runs its own event loop."""
    with chromium(require_viewer()) as browser:
        yield browser


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    """The PACS."""
    require_viewer()
    with OrthancServer(tmp_path_factory.mktemp("viewer"), bridge=NO_BRIDGE) as server:
        yield server


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"OHIF-{version}")
def origin(request: pytest.FixtureRequest, orthanc: OrthancServer) -> Iterator[str]:
    """One published OHIF and the PACS, joined."""
    with one_origin(HOME / request.param, orthanc.url, orthanc.auth) as url:
        yield url


def dice_on_screen(
    browser: BrowserContext, origin: str, case: Case
) -> tuple[dict[int, str], list[dict[int, float]]]:
    """Labels in the viewer, and the Dice by segment on each telling slice."""
    with Reader(browser, origin) as reader:
        reader.open_study(case.source[0].StudyInstanceUID)
        labels = reader.open_segmentation(DESCRIPTION)
        shots = reader.photograph(
            [case.source[index].ImagePositionPatient for index in case.telling_slices()]
        )
    return labels, [dice_by_segment(shot, case.source, case.labels) for shot in shots]


@pytest.mark.parametrize("name", CASES)
def test_painted_pixels_are_the_segments_in_millimetres(
    browser: BrowserContext, origin: str, orthanc: OrthancServer, name: str
) -> None:
    """Each segment is painted where the truth has it, nothing else is, and the names are right."""
    case = CASES[name]()
    for instance in (*case.source, case.segmentation()):
        orthanc.upload(part10(instance))
    labels, found = dice_on_screen(browser, origin, case)
    assert labels == {segment.number: segment.label for segment in SEGMENTS}
    assert set().union(*found) == {1, 2}
    assert min(value for dice in found for value in dice.values()) >= CLOSE_ENOUGH, found


def test_mask_derived_from_the_wrong_slice_is_noticed(
    browser: BrowserContext, origin: str, orthanc: OrthancServer
) -> None:
    """The same measure fails for frames that point at other slices: it can tell."""
    case = phantom(seed=9)
    for instance in (*case.source, on_the_wrong_slices(case.segmentation())):
        orthanc.upload(part10(instance))
    _, found = dice_on_screen(browser, origin, case)
    assert max(value for dice in found for value in dice.values()) < CLOSE_ENOUGH, found
