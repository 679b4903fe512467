"""Routing rules: typed conditions, precedence, first or all, and what is said when none holds."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset

from node.errors import NoMatchingModel
from node.pipeline.route import matching_rules, rule_version
from node.settings import Condition, Rule


def headers(**attributes: Any) -> list[Dataset]:
    """Three axial slices, 2.5 mm apart."""
    made = []
    for number in range(3):
        header = Dataset()
        header.Modality = "CT"
        header.SliceThickness = "2.5"
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [0, 0, -2.5 * number]
        for keyword, value in attributes.items():
            setattr(header, keyword, value)
        made.append(header)
    return made


def rule(name: str = "r", precedence: int = 0, **condition: Any) -> Rule:
    return Rule(name=name, model="m", precedence=precedence, when=(Condition(**condition),))


HOLDS = [
    {"tag": "Modality", "equals": "CT"},
    {"tag": "Modality", "one_of": ("MR", "CT")},
    {"tag": "ImageType", "equals": "AXIAL"},
    {"tag": "ImageType", "none_of": ("LOCALIZER",)},
    {"tag": "SliceThickness", "at_most": 3.0, "at_least": 1.0},
    {"tag": "SliceThickness", "equals": 2.5},
    {"tag": "StudyDescription", "matches": "(?i).*thorax.*"},
    {"tag": "StudyDescription", "present": True},
    {"tag": "BodyPartExamined", "present": False},
    {"tag": "BodyPartExamined", "none_of": ("HEAD",)},
    {"geometry": "slice_count", "at_least": 3},
    {"geometry": "slice_spacing_mm", "at_least": 2.4, "at_most": 2.6},
    {"geometry": "slice_thickness_mm", "equals": 2.5},
]
FAILS = [
    {"tag": "Modality", "equals": "MR"},
    {"tag": "Modality", "one_of": ("MR", "PT")},
    {"tag": "ImageType", "none_of": ("AXIAL",)},
    {"tag": "SliceThickness", "at_most": 2.0},
    {"tag": "StudyDescription", "matches": "thorax"},
    {"tag": "StudyDescription", "at_least": 1.0},
    {"tag": "BodyPartExamined", "equals": "CHEST"},
    {"tag": "BodyPartExamined", "present": True},
    {"geometry": "slice_count", "at_least": 4},
]


@pytest.mark.parametrize("condition", HOLDS, ids=str)
def test_a_condition_holds(condition: dict[str, Any]) -> None:
    """Each kind of test, on single and multiple values."""
    found = matching_rules(headers(StudyDescription="CT Thorax"), [rule(**condition)], False)
    assert [one.name for one in found] == ["r"]


@pytest.mark.parametrize("condition", FAILS, ids=str)
def test_a_condition_fails_and_the_cause_says_what_was_wanted(condition: dict[str, Any]) -> None:
    """The cause names the attribute and the wish, never what the series has."""
    with pytest.raises(NoMatchingModel) as raised:
        matching_rules(headers(StudyDescription="CT Thorax Doe"), [rule(**condition)], False)
    assert str(next(iter(condition.values()))) in str(raised.value)
    assert "Doe" not in str(raised.value)


def test_a_rules_operand_stays_out_of_the_cause() -> None:
    """Failing `none_of` would give the patient's value away: the ledger keeps causes."""
    only_not = rule(tag="PatientID", none_of=("MRN-SENTINEL",))
    with pytest.raises(NoMatchingModel) as raised:
        matching_rules(headers(PatientID="MRN-SENTINEL"), [only_not], False)
    assert "PatientID fails none_of" in str(raised.value)
    assert "MRN-SENTINEL" not in str(raised.value)


def test_the_highest_precedence_wins_and_all_means_all() -> None:
    """Among equals the order of the file decides."""
    rules = [
        rule("low", 0, tag="Modality", equals="CT"),
        rule("high", 5, tag="Modality", equals="CT"),
        rule("other", 9, tag="Modality", equals="MR"),
    ]
    assert [one.name for one in matching_rules(headers(), rules, False)] == ["high"]
    assert [one.name for one in matching_rules(headers(), rules, True)] == ["high", "low"]


def test_a_rules_version_changes_with_the_rule() -> None:
    """Another rule is another result, and the same rule is the same after a restart."""
    one = rule(tag="Modality", equals="CT")
    assert rule_version(one) == rule_version(rule(tag="Modality", equals="CT"))
    assert rule_version(one) != rule_version(rule(tag="Modality", equals="MR"))


def test_a_series_without_positions_is_still_routed_by_its_tags() -> None:
    """A report has no geometry; a rule about slices just does not hold for it."""
    report = Dataset()
    report.Modality = "SR"
    with pytest.raises(NoMatchingModel, match="slice_spacing_mm"):
        matching_rules([report], [rule(geometry="slice_spacing_mm", at_most=5.0)], False)
