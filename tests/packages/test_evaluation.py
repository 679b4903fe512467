"""`segnode evaluate`: the figures are right, and a card holds those and no others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ModelFault
from node.manifest import read_manifest
from node.sdk import LabelMap, Volume
from node.training.card import BEGIN, END, rewrite_card, section
from node.training.evaluate import (
    TOTAL,
    EmptyCase,
    Evaluation,
    Measurement,
    evaluate,
    interval_over_patients,
    interval_over_slices,
    measure,
    without_names,
)
from node.training.examples import Example
from node.training.measures import dice, surface_distance_p95_mm

SPACING = (2.0, 1.0, 0.5)


def box(shape: tuple[int, int, int], low: int, high: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[low:high, low:high, low:high] = True
    return mask


def test_dice_of_known_boxes() -> None:
    """Half of the volume in common is one half; nothing anywhere is no number."""
    one, other = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    assert math.isnan(dice(one, other))
    one[:2], other[1:3] = True, True
    assert dice(one, other) == 0.5
    assert dice(one, one) == 1


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 2.0), (1, 1.0), (2, 0.5)])
def test_surface_distance_is_in_millimetres_along_each_axis(axis: int, expected_mm: float) -> None:
    """A box shifted by one voxel is off by that axis' spacing, at both of its ends."""
    one = box((20, 20, 20), 5, 15)
    assert surface_distance_p95_mm(one, one, SPACING) == 0
    shifted = np.roll(one, 1, axis)
    assert surface_distance_p95_mm(one, shifted, SPACING) == pytest.approx(expected_mm)
    assert math.isnan(surface_distance_p95_mm(one, np.zeros_like(one), SPACING))


def test_surface_distance_sees_surfaces_at_the_edge_of_the_image() -> None:
    """A lung cut off by the field of view has a surface there, as its label has."""
    one = np.zeros((6, 20, 20), bool)
    one[:, 10:] = True
    assert surface_distance_p95_mm(one, one, SPACING) == 0
    assert surface_distance_p95_mm(one, np.roll(one, -2, 1) | one, SPACING) == pytest.approx(2.0)


def example(labels: np.ndarray, patient: str = "one") -> Example:
    volume = Volume(np.zeros(labels.shape, np.int16), np.eye(4), SPACING, tuple("1" * len(labels)))
    return Example(patient, patient, volume, labels, SPACING, "a scanner")


def test_what_is_found_under_another_name_is_counted_as_confused() -> None:
    """Millilitres of the image's own voxels; both labels together do not know sides."""
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[:, :, :5], truth[:, :, 5:] = 1, 2
    found = truth.copy()
    found[0, :, :5] = 2
    total, left, right = measure(example(truth), found, [(1, "Left"), (2, "Right")], "test")
    assert (total.label, left.label, right.label) == (TOTAL, "Left", "Right")
    assert (total.dice, total.confused_ml) == (1, 0)
    assert left.confused_ml == 0
    assert right.confused_ml == pytest.approx(50 / 1000)
    assert left.found_ml == pytest.approx(0.45)
    assert left.truth_ml == pytest.approx(0.5)


@given(st.lists(st.integers(5, 40), min_size=30, max_size=60), st.integers(0, 2**16))
def test_an_interval_over_slices_holds_the_dice_of_the_whole(widths: list[int], seed: int) -> None:
    """The bootstrap's middle is the figure that stands beside it."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((len(widths), 1, 41), bool)
    for plane, width in zip(truth, widths, strict=True):
        plane[:, :width] = True
    found = truth ^ (rng.random(truth.shape) < 0.05)
    low, high = interval_over_slices(found, truth)
    assert 0 <= low <= high <= 1
    assert low - 0.02 <= dice(found, truth) <= high + 0.02


def measurement(patient: str, value: float, role: str = "test") -> Measurement:
    return Measurement(
        patient, patient, role, "a scanner", "Left", value, (math.nan, math.nan), 1.0, 10, 10, 0
    )


def test_an_interval_over_patients_needs_five_of_them() -> None:
    """Two series of one patient are one patient."""
    few = [measurement(f"p{number % 4}", 0.9) for number in range(12)]
    assert math.isnan(interval_over_patients(few)[0])
    values = np.linspace(0.9, 0.99, 10)
    many = [measurement(f"p{number}", value) for number, value in enumerate(values)]
    low, high = interval_over_patients(many)
    assert 0.92 < low < np.mean(values) < high < 0.97


def test_a_card_is_rewritten_between_its_lines_only(tmp_path: Path) -> None:
    """What a person wrote stays; written twice it is the same; without the lines it is refused."""
    card = tmp_path / "MODEL_CARD.md"
    card.write_text(f"# Mine\n\nbefore\n\n{BEGIN}\nold 0.99\n{END}\n\nafter\n")
    rewrite_card(card, "new 0.98")
    once = card.read_text()
    assert once.startswith("# Mine\n\nbefore\n\n")
    assert once.endswith("\n\nafter\n")
    assert "old" not in once
    assert "new 0.98" in once
    rewrite_card(card, "new 0.98")
    assert card.read_text() == once
    card.write_text("# A card without a place for numbers\n")
    with pytest.raises(ModelFault, match="no section"):
        rewrite_card(card, "new")


def test_the_section_says_who_was_seen_and_what_it_does_not_say() -> None:
    """Roles, intervals, scanners, stress, empties and limits all stand in it."""
    measured = tuple(measurement(f"p{number}", 0.9 + number / 100) for number in range(6))
    trained = measurement("t", 0.999, "training")
    text = section(
        Evaluation(
            "openvino",
            (*measured, trained),
            (("half cut", replace(measured[0], dice=0.5, confused_ml=7.0)),),
            (EmptyCase("a head", "The series shows the head", 0.0),),
        )
    )
    assert "| never seen | Left | 6 | 0.9250 (" in text
    assert "| t | trained on | Left | 0.9990" in text
    assert "| a scanner | 6 | 0.9250 | 0.9000 |" in text
    assert "| half cut | 0.500 | 7.0 |" in text
    assert "| a head | The series shows the head | 0.0 |" in text
    assert "6 patient(s) on 1 scanner setting(s)" in text


def test_the_worst_twelve_cases_are_shown_and_said_to_be_that() -> None:
    """Sorted by Dice; a label that is neither there nor found (no number) hides no bad one."""
    measured = [measurement(f"p{number:02}", 0.5 + number / 100) for number in range(13)]
    absent = replace(measured[0], label="Right", dice=math.nan)
    text = section(Evaluation("torch", (absent, *measured)))
    assert "The 12 worst of 13 cases:" in text
    assert "| p00 | never seen | Left | 0.5000" in text
    assert "| p12 |" not in text
    assert "labelled, ml" in text
    assert "labelled, 1000 pixels" in section(
        Evaluation("torch", (absent, *measured), in_pixels=True)
    )
    assert "worst of" not in section(Evaluation("torch", (absent, *measured[:12])))


class Threshold:
    """A model that finds whatever is positive."""

    manifest = read_manifest(Path(__file__).parent / "trainable" / "tiny")

    def segment(self, volume: Volume) -> LabelMap:
        return LabelMap((volume.array > 0).astype(np.uint8), volume.sop_instance_uids)


def test_what_is_written_of_an_evaluation_has_numbers_for_names() -> None:
    """PatientID and the folder's name reach neither figures nor card; the screen shows them."""
    labels = box((6, 12, 12), 1, 5).astype(np.uint8)
    named = [("Doe^John", "D-1"), ("Roe", "D-2"), ("Doe^John", "D-3")]
    examples = [
        replace(example(labels, patient), name=name, digest=name) for patient, name in named
    ]
    known = {"D-3": "training"}

    def twice(one: Example) -> list[tuple[str, Example]]:
        return [("unchanged", replace(one))]

    def found(*, public: bool) -> Evaluation:
        return evaluate(
            Threshold(),  # type: ignore[arg-type]
            examples,
            lambda one: known.get(one.digest, "test"),
            twice,
            public=public,
        )

    private = without_names(replace(found(public=False), empty=(EmptyCase("Roe (MR)", None, 0),)))
    written = json.dumps(private.as_json()) + section(private)
    assert not [word for pair in named for word in pair if word in written]
    assert private.names == {
        "case 1": "D-1", "case 2": "D-2", "case 3": "D-3", "series 1": "Roe (MR)"
    }  # fmt: skip
    # One case trained the model: so did the patient, whichever case comes first.
    roles = {one.case: one.role for one in private.measurements}
    assert roles == {"case 1": "training", "case 2": "test", "case 3": "training"}
    assert {one.case for _, one in private.stressed} == {"case 2"}
    public = found(public=True)
    assert [one.case for one in public.measurements] == ["D-1", "D-2", "D-3"]
    assert {one.patient for one in public.measurements} == {"Doe^John", "Roe"}


def test_figures_are_json_without_nan() -> None:
    """Other programs read them: NaN is null."""
    found = Evaluation("torch", (measurement("p", math.nan),)).as_json()
    assert found["measurements"][0]["dice"] is None
    assert found["measurements"][0]["dice_interval"] == [None, None]
