"""A small real program: lungs by threshold in a folder of uncompressed CT DICOM.

    lungs_of_dicom.py [--seg] INPUT OUTPUT

It sorts by Instance Number, as many do, and writes its labels in the order in which it read:
NIfTI with left lung 10 and right lung 20, or with ``--seg`` a DICOM Segmentation by highdicom.
"""

import sys
from pathlib import Path

import numpy as np
import pydicom

LEFT, RIGHT = 10, 20


def main(arguments):
    as_seg = "--seg" in arguments
    source, target = (Path(a) for a in arguments if a != "--seg")
    slices = sorted((pydicom.dcmread(p) for p in source.glob("*.dcm")), key=number, reverse=True)
    affine = affine_of(slices)
    labels = np.stack([labelled(ds, affine, index) for index, ds in enumerate(slices)])
    write_seg(slices, labels, target) if as_seg else write_nifti(affine, labels, target)
    print(f"labelled {np.count_nonzero(labels)} voxels")


def number(ds):
    return int(ds.InstanceNumber)


def affine_of(slices):
    """Index (slice, row, column) to LPS."""
    first, last = (np.array(slices[i].ImagePositionPatient, float) for i in (0, -1))
    cosines = np.array(slices[0].ImageOrientationPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / (len(slices) - 1)
    affine[:3, 1] = cosines[3:] * slices[0].PixelSpacing[0]
    affine[:3, 2] = cosines[:3] * slices[0].PixelSpacing[1]
    affine[:3, 3] = first
    return affine


def labelled(ds, affine, index):
    stored = np.frombuffer(ds.PixelData, "<i2").reshape(ds.Rows, ds.Columns)
    hu = stored * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    rows, columns = np.indices(hu.shape)
    x = affine[0] @ np.stack([np.full_like(rows, index), rows, columns, np.ones_like(rows)], 1)
    lung = (hu > -950) & (hu < -700)
    return np.where(lung, np.where(x > 0, LEFT, RIGHT), 0).astype(np.uint8)


def write_nifti(affine, labels, target):
    import nibabel

    ras = np.diag([-1, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), ras), target / "lungs.nii.gz")


def write_seg(slices, labels, target):
    import highdicom as hd
    from pydicom.sr.codedict import codes

    def described(place, label):
        return hd.seg.SegmentDescription(
            segment_number=place,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Lung,
            algorithm_type="AUTOMATIC",
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                "threshold", codes.DCM.ArtificialIntelligence, "1"
            ),
        )

    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=(labels == LEFT).astype(np.uint8) + 2 * (labels == RIGHT).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[described(1, "left"), described(2, "right")],
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="threshold",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(target / "lungs.dcm")


if __name__ == "__main__":
    main(sys.argv[1:])
