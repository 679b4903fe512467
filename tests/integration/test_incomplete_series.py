"""Completeness against real peers: what a PACS counts, and what it sends when it is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from dicom_peers import running_storescp

from node.edges.dicomweb import DicomWebDestination, DicomWebPacs
from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.edges.pacs import DicomDestination, DicomPacs
from node.edges.source import DicomSource, DicomWebSource
from node.errors import Incomplete, NotAllArrived
from node.jobs import Done, Job, NotYet
from node.pipeline.completeness import Need
from node.pipeline.receive import Patience, receive
from node.ports import Source
from tests.ledger_case import Clock
from tests.orthanc_server import OrthancServer, free_port
from tests.running_node import DEMO_CT, Study, made_up_study

PATIENCE_S = 60.0


@dataclass
class Bench:
    """A receiving Orthanc, a PACS that sends to it, and the sources that ask the PACS."""

    server: OrthancServer
    orthanc: Orthanc
    pacs: OrthancServer
    sources: dict[str, Source]
    clock: Clock

    def job(self, study: Study) -> Job:
        """The job of all that has arrived."""
        found = self.server.post("/tools/lookup", content=study.series_instance_uid).json()
        series = self.orthanc.instances_of_series(found[0]["ID"])
        study_id = self.orthanc.study_of_series(found[0]["ID"])
        return Job("j", found[0]["ID"], study_id, tuple(sorted(series)), created_at=self.clock.now)

    def receive(self, job: Job, source: str = "", need: Need = Need.HOLD) -> Done | NotYet:
        """The step itself."""
        return receive(
            job,
            instances=self.orthanc,
            source_of=lambda _: self.sources.get(source),
            need=lambda _job, _headers: need,
            patience=Patience(PATIENCE_S, self.clock),
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    ports = free_port(), free_port()
    hospital = DicomPeer("hospital", "HOSPITAL", "127.0.0.1", ports[1])
    node = DicomPeer("node", "SEGNODE", "127.0.0.1", ports[0], may_query=True)
    folder = tmp_path_factory.mktemp("completeness")
    with (
        OrthancServer(
            folder / "node", ae_title="SEGNODE", peers=[hospital], dicom_port=ports[0]
        ) as server,
        OrthancServer(
            folder / "pacs", ae_title="HOSPITAL", peers=[node], dicom_port=ports[1]
        ) as pacs,
    ):
        password = folder / "password"
        password.write_text(pacs.auth[1])
        orthanc = Orthanc(server.url, *server.auth)
        scu = DicomPacs(
            DicomDestination("hospital", "HOSPITAL", "127.0.0.1", ports[1], dimse_timeout_s=60)
        )
        web = DicomWebPacs(
            DicomWebDestination("archive", f"{pacs.url}/dicom-web", pacs.auth[0], password)
        )
        sources: dict[str, Source] = {
            "dicom": DicomSource("hospital", scu, "SEGNODE"),
            "web": DicomWebSource("archive", web, orthanc.store),
            "stranger": DicomSource("hospital", scu, "SOMEBODY"),
        }
        yield Bench(server, orthanc, pacs, sources, Clock())


def put(server: OrthancServer, files: Sequence[Path]) -> None:
    for file in files:
        server.upload(file)


@pytest.fixture
def study(tmp_path: Path, bench: Bench) -> Study:
    """Twelve slices that the PACS holds."""
    made = made_up_study(tmp_path / "ct", DEMO_CT[40:52])
    put(bench.pacs, made.files)
    return made


def completeness(outcome: Done | NotYet) -> dict[str, Any]:
    return dict(outcome.facts["completeness"])


@pytest.mark.parametrize("source", ["dicom", "web"])
def test_the_pacs_count_says_that_a_series_is_whole(
    bench: Bench, study: Study, source: str
) -> None:
    """By C-FIND and by QIDO-RS; the verdict names who decided."""
    put(bench.server, study.files)
    outcome = bench.receive(bench.job(study), source)
    assert isinstance(outcome, Done)
    name = bench.sources[source].name
    assert completeness(outcome)["says"] == f"complete: PACS {name} says 12 of 12"


@pytest.mark.parametrize("source", ["dicom", "web"])
def test_what_is_missing_is_waited_for_then_asked_for_and_comes(
    bench: Bench, study: Study, source: str
) -> None:
    """The end of the series is missing, which no geometry shows; C-MOVE or WADO-RS brings it."""
    put(bench.server, study.files[:7])
    job = bench.job(study)
    outcome = bench.receive(job, source)
    assert isinstance(outcome, NotYet)
    assert isinstance(outcome.reason, NotAllArrived)
    assert (completeness(outcome)["have"], completeness(outcome)["expected"]) == (7, 12)
    assert len(bench.job(study).instance_ids) == 7, "asked for before half of the patience"

    bench.clock.now += PATIENCE_S / 2
    outcome = bench.receive(replace(job, facts=outcome.facts), source)
    assert isinstance(outcome, NotYet)
    assert outcome.facts["asked_source"].endswith("sent 5")
    whole = bench.job(study)
    assert len(whole.instance_ids) == 12
    assert isinstance(bench.receive(whole, source), Done)


def test_a_late_look_asks_before_it_gives_up(bench: Bench, study: Study) -> None:
    """A node that was too busy to look in time still asks, and what comes is waited for."""
    put(bench.server, study.files[:7])
    job = bench.job(study)
    bench.clock.now += 2 * PATIENCE_S
    outcome = bench.receive(job, "dicom")
    assert isinstance(outcome, NotYet)
    assert outcome.facts["asked_source"].endswith("sent 5")
    assert len(bench.job(study).instance_ids) == 12


def test_what_never_comes_is_held_with_its_reason(bench: Bench, study: Study) -> None:
    """The PACS refuses to send to us: the job says so, and a person may go on as it is."""
    put(bench.server, study.files[:7])
    job = bench.job(study)
    bench.clock.now += PATIENCE_S / 2
    outcome = bench.receive(job, "stranger")
    assert isinstance(outcome, NotYet)
    bench.clock.now += PATIENCE_S / 2
    with pytest.raises(Incomplete) as held:
        bench.receive(replace(job, facts=outcome.facts), "stranger")
    assert "5 of 12 missing" in str(held.value)
    assert "C-MOVE" in str(held.value) or "AE title" in str(held.value)
    assert not any(str(one) in str(held.value) for one in study.sop_instance_uids)

    as_it_is = replace(job, facts={**outcome.facts, "process_incomplete": True})
    outcome = bench.receive(as_it_is, "stranger")
    assert isinstance(outcome, Done)
    assert completeness(outcome)["level"] == "incomplete"


def test_a_gap_is_held_where_nobody_can_be_asked(bench: Bench, study: Study) -> None:
    """The positions alone show what is missing between them."""
    put(bench.server, [*study.files[:4], *study.files[6:]])
    job = bench.job(study)
    assert isinstance(bench.receive(job), NotYet)
    bench.clock.now += PATIENCE_S
    with pytest.raises(Incomplete, match="slice spacing says 2 of 12 missing in 1 gap"):
        bench.receive(job)


def test_a_gap_that_nobody_minds_is_noted(bench: Bench, study: Study) -> None:
    """No model wants the series: nobody is asked, nobody waits. One that bears it waits only."""
    put(bench.server, [*study.files[:4], *study.files[6:]])
    job = bench.job(study)
    unwanted = bench.receive(job, "dicom", Need.NOTHING)
    assert isinstance(unwanted, Done)
    assert completeness(unwanted)["by"] == "slice spacing"
    assert isinstance(bench.receive(job, "", Need.WAIT), NotYet)
    bench.clock.now += PATIENCE_S
    assert isinstance(bench.receive(job, "", Need.WAIT), Done)


def test_a_count_in_the_headers_makes_the_node_wait_and_no_more(
    bench: Bench, tmp_path: Path
) -> None:
    """ImagesInAcquisition says 30: perhaps the rest comes; it does not, and the series goes on."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[40:52], ImagesInAcquisition=30)
    put(bench.server, study.files)
    job = bench.job(study)
    outcome = bench.receive(job, "dicom")  # the PACS does not hold it, so it cannot say
    assert isinstance(outcome, NotYet)
    bench.clock.now += PATIENCE_S
    outcome = bench.receive(replace(job, facts=outcome.facts), "dicom")
    assert isinstance(outcome, Done)
    assert completeness(outcome)["level"] == "doubtful"


def test_a_source_that_is_down_or_takes_no_queries_decides_nothing(
    bench: Bench, study: Study, tmp_path: Path
) -> None:
    """A modality that only stores; a PACS that is off: the spacing has to do."""
    put(bench.server, study.files)
    with running_storescp(tmp_path) as port:
        scu = DicomPacs(DicomDestination("ct", "STORESCP", "127.0.0.1", port, dimse_timeout_s=60))
        bench.sources["ct"] = DicomSource("ct", scu, "SEGNODE")
        outcome = bench.receive(bench.job(study), "ct")
    assert isinstance(outcome, Done)
    assert completeness(outcome)["by"] == "slice spacing"
    outcome = bench.receive(bench.job(study), "ct")
    assert isinstance(outcome, Done)


def test_the_sender_is_known_although_the_rest_was_fetched(
    bench: Bench, study: Study, tmp_path: Path
) -> None:
    """C-STORE brings some, WADO-RS the rest: the results still go back to who sent the first."""
    put(bench.server, study.files[:6])
    subprocess.run(
        [
            "/usr/bin/storescu", "-aet", "HOSPITAL", "-aec", "SEGNODE", "-xt", "127.0.0.1",
            str(bench.server.dicom_port), *map(str, study.files[6:]),
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    outcome = bench.receive(bench.job(study))
    assert isinstance(outcome, Done)
    assert (outcome.facts["sender"], outcome.facts["instances"]) == ("HOSPITAL", 12)
