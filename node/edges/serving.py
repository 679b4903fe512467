"""Serve an ASGI application over HTTP, on loopback or a private network."""

from __future__ import annotations

import uvicorn
from starlette.applications import Starlette


def serve(app: Starlette, host: str, port: int) -> None:
    """Answer until the process is told to stop; what goes wrong is written by :mod:`node.log`.

    uvicorn's own log configuration would write what an exception says, which may be a patient's.
    """
    uvicorn.run(app, host=host, port=port, log_config=None, log_level="warning", access_log=False)
