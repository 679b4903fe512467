"""Keys of a running node: rotated under its work, and a study destroyed for good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.orthanc_server import OrthancServer
from tests.running_node import (
    DEMO_CT,
    SOME_SLICES,
    RunningNode,
    made_up_study,
    segmentations,
)


def test_a_rotation_under_way_disturbs_no_job(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """Keys rotate between two steps of a job and again before the next: both are confirmed."""
    for number in (1, 2):
        study = made_up_study(tmp_path / str(number), DEMO_CT[SOME_SLICES])
        node.receive(study)
        node.wait_for(study, lambda job: job["step"] in ("infer", "encode", "confirm"))
        assert "is new: back it up" in node.segnode("keys", "rotate")
        assert node.wait_for(study)["state"] == "confirmed"
        assert len(segmentations(pacs, study)) == 1
    listed = node.segnode("keys", "list")
    assert "current" in next(line for line in listed.splitlines() if "vault_key.3" in line)
    assert "✗" not in node.segnode("doctor")


def test_a_destroyed_study_is_not_led_back_again(
    node: RunningNode, pacs: OrthancServer, tmp_path: Path
) -> None:
    """By its original UID; a late image makes a job that is rejected and says why."""
    study = made_up_study(tmp_path / "ct", DEMO_CT[SOME_SLICES])
    node.receive(replace(study, files=study.files[:-1]))
    first = node.wait_for(study)
    assert first["state"] == "confirmed"
    said = node.segnode("keys", "destroy", study.study_instance_uid, "--yes")
    assert study.study_instance_uid not in said
    assert first["facts"].get("study", "2.25.") in said

    node.receive(replace(study, files=study.files[-1:]))
    late = node.wait_for(
        study, lambda job: job["id"] != first["id"] and job["state"] in ("rejected", "confirmed")
    )
    assert (late["state"], late["step"]) == ("rejected", "deidentify")
    assert "was destroyed on" in late["cause"]
    assert "docs/security.md" in late["remedy"]
    assert len(segmentations(pacs, study)) == 1
    unknown = node.segnode("keys", "destroy", study.study_instance_uid, "--yes", check=False)
    assert "knows no study" in unknown
