"""Headers of received instances, read without their pixel data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from anonymizer.part10 import DAMAGE
from node.errors import DamagedInstance
from node.ports import Instances

#: One header costs Orthanc two requests; it answers four at once as fast as one.
_AT_ONCE = 4


def read_header(data: bytes) -> Dataset:
    """Everything before the pixel data of a Part 10 stream.

    Raises
    ------
    DamagedInstance
        The bytes are no DICOM object.
    """
    try:
        return dcmread(io.BytesIO(data), stop_before_pixels=True)
    except (InvalidDicomError, *DAMAGE) as error:
        raise DamagedInstance(
            f"An instance cannot be read as DICOM ({type(error).__name__})"
        ) from None


def read_headers(instances: Instances, instance_ids: Sequence[str]) -> list[Dataset]:
    """The headers of several instances, in the order asked."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="headers") as pool:
        return [read_header(data) for data in pool.map(instances.instance_header, instance_ids)]
