"""A viewer and an Orthanc's DICOMweb on one origin, as a hospital's reverse proxy joins them.

Orthanc sends no CORS headers, so a page from another origin could not read its answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj
from urllib.parse import urlsplit

import httpx

APP_CONFIG = Path(__file__).with_name("app-config.js")
DICOM_WEB = "/dicom-web/"
PASSED_ON = ("Accept",)
PASSED_BACK = ("Content-Type", "Content-Encoding")


@contextmanager
def one_origin(application: Path, dicom_web: str, auth: tuple[str, str]) -> Iterator[str]:
    """Serve ``application`` and, under /dicom-web/, an Orthanc; yields the origin.

    Parameters
    ----------
    application
        Folder of a built OHIF; its configuration is replaced by ours, nothing else.
    dicom_web
        URL of Orthanc, without the path.
    auth
        User and password that the proxy shows to Orthanc; the browser knows neither.
    """
    with httpx.Client(base_url=dicom_web, auth=auth, timeout=120) as upstream:

        class Handler(_Origin):
            orthanc = upstream
            folder = application

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


class _Origin(SimpleHTTPRequestHandler):
    """GET only: a viewer that reads."""

    orthanc: httpx.Client
    folder: Path
    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 - the base class's own, with what modules and wasm need
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def do_GET(self) -> None:
        try:
            if self.path.startswith(DICOM_WEB):
                self._proxy()
            else:
                self._send_file(self._file())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page was left while it loaded

    def end_headers(self) -> None:
        # OHIF's volumes want SharedArrayBuffer, which browsers give to isolated pages only.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def _proxy(self) -> None:
        host = self.headers["Host"]
        headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        headers |= {"Host": host, "Forwarded": f"host={host};proto=http"}
        headers["Accept-Encoding"] = self.headers.get("Accept-Encoding", "identity")
        with self.orthanc.stream("GET", self.path, headers=headers) as answer:
            body = b"".join(answer.iter_raw())
        self.send_response(answer.status_code)
        for name in PASSED_BACK:
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self) -> Path | None:
        """The file asked for; every other path is a page of the single-page application."""
        path = urlsplit(self.path).path
        if path == "/app-config.js":
            return APP_CONFIG
        asked = Path(self.translate_path(path))
        if asked.is_file():
            return asked
        return None if asked.suffix else self.folder / "index.html"

    def translate_path(self, path: str) -> str:
        """Below the application's folder, whatever dots the path has."""
        self.directory = str(self.folder)
        return super().translate_path(path)

    def _send_file(self, file: Path | None) -> None:
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", self.guess_type(file))
        self.send_header("Content-Length", str(file.stat().st_size))
        self.send_header("Cache-Control", "max-age=3600")  # one application for many pages
        self.end_headers()
        with file.open("rb") as stream:
            copyfileobj(stream, self.wfile)
