"""``model.toml``: what the node knows of a model without running it.

Its tables are explained in :mod:`node.model_tables`. The hospital side reads manifests too
(routing, SEG encoding), so nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, field_validator, model_validator

from node.errors import ModelFault
from node.model_tables import (
    PLACEHOLDER,
    PLACEHOLDERS,
    Code,
    Command,
    Inference,
    InputContract,
    Postprocessing,
    Preprocessing,
    RadiographContract,
    RadiographPostprocessing,
    RadiographPreprocessing,
    Results,
    Segment,
    Sha256,
    Table,
    Text,
    Weights,
)

__all__ = [
    "MANIFEST_NAME",
    "NETWORK_NAME",
    "PLACEHOLDER",
    "PLACEHOLDERS",
    "WEIGHTS_NAME",
    "Code",
    "Command",
    "CommandManifest",
    "Inference",
    "InputContract",
    "ModelManifest",
    "NetworkManifest",
    "Postprocessing",
    "Preprocessing",
    "RadiographContract",
    "RadiographManifest",
    "RadiographPostprocessing",
    "RadiographPreprocessing",
    "Segment",
    "WithWeights",
    "read_manifest",
]

MANIFEST_NAME = "model.toml"
NETWORK_NAME = "network.py"
WEIGHTS_NAME = "weights.safetensors"


class _Manifest(Table):
    """What every ``model.toml`` says, whoever computes."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")]
    """The folder's name."""
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    description: Text
    licence: Text
    training_data: Text
    intended_use: Text
    input: InputContract | RadiographContract
    results: Results
    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=254)]
    metrics: Mapping[str, float | str] = Field(default_factory=dict)
    """As measured by the author, for `segnode models`; keys end in what they count."""
    digest: Sha256
    """Over manifest, network code and hashes of weights and programs: part of a job's key."""

    @property
    def modality(self) -> str:
        """The modalities that the model reads, for a person."""
        return " or ".join(self.input.modalities)

    def settled(
        self, labels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint8], tuple[Segment, ...]]:
        """A label map's values as its result numbers them, and the segments that they mean."""
        return labels, self.segments

    @model_validator(mode="after")
    def _groups_hold_each_segment_once(self) -> Self:
        grouped = sorted(number for group in self.results.groups for number in group)
        if grouped and grouped != [segment.number for segment in self.segments]:
            raise ValueError("results.groups: each segment is in one group, once")
        return self

    @field_validator("segments")
    @classmethod
    def _are_numbered(cls, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        numbers = [segment.number for segment in segments]
        if numbers != list(range(1, len(segments) + 1)):
            raise ValueError("numbers run 1, 2, 3 ... in order")
        return segments


class NetworkManifest(_Manifest):
    """``model.toml`` of a network that the node runs itself: it has ``[weights]``."""

    input: InputContract
    weights: Weights
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    inference: Inference = Inference()

    @property
    def window_hu(self) -> tuple[float, float]:
        """Black and white of the picture of a result: what the network looks at."""
        return self.preprocessing.window_hu

    @property
    def slab_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one network input."""
        size = self.preprocessing.in_plane_size
        return self.preprocessing.context_slices, size, size


class RadiographManifest(_Manifest):
    """``model.toml`` of a network for radiographs: ``[input]`` says ``kind = "radiograph"``.

    The network's classes are the background and ``segments``, told apart by the side of the display
    on which they lie.
    """

    input: RadiographContract
    weights: Weights
    preprocessing: RadiographPreprocessing
    postprocessing: RadiographPostprocessing
    inference: Inference = Inference()
    segment_without_sides: Segment
    """What all ``segments`` together are called where the image does not say which side is the
    patient's left (PatientOrientation); its number follows theirs."""

    @property
    def slab_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one network input."""
        return 1, self.preprocessing.size, self.preprocessing.size

    @model_validator(mode="after")
    def _follows(self) -> Self:
        if self.segment_without_sides.number != len(self.segments) + 1:
            raise ValueError("segment_without_sides: its number is the one after the last segment")
        return self

    def settled(
        self, labels: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint8], tuple[Segment, ...]]:
        """Where sides are not known, one segment, numbered 1 as the standard wants it."""
        together = self.segment_without_sides
        found = labels == together.number
        if not found.any():
            return labels, self.segments
        return found.astype(np.uint8), (together.model_copy(update={"number": 1}),)


class CommandManifest(_Manifest):
    """``model.toml`` of somebody else's program: it has ``[command]``."""

    input: InputContract
    command: Command
    window_hu: tuple[float, float]
    """Black and white of the picture of a result."""

    @model_validator(mode="after")
    def _labels_meet_segments(self) -> Self:
        numbers = {segment.number for segment in self.segments}
        meant = set(self.command.labels.values())
        if meant - numbers:
            raise ValueError(f"command.labels: no segment is numbered {min(meant - numbers)}")
        if numbers - meant:
            raise ValueError(f"command.labels: no value means segment {min(numbers - meant)}")
        return self


WithWeights = NetworkManifest | RadiographManifest
"""A network that the node runs itself."""
ModelManifest = WithWeights | CommandManifest
"""``model.toml``, checked."""


def read_manifest(folder: Path) -> ModelManifest:
    """Read and check ``folder/model.toml``; computes the digest, does not open the weights.

    Raises
    ------
    ModelFault
        The file or the network code is missing, is not TOML, or a field is wrong: names the field.
    """
    text = _bytes_of(folder, MANIFEST_NAME)
    try:
        content = tomllib.loads(text.decode("utf-8"))
        if "command" in content:
            # Programs and weights are named in it with their hashes.
            kind: type[ModelManifest] = CommandManifest
            digest = _digest(text)
        else:
            kind = RadiographManifest if _is_of_radiographs(content) else NetworkManifest
            digest = _digest(text, _bytes_of(folder, NETWORK_NAME))
        manifest = kind.model_validate({**content, "digest": digest})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelFault(f"Model {folder.name}: {MANIFEST_NAME} is not TOML: {error}") from error
    except ValidationError as error:
        raise ModelFault(f"Model {folder.name}: {MANIFEST_NAME}: {_in_words(error)}") from None
    if manifest.name != folder.name:
        raise ModelFault(
            f"Model {folder.name}: {MANIFEST_NAME}: name is {manifest.name}, not the folder's name"
        )
    return manifest


def _is_of_radiographs(content: Mapping[str, Any]) -> bool:
    contract = content.get("input")
    return isinstance(contract, dict) and contract.get("kind") == "radiograph"


def _bytes_of(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ModelFault(f"Model {folder.name}: {name} cannot be read") from error


def _digest(*files: bytes) -> str:
    """The manifest holds the hash of the weights, so two hashes cover all three files."""
    parts = (hashlib.sha256(file).digest() for file in files)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _in_words(error: ValidationError) -> str:
    def place(detail: Any) -> str:
        return ".".join(str(part) for part in detail["loc"]) or "the table"

    return "; ".join(f"{place(detail)}: {detail['msg']}" for detail in error.errors())
