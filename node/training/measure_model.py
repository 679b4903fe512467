"""What `segnode evaluate` does: load the model as the node does, and run it over folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from node.manifest import InputContract
from node.packages import load_model
from node.training.evaluate import Evaluation, evaluate, look_for_nothing
from node.training.examples import volume_examples
from node.training.recipe import RECIPE_NAME, RECORD_NAME, load_recipe


def measure_model(
    folder: Path,
    data: Sequence[Path],
    empty: Sequence[Path] = (),
    *,
    exports: Path | None = None,
    threads: int = 1,
    stress: bool = True,
    on_case: Callable[[str], None] = lambda name: None,
) -> Evaluation:
    """Evaluate the model of ``folder`` on every labelled image below ``data``.

    A recipe may read examples in its own way (``examples``) and say how to change them
    (``stresses``); without one, series with a Segmentation, NIfTI or npz beside them are read.
    """
    model = load_model(folder, threads=threads, exports=exports)
    recipe: Any = load_recipe(folder) if (folder / RECIPE_NAME).is_file() else None
    read = getattr(recipe, "examples", None)

    if read is None:
        examples = volume_examples(data, model.manifest.segments)
    else:
        examples = read(data, model.manifest)
    found = evaluate(
        model,
        examples,
        _roles(folder),
        getattr(recipe, "stresses", None) if stress else None,
        on_case,
    )
    contract = model.manifest.input
    if isinstance(contract, InputContract):
        nothing = [one for place in empty for one in look_for_nothing(model, contract, place)]
        found = replace(found, empty=tuple(nothing))
    return found


def _roles(folder: Path) -> Callable[[str], str]:
    """What each patient was to the weights, by the record of their training."""
    record = folder / RECORD_NAME
    known: dict[str, str] = {}
    if record.is_file():
        content = json.loads(record.read_text())
        for role in ("training", "validation"):
            known.update({case["patient"]: role for case in content[role]})
        validated = sum("validation_dice" in epoch for epoch in content.get("history", ()))
        if validated == 1:
            # Looked at once, after the last epoch: they chose nothing.
            known = {patient: role for patient, role in known.items() if role == "training"}
    return lambda patient: known.get(patient, "test")
