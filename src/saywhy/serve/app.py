"""The ASGI app: routes around an engine, each answer in a documented shape, each mistake with the field it is in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from saywhy.records import RequestError
from saywhy.serve import chat, shapes
from saywhy.serve.asking import Desk
from saywhy.serve.contract import Answer, Engine, Piece
from saywhy.serve.guard import HEADERS, LOCAL, SHORTEST_KEY, Guard, counters, is_key
from saywhy.serve.openapi import ERRORS, EVENTS, OBJECT, TEXT, describe, takes
from saywhy.serve.shapes import BROKEN, NOT_FOUND, UNAVAILABLE, WRONG, Limits, Refusal, event, result
from saywhy.version import VERSION

PAGE = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
DEFAULTS = Limits()


def make_app(
    engine: Engine,
    limits: Limits = DEFAULTS,
    key: str | None = None,
    hosts: frozenset[str] = LOCAL,
    log_texts: bool = False,
) -> FastAPI:
    """Make the app of one engine, which is closed with it.

    With a `key` all but the page, /health, /ready and /openapi.json ask for it; without one it answers to the names in
    `hosts` alone. Texts are in no log unless `log_texts`. Raises RequestError for a key that is short or has spaces.
    """
    if key is not None and not is_key(key):
        raise RequestError(f"the key of a server should have {SHORTEST_KEY} or more ASCII characters without spaces")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="saywhy",
        version=VERSION,
        description="A text classifier that says why (docs/serve.md).",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    desk = Desk(engine, limits, counters(engine.waiting), log_texts)
    # The page, what load balancers ask, and the description hold nothing of anybody; all else asks for the key.
    free = frozenset([*_page(app), "/health", "/ready", "/openapi.json"])
    app.add_middleware(Guard, key=key, free=free, hosts=hosts if key is None else None, count=desk.count)
    _answer_mistakes(app)
    _classify(app, desk)
    _chat(app, desk)
    _models(app, desk)
    _state(app, desk)
    describe(app, engine.about, limits, key is not None)
    return app


def _answer_mistakes(app: FastAPI) -> None:
    """Give every error the same body."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, problem: Refusal) -> Response:
        return JSONResponse(problem.body(), problem.status, problem.headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, problem: HTTPException) -> Response:
        kind = NOT_FOUND if problem.status_code == 404 else WRONG
        body = Refusal(problem.status_code, str(problem.detail), kind).body()
        return JSONResponse(body, problem.status_code, problem.headers)

    @app.exception_handler(ConnectionResetError)
    async def left(_: Request, __: ConnectionResetError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(500)
    async def broken(_: Request, __: Exception) -> Response:
        # It is sent from outside of the guard, which adds the headers otherwise.
        return JSONResponse(Refusal(500, "the server failed; its log says where", BROKEN).body(), 500, HEADERS)


def _classify(app: FastAPI, desk: Desk) -> None:
    about = desk.engine.about

    @app.post(
        "/v1/classify",
        summary="Classify texts",
        description="With `stream` it answers with the events reasoning, result, done and error.",
        responses={200: {"model": shapes.ClassifyResponse, "content": EVENTS}, **ERRORS},
        openapi_extra=takes(shapes.ClassifyRequest),
    )
    async def classify(request: Request) -> Response:
        began, tokens = time.perf_counter(), 0.0
        until = desk.until()
        asked = shapes.read(shapes.ClassifyRequest, await desk.body(request))
        if len(asked.texts) > desk.limits.texts:
            most = f"texts: there are {len(asked.texts)}, and at most {desk.limits.texts} are taken at a time"
            raise Refusal(422, most, WRONG, "texts")
        mode = about.recommended if asked.mode is None else asked.mode
        places = [f"texts.{at}" for at in range(len(asked.texts))]
        taken = desk.take(asked.texts, places, mode, asked.stream and asked.reasoning, until)

        def shaped(one: Answer) -> dict[str, Any]:
            nonlocal tokens
            tokens += one.prediction.tokens
            desk.note(mode, one.prediction)
            return result(one.prediction, asked.reasoning, asked.probabilities)

        def closing(**results: Any) -> dict[str, Any]:
            usage = {"tokens": tokens, "seconds": time.perf_counter() - began}
            return {"model": about.name, "mode": mode, **results, "usage": usage}

        def write(one: Piece | Answer) -> list[bytes]:
            if isinstance(one, Piece):
                return [event("reasoning", {"index": one.index, "text": one.text})]
            return [event("result", {"index": one.index, **shaped(one)})]

        if asked.stream:
            return taken.stream(write, lambda: [event("done", closing())])
        found = await taken.answers(request)
        return JSONResponse(closing(results=[shaped(Answer(at, one)) for at, one in enumerate(found)]))


def _chat(app: FastAPI, desk: Desk) -> None:
    @app.post(
        "/v1/chat/completions",
        summary="Classify the last message of a chat",
        description="What OpenAI's clients send and read. `saywhy` in the answer has what /v1/classify gives.",
        responses={200: {"content": {**OBJECT, **EVENTS}}, **ERRORS},
        openapi_extra=takes(shapes.ChatRequest),
    )
    async def complete(request: Request) -> Response:
        until = desk.until()
        asked = shapes.read(shapes.ChatRequest, await desk.body(request))
        text, place = chat.text_of(asked)
        mode = chat.mode_of(asked, desk.engine.about)
        taken = desk.take([text], [place], mode, bool(asked.stream), until)
        if asked.stream:
            chunks = chat.chunks(asked, mode)

            def write(one: Piece | Answer) -> list[bytes]:
                if isinstance(one, Piece):
                    return chunks(one)
                desk.note(mode, one.prediction)
                return chunks(one.prediction)

            return taken.stream(write, lambda: [event(None, "[DONE]")])
        found = (await taken.answers(request))[0]
        desk.note(mode, found)
        return JSONResponse(chat.completion(asked, found, mode))


def _models(app: FastAPI, desk: Desk) -> None:
    created, about = int(time.time()), desk.engine.about

    @app.get("/v1/models", summary="What is served", responses={200: {"model": shapes.ModelList}, **_of(401)})
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [shapes.model_entry(about, created)]})

    one = {200: {"model": shapes.Model}, **_of(401, 404, 422)}

    @app.get("/v1/models/{name:path}", summary="One model", responses=one)
    async def model(name: str) -> Response:
        if name not in (about.name, *(f"{about.name}:{mode}" for mode in about.modes)):
            raise Refusal(404, f"there is no such model; there is {about.name}", NOT_FOUND, "model")
        return JSONResponse({**shapes.model_entry(about, created), "id": name})


def _state(app: FastAPI, desk: Desk) -> None:
    @app.get("/health", summary="Whether the server runs", responses={200: {"content": OBJECT}})
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", summary="Whether the model answers", responses={200: {"content": OBJECT}, **_of(503)})
    async def ready() -> Response:
        if not desk.engine.ready():
            raise Refusal(503, "the model is not loaded, or the server is stopping", UNAVAILABLE)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Counters for Prometheus", responses={200: {"content": TEXT}, **_of(401)})
    async def metrics() -> Response:
        return Response(generate_latest(desk.count.registry), media_type=CONTENT_TYPE_LATEST)


def _of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERRORS[status] for status in statuses}


def _page(app: FastAPI) -> list[str]:
    """Serve the page from memory, so that no path of a request ever names a file; gives its routes."""
    folder, routes = files("saywhy.serve") / "page", []
    for file in folder.iterdir() if folder.is_dir() else ():
        kind = PAGE.get(Path(file.name).suffix)
        if kind is not None:
            routes.append("/" if file.name == "index.html" else f"/{file.name}")
            send = _file(file.read_bytes(), kind)
            app.add_api_route(routes[-1], send, methods=["GET", "HEAD"], include_in_schema=False)
    return routes


def _file(body: bytes, kind: str) -> Any:
    async def send() -> Response:
        return Response(body, media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})

    return send
