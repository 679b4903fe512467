"""`segnode models check`: does a model's folder keep the contract of models/README.md?"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from node.errors import ModelFault
from node.findings import Finding
from node.foreign.check import faults
from node.manifest import (
    MANIFEST_NAME,
    NETWORK_NAME,
    CommandManifest,
    ModelManifest,
    WithWeights,
    read_manifest,
)
from node.packages import (
    REDUCED_DICE,
    SAME_DICE,
    NetworkModel,
    find_or_make_export,
    found_in,
    on_gpu,
    on_openvino,
    on_torch,
)
from node.reference import Labels, Reference, agreement, read_reference
from node.results.objects import possible_kinds
from node.runtimes import openvino_cpu
from node.runtimes.network import load_network, verified_weights

EXPECTED_DICE = 0.99
"""Of what any runtime finds in the reference vector, with what the author's machine found."""
MAY_IMPORT = frozenset(
    {"__future__", "math", "node.sdk", "numpy", "segmentation_models_pytorch", "torch"}
)
CARD_NAME = "MODEL_CARD.md"
CARD_SAYS = ("## Data", "## Numbers", "## Known failures", "Not a medical device")
MAX_WEIGHTS_BYTES = 25_000_000
UNFINISHED = "(to be written)"
"""What `segnode models new` puts where only the author knows what to say."""
PICKLES = frozenset({".pt", ".pth", ".pkl", ".ckpt", ".joblib"})


def check_model(folder: Path, exports: Path) -> Iterator[Finding]:
    """Look at everything, one finding each; a wrong manifest ends it.

    ``exports`` is where exports for OpenVINO are kept: one is made if there is none.
    """
    try:
        manifest = read_manifest(folder)
    except ModelFault as error:
        yield _wrong("manifest", error)
        return
    yield _manifest(folder, manifest)
    yield _results(manifest)
    yield _card(folder, f"# {manifest.name} {manifest.version}")
    if isinstance(manifest, CommandManifest):
        yield from _program(folder, manifest)
        return
    yield _no_pickle(folder)
    yield _imports(folder)
    try:
        yield _weights(folder, manifest)
        yield _network(folder, manifest)
        yield from _reference(folder, manifest, exports)
    except ModelFault as error:
        yield _wrong("model", error)


def _manifest(folder: Path, manifest: ModelManifest) -> Finding:
    if UNFINISHED in (folder / MANIFEST_NAME).read_text(encoding="utf-8"):
        return Finding(
            "wrong", "manifest", f"{MANIFEST_NAME}: parts are still {UNFINISHED}",
            "Write them: a site decides by them whether it may use the model.",
        )  # fmt: skip
    found = f"{manifest.name} {manifest.version}, digest {manifest.digest[:16]}"
    return Finding("good", "manifest", found)


def _program(folder: Path, manifest: CommandManifest) -> Iterator[Finding]:
    found = list(faults(folder, manifest))
    for fault in found:
        yield Finding(
            "wrong", "program", fault, "Install it on this machine, or correct model.toml."
        )
    if not found:
        yield Finding("good", "program", "it can run here; its files are the ones of model.toml")


def _results(manifest: ModelManifest) -> Finding:
    """What destinations can get of it: the manifest's kinds, as far as its images allow them."""
    possible = possible_kinds(manifest)
    given = [kind for kind in manifest.results.kinds if kind in possible]
    left = [kind for kind in manifest.results.kinds if kind not in possible]
    if not given:
        return Finding(
            "wrong", "results", f"{', '.join(left)}: nothing of that can be made of a radiograph",
            "Add seg, text_sr, pdf or capture to `kinds` in [results].",
        )  # fmt: skip
    found = f"gives {', '.join(given)}"
    if left:
        found += f"; not of a radiograph: {', '.join(left)}"
    parts = len(manifest.results.groups)
    return Finding("good", "results", found + (f"; {parts} Segmentations" if parts else ""))


def _card(folder: Path, title: str) -> Finding:
    try:
        text = (folder / CARD_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return Finding("wrong", "card", f"{CARD_NAME} cannot be read", "models/README.md: write it")
    lacks = [words for words in (title, *CARD_SAYS) if words not in text]
    if lacks:
        return Finding(
            "wrong", "card", f"{CARD_NAME} does not hold: {', '.join(lacks)}",
            "Say on whom it was measured and where it fails; `segnode evaluate` writes numbers.",
        )  # fmt: skip
    if UNFINISHED in text:
        return Finding("wrong", "card", f"{CARD_NAME}: parts are still {UNFINISHED}", "Write them.")
    return Finding("good", "card", "data, numbers, known failures")


def _no_pickle(folder: Path) -> Finding:
    found = sorted(path.name for path in folder.rglob("*") if path.suffix in PICKLES)
    if found:
        return Finding(
            "wrong", "no pickle", f"{', '.join(found)} may run code when it is loaded",
            "Remove it; weights are safetensors.",
        )  # fmt: skip
    return Finding("good", "no pickle", "nothing here runs code when it is loaded")


def _imports(folder: Path) -> Finding:
    try:
        tree = ast.parse((folder / NETWORK_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        return Finding("wrong", "imports", f"{NETWORK_NAME} cannot be read: {error}", "Correct it.")
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    # torch.nn is torch.
    other = {
        name for name in imported
        if not any(name == may or name.startswith(f"{may}.") for may in MAY_IMPORT)
    }  # fmt: skip
    if other:
        return Finding(
            "wrong", "imports", f"{NETWORK_NAME} imports {', '.join(sorted(other))}",
            f"A model may import {', '.join(sorted(MAY_IMPORT - {'__future__'}))}.",
        )  # fmt: skip
    return Finding("good", "imports", f"{NETWORK_NAME} imports what a model may")


def _weights(folder: Path, manifest: WithWeights) -> Finding:
    size = len(verified_weights(folder, manifest))
    if size > MAX_WEIGHTS_BYTES:
        return Finding(
            "note", "weights", f"{size / 1e6:.0f} MB", "More than 25 MB travel badly with a site."
        )
    return Finding("good", "weights", f"SHA-256 is the manifest's; {size / 1e6:.1f} MB")


def _network(folder: Path, manifest: WithWeights) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding(
            "note", "network", "not checked: PyTorch is not installed here",
            "pip install 'segnode[torch]'",
        )  # fmt: skip
    network = load_network(folder, manifest)
    count = sum(parameter.numel() for parameter in network.parameters())
    return Finding("good", "network", f"builds and takes the weights: {count:,} parameters")


def _reference(folder: Path, manifest: WithWeights, exports: Path) -> Iterator[Finding]:
    """The reference vector on each runtime that is here."""
    reference = read_reference(folder, manifest)
    torch_labels: Labels | None = None
    if importlib.util.find_spec("torch") is not None:
        model = on_torch(folder, manifest, threads=1)
        torch_labels = found_in(model, reference)
        yield _agreement(model, torch_labels, reference, None)
        if (gpu := on_gpu(folder, manifest)) is not None:
            yield _agreement(gpu, found_in(gpu, reference), reference, torch_labels)
        else:
            yield Finding("note", "GPU", "none here: not checked")
    if not openvino_cpu.is_installed():
        yield Finding(
            "note", "OpenVINO", "not installed: not checked", "pip install 'segnode[compute]'"
        )
        return
    export = find_or_make_export(folder, manifest, exports)
    for precision in ("f32", "bf16") if openvino_cpu.computes_bf16() else ("f32",):
        model = on_openvino(manifest, export, precision, threads=1)
        yield _agreement(model, found_in(model, reference), reference, export.torch_labels)


def _agreement(
    model: NetworkModel, found: Labels, reference: Reference, torch_labels: Labels | None
) -> Finding:
    engine = model.runtime.engine
    subject = f"{engine.name} {engine.precision}"
    expected = agreement(found, reference.labels)
    text = f"reference vector: Dice {expected:.4f} with expected.npz"
    if expected < EXPECTED_DICE:
        return Finding(
            "wrong", subject, text, "Look at what it finds; if it is right, `segnode models seal`."
        )
    if torch_labels is None:
        return Finding("good", subject, text)
    same = agreement(found, torch_labels)
    text += f", {same:.5f} with PyTorch float32"
    if same >= (SAME_DICE if engine.precision == "f32" else REDUCED_DICE):
        return Finding("good", subject, text)
    instead = "PyTorch" if engine.precision == "f32" else "float32"
    return Finding("note", subject, text, f"Not used: {instead} runs instead, and is slower.")


def _wrong(subject: str, error: ModelFault) -> Finding:
    return Finding("wrong", subject, str(error), error.remedy)
