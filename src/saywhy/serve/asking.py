"""From a request to its answers: what is checked, how it waits, and what ends the waiting."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from saywhy.records import Prediction, RequestError
from saywhy.serve.contract import Answer, Engine, Event, Failure, Full, Handle, Piece, Stopped
from saywhy.serve.guard import Counters, Receive, Scope, Send, body_of
from saywhy.serve.shapes import BODY, BROKEN, TOO_LATE, TOO_MANY, UNAVAILABLE, WRONG, Limits, Refusal, event

LOG = logging.getLogger("saywhy.serve")
# A stream is silent for at most so many seconds, so that no proxy takes it for dead.
SILENCE = 15.0
STILL_HERE = b": still here\n\n"


@dataclass(frozen=True)
class Desk:
    """Where requests are taken: the engine, what a request may hold, and who counts and logs it."""

    engine: Engine
    limits: Limits
    count: Counters
    log_texts: bool

    def until(self) -> float:
        """Give the moment by which a request that arrives now has to be answered."""
        return time.monotonic() + self.limits.seconds

    async def body(self, request: Request) -> bytes:
        """Read a request's body; see `body_of`. Raises Refusal with 408 where it does not come to an end."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await body_of(request.receive, dict(request.scope["headers"]), self.limits.body)
        except TimeoutError:
            message = f"{BODY}: it did not come within {self.limits.seconds:g} s"
            raise Refusal(408, message, TOO_LATE, BODY) from None

    def take(self, texts: Sequence[str], places: Sequence[str], mode: str, pieces: bool, until: float) -> Taken:
        """Hand texts to the engine; `places` are the fields that they came in, `until` its deadline.

        Raises Refusal: 422 for a mode that is not taught and a text that is too long, 429 where too many wait, 503
        where the server is stopping.
        """
        modes = self.engine.about.modes
        if mode not in modes:
            raise Refusal(422, f"mode: {mode!r:.40} is none of this model's; it has {', '.join(modes)}", WRONG, "mode")
        for text, place in zip(texts, places, strict=True):
            if len(text) > self.limits.characters:
                most = f"{len(text)} characters, and at most {self.limits.characters} are read"
                raise Refusal(422, f"{place}: it has {most}", WRONG, place)
        if self.log_texts:
            LOG.info("mode %s, texts %s", mode, json.dumps(texts))
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        def tell(one: Event) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, one)

        try:
            handle = self.engine.submit(texts, mode, tell, pieces)
        except Full as problem:
            again = {"retry-after": str(problem.seconds)}
            raise Refusal(429, str(problem), TOO_MANY, None, again) from None
        except Stopped as problem:
            raise Refusal(503, str(problem), UNAVAILABLE, None, {"retry-after": "5"}) from None
        except RequestError as problem:
            raise Refusal(422, str(problem), WRONG, places[0]) from None
        return Taken(handle, queue, len(texts), until, self.limits.seconds)

    def note(self, mode: str, found: Prediction) -> None:
        """Count an answer."""
        self.count.answers.labels(mode, found.label).inc()
        self.count.tokens.labels(mode).inc(found.tokens)


@dataclass(frozen=True)
class Taken:
    """A request that the engine took, with the events it tells; None among them says that the client left."""

    handle: Handle
    queue: asyncio.Queue[Event | None]
    texts: int
    until: float
    seconds: float

    async def events(self) -> AsyncIterator[Piece | Answer | None]:
        """Give what is told until every text is answered, and None after every `SILENCE` seconds without an event.

        Raises Refusal where an answer will not come (500, 503) or comes too late (504).
        """
        left = self.texts
        while left:
            rest = self.until - time.monotonic()
            try:
                async with asyncio.timeout(min(SILENCE, rest)):
                    one = await self.queue.get()
            except TimeoutError:
                if rest > SILENCE:
                    yield None
                    continue
                message = f"there was no answer within {self.seconds:g} s; send fewer texts, or ask again later"
                raise Refusal(504, message, TOO_LATE) from None
            if one is None:
                raise ConnectionResetError("the client left")
            if isinstance(one, Failure):
                raise Refusal(503 if one.stopped else 500, one.message, UNAVAILABLE if one.stopped else BROKEN)
            left -= isinstance(one, Answer)
            yield one

    async def answers(self, request: Request) -> list[Prediction]:
        """Wait for all answers and give them in the order of the texts; given up where the client leaves."""
        watching = asyncio.create_task(self._watch(request.receive))
        found: dict[int, Prediction] = {}
        try:
            async for one in self.events():
                if isinstance(one, Answer):
                    found[one.index] = one.prediction
        finally:
            watching.cancel()
            self.handle.cancel()
        return [found[at] for at in range(self.texts)]

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.queue.put_nowait(None)

    def stream(
        self, write: Callable[[Piece | Answer], Sequence[bytes]], end: Callable[[], Sequence[bytes]]
    ) -> StreamingResponse:
        """Answer with server-sent events: what `write` makes of each event, then `end`, or one `error`."""

        async def lines() -> AsyncIterator[bytes]:
            try:
                async for one in self.events():
                    for line in [STILL_HERE] if one is None else write(one):
                        yield line
            except Refusal as problem:
                yield event("error", problem.body())
            else:
                for line in end():
                    yield line

        return _Stream(self.handle, lines(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


class _Stream(StreamingResponse):
    """A stream that lets go of its request however it ends: the client may leave before its first line."""

    def __init__(self, handle: Handle, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.handle.cancel()
