"""The node's HTTP interface for the console, called as the bridge calls it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from console_node import REVIEW_KEY, ConsoleNode

from anonymizer.pixel_cleaning import Region
from node.jobs import TRANSITIONS, Event, Job, StepName
from node.pipeline.pixel_review import HeldImage, Review, store_review
from tests.ledger_case import claimed

CALLS = [
    ("POST", "/nudge"),
    ("GET", "/jobs"),
    ("GET", "/jobs/{id}"),
    ("GET", "/jobs/{id}/overlay.png"),
    ("GET", "/jobs/{id}/review"),
    ("GET", "/jobs/{id}/review/1-1.png"),
    ("POST", "/jobs/{id}/release"),
    ("POST", "/jobs/{id}/retry"),
    ("POST", "/jobs/{id}/cancel"),
    ("GET", "/models"),
    ("GET", "/storage"),
    ("GET", "/flow"),
    ("POST", "/flow/queue/cpu/pause"),
    ("POST", "/studies/{study}/process"),
    ("GET", "/nothing-here"),
]
STUDY = "0a1b2c3d-0a1b2c3d-0a1b2c3d-0a1b2c3d-0a1b2c3d"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ConsoleNode]:
    with ConsoleNode(tmp_path) as running:
        yield running


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic {token}"])
def test_every_call_needs_the_token(node: ConsoleNode, authorization: str | None) -> None:
    """Without the token nothing is answered and nothing happens."""
    job = node.failed_job()
    headers = {"Authorization": authorization.format(token=node.token)} if authorization else {}
    for method, path in CALLS:
        url = node.url + path.format(id=job.id, study=STUDY)
        assert httpx.request(method, url, headers=headers).status_code == 401
    assert node.nudges == 0
    assert node.reread(job) == job


def test_health_says_ok_to_anyone_and_nothing_else(node: ConsoleNode) -> None:
    """The supervisor can ask without a secret, and learns no more than that it runs."""
    answer = httpx.get(node.url + "/health")
    assert (answer.status_code, answer.text) == (200, "ok")


def test_a_nudge_wakes_the_node(node: ConsoleNode) -> None:
    """One nudge in, one wake-up out, and no body."""
    answer = node.call("POST", "/nudge")
    assert (answer.status_code, answer.content, node.nudges) == (204, b"", 1)


def test_a_waiting_job_says_why_and_when_it_is_tried_again(node: ConsoleNode) -> None:
    """State, step, cause, remedy and the next try are all there, times in UTC."""
    job = node.job(step=StepName.DELIVER)
    node.ledger.wait(
        job, cause="pacs does not answer", remedy="Check it.", error="PacsUnavailable", delay_s=90
    )
    shown = node.call("GET", f"/jobs/{job.id}").json()
    assert (shown["state"], shown["group"], shown["step"]) == ("waiting", "stuck", "deliver")
    assert (shown["step_number"], shown["ups_state"]) == (7, "IN PROGRESS")
    assert (shown["cause"], shown["remedy"]) == ("pacs does not answer", "Check it.")
    assert 0 < shown["next_try_in_s"] <= 90
    created, next_try = (
        datetime.fromisoformat(shown[name]) for name in ("created_at", "next_try_at")
    )
    assert created.utcoffset() == timedelta(0)
    assert next_try > created


def test_actions_are_those_of_the_transition_table(node: ConsoleNode) -> None:
    """What the page offers is exactly what the ledger would do."""
    jobs = [node.job(), node.failed_job(), node.job()]
    node.ledger.end(jobs[2], Event.QUARANTINE, cause="c", remedy="r", error="e")
    for job in map(node.reread, jobs):
        possible = {
            event for (state, event) in TRANSITIONS
            if state is job.state and event in (Event.RETRY, Event.CANCEL)
        }  # fmt: skip
        assert set(node.call("GET", f"/jobs/{job.id}").json()["actions"]) == possible


def test_only_facts_made_to_be_seen_are_shown(node: ConsoleNode) -> None:
    """What steps leave for one another (pseudonyms, wishes) stays in the node."""
    job = node.job(step=StepName.INFER)
    assert "study" in node.reread(job).facts
    assert node.call("GET", f"/jobs/{job.id}").json()["facts"] == {"instances": 1}


def test_a_series_that_no_rule_wants_is_not_stuck(node: ConsoleNode) -> None:
    """Localizers and reports do not hide the jobs that need a person."""
    job = node.job(step=StepName.ROUTE)
    node.ledger.end(job, Event.REJECT, cause="c", remedy="r", error="NoMatchingModel")
    broken = node.failed_job()
    stuck = node.call("GET", "/jobs?state=stuck").json()
    assert [shown["id"] for shown in stuck["jobs"]] == [broken.id]
    assert stuck["counts"] == {"stuck": 1, "running": 0, "done": 1}
    done = node.call("GET", "/jobs?state=done").json()["jobs"]
    assert [shown["id"] for shown in done] == [job.id]


def test_jobs_of_one_study(node: ConsoleNode) -> None:
    """The panel on a study's page asks for that study only."""
    node.job("one")
    wanted = node.job("other")
    listed = node.call("GET", "/jobs?study=other").json()
    assert [shown["id"] for shown in listed["jobs"]] == [wanted.id]
    assert [step["name"] for step in listed["steps"]] == [str(step) for step in StepName]


@pytest.mark.parametrize("query", ["state=lost", "limit=0", "limit=201", "limit=x"])
def test_a_question_that_makes_no_sense_is_refused(node: ConsoleNode, query: str) -> None:
    """400, with what may be asked."""
    answer = node.call("GET", f"/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["remedy"]


def test_timings_add_up_all_tries_of_a_step(node: ConsoleNode) -> None:
    """Two tries of one step are one line with two tries; the steps come in order."""
    job = node.failed_job()
    node.ledger.retry(job.id)
    claimed(node.ledger, job, 600)
    shown = node.call("GET", f"/jobs/{job.id}").json()
    assert [one["step"] for one in shown["timings"]] == ["receive", "route", "deidentify", "infer"]
    assert [one["tries"] for one in shown["timings"]] == [1, 1, 1, 2]
    assert [one["outcome"] for one in shown["attempts"]][-2:] == ["Fault", ""]
    tries = [one["seconds"] for one in shown["attempts"] if one["step"] == "infer"]
    assert shown["timings"][-1]["seconds"] == pytest.approx(sum(tries), abs=0.01)


def test_retry_queues_the_job_and_wakes_the_node(node: ConsoleNode) -> None:
    """The ledger has it queued at the step where it stopped."""
    job = node.failed_job()
    answer = node.call("POST", f"/jobs/{job.id}/retry")
    assert (answer.status_code, answer.json()["state"], node.nudges) == (200, "queued", 1)
    assert node.reread(job).step is StepName.INFER


def test_cancel_stops_the_job_and_the_worker_loses_its_lease(node: ConsoleNode) -> None:
    """A worker that still runs the step cannot finish it any more."""
    job = node.job(step=StepName.INFER)
    assert node.call("POST", f"/jobs/{job.id}/cancel").json()["state"] == "canceled"
    assert node.ledger.finish(job, {}) is None


def test_what_is_not_possible_is_refused_with_words(node: ConsoleNode) -> None:
    """A running job cannot be retried: 409, and the job is as it was."""
    job = node.job()
    answer = node.call("POST", f"/jobs/{job.id}/retry")
    assert answer.status_code == 409
    assert answer.json()["message"]
    assert answer.json()["remedy"]
    assert node.reread(job) == job


@pytest.mark.parametrize(
    ("kind", "name", "shown"), [("queue", "io", "queues"), ("destination", "pacs", "destinations")]
)
def test_a_queue_or_destination_is_paused_and_resumed(
    node: ConsoleNode, kind: str, name: str, shown: str
) -> None:
    """The ledger stops giving its work away, and the page tells since when."""

    def since(answer: httpx.Response) -> str | None:
        assert answer.status_code == 200
        return next(one["paused_since"] for one in answer.json()[shown] if one["name"] == name)

    assert since(node.call("GET", "/flow")) is None
    assert since(node.call("POST", f"/flow/{kind}/{name}/pause")) is not None
    assert [pause.name for pause in node.ledger.pauses()] == [f"{kind}:{name}"]
    assert since(node.call("GET", "/flow")) is not None
    assert since(node.call("POST", f"/flow/{kind}/{name}/resume")) is None
    assert (node.ledger.pauses(), node.nudges) == ([], 1)


def test_the_flow_counts_what_waits_and_what_runs(node: ConsoleNode) -> None:
    """A job at infer that runs is of queue gpu; the sender is no destination to be paused."""
    node.job(step=StepName.INFER)
    flow = node.call("GET", "/flow").json()
    counted = {one["name"]: (one["waiting"], one["running"]) for one in flow["queues"]}
    assert counted == {"io": (0, 0), "cpu": (0, 0), "gpu": (0, 1), "pacs": (0, 0)}
    assert [one["name"] for one in flow["destinations"]] == ["pacs"]


@pytest.mark.parametrize(
    "path", ["queue/disk/pause", "destination/sender/pause", "rule/io/pause", "queue/io/drop"]
)
def test_what_cannot_be_paused_is_refused(node: ConsoleNode, path: str) -> None:
    """With words that say where to look, and nothing stands still."""
    answer = node.call("POST", f"/flow/{path}")
    assert (answer.status_code, node.ledger.pauses()) == (404, [])
    assert answer.json()["message"]
    assert answer.json()["remedy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/overlay.png"),
        ("GET", "/review"),
        ("GET", "/review/1-1.png"),
        ("POST", "/release"),
        ("POST", "/retry"),
        ("POST", "/cancel"),
    ],
)
def test_a_job_that_does_not_exist_is_404(node: ConsoleNode, method: str, path: str) -> None:
    """With words that say where to look."""
    body = b"{}" if method == "POST" else None
    answer = node.call(method, f"/jobs/{'0' * 32}{path}", content=body)
    assert answer.status_code == 404
    assert "segnode jobs" in answer.json()["remedy"]


def test_the_picture_is_flagged_and_served_once_it_is_drawn(node: ConsoleNode) -> None:
    """The page asks for a picture only when there is one."""
    job = node.job()
    assert node.call("GET", f"/jobs/{job.id}").json()["picture"] is False
    assert node.call("GET", f"/jobs/{job.id}/overlay.png").status_code == 404
    node.draw(job, b"\x89PNG")
    assert node.call("GET", f"/jobs/{job.id}").json()["picture"] is True
    picture = node.call("GET", f"/jobs/{job.id}/overlay.png")
    assert (picture.headers["content-type"], picture.content) == ("image/png", b"\x89PNG")
    # The compute zone can write there, too.
    node.artifacts.put(f"{job.id}/overlay.png", b"somebody else's")
    assert node.call("GET", f"/jobs/{job.id}/overlay.png").status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[]", 400),
        (b'{"model": 3}', 400),
        (b'{"model": "' + b"x" * 5000 + b'"}', 413),
        (b'{"model": "unknown"}', 404),
        (b'{"model": "lungs", "destination": "elsewhere"}', 404),
    ],
)
def test_a_wish_that_makes_no_sense_makes_no_job(
    node: ConsoleNode, body: bytes, status: int
) -> None:
    """Refused with words; Orthanc is not asked, and the ledger stays empty."""
    answer = node.call("POST", f"/studies/{STUDY}/process", content=body)
    assert answer.status_code == status
    assert answer.json()["remedy"]
    assert node.ledger.jobs() == []


def test_models_and_destinations_to_choose_from(node: ConsoleNode) -> None:
    """What the chooser on a study's page lists."""
    offered = node.call("GET", "/models").json()
    assert offered["models"] == [
        {"name": "lungs", "version": "1.2.3", "modality": "CT"},
        {"name": "brain", "version": "1.2.3", "modality": "MR"},
    ]
    assert offered["destinations"] == ["sender", "pacs"]


# -- images held for their pixels ------------------------------------------------------------------


def held_job(node: ConsoleNode, problem: str = "") -> tuple[Job, Review]:
    """A job that step deidentify has held, with what a person has to look at."""
    job = node.job(step=StepName.DEIDENTIFY)
    region = Region(1, 2, 30, 12, "text, read by OCR")
    image = HeldImage(1, "Image Type (0008,0008) is LOCALIZER", problem, 1, (region,), "mark")
    review = store_review(job, [image], node.artifacts, REVIEW_KEY)
    node.ledger.end(job, Event.QUARANTINE, cause="c", remedy="r", error="IdentityUnsafe")
    return node.reread(job), review


def test_a_held_job_says_why_and_what_would_be_blanked(node: ConsoleNode) -> None:
    """Reason, rectangle and rule of each image, and the digest that a release has to name."""
    job, review = held_job(node)
    assert node.call("GET", f"/jobs/{job.id}").json()["review"] is True
    shown = node.call("GET", f"/jobs/{job.id}/review").json()
    assert (shown["digest"], shown["can_release"]) == (review.digest, True)
    [image] = shown["images"]
    assert image["reason"] == "Image Type (0008,0008) is LOCALIZER"
    assert image["regions"] == [
        {"left": 1, "top": 2, "right": 30, "bottom": 12, "rule": "text, read by OCR"}
    ]


def test_a_job_with_nothing_to_look_at_says_so(node: ConsoleNode) -> None:
    """404 with words, and the page does not ask for pictures."""
    job = node.failed_job()
    assert node.call("GET", f"/jobs/{job.id}").json()["review"] is False
    for method, path in (("GET", "review"), ("GET", "review/1-1.png"), ("POST", "release")):
        answer = node.call(method, f"/jobs/{job.id}/{path}", content=b"{}")
        assert answer.status_code == 404
        assert answer.json()["remedy"]


def test_a_release_queues_the_job_with_the_digest_that_was_seen(node: ConsoleNode) -> None:
    """Step deidentify runs again and finds what was released; a second release is refused."""
    job, review = held_job(node)
    body = {"review": review.digest}
    answer = node.call("POST", f"/jobs/{job.id}/release", json=body)
    assert (answer.status_code, answer.json()["state"], node.nudges) == (200, "queued", 1)
    released = node.reread(job)
    assert (released.step, released.facts["released"]) == (StepName.DEIDENTIFY, review.digest)
    assert released.facts["instances"] == 1
    assert node.call("POST", f"/jobs/{job.id}/release", json=body).status_code == 409


@pytest.mark.parametrize("body", [{}, {"review": ""}, {"review": "0" * 64}, {"review": "é"}])
def test_nothing_is_released_that_was_not_seen(node: ConsoleNode, body: dict[str, str]) -> None:
    """Another digest: 409, and the job is held as before."""
    job, _ = held_job(node)
    answer = node.call("POST", f"/jobs/{job.id}/release", json=body)
    assert answer.status_code == 409
    assert "look again" in answer.json()["remedy"]
    assert node.reread(job) == job


def test_a_job_with_a_problem_cannot_be_released(node: ConsoleNode) -> None:
    """Even with the right digest."""
    job, review = held_job(node, problem="Text can still be read")
    assert node.call("GET", f"/jobs/{job.id}/review").json()["can_release"] is False
    answer = node.call("POST", f"/jobs/{job.id}/release", json={"review": review.digest})
    assert answer.status_code == 409
    assert node.reread(job) == job


def test_a_job_held_at_another_step_cannot_be_released(node: ConsoleNode) -> None:
    """A result in quarantine is nothing that a look at its pixels settles."""
    job, review = held_job(node)
    node.ledger.retry(job.id)
    for step in (StepName.DEIDENTIFY, StepName.INFER):
        held = claimed(node.ledger, node.reread(job), 600)
        assert held.step is step
        if step is StepName.DEIDENTIFY:
            node.ledger.finish(held, {})
    node.ledger.end(held, Event.QUARANTINE, cause="c", remedy="r", error="e")
    answer = node.call("POST", f"/jobs/{job.id}/release", json={"review": review.digest})
    assert answer.status_code == 409
