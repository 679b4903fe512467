"""A volume as a NIfTI file, and a file of labels as an array on the volume's grid.

NIfTI's world points to the patient's right, front and head (RAS), DICOM's to left, back and head
(LPS); programs expect a NIfTI array as (column, row, slice). nibabel does the rest.

Reference: NIfTI-1.1, nifti1.h, methods 2 and 3 of qform and sform.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from node.errors import ProgramFailed
from node.foreign.grid import Array, Grid, lies_within, on_same_grid, resampled
from node.sdk import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COLUMN_ROW_SLICE = [2, 1, 0]
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_MAX_VOXELS = 2**30


def write_volume(volume: Volume, path: Path) -> None:
    """Write int16 modality values (Hounsfield units for CT) on the volume's own grid."""
    affine = LPS_TO_RAS @ volume.affine[:, [*_COLUMN_ROW_SLICE, 3]]
    image = nibabel.Nifti1Image(volume.array.transpose(_COLUMN_ROW_SLICE), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, _SCANNER)
    image.set_sform(affine, _SCANNER)
    nibabel.save(image, path)


def read_labels(path: Path, volume: Volume, *, may_resample: bool) -> Array:
    """The program's label values, shape (slices, rows, columns) of the volume.

    Parameters
    ----------
    may_resample
        Take the nearest label where the file has another grid; else only axes may differ.

    Raises
    ------
    ProgramFailed
        The file cannot be read, does not say where it lies in the patient, or lies elsewhere.
    """
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair) or np.prod(image.shape) > _MAX_VOXELS:
            raise ProgramFailed("The labels are no NIfTI file, or one of more than 2^30 voxels")
        labels = np.asanyarray(image.dataobj)
    except (
        ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, zlib.error,
    ) as error:  # fmt: skip
        raise ProgramFailed(
            f"The labels cannot be read as NIfTI ({type(error).__name__})"
        ) from None
    if labels.ndim == 4 and labels.shape[3] == 1:
        labels = labels[..., 0]
    if labels.ndim != 3:
        raise ProgramFailed(f"The labels have {labels.ndim} axes; a label map has 3")
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise ProgramFailed(
            "The labels do not say where they lie in the patient (sform_code and qform_code are 0)",
            remedy="Have the program keep the affine of its input.",
        )
    return _on_grid_of(volume, labels, LPS_TO_RAS @ image.affine, may_resample)


def _on_grid_of(volume: Volume, labels: Array, affine: Array, may_resample: bool) -> Array:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ProgramFailed("The affine of the labels maps a volume to a plane")
    own, wanted = Grid(affine, labels.shape), Grid(volume.affine, volume.array.shape)
    same = on_same_grid(labels, own, wanted)
    if same is not None:
        return same
    if not may_resample:
        raise ProgramFailed(
            f"The labels lie on another grid, shape {labels.shape}, than the series, (columns, "
            f"rows, slices) {volume.array.shape[::-1]}",
            remedy='Have the program write on the grid of its input, or set other_grid = "resample"'
            " in model.toml.",
        )
    if not lies_within(labels, own, wanted):
        raise ProgramFailed("The labels lie outside the series: their affine is wrong")
    return resampled(labels, own, wanted)
