"""What a model may use, and what the node knows of it without running it.

A model is a folder below ``models/`` with ``model.toml``, which :func:`read_manifest` checks. The
hospital side reads manifests too (routing, SEG encoding), so nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from node.errors import ModelFault

MANIFEST_NAME = "model.toml"
NETWORK_NAME = "network.py"
WEIGHTS_NAME = "weights.safetensors"

Progress = Callable[[float], None]
"""Called with the share done, 0 to 1."""

Byte = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
CodeValue = Annotated[str, Field(min_length=1, max_length=16)]
ShortText = Annotated[str, Field(min_length=1, max_length=64)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Frozen):
    """A coded concept (PS3.3 2026b 8.1): value, scheme designator, meaning."""

    value: CodeValue
    scheme: CodeValue
    meaning: ShortText


class Segment(_Frozen):
    """One label of a label map and what it means (PS3.3 2026b C.8.20.4)."""

    number: Byte
    """SegmentNumber, and the value in the label map; from 1, without gaps."""
    label: ShortText
    """SegmentLabel."""
    category: Code
    """SegmentedPropertyCategoryCodeSequence, CID 7150."""
    type: Code
    """SegmentedPropertyTypeCodeSequence."""
    rgb: tuple[Byte, Byte, Byte]
    """Recommended display colour, sRGB."""


class InputContract(_Frozen):
    """Which series the model was made for. What it refuses it refuses in words."""

    modality: Literal["CT", "MR"]
    orientation: Literal["axial"] = "axial"
    min_slices: Annotated[int, Field(ge=2)]
    min_extent_mm: Positive
    """First to last slice centre, along the normal."""
    slice_spacing_mm: tuple[Positive, Positive]
    """Smallest and largest."""
    pixel_spacing_mm: tuple[Positive, Positive]
    refuse_image_types: tuple[Text, ...] = ()
    """Values of ImageType (0008,0008), such as LOCALIZER."""
    refuse_body_parts: tuple[Text, ...] = ()
    """Values of BodyPartExamined (0018,0015). A series without one is not refused for it."""
    wanted: Text
    """What to send instead, in plain language: the remedy of every refusal."""

    @field_validator("slice_spacing_mm", "pixel_spacing_mm")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("smallest before largest")
        return value


class Preprocessing(_Frozen):
    """From Hounsfield units on the scanner's grid to the network's input.

    The network sees slabs (context_slices, in_plane_size, in_plane_size), axes towards the
    patient's head, back and left, centred on the body.
    """

    window_hu: tuple[float, float]
    """Mapped to [0, 1], clipped."""
    in_plane_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    in_plane_spacing_mm: Positive
    body_above_hu: int
    """Voxels above it are the body, on which the square is centred."""
    context_slices: Annotated[int, Field(ge=1, le=9)]
    """Odd: the slice and its neighbours as channels."""
    context_mm: Positive
    """Distance of one neighbour from the next, to the nearest slice."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.context_slices % 2 == 0:
            raise ValueError("context_slices is odd")
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu: lowest before highest")
        return self


class Postprocessing(_Frozen):
    """Which 3-D components of each segment are kept."""

    min_component_ml: Annotated[float, Field(ge=0)]
    min_component_share: Annotated[float, Field(ge=0, le=1)]
    """Of the segment's largest component."""
    min_segment_ml: Annotated[float, Field(ge=0)]
    """A segment smaller than this is not in the series."""


class Results(_Frozen):
    """What the result series is called at the hospital."""

    series_number: Annotated[int, Field(ge=1)]
    series_description: ShortText


class Weights(_Frozen):
    """The weights file and the proof that it is the published one."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelManifest(_Frozen):
    """``model.toml``, checked."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")]
    """The folder's name."""
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    description: Text
    licence: Text
    training_data: Text
    intended_use: Text
    weights: Weights
    input: InputContract
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    results: Results
    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=254)]
    metrics: Mapping[str, float | str] = Field(default_factory=dict)
    """As measured by the author, for `segnode models`; keys end in what they count."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 over manifest, network code and weights hash: part of a job's key."""

    @property
    def modality(self) -> str:
        """The modality that the model reads."""
        return self.input.modality

    @field_validator("segments")
    @classmethod
    def _are_numbered(cls, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        numbers = [segment.number for segment in segments]
        if numbers != list(range(1, len(segments) + 1)):
            raise ValueError("numbers run 1, 2, 3 ... in order")
        return segments


@dataclass(frozen=True)
class Volume:
    """Stacked slices.

    Attributes
    ----------
    array
        int16, shape (slices, rows, columns); Hounsfield units for CT.
    affine
        4x4 float64, homogeneous index (slice, row, column) to patient LPS, millimetres.
    spacing_mm
        Distance of voxel centres along (slice, row, column).
    sop_instance_uids
        One per slice, in slice order.
    """

    array: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    sop_instance_uids: tuple[str, ...]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel."""
        slices, rows, columns = self.spacing_mm
        return slices * rows * columns / 1000


@dataclass(frozen=True)
class LabelMap:
    """What a model found.

    Attributes
    ----------
    array
        uint8, shape (slices, rows, columns) of the source volume; 0 is background, else a
        :attr:`Segment.number`.
    sop_instance_uids
        The source instance of each slice, in slice order.
    """

    array: npt.NDArray[np.uint8]
    sop_instance_uids: tuple[str, ...]


def read_manifest(folder: Path) -> ModelManifest:
    """Read and check ``folder/model.toml``; computes the digest, does not open the weights.

    Raises
    ------
    ModelFault
        The file or the network code is missing, is not TOML, or a field is wrong: names the field.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
        network = (folder / NETWORK_NAME).read_bytes()
    except OSError as error:
        missing = Path(error.filename or path).name
        raise ModelFault(f"Model {folder.name}: {missing} cannot be read") from error
    try:
        content = tomllib.loads(text.decode("utf-8"))
        manifest = ModelManifest.model_validate({**content, "digest": _digest(text, network)})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelFault(f"Model {folder.name}: {MANIFEST_NAME} is not TOML: {error}") from error
    except ValidationError as error:
        raise ModelFault(f"Model {folder.name}: {MANIFEST_NAME}: {_in_words(error)}") from None
    if manifest.name != folder.name:
        raise ModelFault(
            f"Model {folder.name}: {MANIFEST_NAME}: name is {manifest.name}, not the folder's name"
        )
    return manifest


def _digest(manifest: bytes, network: bytes) -> str:
    """The manifest holds the hash of the weights, so two hashes cover all three files."""
    parts = (hashlib.sha256(manifest).digest(), hashlib.sha256(network).digest())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _in_words(error: ValidationError) -> str:
    def place(detail: Any) -> str:
        return ".".join(str(part) for part in detail["loc"]) or "the table"

    return "; ".join(f"{place(detail)}: {detail['msg']}" for detail in error.errors())
