"""Measure ct_lungs, and write its reference.

``python models/ct_lungs/evaluate.py --series DIR --mask FILE.npz`` prints Dice against threshold
labels of a series that the model was not trained on. ``--write-reference`` runs the model on the
small series of ``reference/input.npz`` and keeps what it finds as ``reference/expected.npz``: do
so after every change of the weights, and look at the difference.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import torch
from pseudo_labels import LEFT, RIGHT, lung_labels
from train import dice_of, mask_grid, read_masks

from node.imaging.pixels import AIR_HU
from node.imaging.resample import grid_on_body, patient_orientation
from node.imaging.volume import volume_from_series
from node.packages import Model, load_model
from node.sdk import Volume

FOLDER = Path(__file__).parent


def main() -> None:
    """Print measurements as JSON, or write the reference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER, help="a model folder")
    parser.add_argument("--series", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-reference", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    if arguments.series:
        print(json.dumps(measure(model, arguments.series, arguments.mask), indent=1))
    if arguments.write_reference:
        write_reference(model)


def measure(model: Model, series: Path, mask_file: Path) -> dict[str, float]:
    """Dice of both lungs together and of each, millilitres, seconds; on the source grid."""
    began = time.perf_counter()
    volume = volume_from_series([pydicom.dcmread(path) for path in sorted(series.glob("*.dcm"))])
    read = time.perf_counter()
    found = model.segment(volume).array
    done = time.perf_counter()
    truth = threshold_labels(model, volume, mask_file)
    return {
        "dice_total": round(
            dice_of((found > 0).astype(np.uint8), (truth > 0).astype(np.uint8), 1), 4
        ),
        "dice_left": round(dice_of(found, truth, LEFT), 4),
        "dice_right": round(dice_of(found, truth, RIGHT), 4),
        "left_ml": round(float((found == LEFT).sum()) * volume.voxel_ml, 1),
        "right_ml": round(float((found == RIGHT).sum()) * volume.voxel_ml, 1),
        "missed_ml": round(float(((found == 0) & (truth > 0)).sum()) * volume.voxel_ml, 1),
        "extra_ml": round(float(((found > 0) & (truth == 0)).sum()) * volume.voxel_ml, 1),
        "swapped_ml": round(float((found * truth == 2).sum()) * volume.voxel_ml, 1),
        "read_s": round(read - began, 2),
        "segment_s": round(done - read, 2),
    }


def threshold_labels(model: Model, volume: Volume, mask_file: Path) -> npt.NDArray[np.uint8]:
    """The training's labels for a whole series, brought to the source grid."""
    masks = read_masks([mask_file])
    preprocessing = model.manifest.preprocessing
    orientation = patient_orientation(volume.affine)
    array = orientation.apply(volume.array)
    slices_mm, rows_mm, columns_mm = (volume.spacing_mm[axis] for axis in orientation.axes)
    grid = grid_on_body(
        array,
        (slices_mm, rows_mm, columns_mm),
        preprocessing.in_plane_size,
        preprocessing.in_plane_spacing_mm,
        preprocessing.body_above_hu,
    )
    mask = orientation.apply(np.stack([masks[uid] for uid in volume.sop_instance_uids]))
    lungs = mask_grid(grid, mask.shape).from_source(mask, 0) > 0.5
    planes = grid.from_source(array, AIR_HU)
    labels = lung_labels(planes, lungs, slices_mm, preprocessing.in_plane_spacing_mm)
    left, right = (grid.to_source(labels == side, 0) for side in (LEFT, RIGHT))
    sides = np.where(left >= right, LEFT, RIGHT)
    return orientation.undo(np.where(left + right > 0.5, sides, 0).astype(np.uint8))


def write_reference(model: Model) -> None:
    """Run the model on the reference input and keep the labels."""
    with np.load(FOLDER / "reference" / "input.npz", allow_pickle=False) as file:
        array, affine, spacing = file["array"], file["affine"], file["spacing_mm"]
    first, second, third = (float(value) for value in spacing)
    uids = tuple(f"2.25.{index}" for index in range(len(array)))
    found = model.segment(Volume(array, affine, (first, second, third), uids))
    np.savez_compressed(FOLDER / "reference" / "expected.npz", labels=found.array)


if __name__ == "__main__":
    main()
