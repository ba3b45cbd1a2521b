"""An engine without a model, and a server on a free port of this machine, for the tests of the HTTP side."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from saywhy.records import Prediction, RequestError, Task
from saywhy.serve import About, Answer, Failure, Full, ModeFigures, Piece, Stopped, Tell
from saywhy.serve.app import DEFAULTS
from saywhy.serve.run import bind, make_server
from saywhy.serve.shapes import Limits

TASK = Task("mail", "What is it about?", ("praise", "complaint"), {"praise": "thanks, joy"})
FIGURES = {"label": ModeFigures(17.0, 90.5, 0.86), "reason": ModeFigures(), "explain": ModeFigures()}
ABOUT = About("mail", TASK, FIGURES, "reason")


class Handle:
    """Counts how often it is given up."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class Fake:
    """Answers at once by the length of a text, in the reverse order of the texts; some words make it misbehave."""

    def __init__(self, about: About = ABOUT) -> None:
        self.about = about
        self.handles: list[Handle] = []
        self.asked: list[tuple[list[str], str, bool]] = []
        self.is_ready, self.closed = True, False

    def submit(self, texts: Sequence[str], mode: str, tell: Tell, pieces: bool = False) -> Handle:
        if "full" in texts:
            raise Full(7)
        if "stopped" in texts:
            raise Stopped("the server is stopping and takes no more requests")
        if "odd" in texts:
            raise RequestError("text 0 is odd")
        if "bug" in texts:
            raise ZeroDivisionError("a bug")
        self.asked.append((list(texts), mode, pieces))
        self.handles.append(Handle())
        if "never" in texts:
            tell(Piece(0, "I think"))
            return self.handles[-1]
        for at in reversed(range(len(texts))):
            if texts[at] in ("fails", "ends"):
                tell(Failure("the model failed", stopped=texts[at] == "ends"))
                return self.handles[-1]
            found = answer(texts[at], mode)
            if pieces and found.reasoning:
                for piece in (found.reasoning[:4], found.reasoning[4:]):
                    tell(Piece(at, piece))
            tell(Answer(at, found))
        return self.handles[-1]

    def ready(self) -> bool:
        return self.is_ready

    def waiting(self) -> int:
        return 3

    def close(self) -> None:
        self.closed = True


def answer(text: str, mode: str) -> Prediction:
    """What the fake says of a text."""
    share = 1 / (2 + len(text))
    label = "praise" if share > 0.5 else "complaint"
    return Prediction(
        label,
        {"praise": share, "complaint": 1 - share},
        reasoning=None if mode == "label" else f"It has {len(text)} characters.",
        tokens=float(len(text) + 10),
        prompt_tokens=float(len(text)),
        forced=text == "long",
        abstained=text == "unsure",
    )


@contextlib.contextmanager
def served(engine: Any, limits: Limits = DEFAULTS, key: str | None = None) -> Iterator[str]:
    """Run the real server of an engine in a thread and give its address."""
    with bind("127.0.0.1", 0) as bound:
        server = make_server(engine, key, limits, False)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        until = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < until and thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            yield "http://127.0.0.1:{1}".format(*bound.getsockname())
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
