"""The ledger: what is claimed once is claimed once, and what is lost is found again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.edges.ledger import Ledger
from node.errors import (
    DeliveryRefused,
    NotPossible,
    PacsUnavailable,
    Rejected,
    UnsuitableInput,
)
from node.jobs import (
    TRANSITIONS,
    Event,
    Explained,
    Job,
    NotYet,
    Reason,
    State,
    StepName,
    Wish,
    unsuitable,
)
from node.pipeline import STEPS
from node.pipeline.run import record_failure, run_step

ATTEMPTS = {step.name: step.max_attempts for step in STEPS}
LUNGS = Wish("chest", "v1", "ct_lungs", "digest-1", ("sender",))
AIRWAYS = Wish("airways", "v1", "ct_airways", "digest-2", ("sender",))


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(database_url: str, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(database_url, clock=clock)
    yield made
    made.database.close()


def opened(ledger: Ledger, *instances: str) -> Job:
    job = ledger.open_jobs("series", "study", instances or ("a", "b"))
    assert job is not None
    return job


def claimed(ledger: Ledger, job: Job, lease_s: float = 30) -> Job:
    held = ledger.claim(job.id, job.step, lease_s)
    assert held is not None
    return held


def test_the_same_instances_make_one_job(ledger: Ledger) -> None:
    """A feed read again, or a study sent twice, makes no second job."""
    opened(ledger, "a", "b")
    assert ledger.open_jobs("series", "study", ("b", "a")) is None
    assert len(ledger.jobs()) == 1


def test_late_instances_make_a_job_that_supersedes(ledger: Ledger) -> None:
    """The older job knows too little and stops; one that is confirmed stays what it is."""
    older = opened(ledger, "a")
    newer = opened(ledger, "a", "b")
    found = ledger.job(older.id)
    assert found is not None
    assert found.state is State.SUPERSEDED
    assert newer.state is State.QUEUED


def test_a_step_is_claimed_by_one_worker(ledger: Ledger) -> None:
    """The second claim finds nothing to do."""
    job = opened(ledger)
    assert ledger.claim(job.id, StepName.RECEIVE, 30) is not None
    assert ledger.claim(job.id, StepName.RECEIVE, 30) is None


def test_a_dead_workers_step_is_given_to_another_and_the_dead_one_cannot_finish_it(
    ledger: Ledger, clock: Clock
) -> None:
    """A lease that ran out is released; what its old holder records is ignored."""
    job = opened(ledger)
    dead = claimed(ledger, job)
    clock.now += 31
    assert [lost.id for lost in ledger.release_lost_leases(ATTEMPTS)] == [job.id]
    assert [due.id for due in ledger.due()] == [job.id]
    alive = claimed(ledger, job)
    assert alive.attempt == 2
    assert ledger.finish(dead, {"by": "dead"}) is None
    finished = ledger.finish(alive, {"by": "alive"})
    assert finished is not None
    assert finished.step is StepName.ROUTE
    assert finished.facts == {"by": "alive"}


def test_attempts_are_bounded_and_the_job_says_why(ledger: Ledger, clock: Clock) -> None:
    """A worker that dies every time does not run for ever."""
    job = opened(ledger)
    for _ in range(ATTEMPTS[StepName.RECEIVE]):
        claimed(ledger, job)
        clock.now += 31
        ledger.release_lost_leases(ATTEMPTS)
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, found.error) == (State.FAILED, "LeaseRanOut")
    assert found.remedy


def test_a_wake_up_that_the_broker_lost_is_due_again(ledger: Ledger, clock: Clock) -> None:
    """The broker only wakes: the ledger sends again what nobody took."""
    job = opened(ledger)
    clock.now += 3
    assert [due.id for due in ledger.due()] == [job.id]
    assert ledger.due() == []
    clock.now += 31
    assert [due.id for due in ledger.due()] == [job.id]


def test_two_wishes_make_two_jobs_of_one_series(ledger: Ledger) -> None:
    """Route forks: the job takes the first wish and a twin is made for the second."""
    job = claimed(ledger, opened(ledger))
    ledger.finish(job, {"sender": "PACS"})
    job = claimed(ledger, ledger.jobs()[0])
    made = ledger.fork(job, [LUNGS, AIRWAYS])
    assert sorted(one.model for one in made) == ["ct_airways", "ct_lungs"]
    assert {one.step for one in made} == {StepName.DEIDENTIFY}
    assert len({one.key for one in made}) == 2
    assert all(one.facts["sender"] == "PACS" for one in made)


def test_a_job_that_waits_has_a_time_and_is_not_claimed_before(
    ledger: Ledger, clock: Clock
) -> None:
    """Unavailable is retried after the back-off, with cause and remedy shown meanwhile."""
    job = claimed(ledger, opened(ledger))
    record_failure(ledger, job, PacsUnavailable("PACS does not answer"))
    waiting = ledger.job(job.id)
    assert waiting is not None
    assert waiting.state is State.WAITING
    assert waiting.next_try_at == clock.now + 1
    assert ledger.claim(job.id, job.step, 30) is None
    clock.now += 1
    assert ledger.claim(job.id, job.step, 30) is not None


def test_waiting_for_what_may_take_days_uses_up_no_attempts(ledger: Ledger, clock: Clock) -> None:
    """A step that says itself when to go on is tried more often than its attempts, at its time."""
    job = opened(ledger)
    pending = NotYet(PacsUnavailable("no report yet"), {"asked": 1}, delay_s=3600)
    for _ in range(ATTEMPTS[job.step] + 2):
        run_step(job.id, job.step, ledger=ledger, steps={job.step: lambda _: pending}, wake=print)
        waiting = ledger.job(job.id)
        assert waiting is not None
        assert (waiting.state, waiting.attempt) == (State.WAITING, 0)
        assert waiting.next_try_at == clock.now + 3600
        clock.now += 3600
    assert waiting.facts == {"asked": 1}


def test_what_a_step_noted_outlives_its_failure_and_its_worker(
    ledger: Ledger, clock: Clock
) -> None:
    """The next try begins where the last one got to; who lost the lease notes nothing."""
    job = claimed(ledger, opened(ledger))
    assert ledger.note(job, {"sent": 1})
    record_failure(ledger, job, PacsUnavailable("PACS does not answer"))
    assert not ledger.note(job, {"sent": 2})
    clock.now += 1
    again = claimed(ledger, job)
    assert again.facts == {"sent": 1}
    assert ledger.note(again, {"sent": 3})
    clock.now += 31
    ledger.release_lost_leases(ATTEMPTS)
    assert claimed(ledger, job).facts == {"sent": 3}


def test_a_person_retries_what_stopped_and_cannot_retry_what_is_confirmed(ledger: Ledger) -> None:
    """Retry starts the same step with fresh attempts; a finished job refuses."""
    job = claimed(ledger, opened(ledger))
    ledger.end(job, Event.REJECT, cause="gap", remedy="send again", error="GeometryError")
    again = ledger.retry(job.id)
    assert (again.state, again.step, again.attempt) == (State.QUEUED, StepName.RECEIVE, 0)
    for _ in StepName:
        ledger.finish(claimed(ledger, again), {})
        again = ledger.job(job.id) or again
    assert again.state is State.CONFIRMED
    with pytest.raises(NotPossible, match="confirmed"):
        ledger.retry(job.id)


def test_retrying_sends_again_only_what_is_not_confirmed(ledger: Ledger) -> None:
    """Who lost what he accepted gets it once more; who proved it is left alone."""
    delivery = {
        "kept": {"state": "confirmed", "accepted": {"seg": ""}, "proof": "query"},
        "lost": {"state": "accepted", "accepted": {"seg": ""}, "given_up": True, "cause": "lost"},
        "partly": {"state": "refused", "accepted": {"seg": ""}, "failed": {"pdf": "0xC000"}},
    }
    plan = {name: {"seg": 1} for name in delivery}
    job = opened(ledger)
    for facts in [{}] * 6 + [{"results": ["seg"], "plan": plan, "delivery": delivery}]:
        job = ledger.finish(claimed(ledger, job), facts) or job
    assert job.step is StepName.CONFIRM
    ledger.end(claimed(ledger, job), Event.FAULT, cause="lost", remedy="r", error="NotDelivered")
    again = ledger.retry(job.id)
    assert (again.step, again.state) == (StepName.DELIVER, State.QUEUED)
    assert again.facts["results"] == ["seg"]
    assert again.facts["delivery"] == {
        "kept": delivery["kept"], "lost": {}, "partly": {"accepted": {"seg": ""}},
    }  # fmt: skip


def test_retrying_makes_a_new_plan_where_somebody_could_get_nothing(ledger: Ledger) -> None:
    """The sender was no peer and is one now: the job begins where its destinations are chosen."""
    delivery = {"kept": {"state": "confirmed", "proof": "query"}, "sender": {"state": "refused"}}
    job = opened(ledger)
    for facts in [{}] * 7 + [{"plan": {"kept": {"seg": 1}}, "delivery": delivery}]:
        if job.step is StepName.CONFIRM:
            ledger.note(claimed(ledger, job), facts)
        else:
            job = ledger.finish(claimed(ledger, job), facts) or job
    held = ledger.job(job.id)
    assert held is not None
    ledger.end(held, Event.FAULT, cause="c", remedy="r", error="NotDelivered")
    again = ledger.retry(job.id)
    assert again.step is StepName.ENCODE
    assert again.facts["delivery"] == {"kept": delivery["kept"]}


def test_a_waiting_job_that_is_tried_now_tries_every_destination_now(
    ledger: Ledger, clock: Clock
) -> None:
    """Trying now sends nothing twice: it only ends the waiting."""
    waiting = {"state": "waiting", "accepted": {"seg": ""}, "tries": 3, "next_try_at": 2e6}
    facts = {"plan": {"pacs": {"seg": 1}}, "delivery": {"pacs": waiting}}
    job = opened(ledger)
    for _ in range(6):
        job = ledger.finish(claimed(ledger, job), {}) or job
    ledger.wait(claimed(ledger, job), cause="c", remedy="r", error="e", delay_s=900, facts=facts)
    again = ledger.retry(job.id)
    assert (again.step, again.state) == (StepName.DELIVER, State.QUEUED)
    assert again.facts["delivery"] == {"pacs": {"accepted": {"seg": ""}, "tries": 3}}


def test_asking_for_a_model_by_hand_twice_makes_one_job_and_rules_still_run(ledger: Ledger) -> None:
    """The button in the console is safe to press again, and does not silence the rules."""
    first = ledger.request("series", "study", ("a",), LUNGS)
    assert ledger.request("series", "study", ("a",), LUNGS).id == first.id


class TickingClock(Clock):
    """Every look is later than the one before, so that jobs have an order."""

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class LedgerMachine(RuleBasedStateMachine):
    """Random workers, deaths, people and broker losses; no job is lost, doubled or stuck."""

    @initialize()
    def start(self) -> None:
        self.clock = TickingClock()
        self.ledger = Ledger("sqlite://", clock=self.clock)
        self.held: list[Job] = []
        self.sets: set[int] = set()
        self.finished: dict[tuple[str, StepName], int] = {}

    @rule(size=st.integers(1, 4))
    def series_becomes_quiet(self, size: int) -> None:
        made = self.ledger.open_jobs("series", "study", [f"i{n}" for n in range(size)])
        assert (made is None) == (size in self.sets)
        self.sets.add(size)

    @rule(pick=st.integers(0, 10))
    def worker_claims(self, pick: int) -> None:
        jobs = self.ledger.jobs()
        if jobs:
            job = jobs[pick % len(jobs)]
            held = self.ledger.claim(job.id, job.step, 30)
            if held:
                assert (job.state, Event.CLAIM) in TRANSITIONS
                self.held.append(held)

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 10))
    def worker_finishes(self, pick: int) -> None:
        job = self.held.pop(pick % len(self.held))
        before = self.ledger.job(job.id)
        after = self.ledger.finish(job, {})
        if after:
            assert before is not None and before.attempt == job.attempt
            times = self.finished.get((job.id, job.step), 0) + 1
            self.finished[job.id, job.step] = times
            assert times == 1, "a step was finished twice"

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 10))
    def worker_fails(self, pick: int) -> None:
        job = self.held.pop(pick % len(self.held))
        record_failure(self.ledger, job, PacsUnavailable("down"))

    @rule(seconds=st.sampled_from([1.0, 31.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.ledger.release_lost_leases(ATTEMPTS)

    @rule(pick=st.integers(0, 10), cancel=st.booleans())
    def person_acts(self, pick: int, cancel: bool) -> None:
        jobs = self.ledger.jobs()
        if jobs:
            job = jobs[pick % len(jobs)]
            event = Event.CANCEL if cancel else Event.RETRY
            possible = (job.state, event) in TRANSITIONS
            try:
                (self.ledger.cancel if cancel else self.ledger.retry)(job.id)
            except NotPossible:
                assert not possible
            else:
                assert possible

    @invariant()
    def nothing_is_stuck(self) -> None:
        if not hasattr(self, "ledger"):
            return
        jobs = self.ledger.jobs()
        assert len({job.key for job in jobs}) == len(jobs) == len(self.sets)
        for job in jobs:
            if job.state in (State.REJECTED, State.FAILED, State.QUARANTINED):
                assert job.cause and job.remedy

    def teardown(self) -> None:
        """From wherever it got to: with workers that live, every open job reaches its end."""
        if not hasattr(self, "ledger"):
            return
        for _ in range(3 * len(StepName)):
            self.clock.now += 2000  # beyond every lease, back-off and resend
            self.ledger.release_lost_leases(ATTEMPTS)
            for job in self.ledger.due():
                held = self.ledger.claim(job.id, job.step, 30)
                assert held is not None
                self.ledger.finish(held, {})
        open_states = {State.QUEUED, State.RUNNING, State.WAITING}
        assert not [job for job in self.ledger.jobs() if job.state in open_states]


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_redirected_job_goes_on_at_the_other_step_with_fresh_attempts(ledger: Ledger) -> None:
    """Delivery that needs something else sends the job back to encode, and keeps what it knows."""
    job = claimed(ledger, opened(ledger))
    following = ledger.redirect(job, StepName.ENCODE, {"plan": {"pacs": {"seg": 1}}}, "")
    assert following is not None
    assert (following.step, following.state, following.attempt) == (
        StepName.ENCODE, State.QUEUED, 0,
    )  # fmt: skip
    assert following.facts["plan"] == {"pacs": {"seg": 1}}
    assert claimed(ledger, following).attempt == 1
    assert ledger.redirect(job, StepName.ENCODE, {}, "") is None, "the lease is not ours any more"


def test_an_unsuitable_series_is_explained_where_the_rule_wants_it(ledger: Ledger) -> None:
    """The job goes on to encode with its reason, ends rejected with it, and may begin anew."""
    [job] = ledger.fork(claimed(ledger, opened(ledger)), [replace(LUNGS, explain=True)])
    done = ledger.finish(claimed(ledger, job), {"crosswalk": "record"})
    assert done is not None
    record_failure(ledger, claimed(ledger, done), UnsuitableInput("too thick", remedy="thinner"))
    told = ledger.job(job.id)
    assert told is not None and told.cause == "too thick"
    assert (told.step, told.state) == (StepName.ENCODE, State.QUEUED)
    reason = unsuitable(told)
    assert reason == Reason("UnsuitableInput", "too thick", "thinner")
    ledger.explained(claimed(ledger, told), Explained(reason, ("pacs",)))
    ended = ledger.job(job.id)
    assert ended is not None and ended.state is State.REJECTED
    assert (ended.error, ended.cause, ended.remedy) == ("UnsuitableInput", "too thick", "thinner")
    assert ended.facts["explained"] == ["pacs"] and unsuitable(ended) is None
    assert ledger.retry(job.id).step is StepName.DEIDENTIFY


@pytest.mark.parametrize(
    ("explain", "error"), [(False, UnsuitableInput("x")), (True, DeliveryRefused("x"))]
)
def test_what_no_rule_wants_explained_stops_the_job(
    ledger: Ledger, explain: bool, error: Rejected
) -> None:
    """Without the rule's word, or where the series is not to blame, a job just stops."""
    [job] = ledger.fork(claimed(ledger, opened(ledger)), [replace(LUNGS, explain=explain)])
    done = ledger.finish(claimed(ledger, job), {"crosswalk": "record"})
    assert done is not None
    record_failure(ledger, claimed(ledger, done), error)
    ended = ledger.job(job.id)
    assert ended is not None
    assert (ended.state, ended.step) == (State.REJECTED, StepName.INFER)
