"""A small real program: lungs by threshold in a NIfTI file.

    lungs_of_nifti.py [--coarse] INPUT_FILE OUTPUT_FILE

It turns the image to RAS+ first and writes its labels so, as many do; with ``--coarse`` on a grid
of twice the spacing. Left lung is 1.0 and right lung 2.0, in float32.
"""

import sys

import nibabel
import numpy as np


def main(arguments):
    source, target = (argument for argument in arguments if argument != "--coarse")
    image = nibabel.as_closest_canonical(nibabel.load(source))
    hu, affine = np.asarray(image.dataobj), image.affine
    if "--coarse" in arguments:
        hu, affine = hu[::2, ::2, ::2], affine @ np.diag([2, 2, 2, 1])
    x = nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(hu.shape), 0, -1))[..., 0]
    lung = (hu > -950) & (hu < -700)
    labels = np.where(lung, np.where(x < 0, 1, 2), 0).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(labels, affine), target)


if __name__ == "__main__":
    main(sys.argv[1:])
