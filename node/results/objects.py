"""The objects of one result, kind by kind: what a model found, as each destination wants it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.errors import EmptyResult
from node.imaging.radiograph import as_displayed, normalised, radiograph_from
from node.imaging.volume import volume_from_series
from node.kinds import ResultKind, cut
from node.manifest import ModelManifest, RadiographManifest
from node.results.capture import encode_captures
from node.results.measurements import Measurements, SegmentMeasurements
from node.results.overlay import montage_png
from node.results.pdf import encode_pdf
from node.results.radiograph_picture import radiograph_png
from node.results.remarks import remarks
from node.results.rtstruct import encode_rtstruct
from node.results.seg import Algorithm, encode_labelmap, encode_seg
from node.results.sr import SegmentPlace, encode_sr
from node.results.text_sr import encode_text_sr
from node.results.uids import ResultIdentity
from node.sdk import Radiograph, Volume

#: Black and white of a normalised radiograph, as integers.
_SHADES = (0.0, 1000.0)
#: Apart from those that other series' results have; IS holds 31 bits.
_NUMBERS_OF_A_SERIES = 10_000
_LARGEST_SERIES_NUMBER = 200_000
#: TID 1500 and RT Structure Sets want a place in the patient.
_WANT_A_PLACE = (ResultKind.SR, ResultKind.RTSTRUCT)


def possible_kinds(manifest: ModelManifest) -> tuple[ResultKind, ...]:
    """What can be made of a model's results: what its author gives, of these images."""
    given = [
        kind
        for kind in manifest.results.kinds
        if not (isinstance(manifest, RadiographManifest) and kind in _WANT_A_PLACE)
    ]
    return tuple(
        kind for kind in ResultKind if kind in given or kind in {k.as_labelmap() for k in given}
    )


@dataclass(frozen=True)
class Origin:
    """The job and model behind an object: they decide its UIDs, its time and its place."""

    job_key: str
    created: datetime
    software_version: str
    manifest: ModelManifest

    @property
    def algorithm(self) -> Algorithm:
        """The model as objects name it."""
        return Algorithm.of(self.manifest)

    def identity(
        self, kind: ResultKind, source: Dataset, *, explanation: bool = False
    ) -> ResultIdentity:
        """Of one kind's series; the explanation of a missing result is none of the result's.

        Number and description tell two models and two series of one study apart: series 3 and a
        model numbered from 9000 make 39000, "ct_lungs ..., series 3". A number that is no small
        one, as some makers write, is left out.
        """
        results = self.manifest.results
        number = source.get("SeriesNumber")
        of = int(number) if number and 0 < int(number) <= _LARGEST_SERIES_NUMBER else 0
        described = f"{self.manifest.name} {results.series_description}"
        ending = f", series {of}" if of else ""
        return ResultIdentity.for_job(
            self.job_key,
            series_number=_NUMBERS_OF_A_SERIES * of + results.series_number + kind.number,
            series_description=cut(described, f" no result{ending}")
            if explanation
            else kind.described(described, ending),
            created=self.created,
            software_version=self.software_version,
            kind=f"explanation {kind}" if explanation else str(kind),
        )


#: Numbers of segments, and the Segmentation that holds them as 1, 2, 3 ...
Grouped = list[tuple[tuple[int, ...], Dataset]]


@dataclass(frozen=True)
class Found:
    """What a model found in one series, and all that its objects are made of.

    Attributes
    ----------
    labels
        uint8, shape (slices, rows, columns), as the label map has it.
    sources
        De-identified instances with their pixels, ``sources[i]`` being the slice of ``labels[i]``.
    measurements
        In the order of the segments.
    """

    origin: Origin
    labels: NDArray[np.uint8]
    sources: Sequence[Dataset]
    measurements: Measurements

    def encoded(self, kind: ResultKind, every: int = 1) -> Iterator[Dataset]:
        """The objects of one kind, with file meta: one, or of captures every nth.

        Raises
        ------
        EmptyResult, ModelFault, GeometryError, Rejected, Quarantined
            As :func:`node.results.seg.encode_seg` says.
        """
        numbered, segments = self.origin.manifest.settled(self.labels)
        by = (self.sources, segments, self.origin.algorithm, self._identity(kind))
        match kind:
            case ResultKind.SEG | ResultKind.LABELMAP:
                yield from (segmentation for _, segmentation in self._segmentations(kind))
            case ResultKind.SR | ResultKind.LABELMAP_SR:
                volumes = [m for m in self.measurements if isinstance(m, SegmentMeasurements)]
                yield encode_sr(volumes, self._places(kind), *by)
            case ResultKind.TEXT_SR:
                yield encode_text_sr(self.measurements, *by)
            case ResultKind.PDF:
                yield encode_pdf(self.picture_png, self.measurements, *by)
            case ResultKind.RTSTRUCT:
                yield encode_rtstruct(numbered, *by)
            case ResultKind.CAPTURE:
                images, window = self._shown
                yield from encode_captures(
                    images,
                    numbered,
                    *by,
                    measurements=self.measurements,
                    window=window,
                    every=every,
                    all_slices=self.origin.manifest.results.captures == "all",
                )

    def _identity(self, kind: ResultKind) -> ResultIdentity:
        return self.origin.identity(kind, self.sources[0])

    def remarks(self, kinds: Collection[ResultKind]) -> list[str]:
        """What may keep a viewer from showing the Segmentations among these kinds."""
        return [
            remark
            for kind in kinds
            if kind.is_segmentation
            for remark in remarks(kind, [made for _, made in self._segmentations(kind)])
        ]

    def _places(self, report: ResultKind) -> Mapping[int, SegmentPlace]:
        """Where a report finds each segment: its number in its group's Segmentation."""
        kind = ResultKind.SEG if report is ResultKind.SR else ResultKind.LABELMAP
        return {
            number: SegmentPlace(segmentation, place)
            for group, segmentation in self._segmentations(kind)
            for place, number in enumerate(group, start=1)
        }

    def _segmentations(self, kind: ResultKind) -> Grouped:
        return self._binary if kind is ResultKind.SEG else self._labelmap

    @cached_property
    def _binary(self) -> Grouped:
        return self._grouped(ResultKind.SEG, encode_seg)

    @cached_property
    def _labelmap(self) -> Grouped:
        return self._grouped(ResultKind.LABELMAP, encode_labelmap)

    def _grouped(self, kind: ResultKind, encode: Callable[..., Dataset]) -> Grouped:
        """One Segmentation, or one for each group of segments that the manifest wants apart and
        of which something was found."""
        manifest = self.origin.manifest
        numbered, segments = manifest.settled(self.labels)
        by = self.origin.algorithm, self._identity(kind)
        if not manifest.results.groups or segments is not manifest.segments:
            numbers = tuple(segment.number for segment in segments)
            return [(numbers, encode(numbered, self.sources, segments, *by))]
        made = []
        for part, group in enumerate(manifest.results.groups, start=1):
            places = np.zeros(256, np.uint8)
            places[list(group)] = np.arange(1, len(group) + 1)
            labels = places[numbered]
            if labels.any():
                described = [
                    segments[number - 1].model_copy(update={"number": place})
                    for place, number in enumerate(group, start=1)
                ]
                identity = by[1].of_part(part)
                made.append((group, encode(labels, self.sources, described, by[0], identity)))
        if not made:
            raise EmptyResult("No voxel is labelled, so there is nothing to encode")
        return made

    @cached_property
    def picture_png(self) -> bytes:
        """The result at a glance, for the console and the PDF."""
        manifest = self.origin.manifest
        if isinstance(manifest, RadiographManifest):
            assert isinstance(self._case, Radiograph)  # noqa: S101 - made so below
            labels, segments = manifest.settled(self.labels[0])
            shown = as_displayed(self._case, labels, manifest.preprocessing.percentiles)
            return radiograph_png(
                shown.shades,
                shown.labels,
                segments,
                manifest,
                aspect=shown.aspect,
                sides_known=shown.sides_known,
            )
        assert isinstance(self._case, Volume)  # noqa: S101
        return montage_png(self._case, self.labels, manifest)

    @cached_property
    def _case(self) -> Volume | Radiograph:
        if isinstance(self.origin.manifest, RadiographManifest):
            return radiograph_from(self.sources[0])
        return volume_from_series(self.sources)

    @property
    def _shown(self) -> tuple[NDArray[np.int16], tuple[float, float]]:
        """Grey values (slices, rows, columns), and which are black and white."""
        manifest = self.origin.manifest
        if isinstance(manifest, RadiographManifest):
            assert isinstance(self._case, Radiograph)  # noqa: S101
            percentiles = manifest.preprocessing.percentiles
            shades = normalised(self._case.array, self._case.padding, percentiles) * _SHADES[1]
            return np.rint(shades).astype(np.int16)[np.newaxis], _SHADES
        assert isinstance(self._case, Volume)  # noqa: S101
        return self._case.array, manifest.window_hu
