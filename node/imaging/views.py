"""Which image of a series is a radiograph that the model was made for? Headers only.

A series may hold a frontal and a lateral view: one image is one case, so the first that suits is
taken, and every other is named with the reason.

References: PS3.3 2026b C.8.1.1 and C.8.11.5 (ViewPosition, ViewCodeSequence), C.7.6.1.1.1 (Patient
Orientation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from node.errors import UnsuitableInput
from node.imaging.pixels import number_of
from node.manifest import RadiographContract

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
GREY = ("MONOCHROME1", "MONOCHROME2")
OTHER_VIEWS = ("lateral", "oblique", "axial", "tangential")
"""Words in the meaning of a view's code that say that it is no frontal one."""


@dataclass(frozen=True)
class Chosen:
    """The image to segment, by its index, and why the others are not."""

    index: int
    left_out: tuple[str, ...]


def choose_radiograph(contract: RadiographContract, instances: Sequence[Dataset]) -> Chosen:
    """The first suitable image, by InstanceNumber.

    Raises
    ------
    UnsuitableInput
        No image suits: says in plain language why, with the attribute's keyword; the remedy is the
        model's own word on what it wants.
    """
    order = sorted(range(len(instances)), key=lambda index: _position(instances[index], index))
    chosen: int | None = None
    left_out = []
    for index in order:
        reason = _unsuitable(contract, instances[index])
        if reason is None and chosen is None:
            chosen = index
        else:
            reason = reason or "is a further frontal image; one image is segmented per series"
            left_out.append(f"Instance {number_of(instances[index], index + 1)} {reason}")
    if chosen is None:
        raise UnsuitableInput(
            "; ".join(left_out) or "The series has no image", remedy=contract.wanted
        )
    return Chosen(chosen, tuple(left_out))


def _unsuitable(contract: RadiographContract, ds: Dataset) -> str | None:
    """Why the model does not take an image, as what follows its name; None when it does."""
    return _no_radiograph(contract, ds) or _other_view(contract, ds) or _unfit_matrix(contract, ds)


def _no_radiograph(contract: RadiographContract, ds: Dataset) -> str | None:
    sop_class = str(ds.get("SOPClassUID", ""))
    if _upper(ds.get("Modality")) not in contract.modalities:
        return f"is not {' or '.join(contract.modalities)} (Modality)"
    if sop_class == SECONDARY_CAPTURE or sop_class.startswith(SECONDARY_CAPTURE + "."):
        return "is a screen save (SOPClassUID)"
    if sop_class == DX_FOR_PROCESSING:
        return "is raw detector data, not for presentation (SOPClassUID)"
    if str(ds.get("PhotometricInterpretation", "")) not in GREY:
        return "is a picture in colour (PhotometricInterpretation)"
    if int(ds.get("NumberOfFrames") or 1) > 1:
        return "has several frames (NumberOfFrames)"
    for value in _values(ds, "ImageType"):
        if value in contract.refuse_image_types:
            return f"is a {value.lower()} image (ImageType)"
    body_part = _upper(ds.get("BodyPartExamined"))
    if body_part in contract.refuse_body_parts:
        return f"shows the {body_part.lower()} (BodyPartExamined)"
    return None


def _other_view(contract: RadiographContract, ds: Dataset) -> str | None:
    if _upper(ds.get("ViewPosition")) in contract.refuse_view_positions:
        return "is a lateral, oblique or decubitus view (ViewPosition)"
    for code in ds.get("ViewCodeSequence") or ():
        meaning = str(code.get("CodeMeaning") or "").lower()
        if any(word in meaning for word in OTHER_VIEWS):
            return "is not a frontal view (ViewCodeSequence)"
    if any(value[:1] in ("A", "P") for value in _values(ds, "PatientOrientation")):
        return "is a lateral view (PatientOrientation)"
    return None


def _unfit_matrix(contract: RadiographContract, ds: Dataset) -> str | None:
    shorter, longer = sorted((int(ds.get("Rows") or 0), int(ds.get("Columns") or 0)))
    if shorter < contract.min_pixels:
        return f"has {shorter} pixels across; the model needs {contract.min_pixels} (Rows, Columns)"
    if longer > contract.max_aspect * shorter:
        return "is too long and narrow for a chest (Rows, Columns)"
    return None


def _values(ds: Dataset, keyword: str) -> list[str]:
    value = ds.get(keyword)
    values = value if isinstance(value, (MultiValue, list, tuple)) else (value,)
    return [_upper(one) for one in values if one]


def _upper(value: object) -> str:
    return str(value or "").strip().upper()


def _position(ds: Dataset, index: int) -> tuple[int, int]:
    try:
        return int(ds.get("InstanceNumber") or 0), index
    except (TypeError, ValueError):
        return 0, index
