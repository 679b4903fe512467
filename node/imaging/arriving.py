"""A volume whose slices are decoded while the first of them are already in the network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from node.imaging.decoding import Decoders, Pixels, decoded_here
from node.imaging.resample import center_slices, patient_orientation
from node.imaging.volume import Geometry
from node.sdk import Volume


class ArrivingVolume:
    """A :class:`Volume` that waits for a slice only when it is asked for that slice.

    Attributes are those of :class:`Volume`, but ``array``, which is whole only in
    :meth:`complete`.
    """

    def __init__(
        self,
        geometry: Geometry,
        headers: Sequence[Dataset],
        streams: Sequence[bytes],
        decoders: Decoders,
    ) -> None:
        """``headers`` and Part 10 ``streams`` of the same instances, as ``geometry`` counts them.

        Uncompressed instances are decoded here: that is faster than to send them elsewhere.
        """
        self.affine = geometry.affine
        self.spacing_mm = geometry.spacing_mm
        self.shape = geometry.shape
        self.sop_instance_uids = tuple(str(headers[i].SOPInstanceUID) for i in geometry.order)
        self._array = np.empty(geometry.shape, np.int16)
        self._waiting: dict[int, bytes | Future[Pixels]] = {
            index: streams[source] for index, source in enumerate(geometry.order)
        }
        if decoders.processes and _is_compressed(headers):
            for index in _order_of_use(geometry):
                data = self._waiting[index]
                if isinstance(data, bytes):
                    self._waiting[index] = decoders.decode(data)

    def slices(self, start: int, stop: int) -> npt.NDArray[np.int16]:
        """Slices ``start`` to ``stop``, int16, shape (slices, rows, columns).

        Raises
        ------
        UnsupportedTransferSyntax, DamagedInstance, UnsuitableInput
            One of them does not decode.
        """
        for index in range(start, stop):
            waiting = self._waiting.pop(index, None)
            if waiting is None:
                continue
            pixels = decoded_here(waiting) if isinstance(waiting, bytes) else waiting.result()
            self._array[index] = pixels
        return self._array[start:stop]

    def complete(self) -> Volume:
        """The whole volume, when its last slice has been decoded."""
        array = self.slices(0, self.shape[0])
        return Volume(array, self.affine, self.spacing_mm, self.sop_instance_uids)

    def cancel(self) -> None:
        """Nobody will ask any more: what has not begun to be decoded is not."""
        for waiting in self._waiting.values():
            if isinstance(waiting, Future):
                waiting.cancel()


def _is_compressed(headers: Sequence[Dataset]) -> bool:
    return any(header.file_meta.TransferSyntaxUID.is_compressed for header in headers)


def _order_of_use(geometry: Geometry) -> Sequence[int]:
    """First the slices that say where the body is, then all from the patient's feet to the head."""
    count = geometry.shape[0]
    orientation = patient_orientation(geometry.affine)
    from_feet = range(count)
    if orientation.flips[orientation.axes.index(0)]:
        from_feet = from_feet[::-1]
    return list(dict.fromkeys([*from_feet[:: center_slices(count).step], *from_feet]))
