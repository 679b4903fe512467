"""`segnode pacs check`: what it finds at destinations that take all, little, or do not answer."""

from __future__ import annotations

import pytest
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

from node.destination_check import check_destination, proposed_profile
from node.errors import NodeError
from node.kinds import CHOOSABLE, ResultKind
from node.settings import DicomPeer, Settings
from node.wiring import Hospital
from tests.integration.test_pacs_edge import answering
from tests.orthanc_server import free_port

SEG, SR, TEXT_SR, PDF, CAPTURE, RTSTRUCT, REJECTION = CHOOSABLE
LABELMAP = ResultKind.LABELMAP


def hospital(
    port: int, results: tuple[ResultKind, ...] = (SEG,), segmentation_type: str = "binary"
) -> Hospital:
    where = {"name": "pacs", "ae_title": "HOSPITAL", "host": "127.0.0.1", "port": port}
    peer = DicomPeer(**where, results=results, segmentation_type=segmentation_type)
    return Hospital(Settings(dicom_peers=(peer,)))


def levels(check: object) -> dict[str, str]:
    return {finding.subject: finding.level for finding in check.findings}  # type: ignore[attr-defined]


def test_a_pacs_without_seg_is_offered_a_profile_of_pictures_and_text() -> None:
    """It takes captures and text: that is proposed, each kind is shown, the setting is a note."""
    services = (SecondaryCaptureImageStorage, BasicTextSRStorage)
    with answering([], services=services) as port:
        found = check_destination(hospital(port), "pacs")
        wrong = check_destination(hospital(port, (SEG, PDF)), "pacs")
    assert found.proposed == (CAPTURE, TEXT_SR)
    taken = {kind for kind, syntaxes in found.taken.items() if any(syntaxes.values())}
    assert taken == {CAPTURE, TEXT_SR}
    assert levels(found) == {
        "peer pacs": "good",
        "TLS": "note",
        "Query (C-FIND)": "note",
        "Retrieve (C-MOVE)": "note",
        "Storage commitment": "note",
        "results": "note",
    }
    assert levels(wrong)["results"] == "wrong"


def test_a_pacs_that_takes_all_needs_no_change() -> None:
    """Segmentation, measurements and a text are proposed; what is set is taken."""
    services = tuple(kind.sop_class_uid for kind in ResultKind)
    with answering([], services=services) as port:
        found = check_destination(hospital(port, (SEG, RTSTRUCT)), "pacs")
    assert found.proposed == (SEG, SR, TEXT_SR, REJECTION)
    assert levels(found)["results"] == "good"


@pytest.mark.parametrize("asked", ["labelmap", "auto"])
def test_a_label_map_is_proposed_where_it_is_asked_for_and_taken(asked: str) -> None:
    """Nobody gets one unasked; who asks and does not take it is told what to set."""
    both = (SEG.sop_class_uid, LABELMAP.sop_class_uid)
    with answering([], services=both) as port:
        unasked = check_destination(hospital(port), "pacs")
        good = check_destination(hospital(port, segmentation_type=asked), "pacs")
    assert unasked.proposed == good.proposed == (SEG,)
    found = {finding.subject: finding.found for finding in good.findings}["results"]
    assert found == f"all taken: {', '.join(['seg'] * (asked == 'auto') + ['labelmap'])}"
    with answering([], services=(SEG.sop_class_uid,)) as port:
        bad = check_destination(hospital(port, segmentation_type=asked), "pacs")
    assert levels(bad)["results"] == "wrong"
    assert bad.proposed == ()


def test_a_pacs_that_does_not_answer_is_one_finding() -> None:
    """Nothing is proposed for it."""
    found = check_destination(hospital(free_port()), "pacs")
    assert levels(found)["peer pacs"] == "wrong"
    assert (found.taken, found.proposed) == ({}, ())


def test_an_unknown_peer_is_named() -> None:
    """With the peers that there are."""
    with pytest.raises(NodeError, match="no peer 'other'") as raised:
        check_destination(hospital(free_port()), "other")
    assert "pacs" in raised.value.remedy


@pytest.mark.parametrize(
    ("accepted", "proposed"),
    [
        ({SEG}, (SEG,)),
        ({SR, PDF}, (PDF,)),
        ({SEG, CAPTURE, PDF}, (SEG, PDF)),
        ({CAPTURE, SR, TEXT_SR}, (CAPTURE, TEXT_SR)),
        ({SEG, REJECTION}, (SEG, REJECTION)),
        ({REJECTION}, ()),
        (set(), ()),
    ],
)
def test_a_profile_says_each_thing_once(
    accepted: set[ResultKind], proposed: tuple[ResultKind, ...]
) -> None:
    """No pictures beside a Segmentation, no report without the Segmentation it refers to."""
    assert proposed_profile(accepted, SEG in accepted) == proposed
