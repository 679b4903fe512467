"""The numbers of a MODEL_CARD.md: one section, written from an evaluation. The rest is a person's.

The section lies between two comments, and is rewritten as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from node.errors import ModelFault
from node.training.evaluate import (
    PATIENTS_FOR_AN_INTERVAL,
    TOTAL,
    EmptyCase,
    Evaluation,
    Interval,
    Measurement,
    interval_over_patients,
)
from node.training.measures import number_shown

CARD_NAME = "MODEL_CARD.md"
BEGIN = "<!-- written by `segnode evaluate`: do not edit between these lines -->"
END = "<!-- end of what `segnode evaluate` writes -->"
CASES_SHOWN = 12
ROLES = {"test": "never seen", "validation": "chose the epoch", "training": "trained on"}


def rewrite_card(card: Path, text: str) -> None:
    """Put ``text`` between the card's two comments; all else stays byte for byte.

    Raises
    ------
    ModelFault
        The card is missing, or has not exactly one such section.
    """
    try:
        before, rest = card.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError) as error:
        raise ModelFault(
            f"{CARD_NAME} has no section for the numbers",
            remedy=f"Write these two lines where they belong:\n{BEGIN}\n{END}",
        ) from error
    card.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def section(evaluation: Evaluation) -> str:
    """Tables in Markdown: overall, by case, by scanner, under stress; and what they do not say."""
    measurements = sorted(evaluation.measurements, key=lambda one: list(ROLES).index(one.role))
    distance, amount = ("pixels", "1000 pixels") if evaluation.in_pixels else ("mm", "ml")
    parts = [
        f"Run by {evaluation.engine}, on the images' own grid, 3-D components chosen. Intervals "
        "are 95 % bootstrap: of a mean over patients, of one case over blocks of slices (which "
        "says nothing of other patients). Distance: 95th percentile between both surfaces.",
        _overall(measurements),
        _cases(measurements, distance, amount),
        _scanners(measurements),
        _stressed(evaluation.stressed, amount),
        _empty(evaluation.empty, amount),
        _limits(measurements),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _overall(measurements: Sequence[Measurement]) -> str:
    rows = []
    for role, words in ROLES.items():
        for label in _labels(measurements):
            chosen = [m for m in measurements if m.role == role and m.label == label]
            values = [m.dice for m in chosen if not math.isnan(m.dice)]
            patients = {m.patient for m in chosen}
            if not values or len(patients) < PATIENTS_FOR_AN_INTERVAL:
                continue
            rows.append(
                f"| {words} | {label} | {len(patients)} | {np.mean(values):.4f}"
                f"{_shown(interval_over_patients(chosen))} | {np.percentile(values, 5):.4f} | "
                f"{min(values):.4f} |"
            )
    if not rows:
        return ""
    head = "| cases | label | patients | mean Dice | 5th percentile | lowest |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *rows])


def _cases(measurements: Sequence[Measurement], distance: str, amount: str) -> str:
    cases = list(dict.fromkeys((m.role, m.case) for m in measurements))
    which = ""
    if len(cases) > CASES_SHOWN:
        which = f"The {CASES_SHOWN} worst of {len(cases)} cases:\n\n"
        cases = sorted(cases, key=lambda case: _worst_dice(measurements, case))[:CASES_SHOWN]
    rows = [
        f"| {m.case} | {ROLES[m.role]} | {m.label} | "
        f"{number_shown(m.dice, 4)}{_shown(m.dice_interval)} | "
        f"{number_shown(m.surface_distance_p95_mm, 1)} | {m.truth_ml:.0f} | {m.found_ml:.0f} | "
        f"{m.confused_ml:.1f} |"
        for case in cases
        for m in measurements
        if (m.role, m.case) == case
    ]
    head = (
        f"| case | was | label | Dice | distance, {distance} | labelled, {amount} | "
        f"found, {amount} | wrong side, {amount} |"
    )
    return which + "\n".join([head, "| --- " * 8 + "|", *rows])


def _worst_dice(measurements: Sequence[Measurement], case: tuple[str, str]) -> float:
    """Of one case's labels; one that is neither there nor found has no Dice, and is no failure."""
    found = [m.dice for m in measurements if (m.role, m.case) == case and not math.isnan(m.dice)]
    return min(found, default=math.inf)


def _scanners(measurements: Sequence[Measurement]) -> str:
    """Mean Dice by scanner, of cases that did not train the model."""
    unseen = [m for m in measurements if m.role != "training"]
    groups = list(dict.fromkeys(m.scanner for m in unseen))
    rows = []
    for group in groups:
        for label in _labels(unseen)[:1]:
            chosen = [m for m in unseen if m.scanner == group and m.label == label]
            values = [m.dice for m in chosen if not math.isnan(m.dice)]
            if values:
                patients = len({m.patient for m in chosen})
                rows.append(f"| {group} | {patients} | {np.mean(values):.4f} | {min(values):.4f} |")
    if not rows:
        return ""
    what = _labels(unseen)[0]
    head = f"| scanner, kernel, slice thickness | patients | mean Dice, {what} | lowest |"
    return "\n".join([head, "| --- | --- | --- | --- |", *rows])


def _stressed(stressed: Sequence[tuple[str, Measurement]], amount: str) -> str:
    """The worst of all cases, for each change and label."""
    if not stressed:
        return ""
    labels = _labels([m for _, m in stressed])
    rows = []
    for change in dict.fromkeys(change for change, _ in stressed):
        cells = []
        for label in labels:
            chosen = [m for name, m in stressed if name == change and m.label == label]
            values = [m.dice for m in chosen if not math.isnan(m.dice)]
            cells.append(number_shown(min(values, default=math.nan), 3))
        wrong = max(m.confused_ml for name, m in stressed if name == change)
        rows.append(f"| {change} | {' | '.join(cells)} | {wrong:.1f} |")
    head = f"| the same images with ... | {' | '.join(labels)} | wrong side, {amount} |"
    note = "Dice of the worst case that did not train the model:"
    return "\n".join([note, "", head, "| --- " * (len(labels) + 2) + "|", *rows])


def _empty(cases: Sequence[EmptyCase], amount: str) -> str:
    """What of series that show no such organ."""
    if not cases:
        return ""
    rows = [
        f"| {one.name} | {one.refusal or 'taken'} | {number_shown(one.found_ml, 1)} |"
        for one in cases
    ]
    head = f"| shows none of it | the node's word | found all the same, {amount} |"
    note = (
        "Series in which nothing is to be found. The last column is what the network found with "
        "its input contract set aside:"
    )
    return "\n".join([note, "", head, "| --- | --- | --- |", *rows])


def _limits(measurements: Sequence[Measurement]) -> str:
    unseen = [m for m in measurements if m.role == "test"]
    patients = len({m.patient for m in unseen})
    scanners = len({m.scanner for m in unseen})
    return (
        f"**Limits.** {patients} patient(s) on {scanners} scanner setting(s) were never seen in "
        "training or in choosing the epoch. A group of fewer than "
        f"{PATIENTS_FOR_AN_INTERVAL} patients is an anecdote: no claim is made for other scanners, "
        "ages, sexes, body shapes or diseases than those of the cases listed."
    )


def _labels(measurements: Sequence[Measurement]) -> list[str]:
    names = dict.fromkeys(m.label for m in measurements)
    return sorted(names, key=lambda name: name != TOTAL)


def _shown(interval: Interval) -> str:
    return "" if math.isnan(interval[0]) else f" ({interval[0]:.4f} to {interval[1]:.4f})"
