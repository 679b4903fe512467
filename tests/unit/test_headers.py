"""Headers of received instances: read, or named as damaged."""

from __future__ import annotations

import io

from node.errors import DamagedInstance
from node.pipeline.headers import read_header
from tests.phantoms import ct_series


def test_every_cut_of_an_instance_is_read_or_named_as_damaged() -> None:
    """A stream that ends anywhere in its header is no fault of the node's."""
    (instance, *_) = ct_series(slices=2)
    stream = io.BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    whole = stream.getvalue()
    damaged = 0
    for end in range(0, len(whole) - len(instance.PixelData), 3):
        try:
            read_header(whole[:end])
        except DamagedInstance:
            damaged += 1
    assert damaged > 20  # most cuts fall into a long value or between elements
