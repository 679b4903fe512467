"""The commands for models: which there are, begin, train, measure, check and publish one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from node import terminal
from node.errors import NodeError
from node.settings import load

models_app = typer.Typer(invoke_without_command=True)


ModelName = Annotated[str, typer.Argument(help="Of a model (`segnode models`).")]


@models_app.callback()
def models(context: typer.Context) -> None:
    """The models found, what each takes and gives. `models COMMAND --help` says more."""
    if context.invoked_subcommand is not None:
        return
    from node import tables
    from node.packages import find_models

    terminal.out().print(tables.models(find_models(load().models_dir)))


@models_app.command("new")
def models_new(
    name: Annotated[str, typer.Argument(help="Of the model and its folder.")],
    like: Annotated[str, typer.Option(help="The model to begin with.")] = "ct_lungs",
) -> None:
    """Make a folder for a new model: manifest, network and training recipe of one that works."""
    from node.authoring.begin import begin_model

    folder = begin_model(load().models_dir, name, like)
    terminal.out().print(f"[green]✓[/] {folder}")
    terminal.out().print(
        f"Edit model.toml, then `segnode train {name}`, `segnode models seal {name}`."
    )


@models_app.command("seal")
def models_seal(
    name: ModelName,
    weights: Annotated[Path | None, typer.Option(exists=True, dir_okay=False,
                       help="Trained safetensors; default: those in the folder.")] = None,
    reference: Annotated[Path | None, typer.Option(exists=True, file_okay=False,
                         help="DICOM of one series; default: the reference that is there.")] = None,
) -> None:  # fmt: skip
    """Put trained weights into a model's folder, with their hash and a reference vector."""
    from node.authoring.seal import seal_model

    folder = load().models_dir / name
    seal_model(folder, weights, reference)
    terminal.out().print(f"[green]✓[/] {folder}; look at it with `segnode models check {name}`")


@models_app.command("check")
def models_check(
    name: Annotated[str | None, typer.Argument(help="Of a model; default: all.")] = None,
) -> None:
    """Check models: manifest, hash, network, reference vector on each runtime, card."""
    from node import tables
    from node.authoring.check import check_model

    settings = load()
    folders = sorted(path.parent for path in settings.models_dir.glob(f"{name or '*'}/model.toml"))
    if not folders:
        what = f"There is no model {name!r}" if name else "There is no model"
        raise NodeError(f"{what} in {settings.models_dir}", remedy="See models/README.md.")
    wrong = False
    for folder in folders:
        with terminal.err().status(f"checking {folder.name} ..."):
            findings = list(check_model(folder, settings.folder("exports")))
        terminal.out().print(f"[bold]{folder.name}[/]")
        terminal.out().print(tables.findings(findings))
        wrong = wrong or any(finding.level == "wrong" for finding in findings)
    if wrong:
        raise typer.Exit(1)


@models_app.command("pack")
def models_pack(
    name: ModelName,
    out: Annotated[Path, typer.Argument(file_okay=False, help="Where NAME-VERSION.tar goes.")],
) -> None:
    """Pack a model into one file, the same bytes wherever it is packed."""
    from node.authoring.archive import pack_model

    packed = pack_model(load().models_dir / name, out)
    terminal.out().print(f"[green]✓[/] {packed.path}: {packed.files} files")
    terminal.out().print(f"sha256 {packed.sha256}", highlight=False, soft_wrap=True)


def train(
    model: Annotated[Path, typer.Argument(help="A model's folder, or its name below models/.")],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Images and labels.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Weights, record, report.")],
    preset: Annotated[str, typer.Option(help="A preset of the model's recipe.")] = "default",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 20261121,
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on a CPU.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of torch in each process.")] = 1,
    loaders: Annotated[int, typer.Option(min=0, help="Processes that prepare samples.")] = 0,
    precision: Annotated[str, typer.Option(help="As Lightning names it.")] = "32-true",
    start: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Weights to begin with; without, from nothing."
        ),
    ] = None,
    public: Annotated[bool, typer.Option(help="Public data: keep the names of cases.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with what OUT holds.")] = True,
) -> None:
    """Train a model; the same command again goes on after a kill. docs/training.md says more."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: torch has the threads
    from node.training import train as training

    weights = training.train(
        training.Run(
            _model_folder(model), data, out, preset=preset, epochs=epochs, seed=seed,
            devices=devices, accelerator=accelerator, threads=threads, loaders=loaders,
            precision=precision, start=start, public=public, resume=resume,
        )
    )  # fmt: skip
    terminal.out().print(f"[green]✓[/] {weights}; read {out / 'report.md'}")


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model's folder, or its name below models/.")],
    data: Annotated[
        list[Path],
        typer.Option(exists=True, file_okay=False, help="Images with labels; may be given again."),
    ],
    empty: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Images in which nothing is to be found; may be given again.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="All figures, JSON.")] = None,
    card: Annotated[bool, typer.Option(help="Write the tables into MODEL_CARD.md.")] = False,
    stress: Annotated[bool, typer.Option(help="Also changed versions of the images.")] = True,
    public: Annotated[bool, typer.Option(help="Public data: keep the names of cases.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Measure a model as the node runs it: Dice with intervals, distances, by scanner."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: see service.py
    from node.training.card import CARD_NAME, rewrite_card, section
    from node.training.measure_model import measure_model

    folder = _model_folder(model)
    with terminal.err().status("reading ...") as status:
        found = measure_model(
            folder, data, empty or [], exports=load().folder("exports"), threads=threads,
            stress=stress, public=public, on_case=lambda name: status.update(name),
        )  # fmt: skip
    text = section(found)
    if out is not None:
        out.write_text(json.dumps(found.as_json(), indent=1) + "\n")
    if card:
        rewrite_card(folder / CARD_NAME, text)
    terminal.out().print(Markdown(text))
    for number, name in found.names.items():  # on the screen, where a person looks for the case
        terminal.err().print(f"{number}: {name}", highlight=False, markup=False)


def _model_folder(model: Path) -> Path:
    """A folder as given, or a name below the settings' models folder."""
    return model if model.is_dir() else load().models_dir / model
