"""The explorer's addresses: the page and its files, and what the page asks for under /api."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from causal_tracing.errors import (
    CausalTracingError,
    InputError,
    InvalidOption,
    InvalidResults,
    MachineError,
    ModelError,
)
from causal_tracing.explorer.asked import asked_of, deeper_of, name_of
from causal_tracing.explorer.jobs import MOST_WAITING, Full, Job, said
from causal_tracing.report.page.forms import form, part
from causal_tracing.report.page.page import SCRIPTS
from causal_tracing.report.page.sections import drawn_form
from causal_tracing.results.site_kinds import KINDS, PATHS

LOOK = 0.05  # seconds between two looks at what was told
QUIET = 15.0  # seconds after which a stream says that it is still there
STATUS = {InvalidResults: 409, InputError: 422, MachineError: 503, ModelError: 501}
SCRIPT, STYLE, PLAIN = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "text/plain; charset=utf-8"
OWN = ("explore.js", "talk.js", "ask.js", "deeper.js", "result.js")
EXPORTS = {"effects.csv": "text/csv; charset=utf-8", "effects.parquet": "application/octet-stream"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """The application. `closing` says whether the server is about to end."""

    session: Any
    closing: Callable[[], bool]

    def application(self) -> Starlette:
        """The routes; a known error becomes its status and one message."""
        routes = [
            Route("/", _page),
            Route("/static/{name}", _static),
            Route("/healthz", _health),
            Route("/api/model", self.model),
            Route("/api/tokens", self.tokens, methods=["POST"]),
            Route("/api/preview", self.preview, methods=["POST"]),
            Route("/api/estimate", self.estimate, methods=["POST"]),
            Route("/api/traces", self.traces),
            Route("/api/traces", self.start, methods=["POST"]),
            Route("/api/traces/{id}", self.trace),
            Route("/api/traces/{id}", self.stop, methods=["DELETE"]),
            Route("/api/traces/{id}/events", self.events),
            Route("/api/traces/{id}/deeper", self.deeper, methods=["POST"]),
            Route("/api/traces/{id}/save", self.save, methods=["POST"]),
            Route("/api/traces/{id}/view", self.view),
            Route("/api/traces/{id}/page", self.report),
            Route("/api/traces/{id}/{name}", self.export),
        ]
        return Starlette(routes=routes, exception_handlers={CausalTracingError: _known, Full: _full, Unknown: _unknown})

    async def model(self, request: Request) -> Response:
        """What is offered."""
        return JSONResponse(dict(self.session.about()))

    async def tokens(self, request: Request) -> Response:
        """A pair's tokens, without waiting for the model."""
        asked = asked_of(await _json(request))
        return JSONResponse(await asyncio.to_thread(self.session.tokens, asked))

    async def preview(self, request: Request) -> Response:
        """What is understood of a pair; an error in it is part of the answer, with the field it belongs to."""
        return await self._errand(self.session.preview(asked_of(await _json(request))))

    async def estimate(self, request: Request) -> Response:
        """What a trace will take."""
        return await self._errand(self.session.estimate(asked_of(await _json(request))))

    async def traces(self, request: Request) -> Response:
        """The traces of this session, the newest last."""
        jobs = [job for job in self.session.worker.jobs.values() if job.lane == "trace"]
        return JSONResponse([_listed(job) for job in jobs])

    async def start(self, request: Request) -> Response:
        """Begins a trace; the tab's earlier one ends."""
        asked = asked_of(await _json(request))
        job = await asyncio.to_thread(lambda: self.session.worker.submit(self.session.trace(asked)))
        return JSONResponse({"id": job.id, "ahead": self.session.worker.ahead(job)}, 202)

    async def trace(self, request: Request) -> Response:
        """A trace as it stands: the document of `--json` once it is finished."""
        job = self._job(request)
        found = _listed(job)
        if job.result is not None:
            found["document"] = await asyncio.to_thread(_document, job)
        return JSONResponse(found)

    async def stop(self, request: Request) -> Response:
        """Ends a trace; one that has ended stays as it is."""
        self.session.worker.stop(self._job(request))
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """What is told of a job, from the beginning or after `Last-Event-ID`, until it ends."""
        job, after = self._job(request), request.headers.get("last-event-id", "0")
        if not re.fullmatch("[0-9]{1,9}", after):
            raise InvalidOption(f"Last-Event-ID is a number; it is {after!r:.40}.")
        return StreamingResponse(self._told(job, int(after)), media_type="text/event-stream")

    async def deeper(self, request: Request) -> Response:
        """Begins to look into a cell."""
        job = self.session.deeper(self._job(request), deeper_of(await _json(request)))
        job = self.session.worker.submit(job)
        return JSONResponse({"id": job.id, "ahead": self.session.worker.ahead(job)}, 202)

    async def view(self, request: Request) -> Response:
        """What the page shows of a finished trace, to stand beside another."""
        job = self._finished(request)
        view = next(json.loads(data) for kind, data in job.events if kind == "view")
        return JSONResponse({"document": view, "label": job.about["label"]})

    async def save(self, request: Request) -> Response:
        """Keeps a trace in a folder of its own."""
        job, name = self._finished(request), name_of(await _json(request))
        folder = await asyncio.to_thread(self.session.save, job, name)
        return JSONResponse({"folder": folder}, 201)

    async def report(self, request: Request) -> Response:
        """The self-contained page."""
        html = await asyncio.to_thread(self._finished(request).result.to_html)
        return Response(html, media_type="application/octet-stream")

    async def export(self, request: Request) -> Response:
        """The long table as a file."""
        job, name = self._finished(request), request.path_params["name"]
        if name not in EXPORTS:
            raise Unknown(f"There is no {name!r:.40} of a trace. There are: page, {', '.join(EXPORTS)}.")
        return Response(await asyncio.to_thread(_exported, job, name), media_type=EXPORTS[name])

    async def _errand(self, work: Callable[[], Any]) -> Response:
        future = self.session.worker.errand(work)
        try:
            return JSONResponse(await asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not future.cancelled():
                raise
            return JSONResponse({"type": "Ending", "message": "The explorer is about to end. Start it again."}, 503)

    async def _told(self, job: Job, after: int) -> AsyncIterator[str]:
        """Events as the page reads them. The stream ends by itself when the server is about to."""
        silent = 0.0
        while True:
            ended = job.ended  # looked at first: what is told before the end is told before it
            while after < len(job.events):
                kind, data = job.events[after]
                after += 1
                silent = 0.0
                yield f"id: {after}\nevent: {kind}\ndata: {data}\n\n"
            if ended or self.closing():
                return
            await asyncio.sleep(LOOK)
            silent += LOOK
            if silent >= QUIET:
                silent = 0.0
                # A comment, which browsers pass over: what stands between may close a stream that is silent for long.
                yield ": still here\n\n"

    def _job(self, request: Request) -> Job:
        job = self.session.worker.jobs.get(request.path_params["id"])
        if job is None:
            raise Unknown("This trace is not kept any more. Trace the prompts again.")
        return job

    def _finished(self, request: Request) -> Job:
        job = self._job(request)
        if job.state != "done" or not hasattr(job.result, "measurements"):
            raise InvalidOption("This trace is not finished. Wait until its map is whole.")
        return job


class Unknown(Exception):
    """What is asked for is not there."""


def _document(job: Job) -> Any:
    from causal_tracing.report.document import document

    return document(job.result.measurements)


def _exported(job: Job, name: str) -> bytes:
    with TemporaryDirectory() as scratch:
        return job.result.export(Path(scratch) / name).read_bytes()


def _listed(job: Job) -> dict[str, Any]:
    return {"id": job.id, "state": job.state, "told": len(job.events), **job.about}


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError as error:  # not UTF-8, or no JSON
        raise InvalidOption(f"The request is no JSON: {error}.") from None
    except RecursionError:
        raise InvalidOption("The request is nested too deeply.") from None


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, CausalTracingError)
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse(said(error), status)


async def _full(request: Request, error: Exception) -> Response:
    message = f"{MOST_WAITING} traces wait already. Try again when one of them has ended."
    return JSONResponse({"type": "Full", "message": message}, 429)


async def _unknown(request: Request, error: Exception) -> Response:
    return JSONResponse({"type": "Unknown", "message": str(error)}, 404)


async def _health(request: Request) -> Response:
    return Response("ok", media_type=PLAIN)


async def _page(request: Request) -> Response:
    return Response(page(), media_type="text/html; charset=utf-8")


def page() -> str:
    """The explorer's page: what is typed, and the report's own map with room for every kind of site."""
    parts = "".join(
        f'<div class="of-kind" data-kind="{kind.name}">{shown}</div>'
        for kind in KINDS.values()
        if (shown := drawn_form(kind))
    )
    scripts = "".join(f'<script src="/static/{name}"></script>\n' for name in SCRIPTS)
    rest = part("mean.html") + part("curves.html")
    paths = form("matrix.html", PATHS)
    return Template(_own("explore.html")).substitute(
        map=part("map.html"), rest=rest, parts=parts, paths=paths, scripts=scripts
    )


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name in OWN:
        return Response(_own(name), media_type=SCRIPT)
    if name in SCRIPTS:
        return Response(part(name), media_type=SCRIPT)
    if name == "page.css":
        return Response(part(name) + _own("explore.css"), media_type=STYLE)
    return Response("There is no such file.", 404, media_type=PLAIN)


def _own(name: str) -> str:
    return files("causal_tracing.explorer.page").joinpath(name).read_text(encoding="utf-8")
