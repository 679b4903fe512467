"""The same instances through the same model are the same result, whoever asks, however often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from anonymizer.keys import PseudonymKeys
from node.edges.ledger import Ledger
from node.jobs import BY_HAND, Event, Job, State, StepName, Wish
from node.pipeline.deidentify import deidentify
from node.pipeline.outbound import Profile
from node.pipeline.working_data import RESULT_KEY
from tests.journey import Journey
from tests.ledger_case import claimed
from tests.phantoms import ct_series

LUNGS = Wish("chest", "v1", "ct_lungs", "digest-1", ("archive", "viewer"))
AIRWAYS = Wish("airways", "v1", "ct_airways", "digest-2", ("archive",))
ASKED = replace(LUNGS, rule=BY_HAND, rule_version=BY_HAND, destinations=("elsewhere",))
KEY = {RESULT_KEY: "ab" * 32}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield made
    made.database.close()


def routed(ledger: Ledger, job: Job, *wishes: Wish) -> list[Job]:
    """Through ``receive`` and ``route``."""
    received = ledger.finish(claimed(ledger, job), {})
    assert received is not None
    return ledger.fork(claimed(ledger, received), wishes)


def failed(ledger: Ledger, job: Job, error: str = "NotDelivered") -> Job:
    """After a step that knew the result's key."""
    ledger.end(
        claimed(ledger, job), Event.FAULT, cause="c", remedy="r", error=error, facts=KEY
    )  # fmt: skip
    found = ledger.job(job.id)
    assert found is not None and found.state is State.FAILED
    return found


@pytest.fixture
def ruled(ledger: Ledger) -> Job:
    """A rule's job that one of two destinations has refused."""
    opened = ledger.open_jobs("series", "study", ("a",))
    assert opened is not None
    [job] = routed(ledger, opened, LUNGS)
    return failed(ledger, job)


def test_a_rules_job_that_a_person_asks_for_begins_anew_as_the_rules(
    ledger: Ledger, ruled: Job
) -> None:
    """No second result for the destination that has the first, and the rule's other gets his."""
    asked = ledger.request("series", "study", ("a",), ASKED)
    assert (asked.id, asked.state, asked.step) == (ruled.id, State.QUEUED, StepName.RECEIVE)
    assert dict(asked.facts) == KEY
    [again] = routed(ledger, asked, LUNGS)
    assert (again.key, again.destinations) == (ruled.key, LUNGS.destinations)
    assert again.facts[RESULT_KEY] == KEY[RESULT_KEY]


def test_a_job_that_no_rule_wants_any_more_is_the_persons(ledger: Ledger, ruled: Job) -> None:
    """Otherwise a person could never run the model on it again; its objects keep their UIDs."""
    asked = ledger.request("series", "study", ("a",), ASKED)
    ledger.end(
        claimed(ledger, asked), Event.REJECT, cause="c", remedy="r", error="NoMatchingModel"
    )  # fmt: skip
    asked = ledger.request("series", "study", ("a",), ASKED)
    assert asked.id == ruled.id and "wish" in asked.facts
    [again] = routed(ledger, asked, ASKED)
    assert (again.rule, again.destinations) == (BY_HAND, ("elsewhere",))
    assert again.facts[RESULT_KEY] == KEY[RESULT_KEY]


def test_a_job_by_hand_that_begins_anew_goes_where_it_is_wanted_now(ledger: Ledger) -> None:
    """Route takes the destinations from the job, so they are the job's."""
    first = failed(ledger, ledger.request("series", "study", ("a",), ASKED))
    other = replace(ASKED, destinations=("archive",))
    again = ledger.request("series", "study", ("a",), other)
    assert (again.id, again.destinations) == (first.id, ("archive",))
    assert again.facts[RESULT_KEY] == KEY[RESULT_KEY]


def test_of_several_jobs_the_one_that_is_not_over_is_the_answer(ledger: Ledger) -> None:
    """A rule's failed job is not begun anew beside the person's own, which runs."""
    opened = ledger.open_jobs("series", "study", ("a",))
    assert opened is not None
    mine = ledger.request("series", "study", ("a",), ASKED)
    [ruled] = routed(ledger, opened, LUNGS)
    failed(ledger, ruled)
    assert ledger.request("series", "study", ("a",), ASKED).id == mine.id != ruled.id


def test_a_series_sent_again_keeps_the_key_of_its_result_but_not_for_another_model(
    ledger: Ledger, ruled: Job
) -> None:
    """Two models' objects with the same UIDs would be worse than twins."""
    again = ledger.open_jobs("series", "study", ("a",))
    assert again is not None and again.facts[RESULT_KEY] == KEY[RESULT_KEY]
    lungs, airways = routed(ledger, again, LUNGS, AIRWAYS)
    assert lungs.facts[RESULT_KEY] == KEY[RESULT_KEY]
    assert RESULT_KEY not in airways.facts
    failed(ledger, lungs)
    again = ledger.request("series", "study", ("a",), LUNGS)
    [changed] = routed(ledger, again, replace(AIRWAYS, model="bones", model_digest="digest-3"))
    assert changed.id == ruled.id and RESULT_KEY not in changed.facts


def test_neither_rule_nor_epoch_makes_twins_of_a_result(tmp_path: Path) -> None:
    """Only instances and model count, and what was made once stays."""
    journey = Journey(tmp_path, ct_series(slices=4, rows=16, columns=16), {"pacs": Profile()})
    journey.deidentified()
    made = journey.job.facts[RESULT_KEY]
    begin = journey.steps()[StepName.DEIDENTIFY]
    assert isinstance(begin, partial) and begin.func is deidentify
    fresh = replace(journey.job, facts={})
    by_hand = replace(fresh, rule=BY_HAND, rule_version=BY_HAND)
    assert begin(by_hand).facts[RESULT_KEY] == made
    assert begin(replace(fresh, model_digest="other")).facts[RESULT_KEY] != made
    later = {"keys": PseudonymKeys.from_secret(b"q" * 32, epoch=2)}
    assert begin(journey.job, **later).facts[RESULT_KEY] == made
    assert begin(fresh, **later).facts[RESULT_KEY] != made
