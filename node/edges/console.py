"""The node's HTTP interface on loopback: what the pages in Orthanc's console show and ask for.

The bridge inside Orthanc calls it for a person whom Orthanc has let in, with the node's own token.
Everything here is known by Orthanc's hashes: the browser joins a job with its patient, from
Orthanc, so no patient's value passes through the node.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from node import log
from node.edges.console_flow import Flow
from node.edges.console_http import (
    Refused,
    TokenRequired,
    answer_node_error,
    answer_not_possible,
    answer_refused,
    body_of,
)
from node.edges.console_json import (
    GROUPS,
    can_release,
    group_counts,
    job_shown,
    review_shown,
    states_of,
    steps_shown,
    timings_shown,
)
from node.edges.ledger import Ledger
from node.edges.space import Forecast, forecast_shown
from node.errors import NodeError, NotPossible
from node.jobs import BY_HAND, Job, State, Wish
from node.manifest import ModelManifest
from node.pipeline.pixel_review import RELEASED, Review, picture_of, read_review
from node.pipeline.working_data import PICTURE
from node.ports import Artifacts

#: The newest jobs that one answer may list.
MAX_JOBS = 200
#: An Orthanc identifier: a SHA-1 in five groups.
_ORTHANC_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")


class Studies(Protocol):
    """What the console asks Orthanc."""

    def modality_of_series(self, study_id: str) -> Mapping[str, str]:
        """Every series of a study (Orthanc's id) with its Modality (0008,0060); empty if none."""

    def instances_of_series(self, series_id: str) -> tuple[str, ...]:
        """Ids of all instances received for the series."""

    def instance_file(self, instance_id: str) -> bytes:
        """The instance as it was received."""


def console_app(
    ledger: Ledger,
    orthanc: Studies,
    artifacts: Artifacts,
    manifests: Mapping[str, ModelManifest],
    token: str,
    nudge: Callable[[], None],
    destinations: Sequence[str] = ("sender",),
    *,
    review_key: bytes,
    disks: Callable[[], Sequence[Forecast]] = tuple,
) -> Starlette:
    """The console's ASGI application.

    Parameters
    ----------
    manifests
        Model name → manifest, of every model that a person may choose.
    token
        What every call but ``/health`` must bear. Never empty.
    nudge
        Wakes the receiver and the sweeper; called when something arrived or became due.
    destinations
        Where a person may have results sent: ``sender``, or the name of a peer.
    review_key
        Tells whether a held image is still the one that was examined, and its review the node's.
    disks
        How full each disk is, and when it will be.
    """
    if not token:
        raise ValueError("the console needs a token")
    console = _Console(
        ledger, orthanc, artifacts, manifests, nudge, tuple(destinations), review_key, disks
    )
    flow = Flow(ledger, [name for name in destinations if name != "sender"], nudge)
    return Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            Route("/nudge", console.nudged, methods=["POST"]),
            Route("/jobs", console.jobs, methods=["GET"]),
            Route("/jobs/{job_id}", console.job, methods=["GET"]),
            Route("/jobs/{job_id}/overlay.png", console.overlay, methods=["GET"]),
            Route("/jobs/{job_id}/review", console.review, methods=["GET"]),
            Route(
                "/jobs/{job_id}/review/{image:int}-{frame:int}.png",
                console.held_picture,
                methods=["GET"],
            ),
            Route("/jobs/{job_id}/release", console.release, methods=["POST"]),
            Route("/jobs/{job_id}/retry", console.retry, methods=["POST"]),
            Route("/jobs/{job_id}/cancel", console.cancel, methods=["POST"]),
            Route("/models", console.models, methods=["GET"]),
            Route("/storage", console.storage, methods=["GET"]),
            Route("/flow", flow.shown, methods=["GET"]),
            Route("/flow/{kind}/{name}/{wanted}", flow.change, methods=["POST"]),
            Route("/studies/{study_id}/process", console.process, methods=["POST"]),
        ],
        middleware=[Middleware(TokenRequired, token=token)],
        exception_handlers={
            Refused: answer_refused,
            NotPossible: answer_not_possible,
            NodeError: answer_node_error,
        },
    )


@dataclass(frozen=True)
class _Console:
    """The routes. Synchronous ones run in Starlette's thread pool, because the ledger blocks."""

    ledger: Ledger
    orthanc: Studies
    artifacts: Artifacts
    manifests: Mapping[str, ModelManifest]
    nudge: Callable[[], None]
    destinations: tuple[str, ...]
    review_key: bytes = field(repr=False)
    disks: Callable[[], Sequence[Forecast]]

    def nudged(self, _request: Request) -> Response:
        """``POST /nudge``: something arrived in Orthanc."""
        self.nudge()
        return Response(status_code=204)

    def jobs(self, request: Request) -> Response:
        """``GET /jobs?study=&state=&limit=``: newest first, with the number in each group."""
        query = request.query_params
        study_id = query.get("study")
        states, unwanted = _states_asked(query.get("state", ""))
        found = self.ledger.jobs(_limit(query.get("limit")), study_id, states, unwanted)
        now = time.time()
        counts = self.ledger.counts(study_id)
        return JSONResponse(
            {
                "jobs": [job_shown(job, now) for job in found],
                "counts": group_counts(counts, self.ledger.unwanted(study_id)),
                "steps": steps_shown(),
            }
        )

    def job(self, request: Request) -> Response:
        """``GET /jobs/{id}``: one job with its attempts, the time of each step, and its picture."""
        job = self._found(request)
        attempts = self.ledger.attempts(job.id)
        now = time.time()
        drawn = PICTURE in job.facts and _picture(job) in self.artifacts.names(f"{job.id}/")
        return JSONResponse(
            {
                **job_shown(job, now),
                **timings_shown(attempts, now),
                "picture": drawn,
                "review": read_review(job, self.artifacts, self.review_key) is not None,
                "steps": steps_shown(),
            }
        )

    def overlay(self, request: Request) -> Response:
        """``GET /jobs/{id}/overlay.png``: slices with the segmentation drawn over them."""
        job = self._found(request)
        try:
            png = self.artifacts.get(_picture(job))
            if hashlib.sha256(png).hexdigest() != job.facts[PICTURE]:
                raise KeyError("somebody else's picture")
        except KeyError:
            raise Refused(
                404, "There is no picture of this job yet.", "It is drawn in step encode."
            ) from None
        return Response(png, media_type="image/png")

    def review(self, request: Request) -> Response:
        """``GET /jobs/{id}/review``: images held for their pixels, and what would be blanked."""
        job = self._found(request)
        return JSONResponse(review_shown(job, self._review(job)))

    def held_picture(self, request: Request) -> Response:
        """``GET /jobs/{id}/review/{image}-{frame}.png``: as it would leave; both count from 1.

        Drawn from Orthanc's copy each time and kept nowhere.
        """
        job = self._found(request)
        review = self._review(job)
        number, frame = request.path_params["image"], request.path_params["frame"]
        try:
            if number < 1:
                raise IndexError("images count from 1")
            image = review.images[number - 1]
            data = self.orthanc.instance_file(job.instance_ids[image.number - 1])
            png = picture_of(image, data, frame - 1, self.review_key)
        except IndexError:
            raise Refused(404, "There is no such picture.", "Reload the page.") from None
        return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})

    async def release(self, request: Request) -> Response:
        """``POST /jobs/{id}/release``, ``{"review": digest}``: go on, blanked as it was shown."""
        asked = await body_of(request)
        return await run_in_threadpool(self._release, self._found(request), asked)

    def _release(self, job: Job, asked: Mapping[str, str]) -> Response:
        review = self._review(job)
        if not can_release(job, review):
            raise Refused(
                409, "The job is not held for a person to release.", "Reload the page: see why."
            )
        if not hmac.compare_digest(asked.get("review", "").encode(), review.digest.encode()):
            raise Refused(
                409, "What would be blanked has changed since.", "Reload the page and look again."
            )
        job = self.ledger.retry(job.id, {RELEASED: review.digest})
        log.get().info("images released by a person", job_id=job.id, instances=len(review.images))
        self.nudge()
        return JSONResponse(job_shown(job, time.time()))

    def _review(self, job: Job) -> Review:
        review = read_review(job, self.artifacts, self.review_key)
        if review is None:
            raise Refused(
                404, "No image of this job waits to be looked at.",
                "Pictures are there while a job is held under the option clean-pixel-data.",
            )  # fmt: skip
        return review

    def retry(self, request: Request) -> Response:
        """``POST /jobs/{id}/retry``: the step at which it stopped, with fresh attempts."""
        job = self.ledger.retry(self._found(request).id)
        self.nudge()
        return JSONResponse(job_shown(job, time.time()))

    def cancel(self, request: Request) -> Response:
        """``POST /jobs/{id}/cancel``: stop it; what was received stays in Orthanc."""
        job = self.ledger.cancel(self._found(request).id)
        return JSONResponse(job_shown(job, time.time()))

    def models(self, _request: Request) -> Response:
        """``GET /models``: what a person can choose from."""
        return JSONResponse(
            {
                "models": [
                    {"name": model.name, "version": model.version, "modality": model.modality}
                    for model in self.manifests.values()
                ],
                "destinations": list(self.destinations),
            }
        )

    def storage(self, _request: Request) -> Response:
        """``GET /storage``: how full the disks are, and when they will be."""
        return JSONResponse({"disks": [forecast_shown(one) for one in self.disks()]})

    async def process(self, request: Request) -> Response:
        """``POST /studies/{id}/process``: a job of each series that the model could take.

        The body is ``{"model": name}``, with ``"series"`` to name one series and ``"destination"``
        to send the results elsewhere than to the first of ``destinations``. In the answer,
        ``already`` are the ids of jobs that were there before: a model runs once on the same
        instances.
        """
        asked = await body_of(request)
        study_id = request.path_params["study_id"]
        jobs, already = await run_in_threadpool(self._request_jobs, study_id, asked)
        now = time.time()
        shown = [job_shown(job, now) for job in jobs]
        return JSONResponse({"jobs": shown, "already": already}, status_code=202)

    def _request_jobs(self, study_id: str, asked: Mapping[str, str]) -> tuple[list[Job], list[str]]:
        manifest = self.manifests.get(asked.get("model", ""))
        if manifest is None:
            raise Refused(404, "There is no such model.", "`segnode models` lists them.")
        destination = asked.get("destination", self.destinations[0])
        if destination not in self.destinations:
            raise Refused(
                404, "There is no such destination.", "Name it as a peer in segnode.toml."
            )
        wish = Wish(BY_HAND, BY_HAND, manifest.name, manifest.digest, (destination,))
        chosen = self._suitable_series(study_id, manifest, asked.get("series"))
        before = {job.id for job in self.ledger.jobs(limit=MAX_JOBS, study_id=study_id)}
        jobs = [
            self.ledger.request(
                series_id, study_id, self.orthanc.instances_of_series(series_id), wish
            )
            for series_id in chosen
        ]
        self.nudge()
        return jobs, [job.id for job in jobs if job.id in before]

    def _suitable_series(
        self, study_id: str, manifest: ModelManifest, series_id: str | None
    ) -> list[str]:
        """The series worth trying; step route checks the rest of the model's contract."""
        known = _ORTHANC_ID.fullmatch(study_id) is not None
        modalities = self.orthanc.modality_of_series(study_id) if known else {}
        if not modalities:
            raise Refused(404, "Orthanc has no such study.", "Send the study again.")
        if series_id is not None and series_id not in modalities:
            raise Refused(404, "The study has no such series.", "Reload the study's page.")
        asked = [series_id] if series_id is not None else list(modalities)
        chosen = [one for one in asked if modalities[one] in manifest.input.modalities]
        if not chosen:
            raise Refused(
                422,
                f"Model {manifest.name} takes {manifest.modality} series; there is none here.",
                "Choose another model or study.",
            )
        return chosen

    def _found(self, request: Request) -> Job:
        job = self.ledger.job(request.path_params["job_id"])
        if job is None:
            raise Refused(404, "There is no such job.", "`segnode jobs` lists them.")
        return job


def _health(_request: Request) -> Response:
    return PlainTextResponse("ok")


def _picture(job: Job) -> str:
    return f"{job.id}/overlay.png"


def _states_asked(asked: str) -> tuple[set[State] | None, bool | None]:
    """A filter from ``stuck``, ``running``, ``done`` or states, separated by commas."""
    names = set(filter(None, asked.split(",")))
    if not names:
        return None, None
    try:
        return states_of(names)
    except KeyError:
        raise Refused(
            400, "There is no such state.", f"Use {', '.join([*GROUPS, *State])}."
        ) from None


def _limit(asked: str | None) -> int:
    if asked is None:
        return MAX_JOBS
    if not asked.isdecimal() or not 1 <= int(asked) <= MAX_JOBS:
        raise Refused(400, "The limit is no number in range.", f"Use 1 to {MAX_JOBS}.")
    return int(asked)
