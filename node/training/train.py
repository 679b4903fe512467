"""One training run: from labelled cases to ``weights.safetensors``, a record and a report.

The output folder is the run's whole state. The same command on the same folder goes on from the
end of the last finished epoch, so a killed run loses at most one epoch; on a CPU, with the same
number of threads, the weights are then bit for bit those of a run that was not killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from node.errors import ModelFault, UnsuitableInput
from node.manifest import WEIGHTS_NAME, read_manifest
from node.runtimes.network import build_network
from node.training.frame import (
    Callback,
    ModelCheckpoint,
    RichProgressBar,
    Trainer,
    WeightAveraging,
    seed_everything,
)
from node.training.learning import CaseData, Learner
from node.training.names import numbered, write_names
from node.training.recipe import RECORD_NAME, Case, Manifest, Settings, load_recipe
from node.training.report import write_report
from node.training.split import Split, split_by_patient

# Options whose values are nobody's name.
_SHOWN = frozenset({"preset", "epochs", "seed", "devices", "accelerator", "threads", "loaders",
                    "precision", "public"})  # fmt: skip
LAST, BEST = "last", "best"
CHECKPOINTS = "checkpoints"
PACKAGES = ("torch", "lightning", "segmentation-models-pytorch", "timm", "numpy", "scipy")


@dataclass(frozen=True)
class Run:
    """What `segnode train` was asked for."""

    model: Path
    data: Path
    out: Path
    preset: str = "default"
    epochs: int | None = None
    seed: int = 20261121
    devices: int = 1
    accelerator: str = "auto"
    threads: int = 1
    """Of torch, on a CPU."""
    loaders: int = 0
    """Processes per device that prepare samples; 0 is the training process itself."""
    precision: str = "32-true"
    start: Path | None = None
    """Weights to begin with (safetensors of the same network); from nothing without."""
    public: bool = False
    """The data are public: names of cases and patients stay in record and report."""
    resume: bool = True
    """Go on where the output folder's last checkpoint stands; else the folder must hold none."""


def train(run: Run) -> Path:
    """Train, keep the weights of the best epoch, write record and report; returns the weights.

    Raises
    ------
    UnsuitableInput
        No labelled case below the data folder; too few patients; the folder holds another run.
    ModelFault
        The model has no usable recipe, manifest or network.
    """
    _quieten()
    torch.set_num_threads(run.threads)
    manifest = read_manifest(run.model)
    if not isinstance(manifest, Manifest):
        raise ModelFault(
            f"Model {manifest.name} is a program, not a network: it cannot be trained here",
            remedy="Train it with its own tools.",
        )
    recipe = load_recipe(run.model)
    settings = _settings(recipe.PRESETS, run)
    cases = recipe.read_cases(run.data, manifest)
    if not cases:
        raise UnsuitableInput(
            "No labelled case was found in the data folder",
            remedy="Give the folder that the recipe describes: images with their labels.",
        )
    split = split_by_patient(cases, settings.validation_patients, settings.validation_share)
    named = numbered(split)
    if not run.public:
        split = named.split
    record = _record(run, settings, manifest, split)
    if not run.public:
        held_out = [named.patients[one] for one in settings.validation_patients]
        record["settings"]["validation_patients"] = held_out
    checkpoints = run.out / CHECKPOINTS
    resumed = _resume_from(run, checkpoints, record)
    if not run.public:
        write_names(run.out, named.names)

    seed_everything(run.seed, verbose=False)
    network = build_network(run.model, manifest)
    if run.start is not None:
        _load(network, run.start)
    learner = Learner(
        network,
        [segment.label for segment in manifest.segments],
        settings,
        run.seed,
    )
    data = CaseData(recipe, manifest, split, settings, run.seed, run.loaders)
    learner.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(
        max_epochs=settings.epochs,
        accelerator=run.accelerator,
        devices=run.devices,
        strategy="ddp" if run.devices > 1 else "auto",
        sync_batchnorm=run.devices > 1 and run.accelerator != "cpu",
        precision=run.precision,  # type: ignore[arg-type]
        gradient_clip_val=5.0,
        check_val_every_n_epoch=settings.validate_every,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        deterministic="warn",
        logger=False,
        enable_model_summary=False,
        callbacks=_callbacks(settings, checkpoints),
    )
    began = time.monotonic()
    trainer.fit(learner, datamodule=data, ckpt_path=resumed)
    if trainer.interrupted:
        raise KeyboardInterrupt
    best = torch.load(checkpoints / f"{BEST}.ckpt", map_location="cpu", weights_only=True)
    weights = {
        name.removeprefix("network."): value.contiguous()
        for name, value in best["state_dict"].items()
        if name.startswith("network.")
    }
    out = run.out / WEIGHTS_NAME
    if trainer.is_global_zero:
        save_file(weights, out)
        learner.network.load_state_dict(weights)
        learner.to("cpu")
        record.update(
            best_epoch=int(best["epoch"]) + 1,
            validation_dice=round(_best_dice(trainer), 4),
            minutes_of_last_start=round((time.monotonic() - began) / 60, 1),
            resumed=resumed is not None,
            history=learner.history,
        )
        record["cases"] = write_report(run.out, learner, recipe, split, manifest, record)
        (run.out / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n")
    return out


def _settings(presets: Any, run: Run) -> Settings:
    if run.preset not in presets:
        raise UnsuitableInput(
            f"The recipe has no preset {run.preset}",
            remedy=f"Choose one of: {', '.join(sorted(presets))}.",
        )
    settings: Settings = presets[run.preset]
    epochs = run.epochs or settings.epochs
    # The last epoch is validated: a divisor of all epochs, near the recipe's wish.
    every = next(n for n in range(settings.validate_every, 0, -1) if epochs % n == 0)
    return replace(settings, epochs=epochs, validate_every=every)


def _callbacks(settings: Settings, checkpoints: Path) -> list[Callback]:
    return [
        WeightAveraging(avg_fn=_averaging(settings.average_decay)),
        # Best first: the last checkpoint then knows of it.
        ModelCheckpoint(
            checkpoints,
            filename=BEST,
            monitor="validation_dice",
            mode="max",
            enable_version_counter=False,
        ),
        ModelCheckpoint(
            checkpoints, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False
        ),
        RichProgressBar(leave=False),
    ]


def _load(network: torch.nn.Module, start: Path) -> None:
    try:
        network.load_state_dict(load_file(start))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UnsuitableInput(
            "The weights to start with are not of this network",
            remedy="Give the weights.safetensors of a model with the same network.py.",
        ) from error


def _best_dice(trainer: Trainer) -> float:
    keeper = trainer.checkpoint_callback
    score = keeper.best_model_score if isinstance(keeper, ModelCheckpoint) else None
    return math.nan if score is None else float(score)


def _averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Exponential moving average that forgets the untrained network soon, however short the run."""

    def average(mean: Tensor, current: Tensor, count: Tensor) -> Tensor:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        return mean * keep + current * (1 - keep)

    return average


def _record(run: Run, settings: Settings, manifest: Manifest, split: Split) -> dict[str, Any]:
    """What one needs to make these weights again; no time, no name of a machine, no path."""

    def listed(cases: tuple[Case, ...]) -> list[dict[str, Any]]:
        return [
            {
                "case": case.name,
                "patient": case.patient,
                "slices": len(case.planes),
                "sha256": case.digest(),
            }
            for case in cases
        ]

    return {
        "model": manifest.name,
        "model_version": manifest.version,
        "command": _command(run, manifest),
        "names": "public" if run.public else "numbers",
        "preset": run.preset,
        "settings": asdict(settings),
        "seed": run.seed,
        "start_sha256": hashlib.sha256(run.start.read_bytes()).hexdigest() if run.start else None,
        "devices": run.devices,
        "threads": run.threads,
        "precision": run.precision,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "training": listed(split.training),
        "validation": listed(split.validation),
    }


def _command(run: Run, manifest: Manifest) -> str:
    """The command, with words for the paths, which may hold anybody's name."""
    words = ["segnode", "train", manifest.name, "--data", "DATA", "--out", "RUN"]
    if run.start is not None:
        words += ["--start", "WEIGHTS"]
    for option in fields(run):
        value = getattr(run, option.name)
        if option.name in _SHOWN and value != option.default:
            words += [f"--{option.name}"] if value is True else [f"--{option.name}", str(value)]
    return " ".join(words)


def _resume_from(run: Run, checkpoints: Path, record: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from; refuses to mix two different runs in one folder."""
    plan_file = run.out / "plan.json"
    # What decides the result. The command line may differ in how it spells a path.
    plan = {key: value for key, value in record.items() if key not in ("command", "versions")}
    plan = json.loads(json.dumps(plan))
    last = checkpoints / f"{LAST}.ckpt"
    if last.is_file():
        if not run.resume:
            raise UnsuitableInput(
                "The output folder holds a run already",
                remedy="Give another folder, or leave out --no-resume to go on with it.",
            )
        if json.loads(plan_file.read_text()) != plan:
            raise UnsuitableInput(
                "The output folder holds a run with other settings, data or seed",
                remedy="Give another folder, or the command that began this run.",
            )
        return last
    run.out.mkdir(parents=True, exist_ok=True)
    plan_file.write_text(json.dumps(plan, indent=1) + "\n")
    return None


def _quieten() -> None:
    """Lightning tells of hardware and tips at length; its warnings here are known and meant."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*num_workers.*")
