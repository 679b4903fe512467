"""Train ct_lungs: ``python models/ct_lungs/train.py --data DIR --out DIR``.

``DIR`` holds one folder of DICOM per series and ``pseudo_labels_256/*.npz`` (packed lung masks at
256x256 with the SOP Instance UIDs that they belong to). Patients are split, never slices: all
series of ``--validate`` patients are kept from training. Preprocessing is the node's own, read
from model.toml, so that the network trains on what it will see. About an hour on two busy cores.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import torch
import torch.nn.functional as functional
from rich.progress import Progress
from safetensors.torch import save_file

from node.imaging.intensity import window
from node.imaging.resample import PlaneGrid, grid_on_body, patient_orientation
from node.imaging.sliding_window import context_offset
from node.imaging.volume import volume_from_series
from node.packages import import_torchvision

from pseudo_labels import LEFT, RIGHT, lung_labels  # isort: skip

CLASSES = 3
MANIFEST = Path(__file__).with_name("model.toml")


@dataclass(frozen=True)
class Case:
    """One series on the network's grid: HU and labels, shape (slices, size, size)."""

    name: str
    planes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    slice_spacing_mm: float


def main() -> None:
    """Read, train, keep the best weights by validation Dice."""
    arguments = _arguments()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    torch.set_num_threads(arguments.threads)
    preprocessing = tomllib.loads(MANIFEST.read_text())["preprocessing"]

    cases = read_cases(arguments.data, preprocessing)
    held_out = tuple(arguments.validate)
    training = [case for case in cases if not case.name.startswith(held_out)]
    validation = [case for case in cases if case.name.startswith(held_out)]
    print("train:", [c.name for c in training], "validate:", [c.name for c in validation])

    import_torchvision()
    from network import build_network  # this folder's; imports torchvision

    network = build_network(int(preprocessing["context_slices"]), CLASSES)
    network = network.to(memory_format=torch.channels_last)
    average = deepcopy(network).eval()
    steps_per_epoch = arguments.samples // arguments.batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.rate, total_steps=arguments.epochs * steps_per_epoch, pct_start=0.1
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    best = -1.0
    step = 0
    with Progress() as progress:
        bar = progress.add_task("training", total=arguments.epochs * steps_per_epoch)
        for epoch in range(1, arguments.epochs + 1):
            network.train()
            losses = []
            batches = training_batches(
                training, preprocessing, steps_per_epoch, arguments.batch, rng
            )
            for images, labels in batches:
                images, labels = augment(images, labels, preprocessing)
                loss = segmentation_loss(network(images), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                step += 1
                follow(average, network, min(0.99, step / (step + 20)))
                losses.append(loss.item())
                progress.advance(bar)
            if epoch % arguments.validate_every and epoch != arguments.epochs:
                continue
            dice = {case.name: validate(average, case, preprocessing) for case in validation}
            mean = float(np.mean([value for pair in dice.values() for value in pair]))
            progress.console.print(
                f"epoch {epoch} loss {np.mean(losses):.4f} Dice left, right "
                + json.dumps({name: [round(v, 4) for v in pair] for name, pair in dice.items()})
            )
            if mean > best:
                best = mean
                state = {k: v.contiguous() for k, v in average.state_dict().items()}
                save_file(state, arguments.out / "weights.safetensors")
                (arguments.out / "training.json").write_text(
                    json.dumps({"epoch": epoch, "validation_dice": dice, **_record(arguments)})
                )


def read_cases(data: Path, preprocessing: dict[str, Any]) -> list[Case]:
    """Every series below ``data`` that has a mask, on the network's grid."""
    masks = read_masks(sorted((data / "pseudo_labels_256").glob("*.npz")))
    folders = sorted({path.parent for path in data.rglob("*.dcm")})
    return [read_case(folder, masks, preprocessing) for folder in folders]


def read_masks(paths: list[Path]) -> dict[str, npt.NDArray[np.bool_]]:
    """Threshold masks (rows, columns) by the SOP Instance UID that each belongs to."""
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            shape = tuple(int(n) for n in file["shape"])
            bits = np.unpackbits(file["mask"])[: math.prod(shape)].reshape(shape)
            masks.update(zip(file["sop"].tolist(), bits.astype(bool), strict=True))
    return masks


def mask_grid(grid: PlaneGrid, shape: tuple[int, ...]) -> PlaneGrid:
    """The same square over a mask (slices, rows, columns) that shows the source plane smaller."""
    rows, columns = shape[1:]
    shrink = (grid.source_shape[0] / rows, grid.source_shape[1] / columns)
    return PlaneGrid(
        grid.size,
        grid.spacing_mm,
        (rows, columns),
        (grid.source_spacing_mm[0] * shrink[0], grid.source_spacing_mm[1] * shrink[1]),
        (
            (grid.center[0] - (shrink[0] - 1) / 2) / shrink[0],
            (grid.center[1] - (shrink[1] - 1) / 2) / shrink[1],
        ),
    )


def read_case(
    folder: Path, masks: dict[str, npt.NDArray[np.bool_]], preprocessing: dict[str, Any]
) -> Case:
    """One series and its labels, as the network will see them."""
    volume = volume_from_series([pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))])
    orientation = patient_orientation(volume.affine)
    array = orientation.apply(volume.array)
    spacing = [volume.spacing_mm[axis] for axis in orientation.axes]
    size, step = preprocessing["in_plane_size"], preprocessing["in_plane_spacing_mm"]
    grid = grid_on_body(array, spacing, size, step, preprocessing["body_above_hu"])
    planes = grid.from_source(array, -1024)

    mask = orientation.apply(np.stack([masks[uid] for uid in volume.sop_instance_uids]))
    lungs = mask_grid(grid, mask.shape).from_source(mask, 0) > 0.5
    return Case(folder.name, planes, lung_labels(planes, lungs, spacing[0], step), spacing[0])


def training_batches(
    cases: list[Case],
    preprocessing: dict[str, Any],
    count: int,
    batch: int,
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random slabs in HU, every case as often as any other, every fourth slab without lung."""
    half = int(preprocessing["context_slices"]) // 2
    with_lung = [np.flatnonzero(case.labels.any(axis=(1, 2))) for case in cases]
    for _ in range(count):
        images, labels = [], []
        for _ in range(batch):
            which = int(rng.integers(len(cases)))
            case = cases[which]
            pool = with_lung[which] if rng.random() < 0.75 else np.arange(len(case.planes))
            index = int(rng.choice(pool))
            # Slice spacing varies between scanners: so does the distance of the neighbours.
            context_mm = preprocessing["context_mm"] * rng.uniform(0.5, 1.5)
            offset = context_offset(case.slice_spacing_mm, context_mm) * int(rng.random() > 0.1)
            around = index + np.arange(-half, half + 1) * offset
            images.append(case.planes[np.clip(around, 0, len(case.planes) - 1)])
            labels.append(case.labels[index])
        yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)).long()


def augment(
    images: torch.Tensor, labels: torch.Tensor, preprocessing: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn, scale, shift and mirror in-plane; vary contrast, sharpness and noise; window to [0, 1].

    A mirror image swaps the labels: left is where the affine says it is, not where the heart is.
    """
    count = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(count) * (high - low) + low

    angle = torch.deg2rad(uniform(-20, 20))
    scale_x, scale_y = uniform(0.75, 1.3), uniform(0.85, 1.15)
    mirrored = torch.rand(count) < 0.5
    flip = torch.where(mirrored, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * scale_x * angle.cos(), -scale_x * angle.sin()
    theta[:, 1, 0] = flip * scale_x * scale_y * angle.sin()
    theta[:, 1, 1] = scale_x * scale_y * angle.cos()
    theta[:, :, 2] = torch.rand(count, 2) * 0.4 - 0.2
    points = functional.affine_grid(theta, [count, 1, *images.shape[2:]], align_corners=False)
    # grid_sample pads with 0: shift air there first.
    images = functional.grid_sample(images + 1024, points, align_corners=False) - 1024
    labels = functional.grid_sample(
        labels[:, None].float(), points, mode="nearest", align_corners=False
    )[:, 0].long()
    swapped = torch.where(labels == LEFT, RIGHT, torch.where(labels == RIGHT, LEFT, labels))
    labels = torch.where(mirrored[:, None, None], swapped, labels)

    blurred = functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    # Below 0 softens, above 0 sharpens, as reconstruction kernels do.
    sharpness = uniform(-1.0, 0.7)[:, None, None, None]
    images = images + sharpness * (images - blurred)
    images = images + torch.randn_like(images) * uniform(0, 40)[:, None, None, None]
    low, high = preprocessing["window_hu"]
    images = (images - low) / (high - low)
    gain, shift = uniform(0.85, 1.15), uniform(-0.06, 0.06)
    images = images * gain[:, None, None, None] + shift[:, None, None, None]
    return images.clamp(0, 1).contiguous(memory_format=torch.channels_last), labels


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the batch, background left out of the Dice."""
    entropy = functional.cross_entropy(logits, labels)
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = functional.one_hot(labels, CLASSES).permute(0, 3, 1, 2)[:, 1:].float()
    axes = (0, 2, 3)
    overlap = (probabilities * truth).sum(axes)
    dice = (2 * overlap + 10) / (probabilities.sum(axes) + truth.sum(axes) + 10)
    return entropy + (1 - dice).mean()


@torch.no_grad()
def follow(average: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of weights and batch-norm statistics: steadier on small data."""
    for mean, current in zip(
        average.state_dict().values(), network.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(current, 1 - decay)
        else:
            mean.copy_(current)


@torch.inference_mode()
def validate(
    network: torch.nn.Module, case: Case, preprocessing: dict[str, Any]
) -> tuple[float, float]:
    """Dice of left and right lung over the whole case, on the network's grid."""
    half = int(preprocessing["context_slices"]) // 2
    offset = context_offset(case.slice_spacing_mm, preprocessing["context_mm"])
    planes = window(case.planes, *preprocessing["window_hu"])
    found = np.empty_like(case.labels)
    for index in range(len(planes)):
        around = np.clip(index + np.arange(-half, half + 1) * offset, 0, len(planes) - 1)
        logits = network(torch.from_numpy(planes[around][None]))
        found[index] = logits.argmax(dim=1)[0].numpy()
    return dice_of(found, case.labels, LEFT), dice_of(found, case.labels, RIGHT)


def dice_of(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], label: int) -> float:
    """Twice the overlap over the sum of both volumes."""
    one, other = found == label, truth == label
    return 2 * float((one & other).sum()) / max(float(one.sum() + other.sum()), 1.0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validate", nargs="+", default=["acrin_013"], metavar="PATIENT")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--samples", type=int, default=320, help="slabs per epoch")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--validate-every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _record(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}


if __name__ == "__main__":
    main()
