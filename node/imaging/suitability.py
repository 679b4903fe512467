"""Does a series meet a model's input contract? Headers only, so that the hospital side can ask."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from node.errors import UnsuitableInput
from node.imaging.resample import patient_orientation
from node.imaging.volume import Geometry
from node.manifest import InputContract


def require_suitable(
    contract: InputContract, instances: Sequence[Dataset], geometry: Geometry
) -> None:
    """Return if the series is what the model was made for.

    Raises
    ------
    UnsuitableInput
        Says in plain language what does not fit, with the attribute's keyword; the remedy is the
        model's own word on what it wants.
    GeometryError
        The slices lie oblique to every plane of the body.
    """
    for ds in instances:
        _require_kind(contract, ds)
    slices = geometry.shape[0]
    spacing_mm, *pixel_spacing_mm = geometry.spacing_mm
    extent_mm = spacing_mm * (slices - 1)
    if contract.orientation == "axial" and patient_orientation(geometry.affine).axes[0] != 0:
        raise _refusal(contract, "The slices are not axial (ImageOrientationPatient)")
    if slices < contract.min_slices:
        raise _refusal(
            contract, f"The series has {slices} slices; the model needs {contract.min_slices}"
        )
    if extent_mm < contract.min_extent_mm:
        raise _refusal(
            contract,
            f"The series covers {extent_mm:.0f} mm; the model needs {contract.min_extent_mm:g} mm",
        )
    _require_between(contract, "The slice spacing", spacing_mm, contract.slice_spacing_mm)
    for value in pixel_spacing_mm:
        _require_between(contract, "PixelSpacing", value, contract.pixel_spacing_mm)


def _require_kind(contract: InputContract, ds: Dataset) -> None:
    """Modality, ImageType, BodyPartExamined: of each instance, because series get mixed."""
    modality = str(ds.get("Modality", ""))
    if modality != contract.modality:
        raise _refusal(contract, f"The Modality is not {contract.modality}")
    image_type = ds.get("ImageType") or ()
    values = image_type if isinstance(image_type, (MultiValue, list, tuple)) else (image_type,)
    for value in values:
        if str(value).upper() in contract.refuse_image_types:
            raise _refusal(contract, f"The series holds {value} images (ImageType)")
    body_part = str(ds.get("BodyPartExamined") or "").strip().upper()
    if body_part in contract.refuse_body_parts:
        raise _refusal(contract, f"The series shows the {body_part.lower()} (BodyPartExamined)")


def _require_between(
    contract: InputContract, what: str, value: float, limits: tuple[float, float]
) -> None:
    low, high = limits
    if not low <= value <= high:
        raise _refusal(
            contract, f"{what} is {value:.2f} mm; the model was made for {low:g} to {high:g} mm"
        )


def _refusal(contract: InputContract, message: str) -> UnsuitableInput:
    return UnsuitableInput(message, remedy=contract.wanted)
