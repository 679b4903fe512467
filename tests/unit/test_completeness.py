"""What each sign says of a series, and which of them decides."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from node.pipeline.completeness import (
    Level,
    Sign,
    Weight,
    even_spacing,
    images_in_acquisition,
    instance_numbers,
    pacs_count,
    pet_slices,
    signs_of,
    temporal_positions,
    verdict,
)


def headers(
    count: int = 20,
    *,
    spacing_mm: float = 2.5,
    missing: Collection[int] = (),
    phases: int = 1,
    **attributes: Any,
) -> list[Dataset]:
    """Axial slices 1 … ``count``, each ``phases`` times, without the ``missing`` numbers."""
    made = []
    for number in range(1, count * phases + 1):
        if number in missing:
            continue
        header = Dataset()
        header.InstanceNumber = number
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        place = (number - 1) % count
        header.ImagePositionPatient = [-100, -100, round(-300 + spacing_mm * place, 1)]
        for keyword, value in attributes.items():
            setattr(header, keyword, value)
        made.append(header)
    return made


def test_missing_slices_are_counted_by_the_spacing_that_the_series_implies() -> None:
    """Seven of a hundred, in three places: nobody says so but the positions."""
    sign = even_spacing(headers(100, missing=[10, 11, 40, 41, 42, 80, 81]))
    assert sign is not None
    assert (sign.have, sign.expected, sign.missing_between) == (93, 100, 3)
    assert str(sign) == "slice spacing says 7 of 100 missing in 3 gaps"


@given(st.sets(st.integers(2, 39), max_size=12), st.sampled_from([0.6, 1.0, 2.5, 5.0]))
def test_every_slice_that_is_left_out_is_counted(missing: set[int], spacing_mm: float) -> None:
    """Whatever is left out between the ends is found, as long as most neighbours are there."""
    sign = even_spacing(headers(40, spacing_mm=spacing_mm, missing=missing))
    assert sign is not None
    assert (sign.have, sign.expected) == (40 - len(missing), 40)


def test_a_phase_that_lacks_slices_is_seen_at_its_positions() -> None:
    """Four phases of ten slices; three instances of one phase are not there."""
    sign = even_spacing(headers(10, phases=4, missing=[12, 13, 27]))
    assert sign is not None
    assert (sign.have, sign.expected) == (37, 40)


@pytest.mark.parametrize(
    "change",
    [
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": ["1", "0", "0", "0", "1"]},
    ],
    ids=["no position", "half an orientation"],
)
def test_what_is_no_stack_has_no_spacing(change: dict[str, Any]) -> None:
    """A report, a radiograph, a damaged header: the spacing says nothing."""
    assert even_spacing(headers(**change)) is None


def test_spacing_that_is_no_multiple_is_no_question_of_completeness() -> None:
    """A gap of one and a half slices was scanned so; the model's contract speaks of that."""
    series = headers()
    for header in series[10:]:
        header.ImagePositionPatient[2] += 1.25
    assert even_spacing(series) is None


def test_crossed_slices_have_no_spacing() -> None:
    """A localizer in two directions."""
    series = headers(4)
    series[3].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert even_spacing(series) is None


def test_holes_in_the_instance_numbers_are_a_weak_sign() -> None:
    """They say what is missing, and hold nothing back alone."""
    sign = instance_numbers(headers(30, missing=[4, 5, 20]))
    assert sign is not None
    assert (sign.have, sign.expected, sign.missing_between) == (27, 30, 2)
    assert sign.weight is Weight.DOUBTS


def test_numbers_that_count_nothing_are_no_sign() -> None:
    """Given twice, absent, or positions in disguise."""
    assert instance_numbers(headers(InstanceNumber=7)) is None
    assert instance_numbers(headers(InstanceNumber=None)) is None
    series = headers(5)
    for header in series:
        header.InstanceNumber *= 100
    assert instance_numbers(series) is None


def test_images_in_acquisition_is_summed_over_the_acquisitions() -> None:
    """Two acquisitions of ten, of which the second has lost its end."""
    series = headers(18, ImagesInAcquisition=10)
    for number, header in enumerate(series):
        header.AcquisitionNumber = 1 if number < 10 else 2
    sign = images_in_acquisition(series)
    assert sign is not None
    assert (sign.have, sign.expected, sign.complete) == (18, 20, False)


def test_a_stated_count_that_contradicts_the_series_is_no_sign() -> None:
    """Less than what is here, or two counts for one acquisition: nobody knows what was meant."""
    assert images_in_acquisition(headers(20, ImagesInAcquisition=1)) is None
    series = headers(20, ImagesInAcquisition=20)
    series[3].ImagesInAcquisition = 30
    assert images_in_acquisition(series) is None
    assert images_in_acquisition(headers(20)) is None


def test_temporal_positions_are_counted() -> None:
    """Four are stated, three are here."""
    series = headers(9, NumberOfTemporalPositions=4)
    for number, header in enumerate(series):
        header.TemporalPositionIdentifier = 1 + number // 3
    sign = temporal_positions(series)
    assert sign is not None
    assert (sign.have, sign.expected) == (3, 4)


def test_a_dynamic_pet_has_its_slices_at_every_time() -> None:
    """NumberOfSlices times NumberOfTimeSlices; a gated one says nothing that we read."""
    dynamic = {"NumberOfSlices": 10, "NumberOfTimeSlices": 3}
    sign = pet_slices(headers(25, SeriesType=["DYNAMIC", "IMAGE"], **dynamic))
    assert sign is not None
    assert (sign.have, sign.expected) == (25, 30)
    assert pet_slices(headers(SeriesType=["GATED", "IMAGE"], **dynamic)) is None
    assert pet_slices(headers()) is None


def test_the_pacs_decides_over_everything() -> None:
    """It holds no more than this: what looks missing was never there. And the other way round."""
    gap = headers(30, missing=[4, 5, 20])
    whole = verdict(27, [pacs_count("hospital", 27, 27), *signs_of(gap)])
    assert whole.level is Level.COMPLETE
    assert whole.facts["says"] == "complete: PACS hospital says 27 of 27"
    short = verdict(20, [pacs_count("hospital", 300, 20), *signs_of(headers(20))])
    assert short.level is Level.INCOMPLETE
    assert (short.facts["have"], short.facts["expected"]) == (20, 300)


def test_a_pacs_that_does_not_hold_the_series_decides_nothing() -> None:
    """A modality that answers queries has sent its images away; zero is no count."""
    assert pacs_count("ct", 0, 20) is None
    assert pacs_count("ct", None, 20) is None


def test_a_pacs_that_is_still_receiving_does_not_make_a_series_incomplete() -> None:
    """It has counted fewer than are here already."""
    sign = pacs_count("hospital", 90, 100)
    assert sign is not None
    assert sign.complete


def test_a_gap_holds_a_series_and_a_stated_count_makes_it_doubtful() -> None:
    """Positions are facts; counts in headers are what a scanner once meant."""
    gap = headers(30, missing=[4, 5, 20], ImagesInAcquisition=30)
    assert verdict(27, signs_of(gap)).level is Level.INCOMPLETE
    cut_off = headers(20, ImagesInAcquisition=30)
    doubtful = verdict(20, signs_of(cut_off))
    assert doubtful.level is Level.DOUBTFUL
    assert doubtful.facts["by"] == "ImagesInAcquisition"


def test_a_gap_across_which_the_numbers_go_on_was_scanned_so() -> None:
    """Neck and abdomen in one series: what gets lost on the way takes its number with it."""
    series = headers(40, missing=range(15, 26))
    for number, header in enumerate(series, start=1):
        header.InstanceNumber = number
    assert verdict(29, signs_of(series)).level is Level.DOUBTFUL


def test_without_any_sign_the_quiet_time_has_to_do() -> None:
    """And the verdict says that it did."""
    found = verdict(1, signs_of([Dataset()]))
    assert found.level is Level.COMPLETE
    assert found.facts["by"] == "quiet time"
    assert found.facts["expected"] is None


def test_the_strongest_content_sign_is_the_one_that_is_named() -> None:
    """A whole series says by what it is whole."""
    signs = [Sign("b", Weight.DOUBTS, 3, 3), Sign("a", Weight.HOLDS, 3, 3)]
    assert verdict(3, signs).facts["by"] == "a"
