"""Queues and destinations, as the console shows them: a person may pause and resume each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node import log
from node.edges.console_http import Refused
from node.edges.console_json import iso
from node.edges.ledger import Ledger
from node.pipeline import QUEUES


@dataclass(frozen=True)
class Flow:
    """What goes on and what stands still."""

    ledger: Ledger
    destinations: Sequence[str]
    nudge: Callable[[], None]

    def shown(self, _request: Request) -> Response:
        """``GET /flow``: what each queue has to do, and what a person has paused."""
        return JSONResponse(self._flow())

    def change(self, request: Request) -> Response:
        """``POST /flow/{queue|destination}/{name}/{pause|resume}``; the flow as it is now."""
        kind, name, wanted = (request.path_params[part] for part in ("kind", "name", "wanted"))
        known = {"queue": QUEUES, "destination": self.destinations}.get(kind, ())
        if name not in known or wanted not in ("pause", "resume"):
            raise Refused(
                404, "There is no such queue or destination.", "`segnode queue list` shows them."
            )
        if wanted == "pause":
            self.ledger.pause(f"{kind}:{name}")
        else:
            self.ledger.resume(f"{kind}:{name}")
            self.nudge()
        log.get().info(f"{wanted}d by a person", **{kind: name})
        return JSONResponse(self._flow())

    def _flow(self) -> dict[str, object]:
        since = {pause.name: iso(pause.since) for pause in self.ledger.pauses()}
        return {
            "queues": [
                {
                    "name": name,
                    "steps": [str(step.name) for step in steps],
                    "waiting": self.ledger.waiting_for(steps),
                    "running": self.ledger.running(steps),
                    "paused_since": since.get(f"queue:{name}"),
                }
                for name, steps in QUEUES.items()
            ],
            "destinations": [
                {"name": name, "paused_since": since.get(f"destination:{name}")}
                for name in self.destinations
            ],
        }
