"""What is logged is allow-listed; what others say is not repeated."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx

from tests.orthanc_server import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "Sentinelius^Quirin"

PROGRAM = f"""
import logging, warnings
from node import log
log.configure("test")
log.get().info("series de-identified", job_id="j1", PatientName="{SECRET}", instances=3)
logging.getLogger("foreign").warning("value is {SECRET}")
logging.getLogger("pydicom").error("bad value %r", "{SECRET}")
logging.getLogger("pynetdicom").error("{SECRET}")
warnings.warn("Invalid value for VR: {SECRET}")
try:
    raise ValueError("{SECRET}")
except ValueError:
    logging.getLogger("celery").exception("task failed: {SECRET}")
"""


def test_only_allow_listed_fields_and_no_foreign_text_are_written() -> None:
    """Every way by which a library could print a patient's value, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert SECRET not in done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == {
        "event": "series de-identified",
        "instances": 3,
        "job_id": "j1",
        "level": "info",
        "process": "test",
        "timestamp": lines[0]["timestamp"],
    }
    assert "celery reports error" in {line["event"] for line in lines}
    assert "ValueError" in {line.get("error") for line in lines}


SERVER = f"""
import sys
from starlette.applications import Starlette
from starlette.routing import Route
from node import log
from node.edges.serving import serve

async def raises(request):
    raise ValueError("{SECRET}")

log.configure("console")
serve(Starlette(routes=[Route("/", raises)]), "127.0.0.1", int(sys.argv[1]))
"""


def test_a_route_that_fails_writes_no_text_of_its_exception() -> None:
    """The console's server in a process of its own; the class of the error is in its log."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        answer = httpx.Client(transport=httpx.HTTPTransport(retries=20)).get(
            f"http://127.0.0.1:{port}/", timeout=30
        )
    finally:
        server.terminate()
        said, _ = server.communicate(timeout=30)
    assert answer.status_code == 500
    assert SECRET not in answer.text + said
    assert "ValueError" in {json.loads(line).get("error") for line in said.splitlines()}


def test_this_process_was_not_configured_by_importing() -> None:
    """Nothing happens at import: a program that uses our modules keeps its own logging."""
    import node.log  # noqa: F401

    assert not any("node.log" in type(h).__module__ for h in logging.getLogger().handlers)
