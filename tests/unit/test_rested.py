"""One hanging destination does not take all workers, and a quick refusal costs nobody a wait."""

from __future__ import annotations

import pytest

from node.edges.pacs import DicomDestination, DicomPacs
from node.edges.rested import Rested
from node.errors import PacsUnavailable
from tests.orthanc_server import free_port


class Steps:
    """A clock that is later by ``step_s`` at each look."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def nobody(clock: Steps) -> Rested:
    """A destination where nobody listens."""
    where = DicomDestination("pacs", "HOSPITAL", "127.0.0.1", free_port(), dimse_timeout_s=60)
    return Rested("pacs", DicomPacs(where), clock=clock)


def test_after_a_slow_failure_the_next_job_is_told_when_to_come_back() -> None:
    """It does not wait for the same timeout; when the rest is over, the destination is asked."""
    clock = Steps(10)
    pacs = nobody(clock)
    with pytest.raises(PacsUnavailable, match="could not be reached"):
        pacs.find_instances("2.25.1", "2.25.2")
    with pytest.raises(PacsUnavailable, match="left alone") as caught:
        pacs.store([b"never read"])
    assert caught.value.retry_after_s == 20
    clock.now += 20
    with pytest.raises(PacsUnavailable, match="could not be reached"):
        pacs.find_instances("2.25.1", "2.25.2")


def test_a_quick_failure_lets_the_next_job_try() -> None:
    """A PACS that was restarted is found again at once."""
    pacs = nobody(Steps(0.1))
    for _ in range(2):
        with pytest.raises(PacsUnavailable, match="could not be reached"):
            pacs.find_instances("2.25.1", "2.25.2")
