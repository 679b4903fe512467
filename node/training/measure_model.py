"""What `segnode evaluate` does: load the model as the node does, and run it over folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from node.errors import UnsuitableInput
from node.manifest import InputContract
from node.packages import load_model
from node.training.evaluate import Evaluation, evaluate, look_for_nothing, without_names
from node.training.examples import Example, volume_examples
from node.training.recipe import RECIPE_NAME, RECORD_NAME, load_recipe


def measure_model(
    folder: Path,
    data: Sequence[Path],
    empty: Sequence[Path] = (),
    *,
    exports: Path | None = None,
    threads: int = 1,
    stress: bool = True,
    public: bool = False,
    on_case: Callable[[str], None] = lambda name: None,
) -> Evaluation:
    """Evaluate the model of ``folder`` on every labelled image below ``data``.

    A recipe may read examples in its own way (``examples``) and say how to change them
    (``stresses``); without one, series with a Segmentation, NIfTI or npz beside them are read.
    Cases and patients get numbers, unless the data are ``public``.
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
        roles_in(folder / RECORD_NAME),
        getattr(recipe, "stresses", None) if stress else None,
        on_case,
        public=public,
    )
    contract = model.manifest.input
    if isinstance(contract, InputContract):
        nothing = [one for place in empty for one in look_for_nothing(model, contract, place)]
        found = replace(found, empty=tuple(nothing))
    return found if public else without_names(found)


def roles_in(record: Path) -> Callable[[Example], str]:
    """What each case was to the weights, by the record of their training.

    A record that numbers its cases knows them by digest alone; one of public data by patient too.

    Raises
    ------
    UnsuitableInput
        When a case is asked for: its recipe gives no digest, so nobody can tell.
    """
    if not record.is_file():
        return lambda example: "test"
    content = json.loads(record.read_text())
    digests: dict[str, str] = {}
    patients: dict[str, str] = {}
    validated = sum("validation_dice" in epoch for epoch in content.get("history", ()))
    # Looked at once, after the last epoch: they chose nothing.
    told = ("training",) if validated == 1 else ("training", "validation")
    for role in told:
        digests.update({case["sha256"]: role for case in content[role]})
        patients.update({case["patient"]: role for case in content[role]})
    named = content.get("names", "public") == "public"

    def role_of(example: Example) -> str:
        if not named and not example.digest:
            raise UnsuitableInput(
                "What these cases were to the weights cannot be told: they have no digest",
                remedy="Let `examples` of the recipe give each its digest_of(files).",
            )
        known = digests.get(example.digest, "test")
        return patients.get(example.patient, known) if named else known

    return role_of
