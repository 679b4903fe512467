"""Fixtures that start real servers once for a whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from node.edges.orthanc_config import DicomPeer
from tests.orthanc_server import OrthancServer, require_orthanc
from tests.running_node import RunningNode

# The same examples in every run: a change is judged by what it changed. To look for new ones:
# HYPOTHESIS_PROFILE=default pytest tests/unit
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

NO_BRIDGE = Path(__file__).resolve().parents[1] / "deploy" / "demo" / "no_bridge" / "bridge.py"


@pytest.fixture(scope="session")
def node_ports() -> dict[str, int]:
    """The node's ports, known before it starts because the PACS names it as a peer."""
    return RunningNode.free_ports()


@pytest.fixture(scope="session")
def pacs(
    tmp_path_factory: pytest.TempPathFactory, node_ports: dict[str, int]
) -> Iterator[OrthancServer]:
    """A stand-in hospital PACS that takes results of the node and answers a tester's queries."""
    require_orthanc()
    peers = [
        DicomPeer("segnode", "SEGNODE", "127.0.0.1", node_ports["dicom"], may_query=True),
        DicomPeer("tester", "TESTER", "127.0.0.1", 11112, may_query=True),
    ]
    folder = tmp_path_factory.mktemp("pacs")
    with OrthancServer(folder, ae_title="HOSPITAL", peers=peers, bridge=NO_BRIDGE) as server:
        yield server


@pytest.fixture(scope="session")
def node(
    tmp_path_factory: pytest.TempPathFactory, pacs: OrthancServer, node_ports: dict[str, int]
) -> Iterator[RunningNode]:
    """A whole node, shared by the tests: each sends studies of its own."""
    folder = tmp_path_factory.mktemp("node") / "a folder"  # people have blanks in their paths
    takes = 'results = ["seg", "rejection"]'
    with RunningNode(folder, pacs, node_ports, more=takes) as running:
        yield running


@pytest.fixture(scope="session")
def stow_node(
    tmp_path_factory: pytest.TempPathFactory, pacs: OrthancServer
) -> Iterator[RunningNode]:
    """A node whose rule names its destination by STOW-RS, for studies that come over HTTP."""
    folder = tmp_path_factory.mktemp("stow-node")
    password = folder / "pacs_password"
    password.write_text(pacs.auth[1])
    password.chmod(0o600)
    web = f"""
        [[dicomweb_peers]]
        name = "archive"
        url = "{pacs.url}/dicom-web"
        username = "{pacs.auth[0]}"
        password_file = "{password}"
    """
    ports = RunningNode.free_ports()
    with RunningNode(folder, pacs, ports, destinations=["archive"], more=web) as running:
        yield running
