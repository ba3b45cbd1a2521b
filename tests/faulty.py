"""A server on this machine that speaks OpenAI's protocol, well or badly, as a test tells it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the server does with one request.

    It waits for `delay` seconds, or for `until`; sends `body`, of which `hang_up` bytes come before the connection is
    closed; None: all of it. Between two bytes it pauses for `trickle` seconds. `raw` is sent instead of anything that
    HTTP knows.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    until: threading.Event | None = None
    hang_up: int | None = None
    trickle: float = 0.0
    raw: bytes = b""


# From what was sent, and how many times this question has been asked before.
Script = Callable[[dict[str, Any], int], Act]


def completion(
    content: object = "because", finish: object = "stop", usage: object = (7, 3), message: Mapping[str, object] = {}
) -> bytes:
    """The body of a chat completion."""
    body: dict[str, object] = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
        ],
    }
    if isinstance(usage, tuple):
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body).encode()


def error(message: str, **more: object) -> bytes:
    """The body of an error, as OpenAI writes it."""
    return json.dumps({"error": {"message": message, **more}}).encode()


class Faulty:
    """The server's memory: what it was asked, by whom, and how much of it at once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.asked: Counter[str] = Counter()
        self.under_way = 0
        self.most = 0
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any], key: str) -> Act:
        text = body["messages"][-1]["content"]
        with self.lock:
            before = self.asked[text]
            self.asked[text] += 1
            self.bodies.append(body)
            self.keys.append(key)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        act = self.script(body, before)
        if act.until is not None:
            act.until.wait(30)
        time.sleep(act.delay)
        # Before the answer goes out: the client may send its next request before this thread comes round again.
        with self.lock:
            self.under_way -= 1
        return act


@contextmanager
def serving(script: Script) -> Iterator[Faulty]:
    """Run the server on a free port."""
    faulty = Faulty(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            act = faulty.answer(body, self.headers.get("Authorization", ""))
            try:
                self.send(act)
            except OSError:
                self.close_connection = True  # the client went away first

        def send(self, act: Act) -> None:
            if act.raw or act.hang_up == 0:
                self.wfile.write(act.raw)
                self.close_connection = True
                return
            self.send_response(act.status)
            for name, value in {"Content-Type": "application/json", **act.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(act.body)))
            self.end_headers()
            if act.trickle:
                for byte in act.body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(act.trickle)
            else:
                self.wfile.write(act.body[: act.hang_up])
            self.close_connection = act.hang_up is not None

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    faulty.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
