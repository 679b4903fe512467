"""The result burned into pictures: a Secondary Capture series for viewers that show no SEG.

The anatomy stays visible: contours, and a fill of at most a fifth. The pictures have the position
and frame of reference of their sources, so that a viewer scrolls both together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache, partial

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from node.manifest import Segment
from node.results.measurements import Measurements, amount_in_words
from node.results.report import (
    NOTICE,
    patient_and_study,
    quiet,
    reference_to,
    state_origin,
    title_of,
)
from node.results.seg import MANUFACTURER, Algorithm
from node.results.source import SourceSeries, is_projection
from node.results.uids import ResultIdentity

FILL_OPACITY = 0.2
MARGIN = 4
SMALLEST_FONT = 9
FONT_SHARE = 1 / 40  # of the image's height
_LINES_BELOW = 3  # the notice, the model, the source

#: As the source has it: the plane (PS3.3 C.7.6.2) and its frame of reference (C.7.4.1).
_GEOMETRY = (
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImageOrientationPatient",
    "SliceThickness",
)

_WHITE = (255, 255, 255)


def encode_captures(
    images: NDArray[np.int16],
    labels: NDArray[np.uint8],
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
    *,
    measurements: Measurements,
    window: tuple[float, float],
    every: int = 1,
    all_slices: bool = False,
) -> Iterator[Dataset]:
    """One RGB picture for each slice that shows a segment, in slice order.

    What a slice shows is named on it, with how much was found of it in the whole series.

    Parameters
    ----------
    images
        int16, shape (slices, rows, columns), in the units of ``window``.
    labels
        uint8, the same shape: 0, or the number of a segment.
    source_instances
        De-identified headers, ``source_instances[i]`` being the slice of ``images[i]``; or one
        radiograph, whose picture has no place in the patient either.
    measurements
        In the order of ``segments``.
    window
        What is black and what is white.
    every
        Only every nth of these slices.
    all_slices
        Also slices without a segment.

    References
    ----------
    PS3.3 2026b A.8.1 (Secondary Capture), C.8.6 (SC modules).
    """
    headers = SourceSeries.of(source_instances).headers
    shown = np.ones(len(labels), bool) if all_slices else labels.any(axis=(1, 2))
    with quiet():
        series = _series(labels.shape[1:], headers[0], identity)
    state_origin(series, algorithm, identity)
    lines = {
        segment.number: f"{segment.label}: {amount_in_words(found)}"
        for segment, found in zip(segments, measurements, strict=True)
    }
    painter = _Painter(labels.shape[1:], segments, lines, window, algorithm)
    numbers = _instance_numbers(source_instances)
    for index in np.flatnonzero(shown)[::every].tolist():
        picture = deepcopy(series)
        picture.SOPInstanceUID = identity.uid(f"capture:{index}")
        picture.file_meta.MediaStorageSOPInstanceUID = picture.SOPInstanceUID
        picture.InstanceNumber = numbers[index]
        if not is_projection(headers[index]):
            picture.ImagePositionPatient = headers[index].ImagePositionPatient
        picture.SourceImageSequence = [_source_item(headers[index])]
        pixels = painter.painted(images[index], labels[index], source_instances[index])
        picture.PixelData = pixels.tobytes()
        yield picture


def _instance_numbers(sources: Sequence[Dataset]) -> list[int]:
    """The sources' own, so that a picture is found beside its slice; counted where some have none
    or share one."""
    numbers = [source.get("InstanceNumber") for source in sources]
    if None in numbers or len(set(numbers)) < len(numbers):
        return list(range(1, len(sources) + 1))
    return [int(number) for number in numbers]


class _Painter:
    """Draws on slices of one size; what is the same on all of them is drawn once."""

    def __init__(
        self,
        shape: tuple[int, int],
        segments: Sequence[Segment],
        lines: Mapping[int, str],
        window: tuple[float, float],
        algorithm: Algorithm,
    ) -> None:
        """``lines``: number of a segment → what is written of it."""
        self._segments = segments
        self._lines = lines
        self._title = f"{MANUFACTURER} {title_of(algorithm)}"
        low, high = window
        values = np.arange(2**16, dtype=np.uint16).view(np.int16)
        self._greys = _byte(255 * np.clip((values - low) / (high - low), 0, 1))
        grey = np.arange(256)[:, np.newaxis]
        self._filled = {
            segment.number: _byte(
                (1 - FILL_OPACITY) * grey + FILL_OPACITY * np.asarray(segment.rgb)
            )
            for segment in segments
        }
        self._font_size = max(SMALLEST_FONT, round(shape[0] * FONT_SHARE))
        self._line_height = self._font_size + 2
        self._text_on = lru_cache(maxsize=8)(partial(self._text, shape))  # neighbours show the same

    def painted(
        self, image: NDArray[np.int16], labels: NDArray[np.uint8], source: Dataset
    ) -> NDArray[np.uint8]:
        """uint8, shape (rows, columns, 3)."""
        grey = self._greys[image.view(np.uint16)]
        colour = np.repeat(grey[..., np.newaxis], 3, axis=2)
        shown = []
        for place, segment in enumerate(self._segments):
            mask = labels == segment.number
            if mask.any():
                shown.append(place)
                colour[mask] = self._filled[segment.number][grey[mask]]
                colour[_contour(mask)] = segment.rgb
        picture = Image.fromarray(colour)
        text = self._text_on(tuple(shown))
        picture.paste(text, mask=text)
        self._write(picture, -1, _source_in_words(source), _WHITE)
        return np.asarray(picture)

    def _text(self, shape: tuple[int, int], shown: tuple[int, ...]) -> Image.Image:
        """What pictures with the same segments share; as many of these as leave the notice free."""
        text = Image.new("RGBA", shape[::-1])
        room = max(1, (shape[0] - 2 * MARGIN) // self._line_height - _LINES_BELOW)
        if len(shown) > room:
            self._write(text, room - 1, f"and {len(shown) - room + 1} more", _WHITE)
            shown = shown[: room - 1]
        for line, place in enumerate(shown):
            segment = self._segments[place]
            self._write(text, line, self._lines[segment.number], segment.rgb)
        self._write(text, -3, NOTICE, _WHITE)
        self._write(text, -2, self._title, _WHITE)
        return text

    def _write(
        self, picture: Image.Image, line: int, text: str, colour: tuple[int, int, int]
    ) -> None:
        """On a line from the top (0, 1 ...) or from the bottom (-1, -2 ...)."""
        start = MARGIN if line >= 0 else picture.height - MARGIN
        ImageDraw.Draw(picture).text(
            (MARGIN, start + line * self._line_height),
            text,
            colour,
            ImageFont.load_default(self._font_size),
            stroke_width=1,
            stroke_fill=(0, 0, 0),
        )


def _byte(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.round(values).astype(np.uint8)


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _source_in_words(source: Dataset) -> str:
    places = (("series", "SeriesNumber"), ("image", "InstanceNumber"))
    return ", ".join(f"{what} {source[key].value}" for what, key in places if source.get(key))


def _series(shape: tuple[int, int], study: Dataset, identity: ResultIdentity) -> Dataset:
    """What all pictures of the series share; building it anew each time costs most of the time."""
    picture = hd.sc.SCImage(
        pixel_array=np.zeros((*shape, 3), np.uint8),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        **patient_and_study(study),
        patient_orientation=_patient_orientation(study),
        pixel_spacing=None if is_projection(study) else tuple(study.PixelSpacing),
        specific_character_set="ISO_IR 192",
        series_description=identity.series_description,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    del picture.PixelData
    picture.ConversionType = "WSD"
    picture.BurnedInAnnotation = "YES"
    picture.DerivationDescription = "Segments drawn over the source image"
    if is_projection(study):
        picture.PatientOrientation = study.get("PatientOrientation")
    for keyword in ("BodyPartExamined", *(() if is_projection(study) else _GEOMETRY)):
        if keyword in study:
            picture.add(study[keyword])
    if "BodyPartExamined" not in study:
        picture.Laterality = ""  # type 2C of General Series: the part may be one of a pair
    return picture


def _patient_orientation(source: Dataset) -> tuple[str, str]:
    """PatientOrientation (0020,0020): where rows and columns of the plane lead, as a letter."""
    if is_projection(source):
        return "L", "F"  # highdicom wants one; what the radiograph says takes its place
    row, column = np.reshape(np.asarray(source.ImageOrientationPatient, float), (2, 3))
    directions = np.stack([row, column, np.cross(row, column)], axis=1)
    along_row, along_column, _ = hd.spatial.get_closest_patient_orientation(directions)
    return along_row.value, along_column.value


def _source_item(source: Dataset) -> Dataset:
    item = reference_to(source)
    item.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return item
