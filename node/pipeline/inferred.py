"""What the compute zone has left, as the hospital zone reads it: nothing in it is believed.

Models of others run there. What they leave may be made to fill the memory of who opens it, so all
that it claims is held against the job's own instances before it is unpacked.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.errors import ModelFault
from node.pipeline.working_data import LABEL_MAP_FILE, MEASUREMENTS_FILE
from node.ports import Bundle
from node.results.measurements import Measurements, from_json

#: What reading a file raises that is not what it should be.
_UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, SyntaxError, TypeError,
    ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_MOST_MEASUREMENTS = 2**20  #: 255 segments have less than a tenth of it
_MOST_DIRECTORY = 2**12  #: a ZIP file's list of two arrays; each entry of a longer one takes memory
_LONGEST_UID = 64 * 4  #: as numpy keeps text: four bytes for each character
_HEADERS = 2**16


def read_label_map(
    bundle: Bundle, instances: Sequence[Dataset]
) -> tuple[NDArray[np.uint8], list[Dataset]]:
    """Labels, uint8 of shape (slices, rows, columns), and the instance behind each slice.

    Raises
    ------
    DamagedArtifact
        The file is not the one that was stated, or larger than a label map of these instances.
    ModelFault
        It is no label map of these instances.
    """
    by_uid = {str(one.SOPInstanceUID): one for one in instances}
    most = sum(math.prod(_plane(one)) for one in instances)
    most += _HEADERS + len(instances) * _LONGEST_UID
    try:
        # What DEFLATE cannot compress it stores, with five bytes for each 65535 (RFC 1951 3.2.4).
        data = bundle.get(LABEL_MAP_FILE, most + most // 1000)
        _require_short_directory(data)
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            uids = _array(
                packed,
                "sop_instance_uids",
                lambda shape, kind: (
                    len(shape) == 1
                    and 0 < shape[0] <= len(instances)
                    and kind.kind == "U"
                    and kind.itemsize <= _LONGEST_UID
                ),
            )
            sources = [by_uid[str(uid)] for uid in uids]
            if len(set(uids)) < len(uids):
                raise ValueError("an instance twice")
            (plane,) = {_plane(one) for one in sources}
            expected = (len(sources), *plane)
            labels = _array(
                packed, "labels", lambda shape, kind: shape == expected and kind == np.uint8
            )
    except _UNREADABLE as error:
        raise _no_result("label map", error) from None
    return labels, sources


def read_measurements(bundle: Bundle) -> Measurements:
    """What was measured of each segment: numbers, and nothing else.

    Raises
    ------
    DamagedArtifact
        The file is not the one that was stated, or too large.
    ModelFault
        It holds something else.
    """
    try:
        entries = json.loads(bundle.get(MEASUREMENTS_FILE, _MOST_MEASUREMENTS))["segments"]
        for entry in entries:
            _require_numbers(entry)
        return from_json(entries)
    except _UNREADABLE as error:
        raise _no_result("measurement", error) from None


def _plane(instance: Dataset) -> tuple[int, int]:
    """Rows and columns; not every instance of a series is an image."""
    return int(instance.get("Rows") or 0), int(instance.get("Columns") or 0)


def _array(
    packed: zipfile.ZipFile, name: str, fits: Callable[[tuple[int, ...], np.dtype[Any]], bool]
) -> NDArray[Any]:
    """One array of an ``.npz``, read after its header was found to fit."""
    name = f"{name}.npy"
    if packed.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in a way that gives out more than it is asked for")
    with packed.open(name) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not as numpy writes it")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        if not fits(shape, kind):
            raise ValueError("of another shape or kind")
    with packed.open(name) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _require_short_directory(data: bytes) -> None:
    """ValueError unless a ZIP file ends as ours do (APPNOTE.TXT 4.3.16): two entries, no ZIP64."""
    end = data[-22:]
    size = int.from_bytes(end[12:16], "little")
    if end[:4] != b"PK\5\6" or size > _MOST_DIRECTORY or data[-42:-38] == b"PK\6\7":
        raise ValueError("not as numpy writes it")


def _require_numbers(entry: Mapping[str, Any]) -> None:
    for value in entry.values():
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise ValueError("no number")


def _no_result(what: str, error: Exception) -> ModelFault:
    return ModelFault(
        f"What the compute zone has left is no {what} of this series ({type(error).__name__})",
        remedy="Check the model with `segnode models check`, and what else runs on the compute "
        "worker; then retry the job.",
    )
