"""The network between the node and a PACS: a TCP connection on loopback that can be broken.

::

    with Wire(pacs.dicom_port) as wire:
        wire.dicom_port      # where the node finds the PACS
        wire.cut_after(2000) # the next connection that sends so many bytes is reset
        wire.hang()          # nothing is handed on any more; connections stay open
        wire.refuse()        # nobody listens
        wire.mend()          # all is well again
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from tests.orthanc_server import free_port

#: SO_LINGER with no time: closing sends RST, as a firewall or a dying host does.
_RESET = struct.pack("ii", 1, 0)


class Wire:
    """Hands bytes on in both directions, until it is told otherwise."""

    def __init__(self, to_port: int) -> None:
        self.dicom_port = free_port()
        self._to = ("127.0.0.1", to_port)
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._left: int | None = None  # bytes that still pass before the cut
        #: How often something was cut, or had to wait.
        self.hits = 0
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Wire:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_listening()
        self.reset()
        self._flows.set()

    def cut_after(self, sent_bytes: int) -> None:
        """Reset all connections once the node has sent so many more bytes."""
        with self._lock:
            self._left = sent_bytes

    def reset(self) -> None:
        """Reset every connection now."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            _reset(end)

    def hang(self) -> None:
        """Hand nothing on."""
        self._flows.clear()

    def refuse(self) -> None:
        """Listen no more, and reset what is open."""
        self._stop_listening()
        self.reset()

    def mend(self) -> None:
        """What hung flows again, and the next connection is taken."""
        with self._lock:
            self._left = None
        self._flows.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.dicom_port))
        listener.listen(32)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._to, timeout=5)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, counted in ((near, far, True), (far, near, False)):
                threading.Thread(
                    target=self._carry, args=(source, sink, counted), daemon=True
                ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                if not self._flows.is_set():
                    self.hits += 1
                    self._flows.wait()
                passes, cut = self._passing(len(data)) if counted else (len(data), False)
                sink.sendall(data[:passes])
                if cut:
                    self.reset()
                    return
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            with self._lock:
                done = source not in self._open
                self._open.discard(source)
            if not done and sink not in self._open:  # both directions have ended
                source.close()
                sink.close()

    def _passing(self, wanted: int) -> tuple[int, bool]:
        with self._lock:
            if self._left is None:
                return wanted, False
            passes = min(wanted, self._left)
            self._left -= passes
            if self._left > 0:
                return passes, False
            self._left = None
            self.hits += 1
            return passes, True


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in recv()
    end.close()
