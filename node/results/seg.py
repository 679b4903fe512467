"""A label map becomes a DICOM Segmentation that viewers show in the right place.

Everything here is pseudonymous: the source headers are de-identified, and the result is a valid
object of its own before anybody is re-identified.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import ExplicitVRLittleEndian

from anonymizer.part10 import read_instance
from node.errors import EmptyResult, ModelFault
from node.manifest import Code, ModelManifest, Segment
from node.results.frames import frames_of, with_frames
from node.results.placement import check_frames
from node.results.source import SourceSeries, is_projection
from node.results.uids import ResultIdentity

MANUFACTURER = "segnode"
CONTENT_LABEL = "AI_SEGMENTATION"
BINARY = hd.seg.SegmentationTypeValues.BINARY
LABELMAP = hd.seg.SegmentationTypeValues.LABELMAP
ARTIFICIAL_INTELLIGENCE = Code(value="123110", scheme="DCM", meaning="Artificial Intelligence")


@dataclass(frozen=True)
class Algorithm:
    """The model behind a result, so that a reader can tell which one it was.

    Attributes
    ----------
    name, version
        As the model's manifest states them, ASCII.
    digest
        SHA-256 of the model package (manifest, code and weights), 64 hexadecimal digits: all that
        one value of SoftwareVersions may hold.
    family
        What kind of algorithm, of CID 7162.
    """

    name: str
    version: str
    digest: str
    family: Code = ARTIFICIAL_INTELLIGENCE

    @classmethod
    def of(cls, manifest: ModelManifest) -> Algorithm:
        """The model that a manifest describes."""
        return cls(name=manifest.name, version=manifest.version, digest=manifest.digest)


def encode_seg(
    labels: NDArray[np.uint8],
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """The label map as one BINARY Segmentation on the grid of its source, checked for placement.

    Parameters
    ----------
    labels
        uint8, shape (slices, rows, columns): 0, or the number of a segment.
    source_instances
        Headers of one de-identified single-frame series, ``source_instances[i]`` being the slice
        of ``labels[i]``; or one radiograph (CR, DX), which has no place in the patient:
        its segmentation is tied to the image alone. Pixel data is not needed. They are not changed.
    segments
        What each label means, numbered 1, 2, 3 … A segment without voxels keeps its item: that it
        is absent is a result.

    Returns
    -------
    Dataset
        With file meta (Explicit VR Little Endian), empty frames left out, every frame derived from
        the source instance at its own position. The same arguments give the same bytes.

    Raises
    ------
    EmptyResult
        No voxel is labelled.
    ModelFault
        The label map has another grid than the source, or labels that no segment describes.
    GeometryError
        The source instances are not one stack of parallel, distinct slices.
    Quarantined
        The finished object would show a mask on another slice than its own.

    References
    ----------
    PS3.3 2026b A.51 (Segmentation IOD), C.8.20.2 (Segmentation Image), C.8.20.4 (Segment
    Description); IHE RAD AIR 6.5.3 (segmentation results).
    """
    source = SourceSeries.of(source_instances)
    _check_labels(labels, source.shape, segments)
    # Two slices, because one alone has no spacing.
    headers = source.headers[:2]
    first_pixel = np.zeros((len(headers), *labels.shape[1:]), np.uint8)
    first_pixel[0, 0, 0] = segments[0].number
    one_frame = build_seg(first_pixel, headers, segments, algorithm, identity)
    frames = frames_of(labels, source.headers, len(segments))
    data = with_frames(read_instance(_written(one_frame)), frames, labels, source.headers)
    check_frames(data, labels, source.headers)
    return dcmread(BytesIO(data))


def encode_labelmap(
    labels: NDArray[np.uint8],
    source_instances: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
) -> Dataset:
    """The label map as one Label Map Segmentation: a frame for each slice with a segment.

    For destinations that want it: a matrix whose columns are no multiple of 8 is one that Orthanc
    serves and OHIF shows only in this form. Parameters and errors are those of :func:`encode_seg`.

    The value 0 is the background by PixelPaddingValue alone. An item of its own for it in the
    SegmentSequence, which PS3.3 C.8.20.2 would like, makes OHIF and 3D Slicer give every segment
    the colour or the name of its neighbour (cornerstone3D 2882, Slicer 9163).

    References
    ----------
    PS3.3 2026b A.51 and C.8.20.2; Supplement 243.
    """
    source = SourceSeries.of(source_instances)
    _check_labels(labels, source.shape, segments)
    segmentation = build_seg(labels, source.headers, segments, algorithm, identity, LABELMAP)
    segmentation.SegmentSequence = [
        item for item in segmentation.SegmentSequence if item.SegmentNumber != 0
    ]
    data = _written(segmentation)
    check_frames(data, labels, source.headers)
    return dcmread(BytesIO(data))


def build_seg(
    labels: NDArray[np.uint8],
    headers: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
    kind: hd.seg.SegmentationTypeValues = BINARY,
) -> Dataset:
    """The Segmentation with every frame built by highdicom: the same object, in twice the time."""
    segmentation = _build(labels, headers, segments, algorithm, identity, kind)
    _complete(segmentation, headers[0], algorithm)
    _remove_chance(segmentation, identity)
    return segmentation


def _build(
    labels: NDArray[np.uint8],
    headers: Sequence[Dataset],
    segments: Sequence[Segment],
    algorithm: Algorithm,
    identity: ResultIdentity,
    kind: hd.seg.SegmentationTypeValues,
) -> Dataset:
    with warnings.catch_warnings():
        # highdicom comments on the form of PatientName, and prints it.
        warnings.simplefilter("ignore", UserWarning)
        return hd.seg.Segmentation(
            source_images=headers,
            pixel_array=labels,
            segmentation_type=kind,
            segment_descriptions=[_describe(segment, algorithm, identity) for segment in segments],
            series_instance_uid=identity.series_instance_uid,
            series_number=identity.series_number,
            sop_instance_uid=identity.sop_instance_uid,
            instance_number=identity.part,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm.name,
            software_versions=identity.software_version,
            # Type 1 in Enhanced General Equipment; of software, the package is what is unique.
            device_serial_number=algorithm.digest[:16],
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
            contributing_equipment=[processing_equipment(algorithm, identity)],
            content_label=CONTENT_LABEL,
            content_description=f"{algorithm.name} {algorithm.version}"[:64],
            series_description=identity.series_description,
            series_date=identity.created.date(),
            series_time=identity.created.time(),
            content_date=identity.created.date(),
            content_time=identity.created.time(),
            # Not the source's: highdicom copies it, and names in another script turn into '??'.
            specific_character_set="ISO_IR 192",
        )


def _check_labels(
    labels: NDArray[np.uint8], shape: tuple[int, int, int], segments: Sequence[Segment]
) -> None:
    if labels.dtype != np.uint8 or labels.shape != shape:
        raise ModelFault(
            f"The label map is {labels.dtype} {labels.shape}; its source series needs uint8 {shape}"
        )
    numbers = [segment.number for segment in segments]
    if numbers != list(range(1, len(segments) + 1)):
        raise ModelFault("Segments must be numbered 1, 2, 3 and so on, in that order")
    highest = int(labels.max())
    if highest == 0:
        raise EmptyResult("No voxel is labelled, so there is nothing to encode")
    if highest > len(segments):
        raise ModelFault(f"The label map holds label {highest}; the model describes {numbers}")


def _describe(
    segment: Segment, algorithm: Algorithm, identity: ResultIdentity
) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label,
        segmented_property_category=dicom_code(segment.category),
        segmented_property_type=dicom_code(segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            version=algorithm.version,
            family=dicom_code(algorithm.family),
            source=MANUFACTURER,
            parameters={"package_sha256": algorithm.digest},
        ),
        tracking_uid=identity.uid(f"tracking:{segment.number}"),
        tracking_id=f"{algorithm.name} {segment.label}",
        display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
    )


def processing_equipment(
    algorithm: Algorithm, identity: ResultIdentity
) -> hd.ContributingEquipment:
    """What IHE AIR asks of a result's maker: who computed it, with which version."""
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=algorithm.name,
        software_versions=[identity.software_version, algorithm.version, algorithm.digest],
        contribution_datetime=identity.created,
        contribution_description="Segmentation by an algorithm, without a human in the loop",
    )


def _complete(segmentation: Dataset, source: Dataset, algorithm: Algorithm) -> None:
    """Add what highdicom has no argument for, or only one value of."""
    segmentation.SoftwareVersions = [
        segmentation.SoftwareVersions,
        algorithm.version,
        algorithm.digest,
    ]
    for keyword in ("BodyPartExamined", "Laterality"):
        if source.get(keyword):
            segmentation.add(source[keyword])
    if is_projection(source):
        # Type 2C of General Image: there is no Image Orientation (Patient) to say it.
        segmentation.PatientOrientation = source.get("PatientOrientation")


def _remove_chance(segmentation: Dataset, identity: ResultIdentity) -> None:
    """Replace what highdicom drew at random or read from the clock."""
    organization = identity.uid("dimension organization")
    for item in segmentation.DimensionOrganizationSequence:
        item.DimensionOrganizationUID = organization
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    segmentation.InstanceCreationDate = segmentation.ContentDate
    segmentation.InstanceCreationTime = segmentation.ContentTime
    for equipment in segmentation.ContributingEquipmentSequence:
        if equipment.Manufacturer != MANUFACTURER:
            # highdicom's is now, the scanner's is a date of the patient.
            equipment.pop("ContributionDateTime", None)


def _written(segmentation: Dataset) -> bytes:
    stream = BytesIO()
    segmentation.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom_code(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning)
