"""Is a series whole? Each sign of it is a small function; ``verdict`` weighs them.

What a PACS counts decides, where one answers. The geometry of the slices shows what is missing
between them, never at their ends. Counts in the headers are what a scanner once meant: they make
the node wait, and hold nothing back. No sign holds a value from the patient.

References: PS3.4 2026b C.6.2 (NumberOfSeriesRelatedInstances); PS3.3 2026b C.7.6.1, C.7.6.2.1.1,
C.7.6.16.2.2, C.8.9.1 (General Image, Image Plane, Temporal Position, PET Series).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

#: Slices closer than this share a position.
SAME_POSITION_MM = 0.01
#: How far a gap may be from a whole number of slices, as a share of one, to count as slices.
_OF_ONE_SPACING = 0.1
#: Direction cosines; scanners write four decimals or more.
_PARALLEL = 1e-3

QUIET_TIME = "quiet time"


class Weight(StrEnum):
    """How far a sign is trusted when it says that something is missing."""

    DECIDES = "decides"  #: whatever the others say
    HOLDS = "holds"  #: the series is held
    DOUBTS = "doubts"  #: the series is waited for, and goes on


@dataclass(frozen=True)
class Sign:
    """What one kind of evidence says of a series.

    Attributes
    ----------
    by
        Its name, as the console shows it.
    have, expected
        Instances (or positions in time): what is here, and what there should be.
    missing_between
        Between how many pairs of neighbours something is missing; 0 where that is not known.
    """

    by: str
    weight: Weight
    have: int
    expected: int
    missing_between: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.have >= self.expected

    def __str__(self) -> str:
        missing = self.expected - self.have
        if self.complete:
            return f"{self.by} says {self.have} of {self.expected}"
        said = f"{missing} of {self.expected} missing"
        if self.missing_between:
            gaps = "1 gap" if self.missing_between == 1 else f"{self.missing_between} gaps"
            said += f" in {gaps}"
        return f"{self.by} says {said}"


class Need(StrEnum):
    """What an incomplete series means to the models that want it."""

    NOTHING = "nothing"  #: none wants it
    WAIT = "wait"  #: it is waited for, and then goes on as it is
    HOLD = "hold"  #: half an organ would be measured and nobody would know: a person decides


class Level(StrEnum):
    """What the signs come to."""

    COMPLETE = "complete"
    DOUBTFUL = "doubtful"  #: a weak sign says that something is missing
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Verdict:
    """Whether a series is whole, and which sign decided; ``sign`` is None when only time did."""

    level: Level
    have: int
    sign: Sign | None
    signs: tuple[Sign, ...] = ()

    def __str__(self) -> str:
        if self.sign is None:
            return f"{self.level}: {self.have} instances, nothing more for the quiet time"
        return f"{self.level}: {self.sign}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """As the job keeps it."""
        sign = self.sign
        return {
            "level": str(self.level),
            "by": sign.by if sign else QUIET_TIME,
            "have": sign.have if sign else self.have,
            "expected": sign.expected if sign else None,
            "says": str(self),
            "signs": [str(one) for one in self.signs],
        }


def verdict(have: int, signs: Iterable[Sign | None]) -> Verdict:
    """Weigh the signs; ``have`` is how many instances are here.

    A sign that decides wins, complete or not. Otherwise one that holds and misses something, then
    one that doubts, then the strongest that is content; without any, the quiet time has to do.
    """
    said = [sign for sign in signs if sign]
    for sign in said:
        if sign.weight is Weight.DECIDES:
            level = Level.COMPLETE if sign.complete else Level.INCOMPLETE
            return Verdict(level, have, sign, tuple(said))
    for weight, level in ((Weight.HOLDS, Level.INCOMPLETE), (Weight.DOUBTS, Level.DOUBTFUL)):
        for sign in said:
            if sign.weight is weight and not sign.complete:
                return Verdict(level, have, sign, tuple(said))
    content = sorted(said, key=lambda sign: list(Weight).index(sign.weight))
    return Verdict(Level.COMPLETE, have, content[0] if content else None, tuple(said))


def pacs_count(pacs: str, held: int | None, have: int) -> Sign | None:
    """What a PACS counts in the series; None where it does not hold or does not count it."""
    if not held:
        return None
    return Sign(f"PACS {pacs}", Weight.DECIDES, min(have, held), held)


def even_spacing(headers: Sequence[Dataset]) -> Sign | None:
    """Slices missing between the others, by the spacing that the series itself implies.

    A gap of n spacings misses n - 1 slices. Where most positions hold the same number of instances
    (phases, echoes), what the other positions lack counts too. None where the slices are no stack:
    no positions, not parallel, or spaced by nothing regular, which is no question of completeness.
    """
    along_mm = _along_normal_mm(headers)
    if along_mm is None:
        return None
    positions, counts = _distinct(along_mm)
    if len(positions) < 3:
        return None
    gaps = np.diff(positions)
    steps = gaps / np.median(gaps)
    whole = np.rint(steps)
    if (whole < 1).any() or (np.abs(steps - whole) > _OF_ONE_SPACING * whole).any():
        return None
    per_position = Counter(counts).most_common(1)[0][0]
    lacking = [max(per_position - count, 0) for count in counts]
    missing = int((whole - 1).sum()) * per_position + sum(lacking)
    between = int((whole > 1).sum()) + sum(1 for lack in lacking if lack)
    have = len(along_mm)
    return Sign("slice spacing", Weight.HOLDS, have, have + missing, between)


def instance_numbers(headers: Sequence[Dataset]) -> Sign | None:
    """Holes in InstanceNumber (0020,0013); None where numbers are absent or given twice."""
    numbers = [_integer(header, "InstanceNumber") for header in headers]
    known = sorted(number for number in numbers if number is not None)
    if len(known) != len(headers) or len(set(known)) != len(known) or not known:
        return None
    holes = sum(1 for low, high in pairwise(known) if high - low > 1)
    expected = known[-1] - known[0] + 1
    if expected > 2 * len(known):  # not a count: some write times or slice positions there
        return None
    return Sign("InstanceNumber", Weight.DOUBTS, len(known), expected, holes)


def images_in_acquisition(headers: Sequence[Dataset]) -> Sign | None:
    """ImagesInAcquisition (0020,1002), summed over the AcquisitionNumbers (0020,0012).

    None where it is absent, contradicts itself, or is less than what is here.
    """
    stated: dict[int | None, set[int | None]] = defaultdict(set)
    for header in headers:
        acquisition = _integer(header, "AcquisitionNumber")
        stated[acquisition].add(_integer(header, "ImagesInAcquisition"))
    return _stated("ImagesInAcquisition", len(headers), stated.values())


def temporal_positions(headers: Sequence[Dataset]) -> Sign | None:
    """NumberOfTemporalPositions (0020,0105) against the identifiers (0020,0100) that are here."""
    stated = {_integer(header, "NumberOfTemporalPositions") for header in headers}
    seen = {_integer(header, "TemporalPositionIdentifier") for header in headers} - {None}
    return _stated("NumberOfTemporalPositions", len(seen), [stated]) if seen else None


def pet_slices(headers: Sequence[Dataset]) -> Sign | None:
    """NumberOfSlices (0054,0081), times NumberOfTimeSlices (0054,0101) where the PET is dynamic."""
    stated: set[int | None] = set()
    for header in headers:
        slices = _integer(header, "NumberOfSlices")
        kind = str((header.get("SeriesType") or [""])[0])
        if kind == "DYNAMIC":
            times = _integer(header, "NumberOfTimeSlices")
            stated.add(slices * times if slices and times else None)
        elif kind in ("STATIC", "WHOLE BODY"):
            stated.add(slices)
        else:
            return None
    return _stated("NumberOfSlices", len(headers), [stated])


def signs_of(headers: Sequence[Dataset]) -> tuple[Sign, ...]:
    """All that the headers of a series say of its completeness."""
    numbers, spacing = instance_numbers(headers), even_spacing(headers)
    if spacing and numbers and numbers.complete:
        # What is lost on the way takes its number with it: this gap was scanned so.
        spacing = replace(spacing, weight=Weight.DOUBTS)
    found = (
        spacing,
        temporal_positions(headers),
        pet_slices(headers),
        images_in_acquisition(headers),
        numbers,
    )
    return tuple(sign for sign in found if sign)


def _stated(by: str, have: int, stated: Iterable[Collection[int | None]]) -> Sign | None:
    """The sum of what each group states with one voice; None where that is less than is here."""
    expected = 0
    for values in stated:
        if len(values) != 1:
            return None
        (value,) = values
        if not value or value < 1:
            return None
        expected += value
    return Sign(by, Weight.DOUBTS, have, expected) if expected >= have > 0 else None


def _along_normal_mm(headers: Sequence[Dataset]) -> NDArray[np.float64] | None:
    """Each slice's position projected on the normal of the stack, ascending; float64."""
    cosines = [_numbers(header, "ImageOrientationPatient", 6) for header in headers]
    corners = [_numbers(header, "ImagePositionPatient", 3) for header in headers]
    if not headers or any(one is None for one in (*cosines, *corners)):
        return None
    if np.abs(np.asarray(cosines) - np.asarray(cosines[0])).max() > _PARALLEL:
        return None
    rows, columns = np.reshape(np.asarray(cosines[0]), (2, 3))
    return np.sort(np.asarray(corners) @ np.cross(rows, columns))


def _distinct(along_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """Positions, and how many slices share each; the slices ascend."""
    starts = np.flatnonzero(np.diff(along_mm, prepend=-np.inf) > SAME_POSITION_MM)
    counts = np.diff(np.append(starts, len(along_mm)))
    return along_mm[starts], [int(count) for count in counts]


def _numbers(header: Dataset, keyword: str, count: int) -> list[float] | None:
    try:
        numbers = [float(value) for value in header.get(keyword) or ()]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _integer(header: Dataset, keyword: str) -> int | None:
    try:
        return int(header.get(keyword))
    except (TypeError, ValueError):
        return None
