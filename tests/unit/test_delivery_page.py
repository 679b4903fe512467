"""docs/delivery.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Mapping

from node.edges.store_status import REFUSED_CONTENT, STORE_STATUSES
from node.ports import Answer
from tests.orthanc_server import REPOSITORY

PAGE = (REPOSITORY / "docs" / "delivery.md").read_text()
#: How the page begins to say what the node does.
WORDS: Mapping[Answer, str] = {
    Answer.ACCEPTED: "accepted",
    Answer.WARNING: "accepted, the warning is shown",
    Answer.TRY_AGAIN: "this object again later",
    Answer.BUSY: "this and all others later",
    Answer.REFUSED: "refused",
}


def test_every_status_stands_in_the_page_and_no_other() -> None:
    """Code, meaning and consequence, in the order of the table in the code."""
    rows = re.findall(r"^\| (0x[^|]+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
    expected = []
    for known in STORE_STATUSES:
        last = "" if known.first == known.last else f" to 0x{known.last:04X}"
        expected.append((f"0x{known.first:04X}{last}", known.meaning))
    assert [(code, meaning) for code, meaning, _ in rows] == expected
    for known, (_, _, does) in zip(STORE_STATUSES, rows, strict=True):
        assert re.split("[;:]", does)[0] == WORDS[known.answer]


def test_every_refusal_over_http_stands_in_the_page() -> None:
    """The codes that refuse content are one line."""
    assert f"| HTTP {', '.join(map(str, REFUSED_CONTENT))} |" in PAGE
