"""OpenVINO: the CPU path. A worker that runs an export imports neither torch nor timm.

The one module that imports openvino, because its import sends an event to Google Analytics unless
its telemetry package is missing: it is made to look missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.runtimes import Engine, Precision, Scores

if TYPE_CHECKING:
    import torch

_TELEMETRY = "openvino_telemetry"


class OpenVinoCpu:
    """An export, compiled for this processor.

    Each stream is one thread with one slice at a time: two streams of one thread beat one stream
    of two, and a slice's scores do not depend on what else is computed.
    """

    batch_slices = 1

    def __init__(self, xml: bytes, weights: bytes, precision: Precision, threads: int) -> None:
        """``xml`` and ``weights`` are the two files of an intermediate representation."""
        self._tensor = _openvino().Tensor
        compiled = _core().compile_model(
            _core().read_model(xml, weights),
            "CPU",
            {
                # Left to itself OpenVINO takes bf16 wherever the processor has it.
                "INFERENCE_PRECISION_HINT": precision,
                "NUM_STREAMS": threads,
                "INFERENCE_NUM_THREADS": threads,
                # Pinned, the threads of two workers share the first cores and leave others idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        # One more than streams, so that none idles while the caller uses the oldest result.
        self._requests = [compiled.create_infer_request() for _ in range(threads + 1)]
        self.engine = Engine("openvino", version(), processor(), precision)

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        """See :class:`node.runtimes.Runtime`."""
        idle = deque(self._requests)
        running: deque[Any] = deque()
        try:
            for slab in slabs:
                request = idle.popleft()
                request.set_input_tensor(self._tensor(slab, shared_memory=False))
                request.start_async()
                running.append(request)
                if not idle:
                    yield _finished(running, idle)
            while running:
                yield _finished(running, idle)
        finally:
            for request in running:
                request.wait()


def is_installed() -> bool:
    """Whether the package is here, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def version() -> str:
    """OpenVINO's release, without importing it."""
    return importlib.metadata.version("openvino")


def processor() -> str:
    """The processor as OpenVINO calls it."""
    return str(_core().get_property("CPU", "FULL_DEVICE_NAME"))


def computes_bf16() -> bool:
    """Whether this processor multiplies bfloat16, rather than pretending to."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def save_export(network: torch.nn.Module, slab_shape: tuple[int, int, int], export: Path) -> None:
    """Write a PyTorch network as an intermediate representation in float32: XML and weights.

    ``slab_shape`` is (channels, rows, columns); the number of slices stays open.
    """
    openvino = _openvino()
    import torch

    with torch.inference_mode():
        model = openvino.convert_model(
            network,
            input=[(-1, *slab_shape)],
            example_input=torch.zeros((2, *slab_shape)),
        )
    openvino.save_model(model, export, compress_to_fp16=False)


def _finished(running: deque[Any], idle: deque[Any]) -> Scores:
    """Wait for the oldest request and free it; a copy, because the next run reuses its memory."""
    request = running.popleft()
    request.wait()
    scores: Scores = request.get_output_tensor().data.copy()
    idle.append(request)
    return scores


@cache
def _core() -> Any:
    return _openvino().Core()


@cache
def _openvino() -> Any:
    # ``None`` in sys.modules makes its import fail; openvino then uses its own silent stub.
    if sys.modules.get(_TELEMETRY) is not None:
        raise RuntimeError("openvino_telemetry was imported before; it would report to its maker")
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    import openvino

    return openvino
