"""docs/console.md says which calls there are."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route

from node.edges.artifacts import FolderArtifacts
from node.edges.console import console_app
from node.edges.ledger import Ledger
from node.edges.orthanc import Orthanc
from tests.orthanc_server import REPOSITORY

PAGE = (REPOSITORY / "docs" / "console.md").read_text()


def test_every_call_stands_in_the_page_and_no_other(tmp_path: Path) -> None:
    """Method and path; what a part of the path is called is the page's affair."""
    app = console_app(
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}"),
        Orthanc("http://127.0.0.1:9", "user", "password"),
        FolderArtifacts(tmp_path),
        {},
        "token",
        lambda: None,
        review_key=bytes(32),
    )
    routes = [
        f"{method} {_unnamed(route.path)}"
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    ]
    table = PAGE.partition("| call | answers |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    calls = [call for cell in cells for call in re.findall(r"`([A-Z]+ /[^`?]*)", cell)]
    assert sorted(map(_unnamed, calls)) == sorted(routes)


def _unnamed(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)
