"""The tables of ``model.toml``, each with what its fields mean; :mod:`node.manifest` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from node.kinds import OF_MODELS, ResultKind

Byte = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
CodeValue = Annotated[str, Field(min_length=1, max_length=16)]
ShortText = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[ -\[\]-~]+$")]
"""ASCII without a backslash: it is written into objects whose character set is the patient's."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
PLACEHOLDERS = frozenset(
    {"input", "output", "model", "python", "run", "user", "threads", "memory_mib"}
)


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(Table):
    """A coded concept (PS3.3 2026b 8.1): value, scheme designator, meaning."""

    value: CodeValue
    scheme: CodeValue
    meaning: ShortText


class Segment(Table):
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


class InputContract(Table):
    """Which series the model was made for. What it refuses it refuses in words."""

    modality: Literal["CT", "MR"]
    orientation: Literal["axial", "any"] = "axial"
    """``any`` is for programs that read positions; the node's own networks see axial slices."""
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

    @property
    def modalities(self) -> tuple[str, ...]:
        """Values of Modality (0008,0060) that it takes."""
        return (self.modality,)

    @field_validator("slice_spacing_mm", "pixel_spacing_mm")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("smallest before largest")
        return value


class RadiographContract(Table):
    """Which projection radiographs the model was made for. One image is one case."""

    kind: Literal["radiograph"]
    modalities: Annotated[tuple[Literal["CR", "DX"], ...], Field(min_length=1)]
    min_pixels: Annotated[int, Field(ge=32)]
    """Smallest number of Rows and of Columns."""
    max_aspect: Annotated[float, Field(ge=1)]
    """Longer over shorter side, at most."""
    refuse_view_positions: tuple[Text, ...] = ()
    """Values of ViewPosition (0018,5101), such as LL. An image without one is not refused for it.
    Views of the side are refused by PatientOrientation and ViewCodeSequence, too."""
    refuse_image_types: tuple[Text, ...] = ()
    """Values of ImageType (0008,0008)."""
    refuse_body_parts: tuple[Text, ...] = ()
    """Values of BodyPartExamined (0018,0015). An image without one is not refused for it."""
    wanted: Text
    """What to send instead, in plain language: the remedy of every refusal."""


class Preprocessing(Table):
    """From Hounsfield units on the scanner's grid to the network's input.

    The network sees slabs (context_slices, in_plane_size, in_plane_size), axes towards the
    patient's head, back and left, centred on the body.
    """

    window_hu: tuple[float, float]
    """Mapped to [0, 1], clipped."""
    in_plane_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    field_size: Annotated[int, Field(ge=32, le=4096)] | None = None
    """Points along a side of the square that is sampled, where that is more than the network sees
    at once (in_plane_size): it then looks at tiles that overlap by half, and their scores are
    blended. None: the network sees the whole square."""
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
        if self.plane_size < self.in_plane_size:
            raise ValueError("field_size: not less than in_plane_size")
        return self

    @property
    def plane_size(self) -> int:
        """Points along a side of the square that is sampled and labelled."""
        return self.field_size or self.in_plane_size


class RadiographPreprocessing(Table):
    """From presentation values to the network's input: one channel, (1, size, size).

    The image is turned as it is displayed by convention (the patient's left on the right-hand side,
    head up), fitted into the square with its aspect kept, and padded with black.
    """

    size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    percentiles: tuple[Annotated[float, Field(ge=0, lt=50)], Annotated[float, Field(gt=50, le=100)]]
    """Of the image's values; mapped to [0, 1], clipped."""


class Postprocessing(Table):
    """Which 3-D components of each segment are kept."""

    min_component_ml: Annotated[float, Field(ge=0)]
    min_component_share: Annotated[float, Field(ge=0, le=1)]
    """Of the segment's largest component."""
    min_segment_ml: Annotated[float, Field(ge=0)]
    """A segment smaller than this is not in the series."""


class RadiographPostprocessing(Table):
    """Which regions of each segment are kept. Holes in them are filled."""

    min_region_share: Annotated[float, Field(ge=0, le=1)]
    """Of the segment's largest region."""
    min_segment_share: Annotated[float, Field(ge=0, le=1)]
    """Of the image's area; a smaller segment is not in the image."""
    min_total_share: Annotated[float, Field(ge=0, le=1)]
    """Of the image's area; where all segments together are smaller, nothing was found."""


class Inference(Table):
    """Test-time choices: what the author of the network allows, and what it needs."""

    reduced_precision: bool = True
    """bfloat16 or half precision may be used where the reference vector's labels stay the same."""
    mirror: bool = False
    """Look at the mirrored image too, left for right, and take the mean, at twice the cost."""
    mirror_swaps: tuple[tuple[Byte, Byte], ...] = ()
    """Pairs of segment numbers that a mirror exchanges, such as left and right lung."""


class Results(Table):
    """What the result series are called at the hospital, and what is made."""

    series_number: Annotated[int, Field(ge=1, le=9_990)]
    """Of the Segmentation; other kinds have the next nine, and the source's own SeriesNumber stands
    before it: 9000 becomes 39000 for series 3."""
    series_description: Annotated[ShortText, Field(max_length=30)]
    """What was found; the model's name is put before it, the kind and the source's number after."""
    kinds: Annotated[tuple[ResultKind, ...], Field(min_length=1)] = OF_MODELS
    """What may be made of it: a destination gets those of its own ``results`` that are here."""
    groups: tuple[Annotated[tuple[Byte, ...], Field(min_length=1)], ...] = ()
    """Segment numbers that share a Segmentation, each once; empty: all share one. For viewers that
    show no object of many frames."""
    captures: Literal["found", "all"] = "found"
    """A picture of each slice that shows a segment, or of all slices."""

    @model_validator(mode="after")
    def _kinds_can_be_made(self) -> Self:
        if strange := set(self.kinds) - set(OF_MODELS):
            raise ValueError(f"kinds: {min(strange)} is a destination's choice")
        if ResultKind.SR in self.kinds and ResultKind.SEG not in self.kinds:
            raise ValueError('kinds: "sr" refers to the segments of the "seg"; add "seg"')
        return self


class Weights(Table):
    """The weights file and the proof that it is the published one."""

    sha256: Sha256


class Command(Table):
    """How somebody else's program is run, and what its labels mean (docs/foreign-models.md).

    In arguments, ``environment``, ``readable`` and ``files``: ``{input}`` and ``{output}`` are
    folders of this run, ``{model}`` the model's folder, ``{python}`` the node's own interpreter,
    ``{run}`` a name of this run alone, ``{user}`` the worker's user and group numbers, UID:GID,
    ``{threads}`` and ``{memory_mib}`` what the program may use.
    """

    run: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Program and arguments; no shell reads them."""
    stop: tuple[Text, ...] = ()
    """Run after the program had to be killed, for what is no child of it: a container."""
    reads: Literal["dicom", "nifti"]
    input_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*\.nii(\.gz)?$")] = "series.nii.gz"
    """The file in ``{input}`` where the program reads NIfTI."""
    writes: Literal["nifti", "dicom-seg"]
    output: Text
    """Pattern of the one file below ``{output}`` that holds the labels."""
    labels: Annotated[Mapping[int, int], Field(min_length=1)]
    """The program's label value (SEG: SegmentNumber) to our segment's number."""
    other_labels: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a value that ``labels`` does not name."""
    other_grid: Literal["refuse", "resample"] = "refuse"
    """What becomes of NIfTI labels on another grid than the series."""
    time_limit_s: Positive = 3600.0
    memory_limit_mib: Annotated[int, Field(ge=64)] = 16384
    """Of all its processes together."""
    disk_limit_mib: Annotated[int, Field(ge=16)] = 32768
    """Of the folder of one run: its input, its output, what it writes to TMPDIR and HOME."""
    sandbox: bool = True
    """Without network, and seeing only the system's programs, its model folder and `readable`."""
    readable: tuple[Text, ...] = ()
    """More folders that the sandbox shows, read-only: an environment, a folder of weights."""
    environment: Mapping[VariableName, str] = Field(default_factory=dict)
    pass_environment: tuple[VariableName, ...] = ()
    """Variables of the compute worker that the program gets; all others stay behind."""
    retry_exit_statuses: tuple[Byte, ...] = (75, 137, 143)
    """After these the job is tried again later, a few times. 75 is EX_TEMPFAIL of sysexits.h; 137
    and 143 mean ended by SIGKILL, as when memory runs out, and by SIGTERM."""
    files: Mapping[Text, Sha256] = Field(default_factory=dict)
    """Programs and weights, checked before the first run; a folder's is that of its listing."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        texts = (*self.run, *self.stop, *self.readable, *self.environment.values(), *self.files)
        unknown = {name for text in texts for name in PLACEHOLDER.findall(text)} - PLACEHOLDERS
        if unknown:
            raise ValueError(f"there is no placeholder {{{min(unknown)}}}")
        for wanted in ("{input}", "{output}"):
            if not any(wanted in argument for argument in self.run):
                raise ValueError(f"run: no argument holds {wanted}")
        if self.output.startswith("/") or ".." in PurePosixPath(self.output).parts:
            raise ValueError("output: a pattern below {output}, such as *.nii.gz")
        for argument in self.run:
            parts = PurePosixPath(argument)
            vouched = any(parts.is_relative_to(name) for name in self.files)
            if argument.startswith("{model}/") and not vouched:
                raise ValueError(f"files: the SHA-256 of {argument} is missing")
        for name in (*self.environment, *self.pass_environment):
            if name.startswith("SEGNODE"):
                raise ValueError(f"{name}: the node's own settings are not for a program")
        return self
