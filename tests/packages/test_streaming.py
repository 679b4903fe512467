"""Slices go into the network while the next are decoded, in other processes if need be."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from node.errors import DamagedInstance
from node.imaging.arriving import ArrivingVolume
from node.imaging.decoding import Decoders, decoded_here
from node.imaging.volume import series_geometry, volume_from_series
from node.packages import load_model
from node.segmentation import VolumeModel
from tests.packages.conftest import MODELS
from tests.phantoms import ct_series

SHAPE = {"slices": 21, "rows": 64, "columns": 72, "spacing_mm": (5, 5, 5)}


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Two processes, shared: they are kept from series to series."""
    shared = Decoders(processes=2)
    yield shared
    shared.close()


def stream(ds: Dataset, *, compressed: bool = True) -> bytes:
    if compressed:
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def arriving(streams: list[bytes], decoders: Decoders) -> ArrivingVolume:
    headers = [dcmread(io.BytesIO(data), stop_before_pixels=True) for data in streams]
    return ArrivingVolume(series_geometry(headers), headers, streams, decoders)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("position", ["HFS", "FFS"])
@pytest.mark.parametrize("processes", [0, 2])
def test_what_arrives_is_the_volume(
    decoders: Decoders, compressed: bool, position: str, processes: int
) -> None:
    """Voxel for voxel what reading everything first gives, in whatever order it is asked for."""
    series = ct_series(**SHAPE, position=position)
    expected = volume_from_series(series)
    streams = [stream(ds, compressed=compressed) for ds in series[::-1]]
    used = decoders if processes else Decoders(0)
    volume = arriving(streams, used)
    np.testing.assert_array_equal(volume.slices(17, 20), expected.array[17:20])
    whole = volume.complete()
    np.testing.assert_array_equal(whole.array, expected.array)
    np.testing.assert_array_equal(whole.affine, expected.affine)
    assert whole.sop_instance_uids == expected.sop_instance_uids
    assert (volume.shape, volume.spacing_mm) == (expected.shape, expected.spacing_mm)


def test_a_refusal_in_another_process_is_the_refusal_of_this_one(decoders: Decoders) -> None:
    """Class, message and remedy of a damaged slice come through the pipe."""
    ds = ct_series(**SHAPE)[0]
    data = stream(ds)[:-900]
    with pytest.raises(DamagedInstance) as here:
        decoded_here(data)
    with pytest.raises(DamagedInstance) as there:
        decoders.decode(data).result()
    assert (str(there.value), there.value.remedy) == (str(here.value), here.value.remedy)
    intact = stream(ct_series(**SHAPE)[0])
    np.testing.assert_array_equal(decoders.decode(intact).result(), decoded_here(intact))


def test_a_decoder_that_is_killed_is_replaced() -> None:
    """A crash in a decoder's native code costs a process, not the series."""
    data = stream(ct_series(**SHAPE)[10])
    decoders = Decoders(processes=1)
    try:
        expected = decoders.decode(data).result()
        killed = decoders._idle.get()
        os.kill(killed._process.pid, signal.SIGKILL)
        killed._process.wait()
        decoders._idle.put(killed)
        for _ in range(2):
            np.testing.assert_array_equal(decoders.decode(data).result(), expected)
        assert decoders._idle.get()._process.pid != killed._process.pid
    finally:
        decoders.close()


def test_closing_leaves_no_process() -> None:
    """A worker that stops takes its decoders along."""
    decoders = Decoders(processes=2)
    decoders.decode(stream(ct_series(**SHAPE)[0])).result()
    processes = [decoders._idle.get() for _ in range(2)]
    for process in processes:
        decoders._idle.put(process)
    decoders.close()
    assert all(process._process.poll() is not None for process in processes)


@pytest.mark.parametrize("position", ["HFS", "FFS"])
def test_the_network_has_the_first_slices_before_the_last_are_decoded(
    decoders: Decoders, position: str
) -> None:
    """Of a series whose last slice but one is damaged, most were labelled by then."""
    model = load_model(MODELS / "ct_lungs")
    assert isinstance(model, VolumeModel)
    series = ct_series(**SHAPE, position=position)
    streams = [stream(ds) for ds in series]
    heights = [float(ds.ImagePositionPatient[2]) for ds in series]
    # Every other slice, the last one too, is looked at first to find the body; this one is not.
    last_but_one = int(np.argsort(heights)[-2])
    streams[last_but_one] = streams[last_but_one][:-900]
    shares: list[float] = []
    with pytest.raises(DamagedInstance):
        model.segment(arriving(streams, decoders), shares.append)
    assert 0.5 < max(shares) < 1


@pytest.mark.parametrize("position", ["HFS", "FFS"])
def test_labels_are_those_of_the_whole_volume(decoders: Decoders, position: str) -> None:
    """Streaming changes when a slice is computed, not what is found in it."""
    model = load_model(MODELS / "ct_lungs")
    assert isinstance(model, VolumeModel)
    series = ct_series(slices=16, rows=100, columns=120, spacing_mm=(6, 3, 3), position=position)
    expected = model.segment(volume_from_series(series)).array
    assert expected.any()
    found = model.segment(arriving([stream(ds) for ds in series], decoders)).array
    np.testing.assert_array_equal(found, expected)
