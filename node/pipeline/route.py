"""Route: which models want this series? One job for each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue

from node.errors import GeometryError, NoMatchingModel, UnsuitableInput
from node.imaging.suitability import require_suitable
from node.imaging.views import choose_radiograph
from node.imaging.volume import series_geometry
from node.jobs import Job, Priority, Routed, Wish
from node.manifest import InputContract, ModelManifest, RadiographContract
from node.pipeline.completeness import Need
from node.pipeline.headers import read_headers
from node.ports import Instances
from node.settings import Condition, Rule

_PRIORITY_WORDS = ("StudyPriority", "RequestedProcedurePriority")


@dataclass(frozen=True)
class Slices:
    """What a rule may ask about the slices of a series; None where the headers do not say."""

    slice_count: int
    slice_thickness_mm: float | None
    slice_spacing_mm: float | None


def route(
    job: Job,
    *,
    instances: Instances,
    rules: Sequence[Rule],
    match_all: bool,
    models: Mapping[str, ModelManifest],
) -> Routed:
    """The wishes of the rules that match, or of the person who asked for this job.

    Every model that is wished for must be able to take the series: its input contract and the
    geometry are checked on the headers, before anything is computed. Where the rule wants the
    hospital to be told what is wrong with a series, ``infer`` finds it out.

    Raises
    ------
    NoMatchingModel
        No rule matches; the cause names the condition of each rule that failed first.
    UnsuitableInput, GeometryError
        A rule matches, and its model cannot take the series.
    """
    headers = read_headers(instances, job.instance_ids)
    wishes = _wishes(job, headers, rules, match_all, models)
    for wish in wishes:
        if not wish.explain:  # `infer` asks the same, when there is a way back to the hospital
            _require_suitable(models[wish.model].input, headers)
    return Routed(tuple(wishes))


def need_of(
    job: Job,
    headers: Sequence[Dataset],
    *,
    rules: Sequence[Rule],
    match_all: bool,
    models: Mapping[str, ModelManifest],
) -> Need:
    """What it means to the models that want a series when something of it is missing.

    A radiograph is read alone. A volume is read whole; where its model will refuse it and the
    hospital is told why, nobody has to decide.
    """
    try:
        wishes = _wishes(job, headers, rules, match_all, models)
    except NoMatchingModel:
        return Need.NOTHING
    bears = all(_bears_gaps(wish, models[wish.model].input, headers) for wish in wishes)
    return Need.WAIT if bears else Need.HOLD


def matching_rules(
    headers: Sequence[Dataset], rules: Sequence[Rule], match_all: bool
) -> list[Rule]:
    """The first rule, or all rules, whose every condition holds; highest precedence first."""
    slices = slices_of(headers)
    found, missed = [], []
    for rule in sorted(rules, key=lambda rule: -rule.precedence):
        failed = next((c for c in rule.when if not _holds(c, headers[0], slices)), None)
        if failed is None:
            found.append(rule)
            if not match_all:
                break
        else:
            missed.append(f"rule {rule.name}: {_in_words(failed)}")
    if not found:
        raise NoMatchingModel(
            "No rule wants this series (" + ("; ".join(missed) or "there are no rules") + ")"
        )
    return found


def rule_version(rule: Rule) -> str:
    """Twelve hexadecimal digits that change when the rule does; not with its mere urgency."""
    written = json.dumps(rule.model_dump(mode="json", exclude={"priority"}), sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:12]


def slices_of(headers: Sequence[Dataset]) -> Slices:
    """Slice count, thickness and median spacing along the slice normal, in millimetres."""
    return Slices(
        slice_count=len(headers),
        slice_thickness_mm=_number(headers[0].get("SliceThickness")),
        slice_spacing_mm=_spacing_mm(headers),
    )


def priority_of(rule: Rule, header: Dataset) -> Priority:
    """The rule's, unless the hospital says in the header that it is urgent.

    References
    ----------
    StudyPriority (0032,000C), retired and still sent: HIGH. RequestedProcedurePriority
    (0040,1003), PS3.3 C.4.11: STAT, HIGH.
    """
    items = [header, *(header.get("RequestAttributesSequence") or ())]
    said = {str(item.get(word, "")).strip().upper() for item in items for word in _PRIORITY_WORDS}
    return Priority.URGENT if said & {"STAT", "HIGH"} else Priority(rule.priority)


def _wishes(
    job: Job,
    headers: Sequence[Dataset],
    rules: Sequence[Rule],
    match_all: bool,
    models: Mapping[str, ModelManifest],
) -> list[Wish]:
    if "wish" in job.facts:
        plain = {**job.facts["wish"], "destinations": tuple(job.destinations)}
        return [Wish(**{**plain, "priority": Priority(plain.get("priority", "routine"))})]
    matching = matching_rules(headers, rules, match_all)
    return [_wish(rule, models, headers[0]) for rule in matching]


def _require_suitable(
    contract: InputContract | RadiographContract, headers: Sequence[Dataset]
) -> None:
    if isinstance(contract, RadiographContract):
        choose_radiograph(contract, headers)
    else:
        require_suitable(contract, headers, series_geometry(headers))


def _bears_gaps(
    wish: Wish, contract: InputContract | RadiographContract, headers: Sequence[Dataset]
) -> bool:
    if isinstance(contract, RadiographContract):
        return True
    if not wish.explain:
        return False
    try:
        _require_suitable(contract, headers)
    except (GeometryError, UnsuitableInput):
        return True
    return False


def _wish(rule: Rule, models: Mapping[str, ModelManifest], header: Dataset) -> Wish:
    return Wish(
        rule=rule.name,
        rule_version=rule_version(rule),
        model=rule.model,
        model_digest=models[rule.model].digest,
        destinations=rule.destinations,
        explain=rule.explain,
        priority=priority_of(rule, header),
    )


def _holds(condition: Condition, header: Dataset, slices: Slices) -> bool:
    if condition.geometry:
        value = getattr(slices, condition.geometry)
        values = [] if value is None else [value]
    else:
        assert condition.tag is not None  # noqa: S101 - the settings see to it
        values = _values(header.get(condition.tag))
    if condition.present is not None and condition.present != bool(values):
        return False
    tests = condition.model_dump(
        include={"equals", "one_of", "none_of", "at_least", "at_most", "matches"},
        exclude_none=True,
    )
    if "none_of" in tests:
        unwanted = tests.pop("none_of")
        if any(_same(value, other) for value in values for other in unwanted):
            return False
    return not tests or any(_passes(value, tests) for value in values)


def _passes(value: Any, tests: Mapping[str, Any]) -> bool:
    """Whether one value of the attribute passes all tests (multi-valued: one value suffices)."""
    number = _number(value)
    return (
        ("equals" not in tests or _same(value, tests["equals"]))
        and ("one_of" not in tests or any(_same(value, other) for other in tests["one_of"]))
        and ("at_least" not in tests or (number is not None and number >= tests["at_least"]))
        and ("at_most" not in tests or (number is not None and number <= tests["at_most"]))
        and ("matches" not in tests or re.fullmatch(tests["matches"], str(value)) is not None)
    )


def _same(value: Any, wanted: str | float) -> bool:
    if isinstance(wanted, str):
        return str(value) == wanted
    return _number(value) == float(wanted)


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _spacing_mm(headers: Sequence[Dataset]) -> float | None:
    if len(headers) < 2 or any("ImagePositionPatient" not in header for header in headers):
        return None
    orientation = np.asarray(headers[0].get("ImageOrientationPatient") or (), dtype=float)
    if orientation.shape != (6,):
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    along = sorted(float(np.dot(normal, header.ImagePositionPatient)) for header in headers)
    return median(after - before for before, after in pairwise(along))


def _in_words(condition: Condition) -> str:
    """The condition that failed, by its attribute and kind of test.

    Never the operand of a tag: that a series failed ``none_of`` says what its value is. The numbers
    of a geometry name nobody.
    """
    tests = condition.model_dump(exclude={"tag", "geometry"}, exclude_none=True)
    if condition.tag:
        return f"{condition.tag} fails {' and '.join(tests)}"
    wanted = " and ".join(f"{name} {value}" for name, value in tests.items())
    return f"{condition.geometry} is not {wanted}"
