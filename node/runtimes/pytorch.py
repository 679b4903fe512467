"""PyTorch: the GPU path, and the fallback on processors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch

from node.runtimes import Engine, Scores

_CPU_BATCH_SLICES = 4
"""More changes little on a processor and costs memory."""
_GPU_BATCH_SLICES = 32
"""More than this fills no H100 better with networks of this size."""
_GPU_MEMORY_SHARE = 0.4
"""Of the free memory, for each of two batches in flight."""


class TorchCpu:
    """Eager float32, channels-last."""

    def __init__(self, network: torch.nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.engine = Engine("torch", torch.__version__, "CPU", "f32")
        self.batch_slices = _CPU_BATCH_SLICES

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        """See :class:`node.runtimes.Runtime`; one batch at a time."""
        for slab in slabs:
            tensor = torch.from_numpy(slab).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                yield self._network(tensor).numpy()


class TorchGpu:
    """Half precision, channels-last; copies of one batch overlap with the arithmetic of another."""

    def __init__(
        self, network: torch.nn.Module, slab_shape: tuple[int, int, int], *, half: bool
    ) -> None:
        """``slab_shape`` is (channels, rows, columns), from which the batch size follows."""
        self._device = torch.device("cuda")
        self._dtype = torch.float16 if half else torch.float32
        # Chosen once and the same for every run, else two runs may differ in the last bits.
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._network = network.to(
            device=self._device, dtype=self._dtype, memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        self._streams = (torch.cuda.Stream(), torch.cuda.Stream())  # type: ignore[no-untyped-call]
        name = torch.cuda.get_device_name(self._device)
        self.engine = Engine("torch", torch.__version__, name, "f16" if half else "f32")
        self.batch_slices = self._fitting_batch(slab_shape)

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        """See :class:`node.runtimes.Runtime`; two batches in flight, each on its own stream."""
        flying: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        for number, slab in enumerate(slabs):
            flying.append(self._start(slab, self._streams[number % len(self._streams)]))
            if len(flying) == len(self._streams):
                yield _finished(*flying.popleft())
        while flying:
            yield _finished(*flying.popleft())

    def _start(
        self, slab: Scores, stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.Event, torch.Tensor]:
        with torch.cuda.stream(stream), torch.inference_mode():
            pinned = torch.from_numpy(slab).pin_memory()
            tensor = pinned.to(self._device, non_blocking=True)
            tensor = tensor.to(dtype=self._dtype, memory_format=torch.channels_last)
            logits = self._network(tensor).float().contiguous()
            result = torch.empty(logits.shape, dtype=torch.float32, pin_memory=True)
            result.copy_(logits, non_blocking=True)
            # The caching allocators keep both ends of a copy until the stream has passed it.
            return stream.record_event(), result

    def _fitting_batch(self, slab_shape: tuple[int, int, int]) -> int:
        """As many slices as the free memory takes, measured with one."""
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        with torch.inference_mode():
            one = torch.zeros((1, *slab_shape), device=self._device, dtype=self._dtype)
            self._network(one.to(memory_format=torch.channels_last))
        torch.cuda.synchronize(self._device)
        each = max(1, torch.cuda.max_memory_allocated(self._device) - before)
        free, _ = torch.cuda.mem_get_info(self._device)
        return max(1, min(_GPU_BATCH_SLICES, int(free * _GPU_MEMORY_SHARE / each)))


def _finished(done: torch.cuda.Event, result: torch.Tensor) -> Scores:
    done.synchronize()
    finished: Scores = result.numpy()
    return finished
