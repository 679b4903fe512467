"""The bridge in a real Orthanc, in front of a real console and ledger."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from console_node import REVIEW_KEY, ConsoleNode
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from anonymizer import PseudonymKeys
from anonymizer.options import Option
from anonymizer.profile import profile_with
from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from node.edges.orthanc_storage import Disk
from node.edges.space import Forecast
from node.jobs import Event, State, StepName
from node.pipeline.pixel_review import examined, store_review
from tests.identified_ct import part10
from tests.orthanc_server import OrthancServer, free_port
from tests.unit.test_anonymizer_pixel_cleaning import drawn_image

OURS = {"X-Segnode-Console": "1"}
PATIENT = "Sentinel^Bridge"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleNode]:
    yield ConsoleNode(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def server(node: ConsoleNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    peer = DicomPeer("ct", "CT1", "127.0.0.1", free_port())
    folder = tmp_path_factory.mktemp("orthanc")
    with OrthancServer(folder, peers=[peer], environment=node.environment) as running:
        node.orthanc = Orthanc(running.url, *running.auth)
        yield running


@pytest.fixture
def orthanc(server: OrthancServer, node: ConsoleNode) -> Iterator[OrthancServer]:
    """Orthanc with the node's console up."""
    with node:
        yield server


def slices(count: int = 1, modality: str = "CT") -> list[bytes]:
    """One new series."""
    study, series = generate_uid(), generate_uid()
    return [_slice(study, series, modality) for _ in range(count)]


def _slice(study: str, series: str, modality: str) -> bytes:
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID, instance.SOPInstanceUID = CTImageStorage, generate_uid()
    instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
    instance.PatientName, instance.PatientID, instance.Modality = PATIENT, "SENTINEL-ID", modality
    stream = BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def upload(orthanc: OrthancServer, instances: list[bytes]) -> str:
    """Orthanc's id of the study."""
    ids = [orthanc.upload(instance) for instance in instances]
    return str(orthanc.get(f"/instances/{ids[0]}/study").json()["ID"])


def storescu(orthanc: OrthancServer, file: Path) -> None:
    command = ["/usr/bin/storescu", "-aet", "CT1", "-aec", orthanc.ae_title, "127.0.0.1"]
    subprocess.run(
        [*command, str(orthanc.dicom_port), str(file)],
        check=True, env={"PATH": os.environ["PATH"], "TCP_NODELAY": "1"},
    )  # fmt: skip


# -- nudges --------------------------------------------------------------------------------------


def test_an_instance_by_c_store_nudges_the_node(
    orthanc: OrthancServer, node: ConsoleNode, tmp_path: Path
) -> None:
    """The node hears of it without asking."""
    (tmp_path / "slice.dcm").write_bytes(slices()[0])
    _quiet(node)
    storescu(orthanc, tmp_path / "slice.dcm")
    assert node.nudged.wait(30)


def test_an_instance_by_http_nudges_the_node(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """The way in does not matter."""
    _quiet(node)
    orthanc.upload(slices()[0])
    assert node.nudged.wait(30)


def test_a_whole_series_makes_few_nudges(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """Four in a second at most, however many instances arrive; the last is not lost."""
    _quiet(node)
    started, before = time.monotonic(), node.nudges
    upload(orthanc, slices(40))
    node.nudged.clear()
    orthanc.upload(slices()[0])
    assert node.nudged.wait(30)
    assert node.nudges - before <= 4 * (time.monotonic() - started) + 2


def _quiet(node: ConsoleNode) -> None:
    """Wait until the nudges of earlier tests have come."""
    while True:
        node.nudged.clear()
        if not node.nudged.wait(1):
            return


# -- who may -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/segnode", "/segnode/", "/segnode/index.html", "/segnode/console.js",
             "/segnode/api/jobs", "/plugins/explorer.js"],
)  # fmt: skip
def test_nothing_is_shown_without_orthancs_login(orthanc: OrthancServer, path: str) -> None:
    """Orthanc's own login stands before every page and call."""
    assert httpx.get(orthanc.url + path).status_code == 401
    assert httpx.get(orthanc.url + path, auth=("node", "guess")).status_code == 401


def test_nothing_is_done_without_orthancs_login(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """Our header alone opens nothing."""
    job = node.failed_job()
    url = f"{orthanc.url}/segnode/api/jobs/{job.id}/retry"
    assert httpx.post(url, headers=OURS).status_code == 401
    assert node.reread(job) == job


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Segnode-Console": "0"},
        {**OURS, "Origin": "http://evil.example"},
        {**OURS, "Origin": "null"},
        {**OURS, "Sec-Fetch-Site": "cross-site"},
        {**OURS, "Sec-Fetch-Site": "same-site"},
        {"Origin": "{self}"},
    ],
)
def test_another_sites_page_can_change_nothing(
    orthanc: OrthancServer, node: ConsoleNode, headers: dict[str, str]
) -> None:
    """A browser that is logged in to Orthanc does not act for a foreign page."""
    job = node.failed_job()
    headers = {name: value.format(self=orthanc.url) for name, value in headers.items()}
    for action in ("retry", "cancel"):
        refused = orthanc.post(f"/segnode/api/jobs/{job.id}/{action}", headers=headers)
        assert refused.status_code == 403
        assert refused.json()["remedy"]
    assert node.reread(job) == job


@pytest.mark.parametrize(
    "headers",
    [OURS, {**OURS, "Origin": "{self}"}, {**OURS, "Sec-Fetch-Site": "same-origin"}],
)
def test_our_own_page_may_retry_and_cancel(
    orthanc: OrthancServer, node: ConsoleNode, headers: dict[str, str]
) -> None:
    """The ledger has done it when the call returns."""
    job = node.failed_job()
    headers = {name: value.format(self=orthanc.url) for name, value in headers.items()}
    for action, state in (("retry", State.QUEUED), ("cancel", State.CANCELED)):
        answer = orthanc.post(f"/segnode/api/jobs/{job.id}/{action}", headers=headers, json={})
        assert (answer.status_code, answer.json()["state"]) == (200, state)
        assert node.reread(job).state is state


def test_our_own_page_may_pause_a_queue(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """And let it go again; another site's page changes nothing."""
    url = "/segnode/api/flow/queue/gpu/"
    assert orthanc.post(url + "pause", json={}).status_code == 403
    assert node.ledger.pauses() == []
    assert orthanc.post(url + "pause", headers=OURS, json={}).status_code == 200
    assert [pause.name for pause in node.ledger.pauses()] == ["queue:gpu"]
    told = orthanc.post(url + "resume", headers=OURS, json={}).json()
    assert told == orthanc.get("/segnode/api/flow").json()
    assert node.ledger.pauses() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/nudge"),
        ("POST", "/flow/rule/io/pause"),
        ("POST", "/flow/queue/io/drop"),
        ("GET", "/health"),
        ("POST", "/jobs"),
        ("DELETE", "/jobs/{id}"),
        ("PUT", "/jobs/{id}/retry"),
        ("GET", "/jobs/{id}/retry"),
        ("GET", "/jobs/{id}%2f..%2f..%2fhealth"),
        ("GET", "/jobs/{id}%0d%0aX-Other: 1"),
        ("POST", "/studies/anything/process"),
    ],
)
def test_what_is_not_on_the_list_is_not_passed_on(
    orthanc: OrthancServer, node: ConsoleNode, method: str, path: str
) -> None:
    """The token opens more of the node than a browser may ask for."""
    job = node.failed_job()
    url = orthanc.url + "/segnode/api" + path.format(id=job.id)
    answer = httpx.request(method, url, auth=orthanc.auth, headers=OURS)
    assert answer.status_code in (400, 404, 405)
    assert node.reread(job) == job


# -- what is served ------------------------------------------------------------------------------


def test_jobs_arrive_as_the_node_tells_them(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """The answer is the node's own, with neither the patient nor the token in it."""
    study = upload(orthanc, slices())
    job = node.failed_job(study)
    answer = orthanc.get(f"/segnode/api/jobs?study={study}&state=stuck")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    [shown] = answer.json()["jobs"]
    assert (shown["id"], shown["study_id"], shown["remedy"]) == (job.id, study, "Mend it.")
    everything = answer.text + orthanc.get(f"/segnode/api/jobs/{job.id}").text
    for secret in ("Sentinel", "SENTINEL-ID", node.token, orthanc.auth[1]):
        assert secret not in everything


def test_the_picture_of_a_result_is_passed_on(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """Byte for byte, as an image."""
    job = node.job()
    node.draw(job, bytes(range(256)) * 400)
    answer = orthanc.get(f"/segnode/api/jobs/{job.id}/overlay.png")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == bytes(range(256)) * 400


def test_a_refusal_of_the_node_arrives_with_its_remedy(
    orthanc: OrthancServer, node: ConsoleNode
) -> None:
    """Status and words are the node's."""
    job = node.job()
    answer = orthanc.post(f"/segnode/api/jobs/{job.id}/retry", headers=OURS, json={})
    assert answer.status_code == 409
    assert answer.json()["remedy"]


def test_a_study_is_processed_once_on_request(orthanc: OrthancServer, node: ConsoleNode) -> None:
    """Each CT series gets a job, the report beside it does not; asking again makes no second."""
    first, second, report = slices(3), slices(2), slices(1, "SR")
    study = upload(orthanc, first)
    other = upload(orthanc, second)
    upload(orthanc, report)
    path = "/segnode/api/studies/{}/process"
    asked = [
        orthanc.post(path.format(study), headers=OURS, json={"model": "lungs"}) for _ in range(2)
    ]
    assert [answer.status_code for answer in asked] == [202, 202]
    [job] = node.ledger.jobs(study_id=study)
    assert len(job.instance_ids) == 3
    assert (job.model, job.destinations, job.rule) == ("lungs", ("sender",), "by hand")
    assert [answer.json()["jobs"][0]["id"] for answer in asked] == [job.id, job.id]
    assert [answer.json()["already"] for answer in asked] == [[], [job.id]]
    assert node.ledger.jobs(study_id=other) == []


def test_a_model_for_another_modality_makes_no_job(
    orthanc: OrthancServer, node: ConsoleNode
) -> None:
    """The person reads why; nothing is queued only to be rejected."""
    study = upload(orthanc, slices())
    path = f"/segnode/api/studies/{study}/process"
    answer = orthanc.post(path, headers=OURS, json={"model": "brain"})
    assert answer.status_code == 422
    assert "MR" in answer.json()["message"]
    assert node.ledger.jobs(study_id=study) == []


def test_a_study_that_orthanc_has_not_makes_no_job(orthanc: OrthancServer) -> None:
    """It may have been deleted while its page was open: the person reads so."""
    path = f"/segnode/api/studies/{'-'.join(['0a1b2c3d'] * 5)}/process"
    answer = orthanc.post(path, headers=OURS, json={"model": "lungs"})
    assert answer.status_code in (404, 422)
    assert answer.json()["remedy"]


def test_a_held_image_is_shown_and_released_through_orthanc(
    orthanc: OrthancServer, node: ConsoleNode
) -> None:
    """The picture is drawn from Orthanc's copy and kept by nobody; our page lets it go."""
    instance = part10(drawn_image(SOPInstanceUID=generate_uid()))
    instance_id = orthanc.upload(instance)
    job = node.job(step=StepName.DEIDENTIFY, instance_id=instance_id)
    policy = profile_with(frozenset({Option.CLEAN_PIXEL_DATA}))
    image = examined(1, instance, "why", policy, PseudonymKeys.from_secret(bytes(32)), REVIEW_KEY)
    review = store_review(job, [image], node.artifacts, REVIEW_KEY)
    node.ledger.end(job, Event.QUARANTINE, cause="c", remedy="r", error="IdentityUnsafe")
    path = f"/segnode/api/jobs/{job.id}"
    shown = orthanc.get(f"{path}/review").json()
    assert (shown["can_release"], shown["digest"]) == (True, review.digest)
    picture = orthanc.get(f"{path}/review/1-1.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["cache-control"] == "no-store"
    [region] = image.regions
    pixels = np.asarray(Image.open(BytesIO(picture.content)))
    inside = pixels[region.top : region.bottom, region.left : region.right]
    assert not (inside > 240).all(axis=-1).any()
    assert node.artifacts.names(f"{job.id}/") == [f"{job.id}/review.json"]
    assert orthanc.get(f"{path}/review/2-1.png").status_code == 404
    assert orthanc.get(f"{path}/review/0-1.png").status_code == 404
    assert orthanc.get(f"{path}/review/1-2.png").status_code == 404
    assert httpx.get(f"{orthanc.url}{path}/review/1-1.png").status_code == 401
    body = {"review": review.digest}
    assert orthanc.post(f"{path}/release", json=body).status_code == 403
    assert node.reread(job).state is State.QUARANTINED
    answer = orthanc.post(f"{path}/release", headers=OURS, json=body)
    assert (answer.status_code, answer.json()["state"]) == (200, State.QUEUED)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_page_and_all_that_it_loads_is_served(orthanc: OrthancServer) -> None:
    """Scripts, styles and modules exist with their types, and nothing comes from elsewhere."""
    page = httpx.get(f"{orthanc.url}/segnode/", auth=orthanc.auth, follow_redirects=True)
    assert page.url.path == "/segnode/index.html"
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    links = _Links()
    links.feed(page.text)
    waiting, seen = [link for link in links.links if not link.startswith("..")], {}
    while waiting:
        name = waiting.pop().removeprefix("./")
        if name not in seen:
            seen[name] = orthanc.get(f"/segnode/{name}")
            waiting += re.findall(r'from "(.+?)"', seen[name].text)
    assert {"console.js", "job.js", "api.js", "console.css", "job.css"} <= seen.keys()
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name, asset in seen.items():
        assert asset.status_code == 200, name
        assert asset.headers["content-type"].startswith(types[Path(name).suffix])
        assert "innerHTML" not in asset.text


def test_orthanc_explorer_loads_the_study_panel(orthanc: OrthancServer) -> None:
    """The extension of Orthanc Explorer names a module that is there."""
    extension = orthanc.get("/plugins/explorer.js").text
    [name] = re.findall(r'import\("\.\./segnode/(\w+\.js)"\)', extension)
    assert orthanc.get(f"/segnode/{name}").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("name", ["bridge.py", "../bridge.py", "%2e%2e/bridge.py", "LICENSE", "x"])
def test_nothing_but_the_consoles_files_is_served(orthanc: OrthancServer, name: str) -> None:
    """A name is looked up in a list, never in the file system."""
    assert orthanc.get(f"/segnode/{name}").status_code in (400, 404)


# -- the node is away ----------------------------------------------------------------------------


def test_orthanc_receives_while_the_node_is_down(
    server: OrthancServer, node: ConsoleNode, tmp_path: Path
) -> None:
    """C-STORE succeeds, the console says what to do, and the next arrival finds the node again."""
    (tmp_path / "slice.dcm").write_bytes(slices()[0])
    storescu(server, tmp_path / "slice.dcm")
    down = server.get("/segnode/api/jobs")
    assert down.status_code == 503
    assert "does not answer" in down.json()["message"]
    assert "segnode up" in down.json()["remedy"]
    with node:
        _quiet(node)
        assert server.get("/segnode/api/jobs").status_code == 200
        server.upload(slices()[0])
        assert node.nudged.wait(30)


def test_a_node_that_refuses_the_token_is_not_taken_for_a_wrong_password(
    orthanc: OrthancServer, node: ConsoleNode
) -> None:
    """A 401 would make the browser ask the person for Orthanc's password again."""
    node.token_file.write_text("an old token")
    try:
        answer = orthanc.get("/segnode/api/jobs")
    finally:
        node.token_file.write_text(node.token)
    assert answer.status_code == 503
    assert "token" in answer.json()["message"]
    assert orthanc.get("/segnode/api/jobs").status_code == 200


def test_a_node_that_hangs_takes_only_some_of_orthancs_threads(
    tmp_path: Path, node: ConsoleNode
) -> None:
    """Calls beyond the limit are answered at once, Orthanc goes on, and it stops when told to."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = node.environment | {"SEGNODE_CONSOLE_URL": url}
        orthanc = OrthancServer(tmp_path, environment=environment)
        with orthanc, ThreadPoolExecutor(12) as callers:
            answers = list(callers.map(orthanc.get, ["/segnode/api/jobs"] * 12))
            assert {answer.status_code for answer in answers} == {503}
            messages = [answer.json()["message"] for answer in answers]
            assert sum("TimeoutError" in message for message in messages) == 8
            assert sum("too many" in message for message in messages) == 4
            assert len({orthanc.upload(one) for one in slices(20)}) == 20
            assert orthanc.stop() == 0  # 139 if the bridge did not keep its REST callback


# -- disks ---------------------------------------------------------------------------------------


def test_the_page_learns_when_the_disks_are_full_and_not_where_they_are(
    orthanc: OrthancServer, node: ConsoleNode
) -> None:
    """Bytes and days; a folder's name is none of a browser's business."""
    node.disks = [Forecast(Disk("/srv/hospital", 30, 100, 10), 5.0, 4.0)]
    answer = orthanc.get("/segnode/api/storage")
    assert answer.json() == {
        "disks": [
            {"free_bytes": 30, "total_bytes": 100, "keep_free_bytes": 10,
             "bytes_per_day": 5.0, "days_left": 4.0}
        ]
    }  # fmt: skip


def test_a_strangers_page_settles_no_file(orthanc: OrthancServer) -> None:
    """What the node does with files that the index lacks, no other site's page does."""
    name = "0a0b0c0d-0000-4000-8000-000000000001"
    for verb in ("imported", "unreadable"):
        url = f"/segnode/storage/{name}/{verb}"
        assert orthanc.post(url).status_code == 403
        assert orthanc.post(url, headers=OURS).status_code == 404
    assert orthanc.get(f"/segnode/storage/{name}").status_code == 404
    assert orthanc.get("/segnode/storage/..%2f..%2findex").status_code == 404
    assert httpx.get(f"{orthanc.url}/segnode/storage").status_code == 401
