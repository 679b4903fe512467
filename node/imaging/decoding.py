"""Decode compressed instances in other processes, because decoders hold the interpreter's lock.

Measured on 100 slices of JPEG-LS: two threads of one process take as long as one. The processes are
children of ours that read instances from a pipe and write Hounsfield units to another; nothing is
pickled, and a decoder that crashes on damaged data takes no worker with it. ``multiprocessing``
would do, but a Celery worker's pool child may have no such children.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from node import errors
from node.errors import DamagedInstance, NodeError, Rejected
from node.imaging.pixels import modality_values

_LENGTH = struct.Struct("<Q")
_REPLY = struct.Struct("<?II")
"""Whether it was decoded; then rows and columns, or the length of the refusal and 0."""

Pixels = npt.NDArray[np.int16]


class Decoders:
    """Processes that decode, started at the first use and kept. Not for sharing between threads."""

    def __init__(self, processes: int) -> None:
        """With 0 processes everything is decoded here, when it is asked for."""
        self.processes = processes
        self._threads: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()

    def decode(self, data: bytes) -> Future[Pixels]:
        """:func:`modality_values` of a Part 10 stream, in one of the processes, later."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="decode")
            for _ in range(self.processes):
                self._idle.put(_Decoder())
        return self._threads.submit(self._decoded, data)

    def close(self) -> None:
        """Let go of what waits, and end the processes."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
            while not self._idle.empty():
                self._idle.get().close()

    def _decoded(self, data: bytes) -> Pixels:
        decoder = self._idle.get()
        try:
            return decoder.decode(data)
        except (OSError, EOFError):
            # It ended: by the system, or in a decoder's native code. What it cannot do is done
            # here, where the same crash is the worker's, as if there were no processes.
            decoder.close()
            decoder = _Decoder()
            return decoded_here(data)
        finally:
            self._idle.put(decoder)


def decoding_processes(threads: int) -> int:
    """How many beside a network that has ``threads`` of the processor."""
    # More do not make it faster: one decodes JPEG-LS about as fast as one thread infers.
    return min(4, threads // 2)


def decoded_here(data: bytes) -> Pixels:
    """:func:`modality_values` of a Part 10 stream.

    Raises
    ------
    DamagedInstance
        Besides what :func:`modality_values` raises: the stream ends before its pixel data.
    """
    try:
        ds = dcmread(io.BytesIO(data))
    except (InvalidDicomError, EOFError, ValueError) as error:
        raise DamagedInstance(
            f"An instance cannot be read as DICOM to its end ({type(error).__name__})"
        ) from None
    return modality_values(ds)


class _Decoder:
    """One process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "node.imaging.decoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # pydicom's warnings quote values
        )

    def decode(self, data: bytes) -> Pixels:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - both are pipes
        assert stdout is not None  # noqa: S101
        stdin.write(_LENGTH.pack(len(data)))
        stdin.write(data)
        stdin.flush()
        decoded, rows, columns = _REPLY.unpack(_exactly(stdout, _REPLY.size))
        if not decoded:
            raise _refusal(_exactly(stdout, rows))
        pixels = np.frombuffer(_exactly(stdout, rows * columns * 2), np.int16)
        return pixels.reshape(rows, columns)

    def close(self) -> None:
        """End the process; it may have ended already."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()


def serve(stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Decode what comes until the other end closes."""
    for data in _requests(stdin):
        try:
            pixels = decoded_here(data)
        except NodeError as error:
            refusal = json.dumps([type(error).__name__, str(error), error.remedy]).encode()
            stdout.write(_REPLY.pack(False, len(refusal), 0))
            stdout.write(refusal)
        else:
            stdout.write(_REPLY.pack(True, *pixels.shape))
            stdout.write(np.ascontiguousarray(pixels).data)
        stdout.flush()


def _requests(stdin: IO[bytes]) -> Iterator[bytes]:
    while header := stdin.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(header)
        yield _exactly(stdin, length)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _refusal(data: bytes) -> NodeError:
    name, message, remedy = json.loads(data)
    kind: type[NodeError] = getattr(errors, name, Rejected)
    return kind(message, remedy=remedy)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
