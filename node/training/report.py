"""What a run shows of itself: learning curves, each held-out case, and the worst as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from node.manifest import Segment
from node.training.learning import Learner
from node.training.measures import dice, number_shown, surface_distance_p95_mm
from node.training.recipe import Case, Manifest, Recipe
from node.training.split import Split

WORST_CASES = 4
PICTURES = "pictures"


def write_report(
    out: Path,
    learner: Learner,
    recipe: Recipe,
    split: Split,
    manifest: Manifest,
    record: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Measure every held-out case with the learner's network; write ``report.md`` and pictures.

    Returns the rows of the report's table, worst first: case, label, Dice, 95th percentile of the
    surface distance in millimetres. All on the network's grid, before 3-D components are chosen;
    `segnode evaluate` measures what the node delivers.
    """
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    worst: dict[str, tuple[float, Case, npt.NDArray[np.uint8]]] = {}
    for case in split.validation:
        found = learner.segment(recipe.inputs(case, manifest))
        measured = [_measured(case, found, segment) for segment in manifest.segments]
        rows += measured
        counted = [row["dice"] for row in measured if not math.isnan(row["dice"])]
        worst[case.name] = (min(counted, default=math.nan), case, found)
    rows.sort(key=lambda row: (not math.isnan(row["dice"]), row["dice"]))
    _draw_curves(out / PICTURES / "curves.png", learner.history)
    shown = sorted(worst.values(), key=lambda item: item[0])[:WORST_CASES]
    for number, (_, case, found) in enumerate(shown, start=1):
        _draw_case(out / PICTURES / f"worst_{number}.png", case, found, manifest.segments)
    (out / "report.md").write_text(_text(manifest, record, rows, [one[1].name for one in shown]))
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value
         for key, value in row.items()}
        for row in rows
    ]  # fmt: skip


def _measured(case: Case, found: npt.NDArray[np.uint8], segment: Segment) -> dict[str, Any]:
    one, other = found == segment.number, case.labels == segment.number
    return {
        "case": case.name,
        "label": segment.label,
        "dice": round(dice(one, other), 4),
        "surface_distance_p95_mm": round(surface_distance_p95_mm(one, other, case.spacing_mm), 2),
    }


def _text(
    manifest: Manifest,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    shown: Sequence[str],
) -> str:
    training, validation = record["training"], record["validation"]
    lines = [
        f"# Training of {manifest.name}",
        "",
        f"`{record['command']}`",
        "",
        f"Seed {record['seed']}, preset {record['preset']}, {record['settings']['epochs']} epochs; "
        f"epoch {record['best_epoch']} was kept (validation Dice {record['validation_dice']}). "
        f"{len(training)} cases of {len({c['patient'] for c in training})} patients trained it, "
        f"{len(validation)} of {len({c['patient'] for c in validation})} others judged it. "
        "Versions, settings and the digest of each case are in `training.json`.",
        "",
        f"![Learning curves]({PICTURES}/curves.png)",
        "",
        "## Held-out cases, worst first",
        "",
        "On the network's grid, before 3-D components are chosen. The distance is the 95th "
        "percentile between both surfaces. A dash: the label is in neither.",
        "",
        "| case | label | Dice | distance, mm |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['case']} | {row['label']} | {number_shown(row['dice'], 4)} | "
            f"{number_shown(row['surface_distance_p95_mm'], 1)} |"
            for row in rows
        ),
        "",
        "Pictures: the four slices with the most disagreement; line: labels, dashed: network.",
        "",
    ]
    for number, name in enumerate(shown, start=1):
        lines += [f"![{name}]({PICTURES}/worst_{number}.png)", "", f"{name}", ""]
    return "\n".join(lines)


def _draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    left.plot(epochs, [entry["loss"] for entry in history])
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    measured = [entry for entry in history if "validation_dice" in entry]
    names = sorted({name for entry in measured for name in entry if name.startswith("dice ")})
    few = names if len(names) <= 8 else []
    for name in few:
        right.plot(
            [e["epoch"] for e in measured],
            [e.get(name, math.nan) for e in measured],
            label=name.removeprefix("dice "),
            linewidth=1,
        )
    right.plot(
        [e["epoch"] for e in measured],
        [e["validation_dice"] for e in measured],
        color="black",
        label="mean",
    )
    right.set(xlabel="epoch", ylabel="validation Dice")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def _draw_case(
    path: Path, case: Case, found: npt.NDArray[np.uint8], segments: Sequence[Segment]
) -> None:
    """The slices where network and labels disagree most."""
    from matplotlib.figure import Figure

    disagreement = (found != case.labels).sum(axis=(1, 2))
    slices = sorted(np.argsort(disagreement)[::-1][:4].tolist())
    figure = Figure(figsize=(4 * len(slices), 4), layout="constrained")
    for axes, index in zip(np.atleast_1d(figure.subplots(1, len(slices))), slices, strict=True):
        low, high = np.percentile(case.planes[index], [1, 99.5])
        axes.imshow(case.planes[index], cmap="gray", vmin=low, vmax=high)
        for segment in segments:
            color = [channel / 255 for channel in segment.rgb]
            for labels, style in ((case.labels, "solid"), (found, "dashed")):
                mask = labels[index] == segment.number
                if mask.any() and not mask.all():
                    axes.contour(mask, [0.5], colors=[color], linewidths=1, linestyles=style)
        axes.set_title(f"slice {index + 1}", fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=80)
