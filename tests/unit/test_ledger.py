"""The ledger: what is claimed once is claimed once, and what is lost is found again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from node.edges.arrivals import Arrivals, Cursor
from node.edges.ledger import Ledger
from node.edges.sweeper import Sweeper
from node.errors import (
    DeliveryRefused,
    NodeError,
    NotPossible,
    PacsUnavailable,
    Rejected,
    UnsuitableInput,
)
from node.jobs import (
    BY_HAND,
    Done,
    Event,
    Explained,
    Job,
    NotYet,
    Outcome,
    Priority,
    Reason,
    State,
    Step,
    StepName,
    Wish,
    unsuitable,
)
from node.pipeline import BY_NAME, STEPS
from node.pipeline.lease import kept_alive
from node.pipeline.run import Terms, record_failure, run_next, run_step

LUNGS = Wish("chest", "v1", "ct_lungs", "digest-1", ("sender",))
#: Facts of encode, as the journal reads them.
RESULTS = [{"sop_instance_uids": ["2.25.1"]}]
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


def claimed_next(ledger: Ledger, steps: Sequence[Step]) -> Job:
    job = ledger.claim_next(steps, 30)
    assert job is not None
    return job


def at_step(ledger: Ledger, step: StepName, series: str = "series", wish: Wish = LUNGS) -> Job:
    """A job of its own series and study that has come this far."""
    study = "study" if series == "series" else f"study of {series}"
    job = ledger.open_jobs(series, study, ("a", "b"))
    assert job is not None
    while job.step is not step:
        held = claimed(ledger, job)
        if job.step is StepName.ROUTE:
            [job] = ledger.fork(held, [wish])
        else:
            job = ledger.finish(held, {}) or job
    return job


def nobody(_: Job) -> None:
    """Nobody is to be woken: the test runs the steps."""


def _raises(error: NodeError) -> Callable[[Job], Outcome]:
    def step(_: Job) -> Outcome:
        raise error

    return step


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
    while newer.state is not State.CONFIRMED:
        newer = ledger.finish(claimed(ledger, newer), {}) or newer
    assert opened(ledger, "a", "b", "c").state is State.QUEUED
    kept = ledger.job(newer.id)
    assert kept is not None and kept.state is State.CONFIRMED


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
    assert [lost.id for lost in ledger.release_lost_leases(BY_NAME)] == [job.id]
    assert ledger.due(STEPS) == 1
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
    for _ in range(BY_NAME[StepName.RECEIVE].max_crashes):
        claimed(ledger, job)
        clock.now += 31
        ledger.release_lost_leases(BY_NAME)
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, found.error) == (State.FAILED, "LeaseRanOut")
    assert found.remedy


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        ("dies hangs", ""),
        ("dies hangs hangs", "DeadlinePassed"),
        ("hangs dies dies", ""),
        ("hangs dies dies dies", "LeaseRanOut"),
        ("dies dies dies hangs", "DeadlinePassed"),
        ("hangs dies retry hangs dies dies", ""),
    ],
)
def test_deaths_and_hangs_are_bounded_together_and_hangs_alone(
    ledger: Ledger, clock: Clock, ends: str, error: str
) -> None:
    """A death before it makes a hang no second one; a retry begins anew."""
    job = opened(ledger)
    for end in ends.split():
        if end == "retry":
            ledger.cancel(job.id)
            ledger.retry(job.id)
            continue
        deadline_s = BY_NAME[job.step].deadline_s
        claimed(ledger, job, lease_s=deadline_s if end == "hangs" else 30)
        clock.now += deadline_s if end == "hangs" else 31
        [job] = ledger.release_lost_leases(BY_NAME)
    assert job.state is (State.FAILED if error else State.QUEUED)
    if error:
        assert job.error == error
    times = ends.rpartition("retry")[2].split().count(end)
    assert f"({times} times)" in job.cause


def test_a_system_that_is_away_for_a_night_fails_no_job_and_one_that_is_gone_for_good_does(
    ledger: Ledger, clock: Clock
) -> None:
    """Waiting is bounded by days, not by tries: Orthanc may restart, a PACS be down till Monday."""
    job = opened(ledger)
    away = {job.step: _raises(PacsUnavailable("PACS does not answer"))}
    began = clock.now
    while clock.now < began + 3 * 86400:
        run_step(job.id, job.step, ledger=ledger, steps=away, wake=nobody)
        waiting = ledger.job(job.id)
        assert waiting is not None and waiting.next_try_at is not None
        assert waiting.state is State.WAITING
        assert 0 < waiting.next_try_at - clock.now <= 900
        clock.now = waiting.next_try_at + 3600
    assert waiting.attempt > 50
    clock.now = began + BY_NAME[job.step].patience_s
    run_step(job.id, job.step, ledger=ledger, steps=away, wake=nobody)
    failed = ledger.job(job.id)
    assert failed is not None
    assert (failed.state, failed.cause) == (State.FAILED, "PACS does not answer")
    assert ledger.retry(job.id).state is State.QUEUED


def test_a_step_that_hangs_loses_its_lease_at_its_deadline_however_alive_its_worker(
    ledger: Ledger, clock: Clock
) -> None:
    """A heartbeat keeps no lease beyond the deadline; a job that hangs twice ends, and says so."""
    job = opened(ledger)
    deadline_s = BY_NAME[job.step].deadline_s
    for _ in range(2):
        held = claimed(ledger, job, lease_s=deadline_s)
        for _ in range(5):
            clock.now += deadline_s / 6
            assert ledger.extend(held, deadline_s)
            assert ledger.release_lost_leases(BY_NAME) == []
        clock.now += deadline_s / 6
        assert not ledger.extend(held, deadline_s)
        assert [lost.id for lost in ledger.release_lost_leases(BY_NAME)] == [job.id]
        assert ledger.finish(held, {}) is None
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, found.error) == (State.FAILED, "DeadlinePassed")
    assert "1800 s" in found.cause


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0])
def test_a_clock_that_is_set_ends_no_lease_and_no_waiting(
    ledger: Ledger, clock: Clock, jump_s: float
) -> None:
    """Running steps keep running, waiting ones wait as long as they would have; both then end."""
    steady = Clock()
    terms = Terms(lease_s=7)
    sweeper = Sweeper(ledger, terms, lambda _: 99, lambda _: None, steady_s=steady)
    running = claimed(ledger, at_step(ledger, StepName.DEIDENTIFY, "running"), lease_s=7)
    waiting = claimed(ledger, at_step(ledger, StepName.RECEIVE, "waiting"), lease_s=7)
    ledger.wait(waiting, cause="c", remedy="r", error="e", delay_s=100, patience_s=1000)
    arrivals = Arrivals(ledger.database)
    arrivals.record("feed", Cursor(1), {"arriving": None})
    sweeper.once()
    clock.now += jump_s + 2
    steady.now += 2
    sweeper.once()
    assert ledger.extend(running, 7)
    assert ledger.due(STEPS) == 0
    [arriving] = arrivals.waiting()
    assert arriving.silent_s == pytest.approx(2)
    for one in (clock, steady):
        one.now += 99
    assert ledger.due(STEPS) == 1
    sweeper.once()
    lost = ledger.job(running.id)
    assert lost is not None and lost.state is State.QUEUED, "its worker is dead, whatever the time"


def test_a_job_that_no_compute_worker_takes_waits_and_says_so(ledger: Ledger, clock: Clock) -> None:
    """Its message may be lost any number of times; only patience ends, or a worker begins."""
    job = at_step(ledger, StepName.INFER)
    for _ in range(20):
        held = claimed(ledger, job, lease_s=7)
        ledger.handed_over(held, BY_NAME[StepName.INFER].patience_s)
        [waiting] = ledger.waiting_in_compute()
        assert waiting.cause == "Waits for a compute worker"
        clock.now += 8
        [lost] = ledger.release_lost_leases(BY_NAME)
        assert (lost.state, lost.crashes) == (State.QUEUED, 0)
    held = claimed(ledger, job)
    ledger.handed_over(held, BY_NAME[StepName.INFER].patience_s)
    ledger.started(held, 3600)
    assert ledger.waiting_in_compute() == []
    clock.now += 31
    [crashed] = ledger.release_lost_leases(BY_NAME)
    assert crashed.crashes == 1


def test_what_is_urgent_goes_first_and_nothing_waits_for_ever(ledger: Ledger, clock: Clock) -> None:
    """Urgent, routine, off-peak; but who has waited longer than a head start goes first."""
    mine = [BY_NAME[StepName.DEIDENTIFY]]
    for number, priority in enumerate(("off-peak", "routine", "urgent", "routine")):
        clock.now += 1
        job = ledger.open_jobs(f"series{number}", f"study{number}", ("a",))
        assert job is not None
        job = ledger.finish(claimed(ledger, job), {}) or job
        wish = replace(LUNGS, priority=Priority(priority))
        ledger.fork(claimed(ledger, job), [wish])
    order = [claimed_next(ledger, mine).series_id for _ in range(4)]
    assert order == ["series2", "series1", "series3", "series0"]
    assert ledger.claim_next(mine, 30) is None

    old = at_step(ledger, StepName.DEIDENTIFY, "old")
    clock.now += Priority.URGENT.head_start_s + 1
    late = at_step(ledger, StepName.DEIDENTIFY, "late", replace(LUNGS, priority=Priority.URGENT))
    assert [claimed_next(ledger, mine).id for _ in range(2)] == [old.id, late.id]


def test_no_more_than_so_many_jobs_are_handed_to_the_compute_zone(ledger: Ledger) -> None:
    """What waits in the ledger can still be overtaken by what is urgent; a message cannot."""
    for name in ("one", "two", "three"):
        at_step(ledger, StepName.INFER, name)
    mine = [BY_NAME[StepName.INFER]]
    first = ledger.claim_next(mine, 30, at_most=2)
    assert first is not None
    assert ledger.due(mine, at_most=2) == 1
    assert ledger.claim_next(mine, 30, at_most=2) is not None
    assert ledger.claim_next(mine, 30, at_most=2) is None
    assert (ledger.due(mine, at_most=2), ledger.due(mine)) == (0, 1)
    ledger.finish(first, {})
    assert ledger.claim_next(mine, 30, at_most=2) is not None


def test_a_paused_queue_starts_nothing_until_it_is_resumed(ledger: Ledger) -> None:
    """What runs goes on; the others are still there afterwards."""
    running = opened(ledger, "a")
    held = claimed(ledger, running)
    ledger.open_jobs("other", "study", ("b",))
    io = [step for step in STEPS if step.queue == "io"]
    ledger.pause("queue:io")
    assert (ledger.claim_next(io, 30), ledger.due(io)) == (None, 0)
    assert ledger.finish(held, {}) is not None
    assert ledger.claim_next([BY_NAME[StepName.DEIDENTIFY]], 30) is None
    ledger.resume("queue:io")
    assert ledger.due(io) == 2
    assert ledger.claim_next(io, 30) is not None


def test_what_waits_for_a_paused_destination_is_due_when_it_is_resumed(
    ledger: Ledger, clock: Clock
) -> None:
    """A person who resumes need not wait for the next try."""
    job = claimed(ledger, at_step(ledger, StepName.DELIVER))
    ledger.pause("destination:archive")
    assert ledger.paused() == {"archive"}
    later = {"next_try_at": clock.now + 3600}
    ledger.wait(job, cause="archive is paused", remedy="", error="", delay_s=3600,
                facts={"delivery": {"archive": later, "other": later}})  # fmt: skip
    assert ledger.due(STEPS) == 0
    ledger.resume("destination:archive")
    assert (ledger.paused(), ledger.due(STEPS)) == (frozenset(), 1)
    found = ledger.job(job.id)
    assert found is not None
    assert found.facts["delivery"] == {"archive": {"next_try_at": None}, "other": later}


def test_of_two_workers_that_ask_at_once_each_gets_another_job(
    database_url: str, clock: Clock
) -> None:
    """Real threads on one database: every job once, none left."""
    ledgers = [Ledger(database_url, clock=clock) for _ in range(4)]
    for number in range(20):
        ledgers[0].open_jobs(f"series{number}", f"study{number % 3}", ("a",))

    def work(ledger: Ledger) -> list[str]:
        found = []
        while job := ledger.claim_next(STEPS, 30):
            found.append(job.id)
        return found

    with ThreadPoolExecutor(len(ledgers)) as threads:
        taken = [one for some in threads.map(work, ledgers) for one in some]
    # One that finds all its candidates taken gives up: the next wake-up brings another.
    taken += work(ledgers[0])
    assert len(taken) == len(set(taken)) == 20


def test_a_worker_runs_what_is_due_in_its_queue_and_wakes_the_next(ledger: Ledger) -> None:
    """A wake-up names a queue; the ledger says whose turn it is."""
    job = opened(ledger)
    woken: list[Job] = []
    steps = {StepName.RECEIVE: lambda job: Done({"sender": "PACS"})}
    assert run_next("io", ledger=ledger, steps=steps, wake=woken.append, terms=Terms())
    assert [(one.id, one.step) for one in woken] == [(job.id, StepName.ROUTE)]
    assert not run_next("cpu", ledger=ledger, steps=steps, wake=woken.append, terms=Terms())


def test_nothing_is_recorded_of_a_step_whose_job_a_person_stopped(ledger: Ledger) -> None:
    """The step ends as it likes; the job stays canceled, and nobody is woken."""
    job = opened(ledger)
    woken: list[Job] = []

    def step(job: Job) -> Done:
        ledger.cancel(job.id)
        return Done({"sent": True})

    run_step(job.id, job.step, ledger=ledger, steps={job.step: step}, wake=woken.append)
    found = ledger.job(job.id)
    assert found is not None
    assert (found.state, dict(found.facts), woken) == (State.CANCELED, {}, [])


def test_a_heartbeat_that_fails_once_is_tried_again(database_url: str, clock: Clock) -> None:
    """One moment without a database ends no lease."""
    failed, extended = threading.Event(), threading.Event()

    class Flaky(Ledger):
        def extend(self, job: Job, lease_s: float, progress: float | None = None) -> bool:
            if not failed.is_set():
                failed.set()
                raise sa.exc.OperationalError("update", {}, Exception("gone"))
            kept = super().extend(job, lease_s, progress)
            extended.set()
            return kept

    ledger = Flaky(database_url, clock=clock)
    job = claimed(ledger, opened(ledger), lease_s=0.04)
    clock.now += 0.03
    with kept_alive(ledger, job, 0.04):
        assert extended.wait(10)
    clock.now += 0.03
    assert ledger.release_lost_leases(BY_NAME) == [], "it would have run out by now"
    ledger.database.close()


@pytest.mark.parametrize("end", [Event.REJECT, Event.FAULT, Event.CANCEL])
def test_a_series_sent_again_after_its_job_ended_without_a_result_begins_anew(
    ledger: Ledger, end: Event
) -> None:
    """A person who sends a series again wants to see something happen."""
    job = claimed(ledger, opened(ledger))
    if end is Event.CANCEL:
        ledger.cancel(job.id)
    else:
        ledger.end(job, end, cause="gap", remedy="send again", error="GeometryError")
    again = ledger.open_jobs("series", "study", ("b", "a"))
    assert again is not None and again.id == job.id
    assert (again.state, again.step, again.cause) == (State.QUEUED, StepName.RECEIVE, "")
    assert ledger.open_jobs("series", "study", ("b", "a")) is None, "it is on its way"


def test_what_is_being_sent_is_not_superseded(ledger: Ledger) -> None:
    """A PACS may hold half of it: it goes on to its proof, and the newer result follows."""
    older = claimed(ledger, at_step(ledger, StepName.DELIVER))
    newer = ledger.open_jobs("series", "study", ("a", "b", "c"))
    assert newer is not None
    assert ledger.finish(older, {}) is not None


@pytest.mark.parametrize("taken", [False, True])
def test_what_waits_for_a_pacs_that_has_taken_nothing_never_goes_out(
    ledger: Ledger, taken: bool
) -> None:
    """The PACS was down all night, and the end of the series came: it gets the newer result only.

    Once it has taken something, it gets the rest, and the newer result rejects it.
    """
    older = claimed(ledger, at_step(ledger, StepName.DELIVER))
    accepted = {"seg": ""} if taken else {}
    facts = {"plan": {"pacs": {"seg": 1}}, "delivery": {"pacs": {"accepted": accepted}}}
    waits = {"cause": "down", "remedy": "", "error": "PacsUnavailable", "delay_s": 60.0}
    ledger.wait(older, facts=facts, **waits)
    ledger.open_jobs("series", "study", ("a", "b", "c"))
    left = ledger.job(older.id)
    assert left is not None
    assert left.state is (State.WAITING if taken else State.SUPERSEDED)


def test_late_instances_bring_a_persons_wish_with_them(ledger: Ledger) -> None:
    """What a person asked for on fewer instances is made of all of them."""
    asked = ledger.request("series", "study", ("a",), replace(LUNGS, rule=BY_HAND))
    ledger.open_jobs("series", "study", ("a", "b"))
    states = {(job.instance_ids, job.model): job.state for job in ledger.jobs()}
    assert states == {
        (("a",), "ct_lungs"): State.SUPERSEDED,
        (("a", "b"), "ct_lungs"): State.QUEUED,
        (("a", "b"), ""): State.QUEUED,
    }
    assert asked.model == "ct_lungs"


def test_no_model_is_run_by_hand_on_a_series_that_is_still_arriving(
    ledger: Ledger, clock: Clock
) -> None:
    """The person is told to ask again; an instance later it would be worth nothing."""
    Arrivals(ledger.database).record("feed", Cursor(1), {"series": None})
    with pytest.raises(NotPossible, match="still arriving"):
        ledger.request("series", "study", ("a",), LUNGS)
    ledger.open_jobs("series", "study", ("a",))
    assert ledger.request("series", "study", ("a",), LUNGS).model == "ct_lungs"


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


def test_what_a_step_itself_waits_for_may_take_days(ledger: Ledger, clock: Clock) -> None:
    """A step that says itself when to go on is tried as often as it likes, at its time."""
    job = opened(ledger)
    pending = NotYet(PacsUnavailable("no report yet"), {"asked": 1}, delay_s=3600)
    for number in range(1, 30):
        run_step(job.id, job.step, ledger=ledger, steps={job.step: lambda _: pending}, wake=nobody)
        waiting = ledger.job(job.id)
        assert waiting is not None
        assert (waiting.state, waiting.attempt) == (State.WAITING, number)
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
    ledger.release_lost_leases(BY_NAME)
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
    for facts in [{}] * 6 + [{"results": RESULTS, "plan": plan, "delivery": delivery}]:
        job = ledger.finish(claimed(ledger, job), facts) or job
    assert job.step is StepName.CONFIRM
    ledger.end(claimed(ledger, job), Event.FAULT, cause="lost", remedy="r", error="NotDelivered")
    again = ledger.retry(job.id)
    assert (again.step, again.state) == (StepName.DELIVER, State.QUEUED)
    assert again.facts["results"] == RESULTS
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
    by_hand = replace(LUNGS, rule=BY_HAND, rule_version=BY_HAND)
    first = ledger.request("series", "study", ("a",), by_hand)
    assert ledger.request("series", "study", ("a",), by_hand).id == first.id
    ruled = ledger.open_jobs("series", "study", ("a",))
    assert ruled is not None and ruled.id != first.id
    ledger.cancel(first.id)
    revived = ledger.request("series", "study", ("a",), by_hand)
    assert (revived.id, revived.state) == (first.id, State.QUEUED)


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
    again = ledger.retry(job.id)
    assert again.step is StepName.DEIDENTIFY
    assert "explained" not in again.facts, "should it end otherwise, nobody was told why"


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
