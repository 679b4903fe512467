"""One trial: a seed says which studies, which fault and when; the verdict says what came of it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy.exc import OperationalError

from node.jobs import Job, State
from node.pipeline.outbound import outgoing, taken_by
from tests.faults.catalogue import FAULTS, Fault
from tests.faults.site import ROUTES, Sent, Site, digest_of

#: Every study has ended by then, or is stuck. Generous: this machine may be shared.
BOUND_S = 180.0
_ENDED = {State.CONFIRMED, State.REJECTED, State.QUARANTINED, State.FAILED, State.CANCELED}
_STEPS = ("receive", "route", "deidentify", "infer", "encode", "reidentify", "deliver", "confirm")
_LOOK_S = 0.2


@dataclass(frozen=True)
class Plan:
    """What a seed means.

    Attributes
    ----------
    studies
        (route, template, seconds after the first) of each study.
    share
        When the fault comes, as a share of an undisturbed run; or
    step
        as soon as a study is in this step.
    """

    seed: int
    fault: Fault
    studies: tuple[tuple[str, int, float], ...]
    share: float
    step: str | None
    lasts_s: float


def plan_of(seed: int, faults: Sequence[str] = tuple(FAULTS)) -> Plan:
    """The plan of a seed: as many seeds in a row as there are faults have each of them once."""
    rng = random.Random(seed)
    fault = FAULTS[faults[seed % len(faults)]]
    routes = list(ROUTES)
    rng.shuffle(routes)
    routes += rng.choices(list(ROUTES), k=rng.randint(0, 2))
    studies = tuple((route, rng.randrange(2), round(rng.uniform(0, 1.5), 2)) for route in routes)
    share = rng.uniform(0, 1.05)
    step = rng.choice(_STEPS) if rng.random() < 0.5 else None
    if fault.when == "first":
        share, step = 0.0, None
    if fault.when == "working":
        share, step = share / 2, rng.choice(("infer", "encode"))
    return Plan(seed, fault, studies, share, step, rng.uniform(*fault.lasts_s))


@dataclass
class StudyEnd:
    """How one study ended."""

    route: str
    state: str = ""
    step: str = ""
    error: str = ""
    cause: str = ""
    tries: int = 0
    retried: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """One trial, as it goes into the table and the JSON.

    Attributes
    ----------
    delay_s
        How much longer it took than an undisturbed trial; None where a person had to retry.
    recovers_in_s
        One thing was killed: the delay may be a sweep, and the step that was begun anew.
    """

    seed: int
    fault: str
    studies: list[StudyEnd]
    broken_at_s: float | None
    broken_in: str
    seconds: float
    delay_s: float | None = None
    recovers_in_s: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def all_problems(self) -> list[str]:
        """Everything that may not be."""
        return self.problems + [problem for study in self.studies for problem in study.problems]


@dataclass
class Undisturbed:
    """How long it takes when nothing goes wrong, by number of studies."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    longest_step_s: float = 0.0

    def add(self, studies: int, seconds: float, longest_step_s: float) -> None:
        """Learn from a trial without a fault."""
        self.seconds.setdefault(studies, []).append(seconds)
        self.longest_step_s = max(self.longest_step_s, longest_step_s)

    def of(self, studies: int) -> float:
        """Seconds for so many studies; the nearest number that is known."""
        nearest = min(self.seconds, key=lambda known: abs(known - studies), default=None)
        return median(self.seconds[nearest]) if nearest is not None else 8.0


class _Injector(threading.Thread):
    """Waits for the moment, breaks, waits until it is time to mend.

    The trial's own thread mends: a process that this thread starts would end with it, because
    bubblewrap's ``--die-with-parent`` looks at the thread.
    """

    def __init__(self, site: Site, plan: Plan, sent: Sequence[Sent], undisturbed_s: float) -> None:
        super().__init__(name="fault", daemon=True)
        self._site, self._plan, self._sent = site, plan, sent
        self._undisturbed_s = undisturbed_s
        self.broken_at: float | None = None
        self.broken_in = ""
        self.failure = ""
        self.mend: Callable[[], None] = lambda: None

    def run(self) -> None:
        try:
            self._wait_for_the_moment()
            # The seed's own numbers, whatever the plan has drawn before.
            self.mend = self._plan.fault.breaks(
                self._site, random.Random(f"{self._plan.seed} breaks")
            )
            self.broken_at = time.time()
            self._wait_for_a_hit()
            if self._plan.fault.lasts_s[1]:
                time.sleep(self._plan.lasts_s)
        except Exception as error:  # noqa: BLE001 - a trial that could not be made says so
            self.failure = f"{type(error).__name__}: {error}"

    def _wait_for_the_moment(self) -> None:
        started = time.monotonic()
        if self._plan.step is None:
            time.sleep(self._plan.share * self._undisturbed_s)
        seen: set[str] = set()
        while self._plan.step and time.monotonic() - started < 2 * self._undisturbed_s + 5:
            steps = self._steps()
            if self._plan.step in steps:
                time.sleep(self._plan.share * 0.3)  # somewhere within it
                break
            if seen and not steps:  # it was too short to be seen, and all is over
                break
            seen |= steps
            time.sleep(0.02)
        self.broken_in = " ".join(sorted(self._steps())) if self._plan.share else "before"

    def _wait_for_a_hit(self) -> None:
        hit = self._plan.fault.hit
        deadline = time.monotonic() + BOUND_S / 2
        while hit is not None and time.monotonic() < deadline:
            with contextlib.suppress(OperationalError):
                if hit(self._site):
                    return
            time.sleep(0.05)
        if hit is not None:
            raise TimeoutError("the fault met nothing")

    def _steps(self) -> set[str]:
        with contextlib.suppress(Exception):  # the ledger may be on a full disk
            jobs = [job for sent in self._sent for job in self._site.jobs_of(sent)[:1]]
            return {str(job.step) for job in jobs if job.state not in _ENDED}
        return set()


def run_trial(site: Site, plan: Plan, folder: Path, undisturbed: Undisturbed) -> Outcome:
    """Send, break, mend, wait, judge; what the fault left held is retried as a person would."""
    sent = [
        site.study(folder / f"study-{number}", route, template)
        for number, (route, template, _) in enumerate(plan.studies)
    ]
    injector = _Injector(site, plan, sent, undisturbed.of(len(sent)))
    started = time.time()
    if plan.fault.when == "first":
        injector.start()
        time.sleep(0.05)
    problems: list[str] = []
    senders = [
        threading.Thread(
            target=_send_until_acknowledged, args=(site, one, after_s, problems), daemon=True
        )
        for one, (_, _, after_s) in zip(sent, plan.studies, strict=True)
    ]
    for sender in senders:
        sender.start()
    if plan.fault.when != "first":
        injector.start()
    injector.join()
    injector.mend()
    for sender in senders:
        sender.join()
    if injector.failure:
        raise RuntimeError(f"the fault could not be made or mended: {injector.failure}")
    if problems:  # nothing was promised, so nothing can be judged
        return Outcome(plan.seed, plan.fault.name, [], None, "", 0.0, problems=problems)
    held = wait_for_end(site, sent)
    ends = [judged(site, one) for one in sent]
    finished = _finished_at(site, sent, started)
    _retry(site, sent, ends, held)
    broken = injector.broken_at
    outcome = Outcome(
        plan.seed, plan.fault.name, ends,
        broken_at_s=round(broken - started, 2) if broken else None,
        broken_in=injector.broken_in,
        seconds=round(finished - started, 2), problems=problems,
    )  # fmt: skip
    with contextlib.suppress(RuntimeError):
        site.wait_until_well()
    if left := site.strays():
        outcome.problems.append(f"processes that nobody watches: {left}")
    if plan.fault.name == "none":
        undisturbed.add(len(sent), outcome.seconds, _longest_step_s(site, sent))
    elif not any(end.retried for end in ends):
        outcome.delay_s = round(max(0.0, outcome.seconds - undisturbed.of(len(sent))), 2)
        if plan.fault.single_kill:
            outcome.recovers_in_s = round(site.recovery_s + undisturbed.longest_step_s, 2)
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _send_until_acknowledged(site: Site, sent: Sent, after_s: float, problems: list[str]) -> None:
    """A PACS sends again what was not acknowledged."""
    time.sleep(after_s)
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        if site.send(sent):
            return
        time.sleep(0.5)
    problems.append("a study was not acknowledged")


def _live(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.state is not State.SUPERSEDED]


def wait_for_end(site: Site, sent: Sequence[Sent], bound_s: float = BOUND_S) -> list[Sent]:
    """Until each has ended; those that ended otherwise than confirmed."""
    deadline = time.monotonic() + bound_s
    open_ones = list(sent)
    held = []
    while open_ones and time.monotonic() < deadline:
        for one in list(open_ones):
            with contextlib.suppress(Exception):  # the ledger may be locked, or its disk full
                jobs = _live(site.jobs_of(one))
                if jobs and all(job.state in _ENDED for job in jobs):
                    open_ones.remove(one)
                    if any(job.state is not State.CONFIRMED for job in jobs):
                        held.append(one)
        time.sleep(_LOOK_S)
    return held


def _finished_at(site: Site, sent: Sequence[Sent], started: float) -> float:
    """When the last job changed for the last time; now, if the node's clock was wrong then."""
    changed_at = max((job.updated_at for one in sent for job in site.jobs_of(one)), default=0.0)
    now = time.time()
    return changed_at if started <= changed_at <= now else now


def _longest_step_s(site: Site, sent: Sequence[Sent]) -> float:
    attempts = [try_ for one in sent for job in site.jobs_of(one) for try_ in site.attempts(job)]
    return max((one.ended_at - one.started_at for one in attempts if one.ended_at), default=0.0)


def _retry(site: Site, sent: Sequence[Sent], ends: list[StudyEnd], held: Sequence[Sent]) -> None:
    """What is held is retried once: the fault is gone, so it must be confirmed now."""
    for one in held:
        for job in _live(site.jobs_of(one)):
            if job.state is not State.CONFIRMED:
                site.node.segnode("retry", job.id, check=False)
    still_held = wait_for_end(site, held) if held else []
    for number, one in enumerate(sent):
        if one not in held:
            continue
        before = ends[number]
        after = judged(site, one)
        after.retried = True
        after.problems = before.problems + after.problems
        if one in still_held:
            after.problems.append(f"a retry after the fault ended {after.state}: {after.cause}")
        after.cause = before.cause or after.cause
        after.error, after.state = before.error, f"{before.state}, then {after.state}"
        ends[number] = after


def judged(site: Site, sent: Sent) -> StudyEnd:
    """The state of a study, and what may not be."""
    end = StudyEnd(sent.route)
    try:
        jobs = site.jobs_of(sent)
    except Exception as error:  # noqa: BLE001 - the verdict is that it cannot be read
        end.problems.append(f"the ledger cannot be read: {type(error).__name__}")
        return end
    live = _live(jobs)
    if not live:
        end.problems.append("lost: acknowledged, and there is no job")
        return end
    if len(live) > 1:
        end.problems.append(f"{len(live)} live jobs of one series")
    job = live[0]
    end.state, end.step, end.error, end.cause = (
        str(job.state), str(job.step), job.error, job.cause,
    )  # fmt: skip
    end.tries = len(site.attempts(job))
    if job.state not in _ENDED:
        end.problems.append(f"stuck: {job.state} in {job.step} ({job.cause or 'no cause'})")
    elif job.state is not State.CONFIRMED and not (job.cause and job.remedy):
        end.problems.append(f"{job.state} without a cause or a remedy")
    if job.state is State.CONFIRMED and len(job.instance_ids) != len(sent.study.files):
        end.problems.append(f"{len(job.instance_ids)} of {len(sent.study.files)} instances")
    end.problems += _results_wrong(site, sent, job, [one for one in jobs if one is not job])
    return end


def _results_wrong(site: Site, sent: Sent, job: Job, older: Sequence[Job]) -> list[str]:
    """What the PACS hold, against what the ledger says."""
    wrong = []
    explained = {uid for one in (job, *older) for uid in _made_by(one)}
    for destination in ROUTES[sent.route]:
        held = site.held_by(destination, sent)
        if unexplained := len(set(held) - explained):
            wrong.append(f"{unexplained} objects at {destination} that no job has made")
        if job.state is not State.CONFIRMED:
            continue
        expected = {one.sop_instance_uid for one in outgoing(job, destination)}
        if missing := len(expected - set(held)):
            wrong.append(f"confirmed, and {destination} does not hold {missing} objects")
        segmentations = [one for uid, one in held.items() if _is_seg(one) and uid in expected]
        if len(segmentations) > 1:
            wrong.append(f"{len(segmentations)} Segmentations at {destination}")
        for one in segmentations:
            known = site.reference.setdefault(sent.template, digest_of(one))
            if digest_of(one) != known:
                wrong.append(f"the Segmentation at {destination} is not that of these images")
    return wrong


def _made_by(job: Job) -> set[str]:
    made = outgoing(job) if "results" in job.facts else []
    taken = [one for of_it in taken_by(job).values() for one in of_it]
    return {one.sop_instance_uid for one in (*made, *taken)}


def _is_seg(one: Any) -> bool:
    return str(one.get("Modality")) == "SEG"


def evidence(site: Site, folder: Path, outcome: Outcome) -> None:
    """Keep logs and the ledger of a trial that went wrong, for whoever looks into it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcome.json").write_text(json.dumps(plain(outcome), indent=1))
    logs = [*(site.node.var / "log").glob("*"), site.node.var / "orthanc" / "orthanc.log"]
    for log in logs:
        with contextlib.suppress(OSError):
            text = log.read_bytes()[-200_000:]
            (folder / log.name).write_bytes(text)
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        with contextlib.suppress(OSError):
            shutil.copy2(site.node.var / name, folder / name)


def plain(outcome: Outcome) -> Mapping[str, Any]:
    """For JSON."""
    return {**vars(outcome), "studies": [vars(study) for study in outcome.studies]}
