"""What every call to the console has in common: its token, its body, and how it is refused."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from node.errors import NodeError, Unavailable

_MAX_REQUEST_BYTES = 4096


class Refused(Exception):
    """A call that cannot be answered: HTTP status, what is wrong, and what to do."""

    def __init__(self, status: int, message: str, remedy: str) -> None:
        super().__init__(message)
        self.status = status
        self.remedy = remedy


class TokenRequired:
    """Answers 401 to every call that does not bear the token, except ``/health``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refusal = _refusal(401, "The token is missing or wrong.", "Use the node's token.")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def body_of(request: Request) -> Mapping[str, str]:
    """The call's JSON object of texts."""
    received = b""
    async for chunk in request.stream():
        received += chunk
        if len(received) > _MAX_REQUEST_BYTES:
            raise Refused(413, "The request is too long.", "Name one model and one series.")
    try:
        body: Any = json.loads(received)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not all(isinstance(value, str) for value in body.values()):
        raise Refused(400, "The request is no JSON object of texts.", 'Send {"model": "name"}.')
    return body


def _refusal(status: int, message: str, remedy: str) -> JSONResponse:
    return JSONResponse({"message": message, "remedy": remedy}, status_code=status)


def answer_refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - registered for this class
    return _refusal(error.status, str(error), error.remedy)


def answer_not_possible(_request: Request, error: Exception) -> Response:
    return _refusal(409, str(error), "Reload the page: the job has changed meanwhile.")


def answer_node_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, NodeError)  # noqa: S101 - registered for this class
    status = 503 if isinstance(error, Unavailable) else 422
    return _refusal(status, str(error), error.remedy)
