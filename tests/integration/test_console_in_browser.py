"""The jobs page in a real browser, in front of a real Orthanc, console and ledger."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from console_node import ConsoleNode
from playwright.sync_api import Page, expect, sync_playwright

from node.jobs import Event, State, StepName
from tests.orthanc_server import OrthancServer

PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleNode]:
    with ConsoleNode(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="module")
def orthanc(node: ConsoleNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    with OrthancServer(tmp_path_factory.mktemp("orthanc"), environment=node.environment) as running:
        yield running


@pytest.fixture
def page(orthanc: OrthancServer) -> Iterator[Page]:
    """The page, opened by a person who has logged in; nothing may fail in its scripts."""
    user, password = orthanc.auth
    failures: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": 1360, "height": 760},
            http_credentials={"username": user, "password": password},
        )
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{orthanc.url}/segnode/")
        yield page
        browser.close()
    assert failures == []


def test_a_stuck_job_says_why_and_goes_on_when_retry_is_pressed(
    page: Page, node: ConsoleNode
) -> None:
    """Cause, remedy and remarks as text; the ledger has it queued."""
    job = node.job(step=StepName.ENCODE)
    remark = "Viewers show <b>no</b> frames of one column"
    node.ledger.note(job, {"remarks": [remark]})
    node.ledger.end(job, Event.FAULT, cause="It broke", remedy="Mend it.", error="Fault")
    row = page.locator(f"#job-{job.id}")
    for told in ("failed", "It broke", "→ Mend it.", remark):
        expect(row).to_contain_text(told, timeout=PATIENCE_MS)
    row.get_by_role("button", name="Retry").click()
    expect(row).to_contain_text("queued", timeout=PATIENCE_MS)
    assert node.reread(job).state is State.QUEUED


def test_a_queue_is_paused_and_resumed_by_its_button(page: Page, node: ConsoleNode) -> None:
    """Since when it stands still is told where nobody has to unfold anything."""
    flow = page.locator("#flow")
    expect(flow.locator("summary")).to_contain_text("all go", timeout=PATIENCE_MS)
    flow.locator("summary").click()
    flow.get_by_role("button", name="Pause queue gpu").click()
    expect(flow.locator("summary")).to_contain_text("paused by a person: gpu", timeout=PATIENCE_MS)
    assert [pause.name for pause in node.ledger.pauses()] == ["queue:gpu"]
    expect(flow.get_by_role("row", name="queue gpu")).to_contain_text(
        re.compile(r"paused since \d+:\d+:\d+"), timeout=PATIENCE_MS
    )
    flow.get_by_role("button", name="Resume queue gpu").click()
    expect(flow.locator("summary")).to_contain_text("all go", timeout=PATIENCE_MS)
    assert node.ledger.pauses() == []
