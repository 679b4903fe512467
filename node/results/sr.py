"""The numbers of a result for machines: a TID 1500 Measurement Report.

Viewers show it as a black page or not at all, so it is never the only carrier of a number; for
people there is :mod:`node.results.text_sr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom.sr as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from node.manifest import Segment
from node.results.measurements import SegmentMeasurements
from node.results.report import complete_report, quiet, slice_numbers
from node.results.seg import MANUFACTURER, Algorithm, dicom_code
from node.results.source import SourceSeries
from node.results.uids import ResultIdentity, result_uid

#: IBSI reference manual 1.0; a scheme that PS3.16 Table 8-1 registers.
MAXIMUM_3D_DIAMETER = Code("L0JK", "IBSI", "Maximum 3D Diameter")
MILLILITER = Code("mL", "UCUM", "milliliter")
#: No public code says which images a segment spans.
FIRST_INSTANCE = Code("FIRST_INSTANCE", "99SEGNODE", "Instance Number of first slice")
LAST_INSTANCE = Code("LAST_INSTANCE", "99SEGNODE", "Instance Number of last slice")

_PROCEDURES: Mapping[str, Code] = {
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
}
_INTENSITIES: Mapping[str, tuple[Code, Code]] = {
    "CT": (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit),
    "MR": (codes.DCM.MRSignalIntensity, codes.UCUM.ArbitraryUnit),
}


@dataclass(frozen=True)
class SegmentPlace:
    """Which segment of which Segmentation."""

    segmentation: Dataset
    number: int

    @property
    def item(self) -> Dataset:
        """Its item in the SegmentSequence."""
        found: Dataset = next(
            item for item in self.segmentation.SegmentSequence if item.SegmentNumber == self.number
        )
        return found


def encode_sr(
    measurements: Sequence[SegmentMeasurements],
    places: Mapping[int, SegmentPlace],
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """The measurements as a Comprehensive 3D SR that refers to the segments of the Segmentation.

    Parameters
    ----------
    measurements
        In the order of ``segments``.
    places
        Number of a segment → where it is in the Segmentations of the same result, which carry the
        tracking UIDs; of all that were found.
    source_instances
        De-identified headers in slice order, as for :func:`node.results.seg.encode_seg`; all of
        them become evidence.

    Returns
    -------
    Dataset
        With file meta; complete, preliminary and unverified. The same arguments give the same
        bytes.

    References
    ----------
    PS3.16 2026b TID 1500 (Measurement Report), TID 1411 (Volumetric ROI Measurements); PS3.3
    2026b A.35.13 (Comprehensive 3D SR); IHE RAD AIR 6.5.3.
    """
    source = SourceSeries.of(source_instances)
    first = source.headers[0]
    segs = {place.segmentation.SOPInstanceUID: place.segmentation for place in places.values()}
    with quiet():
        report = hd.MeasurementReport(
            observation_context=hd.ObservationContext(device_observer(algorithm)),
            procedure_reported=_PROCEDURES[str(first.Modality)],
            imaging_measurements=[
                _group(found, segment, places[segment.number], source_instances)
                for found, segment in zip(measurements, segments, strict=True)
                if found.is_present
            ],
        )
        sr = hd.Comprehensive3DSR(
            evidence=[*source.headers, *segs.values()],
            content=report[0],
            series_instance_uid=identity.series_instance_uid,
            series_number=identity.series_number,
            sop_instance_uid=identity.sop_instance_uid,
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            series_description=identity.series_description,
        )
    sr.CodingSchemeIdentificationSequence = [_own_scheme()]
    return complete_report(sr, algorithm, identity)


def _own_scheme() -> Dataset:
    """Whose private codes these are (PS3.3 2026b C.12.1.1.2)."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = FIRST_INSTANCE.scheme_designator
    scheme.CodingSchemeName = "segnode private codes"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def device_observer(algorithm: Algorithm) -> hd.ObserverContext:
    """Who made a document: the model (PS3.16 2026b TID 1004)."""
    return hd.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.DeviceObserverIdentifyingAttributes(
            # The observer is the package of weights: the same in every report that it made.
            uid=result_uid(algorithm.digest, "device"),
            name=f"{algorithm.name} {algorithm.version}",
            manufacturer_name=MANUFACTURER,
            model_name=algorithm.name,
            serial_number=algorithm.digest[:16],
        ),
    )


def _group(
    found: SegmentMeasurements,
    segment: Segment,
    place: SegmentPlace,
    source_instances: Sequence[Dataset],
) -> hd.VolumetricROIMeasurementsAndQualitativeEvaluations:
    return hd.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(
            uid=place.item.TrackingUID, identifier=place.item.TrackingID
        ),
        referenced_segment=hd.ReferencedSegment(
            sop_class_uid=place.segmentation.SOPClassUID,
            sop_instance_uid=place.segmentation.SOPInstanceUID,
            segment_number=place.number,
            source_series=hd.SourceSeriesForSegmentation(source_instances[0].SeriesInstanceUID),
        ),
        finding_category=dicom_code(segment.category),
        finding_type=dicom_code(segment.type),
        measurements=_numbers(found, source_instances),
    )


def _numbers(
    found: SegmentMeasurements, source_instances: Sequence[Dataset]
) -> list[hd.Measurement]:
    numbers = [hd.Measurement(codes.SCT.Volume, found.volume_ml, MILLILITER)]
    intensity = _INTENSITIES.get(str(source_instances[0].Modality))
    if intensity and found.mean is not None and found.standard_deviation is not None:
        name, unit = intensity
        numbers += [
            hd.Measurement(name, found.mean, unit, derivation=codes.SCT.Mean),
            hd.Measurement(
                name, found.standard_deviation, unit, derivation=codes.SCT.StandardDeviation
            ),
        ]
    if found.diameter_mm is not None:
        numbers.append(
            hd.Measurement(MAXIMUM_3D_DIAMETER, found.diameter_mm, codes.UCUM.Millimeter)
        )
    first, last = slice_numbers(found, source_instances)
    if first is not None and last is not None:
        numbers += [
            hd.Measurement(FIRST_INSTANCE, first, codes.UCUM.NoUnits),
            hd.Measurement(LAST_INSTANCE, last, codes.UCUM.NoUnits),
        ]
    return numbers
