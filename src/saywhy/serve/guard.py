"""What stands before every route: headers, hosts, the key, the log and the counters. Plain ASGI."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from saywhy.serve.shapes import BODY, NO_KEY, WRONG, Refusal

LOG = logging.getLogger("saywhy.serve")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Nothing from anywhere else, no script or style in the page itself, nobody may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
LOCAL = frozenset(["localhost", "127.0.0.1", "[::1]"])
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Counters:
    """What Prometheus is told, in a registry of its own."""

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    answers: Counter
    tokens: Counter


def counters(waiting: Callable[[], int]) -> Counters:
    """Make the counters of one server."""
    registry = CollectorRegistry()
    gauge = Gauge("saywhy_waiting_texts", "Texts that are not answered yet", registry=registry)
    gauge.set_function(waiting)
    return Counters(
        registry,
        Counter("saywhy_requests", "Requests by route and status", ["route", "status"], registry=registry),
        Histogram(
            "saywhy_request_seconds",
            "Seconds from a request's arrival to the end of its answer",
            ["route"],
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        ),
        Counter("saywhy_answers", "Answered texts by mode and label", ["mode", "label"], registry=registry),
        Counter("saywhy_tokens", "Computed tokens by mode", ["mode"], registry=registry),
    )


class Guard:
    """The app behind it, with the headers of every answer.

    `key` None asks for none, and the paths in `free` never do; `hosts` None takes any.
    """

    def __init__(
        self, app: App, key: str | None, free: frozenset[str], hosts: frozenset[str] | None, count: Counters
    ) -> None:
        self.app, self.free, self.hosts, self.count = app, free, hosts, count
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # Of web sockets there are none.
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = {name for name, _ in message["headers"]}
                own = ((name.encode(), value.encode()) for name, value in HEADERS.items())
                message["headers"] = [*message["headers"], *(one for one in own if one[0] not in named)]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, sent)
            else:
                await respond(refusal, sent)
        finally:
            # The route's own path and never the one that was asked for: that comes from outside.
            route = str(getattr(scope.get("route"), "path", "other"))
            passed = time.perf_counter() - began
            self.count.requests.labels(route, str(status)).inc()
            self.count.seconds.labels(route).observe(passed)
            method = scope["method"] if scope["method"].isalpha() else "?"
            LOG.info("%s %s %d %.0f ms", method, route, status, 1000 * passed)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if self.hosts is not None and _host(headers.get(b"host", b"")) not in self.hosts:
            # Else a page of somebody else's whose name leads here could ask in its visitor's name.
            why = "without a key this server answers to localhost only; --api-key-env gives it one"
            return Refusal(400, why, WRONG, "host")
        if self.key is None or scope["path"] in self.free:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key):
            return None
        why = "send the key of this server: Authorization: Bearer KEY"
        return Refusal(401, why, NO_KEY, "authorization", {"www-authenticate": "Bearer"})


def is_key(text: str) -> bool:
    """Tell whether a text will do as a key: long enough, ASCII, no spaces."""
    return len(text) >= SHORTEST_KEY and text.isascii() and text.isprintable() and " " not in text


def _host(header: bytes) -> str:
    """Give a host header's name without its port."""
    name, colon, port = header.decode("latin-1").lower().rpartition(":")
    return name if colon and port.isdigit() else header.decode("latin-1").lower()


async def respond(refusal: Refusal, send: Send) -> None:
    """Send a refusal."""
    body = json.dumps(refusal.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(refusal.headers or {})}
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


async def body_of(stream: Receive, headers: dict[bytes, bytes], most: int) -> bytes:
    """Read a request's body of at most `most` bytes.

    Raises Refusal with 413 for a longer one before it is read whole, and 415 for what does not say that it is JSON: a
    browser sends that to no foreign host without asking it first.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refusal(415, "send the body as JSON: Content-Type: application/json", WRONG, "content-type")
    parts, size, more = [], 0, True
    while more:
        message = await stream()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client left while it sent its request")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > most:
            raise Refusal(413, f"{BODY}: it has more than {most} bytes; send fewer texts at a time", WRONG, BODY)
    return b"".join(parts)
