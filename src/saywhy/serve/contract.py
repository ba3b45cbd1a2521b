"""What the server asks of an engine, and what an engine tells it: the server knows nothing else of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from saywhy.records import Prediction, Task


@dataclass(frozen=True)
class ModeFigures:
    """What a mode gave and cost on the test rows of its run; None where that is not known."""

    tokens_per_row: float | None = None
    rows_per_second: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class About:
    """What is served: its name, its task, and its modes; `recommended` is asked where a request names none."""

    name: str
    task: Task
    modes: Mapping[str, ModeFigures]
    recommended: str


@dataclass(frozen=True)
class Piece:
    """The next characters of the reasoning that is being written about a text."""

    index: int
    text: str


@dataclass(frozen=True)
class Answer:
    """The whole answer about a text."""

    index: int
    prediction: Prediction


@dataclass(frozen=True)
class Failure:
    """The end of a request that gets no answer; `stopped` says that the engine is gone, not that the request failed."""

    message: str
    stopped: bool = False


Event = Piece | Answer | Failure
Tell = Callable[[Event], None]


class Handle(Protocol):
    """A request that an engine took."""

    def cancel(self) -> None:
        """Say that nobody waits for it any more. What is not begun is left out, what is being written ends early."""


class Engine(Protocol):
    """Something that answers texts: it batches what several requests ask at the same time."""

    about: About

    def submit(self, texts: Sequence[str], mode: str, tell: Tell, pieces: bool = False) -> Handle:
        """Take a request; `tell` is called from another thread with an Answer for each text, or one Failure.

        With `pieces` the reasoning is told as it is written, where the mode writes one. Raises Full where too many
        texts are waiting, Stopped after `close`, and RequestError for a text that cannot be asked.
        """

    def ready(self) -> bool:
        """Tell whether requests are taken and answered at once."""

    def waiting(self) -> int:
        """Count the texts that are not answered yet."""

    def close(self) -> None:
        """Take no more requests, and come back when those that were taken are answered."""


class Full(Exception):
    """Too many texts are waiting; `seconds` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many texts are waiting; ask again in {seconds} s")
        self.seconds = seconds


class Stopped(Exception):
    """The engine takes no more requests."""
