"""Measure a model as the node runs it: its own runtime, resampling and 3-D components.

Every figure stands beside how sure it is. Over five patients or more that is the bootstrap over
patients. Of a single case it is the bootstrap over blocks of slices, which tells how evenly the
case went, and nothing of other patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from node.errors import NodeError, NotPossible
from node.imaging.suitability import require_suitable
from node.imaging.volume import series_geometry
from node.manifest import CommandManifest, InputContract, RadiographManifest
from node.packages import Model
from node.sdk import Radiograph, Volume
from node.training.examples import Example
from node.training.measures import dice, surface_distance_p95_mm
from node.training.recipe import Labels
from node.training.series import find_series, series_of

ROLES = ("", "test", "validation", "training")
"""From nothing known to the most familiar."""
TOTAL = "all labels"
BLOCK_SLICES = 5
"""Neighbouring slices err alike: they are drawn together."""
RESAMPLES = 2000
PATIENTS_FOR_AN_INTERVAL = 5

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measurement:
    """One label of one case.

    ``role`` is what the case was to these weights: ``test``, ``validation`` (chose the epoch) or
    ``training``. ``confused_ml`` is how much of what was found belongs to another label.
    """

    case: str
    patient: str
    role: str
    scanner: str
    label: str
    dice: float
    dice_interval: Interval
    surface_distance_p95_mm: float
    truth_ml: float
    found_ml: float
    confused_ml: float


@dataclass(frozen=True)
class EmptyCase:
    """A series in which nothing is to be found.

    ``refusal`` is the node's reason for not taking it, or None; ``found_ml`` is what the model
    finds with its input contract set aside, NaN where the series is no volume at all.
    """

    name: str
    refusal: str | None
    found_ml: float


@dataclass(frozen=True)
class Evaluation:
    """All measurements of one model."""

    engine: str
    measurements: tuple[Measurement, ...]
    stressed: tuple[tuple[str, Measurement], ...] = ()
    """What was changed, and the measurement after it."""
    empty: tuple[EmptyCase, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """What stands behind the numbers of cases and empty series; never written."""
    in_pixels: bool = False
    """Of radiographs: what counts as a millimetre is a pixel, as a millilitre a thousand pixels,
    for what a pixel measures in the patient, a projection does not say."""

    def as_json(self) -> dict[str, Any]:
        """For ``evaluation.json``; NaN is null."""
        return {
            "engine": self.engine,
            "units": "pixels" if self.in_pixels else "mm, ml",
            "measurements": [_plain(asdict(one)) for one in self.measurements],
            "stressed": [{"change": name, **_plain(asdict(m))} for name, m in self.stressed],
            "empty": [_plain(asdict(one)) for one in self.empty],
        }


def evaluate(
    model: Model,
    examples: Iterable[Example],
    role_of: Callable[[Example], str],
    stresses: Callable[[Example], Iterable[tuple[str, Example]]] | None = None,
    on_case: Callable[[str], None] = lambda name: None,
    *,
    public: bool = False,
) -> Evaluation:
    """Run the model over all examples.

    Cases and patients get numbers, unless the data are ``public``.

    Parameters
    ----------
    role_of
        What a case was to these weights; a patient is what the most familiar of his cases was.
    stresses
        Changed versions of an example, with what was changed; of those that did not train the
        model only.
    on_case
        Called with the name of each case before it is run.
    """
    segments = [(segment.number, segment.label) for segment in model.manifest.segments]
    measurements: list[Measurement] = []
    stressed: list[tuple[str, Measurement]] = []
    names: dict[str, str] = {}
    patients: dict[str, str] = {}
    roles: dict[str, str] = {}
    for read in examples:
        on_case(read.name)
        example = read
        if not public:
            name = f"case {len(names) + 1}"
            names[name] = read.name
            patient = patients.setdefault(read.patient, f"patient {len(patients) + 1}")
            example = replace(read, name=name, patient=patient)
        role = max(role_of(read), roles.get(example.patient, ""), key=ROLES.index)
        roles[example.patient] = role
        measurements += measure(example, predict(model, example), segments, role)
        if stresses is None or role == "training":
            continue
        for change, changed in stresses(example):
            on_case(f"{read.name}: {change}")
            found = predict(model, changed)
            stressed += [
                (change, one) for one in measure(changed, found, segments, role, surfaces=False)
            ]
    runtime = getattr(model, "runtime", None)
    return Evaluation(
        str(runtime.engine) if runtime is not None else "a program of its own",
        tuple(replace(one, role=roles[one.patient]) for one in measurements),
        tuple((change, one) for change, one in stressed if roles[one.patient] != "training"),
        names=names,
        in_pixels=isinstance(model.manifest, RadiographManifest),
    )


def without_names(found: Evaluation) -> Evaluation:
    """Numbers for the names of empty series; those of cases have been given."""
    names, empty = dict(found.names), []
    for number, one in enumerate(found.empty, start=1):
        name = f"series {number}"
        names[name] = one.name
        empty.append(replace(one, name=name))
    return replace(found, names=names, empty=tuple(empty))


def look_for_nothing(model: Any, contract: InputContract, data: Path) -> Iterator[EmptyCase]:
    """Ask the node and the model about every CT and MR series below ``data``."""
    for instances in find_series(data):
        headers = [header for _, header in instances]
        name = f"{instances[0][0].parent.name} ({headers[0].Modality})"
        refusal = None
        try:
            require_suitable(contract, headers, series_geometry(headers))
        except NodeError as error:
            refusal = str(error)
        try:
            series = series_of(instances)
            found = _segmented(model, series.volume, series.files)
            found_ml = int((found > 0).sum()) * series.volume.voxel_ml
        except NodeError as error:
            refusal, found_ml = refusal or str(error), math.nan
        yield EmptyCase(name, refusal, found_ml)


def predict(model: Any, example: Example) -> Labels:
    """What the model finds in an example, shape (slices, rows, columns)."""
    return _segmented(model, example.image, example.files).reshape(example.labels.shape)


def _segmented(model: Any, image: Volume | Radiograph, files: Sequence[Path]) -> Labels:
    """By a network; or by a program, which may read the instances instead of the volume."""
    if not isinstance(model.manifest, CommandManifest):
        found: Labels = model.segment(image).array
        return found
    if model.manifest.command.reads == "dicom" and not files:
        raise NotPossible(
            f"{model.manifest.name} reads DICOM, and these cases are no DICOM files",
            remedy="Give --data folders of DICOM series with a SEG or NIfTI labels.",
        )
    segmented: Labels = model.segment(image, instances=[dcmread(file) for file in files]).array
    return segmented


def measure(
    example: Example,
    found: Labels,
    segments: Sequence[tuple[int, str]],
    role: str,
    *,
    surfaces: bool = True,
) -> list[Measurement]:
    """All labels of one case, and what they cover together where they are several."""
    voxel_ml = math.prod(example.spacing_mm) / 1000
    truth = example.labels
    masks = [(name, found == number, truth == number) for number, name in segments]
    if len(segments) > 1:
        masks.insert(0, (TOTAL, found > 0, truth > 0))
    return [
        Measurement(
            example.name,
            example.patient,
            role,
            example.scanner,
            name,
            dice(one, other),
            interval_over_slices(one, other),
            surface_distance_p95_mm(one, other, example.spacing_mm) if surfaces else math.nan,
            int(other.sum()) * voxel_ml,
            int(one.sum()) * voxel_ml,
            0.0 if name == TOTAL else int((one & (truth > 0) & ~other).sum()) * voxel_ml,
        )
        for name, one, other in masks
    ]


def interval_over_slices(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Interval:
    """95 % bootstrap interval of the volume's Dice over blocks of slices; NaN for few slices."""
    overlap = (found & truth).sum(axis=(1, 2))
    both = found.sum(axis=(1, 2)) + truth.sum(axis=(1, 2))
    starts = np.arange(0, len(both), BLOCK_SLICES)
    overlap, both = np.add.reduceat(overlap, starts), np.add.reduceat(both, starts)
    overlap, both = overlap[both > 0], both[both > 0]
    if len(both) < PATIENTS_FOR_AN_INTERVAL:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(both), size=(RESAMPLES, len(both)))
    return _percentiles(2 * overlap[drawn].sum(axis=1) / both[drawn].sum(axis=1))


def interval_over_patients(measurements: Sequence[Measurement]) -> Interval:
    """95 % bootstrap interval of the mean Dice; NaN for fewer than five patients."""
    by_patient: dict[str, list[float]] = {}
    for one in measurements:
        if not math.isnan(one.dice):
            by_patient.setdefault(one.patient, []).append(one.dice)
    means = np.array([np.mean(values) for values in by_patient.values()])
    if len(means) < PATIENTS_FOR_AN_INTERVAL:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    return _percentiles(means[drawn].mean(axis=1))


def _percentiles(values: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        if isinstance(value, float):
            return None if math.isnan(value) else round(value, 4)
        return value

    return {name: plain(value) for name, value in fields.items()}
