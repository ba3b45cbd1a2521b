"""A server that keeps to the contract of `saywhy serve`, without a model: for tests of what asks it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
EMOTIONS = {
    "sadness": "loss, regret, feeling low",
    "joy": "pleasure, pride, relief",
    "love": "tenderness, longing, care",
    "anger": "irritation, resentment, rage",
    "fear": "worry, nervousness, dread",
    "surprise": "wonder, being taken aback",
}
WORDS = {"alone": "sadness", "sing": "joy", "late": "anger", "dark": "fear"}


def model(**changed: Any) -> dict[str, Any]:
    """What /v1/models says of a task; `changed` replaces parts."""
    figures = ("tokens_per_row", "rows_per_second", "accuracy")
    modes = {"label": (17.2, 212.0, 0.671), "reason": (58.4, 31.5, 0.702), "vote": (223.0, None, None)}
    return {
        "task": "emotion",
        "instruction": "Which emotion does the writer express?",
        "labels": list(EMOTIONS),
        "descriptions": EMOTIONS,
        "ordinal": False,
        "modes": {mode: dict(zip(figures, values, strict=True)) for mode, values in modes.items()},
        "recommended": "reason",
        **changed,
    }


@dataclass
class Fake:
    """The server: what it answers, whom it refuses, what it was asked.

    `refusals` are taken one a request to classify: (status, headers, message, param). `held` streams nothing beyond the
    first word of a text's reasoning until its event is set.
    """

    told: dict[str, Any] = field(default_factory=model)
    key: str = ""
    longest: int = 2000
    most_texts: int = 1000
    pace: float = 0.0
    refusals: list[tuple[int, dict[str, str], str, str | None]] = field(default_factory=list)
    held: dict[str, threading.Event] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    reasonings: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    def answer(self, text: str, mode: str) -> dict[str, Any]:
        labels = self.told["labels"]
        label = next((WORDS[word] for word in WORDS if word in text and WORDS[word] in labels), labels[-1])
        weight = {name: 1 / (2 + place) ** 2 for place, name in enumerate(labels)}
        weight[label] = 3.0 + len(text) % 7
        total = sum(weight.values())
        probabilities = {name: value / total for name, value in weight.items()}
        cue = next((word for word in WORDS if word in text), "nothing")
        written = f"The writer says “{cue}”, which is a word for {label}; nothing in the text speaks against it."
        places = enumerate(probabilities.values(), 1)
        return {
            "label": label,
            "probability": probabilities[label],
            "probabilities": probabilities,
            "reasoning": None if mode == "label" else self.reasonings.get(text, written),
            "expected": sum(place * share for place, share in places) if self.told["ordinal"] else None,
            "abstained": False,
            "tokens": 17.0 if mode == "label" else 58.0,
            "forced": False,
            **self.changes,
        }


def handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Security-Policy": POLICY, **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, headers: Mapping[str, str], message: str, param: str | None = None) -> None:
            error = {"error": {"message": message, "type": "invalid_request_error", "param": param}}
            self.send(status, "application/json", json.dumps(error).encode(), headers)

        def let_in(self) -> bool:
            if not fake.key or self.headers.get("Authorization") == f"Bearer {fake.key}":
                return True
            self.refuse(401, {"WWW-Authenticate": "Bearer"}, "The API key is missing or wrong.")
            return False

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                if self.let_in():
                    data = [{"id": "runs/emotion", "object": "model", "saywhy": fake.told}]
                    self.send(200, "application/json", json.dumps({"object": "list", "data": data}).encode())
                return
            page = files("saywhy") / "serve" / "page" / (self.path.strip("/") or "index.html")
            if page.is_file():
                self.send(200, KINDS[Path(page.name).suffix], page.read_bytes())
            else:
                self.send(404 if self.path != "/favicon.ico" else 204, "text/plain", b"")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.let_in():
                return
            fake.asked.append(body)
            fake.answered_at.append(time.monotonic())
            long = next((i for i, text in enumerate(body["texts"]) if len(text) > fake.longest), None)
            if fake.refusals:
                self.refuse(*fake.refusals.pop(0))
            elif len(body["texts"]) > fake.most_texts:
                self.refuse(422, {}, f"At most {fake.most_texts} texts are taken at once.", "texts")
            elif long is not None:
                self.refuse(422, {}, f"The text is longer than {fake.longest} characters.", f"texts[{long}]")
            elif body["stream"]:
                self.stream(body)
            else:
                results = [fake.answer(text, body["mode"]) for text in body["texts"]]
                time.sleep(fake.pace * len(results))
                usage = {"tokens": sum(one["tokens"] for one in results), "seconds": 0.21}
                said = {"model": "runs/emotion", "mode": body["mode"], "results": results, "usage": usage}
                self.send(200, "application/json", json.dumps(said).encode())

        def stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            results = [fake.answer(text, body["mode"]) for text in body["texts"]]
            try:
                for index, (text, result) in enumerate(zip(body["texts"], results, strict=True)):
                    for place, word in enumerate((result["reasoning"] or "").split(" ")):
                        if result["reasoning"]:
                            self.event("reasoning", {"index": index, "text": " " * (place > 0) + word})
                        if place == 0 and text in fake.held:
                            fake.held[text].wait(20)
                        time.sleep(fake.pace)
                    self.event("result", {"index": index, **result})
                usage = {"tokens": sum(one["tokens"] for one in results), "seconds": 0.213}
                self.event("done", {"model": "runs/emotion", "mode": body["mode"], "usage": usage})
            except ConnectionError:
                pass

        def event(self, name: str, data: dict[str, Any]) -> None:
            self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet where a client left, as a browser does that cancels."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served() -> Iterator[Fake]:
    """Serve on a free port of this machine until the block is left."""
    fake = Fake()
    server = Server(("127.0.0.1", 0), handler(fake))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield fake
    finally:
        for event in fake.held.values():
            event.set()
        server.shutdown()
        server.server_close()
        thread.join()
