"""Show how far long work has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """How work tells how far it has come."""

    def __call__(self, done: int, tokens: float, note: str, before: bool = False) -> None:
        """Count `done` units and the tokens they took; what was done `before`, by another run, is in no rate."""


def in_silence(done: int, tokens: float, note: str, before: bool = False) -> None:
    """Show nothing."""


@contextmanager
def track(title: str, total: int | None, unit: str, show: bool = True) -> Iterator[Advance]:
    """Give an `Advance`, which counts done of `total` units and the tokens they took.

    Where nobody knows `total`, it is None, and lines tell how many units are done.
    """
    if not show or _is_helper():
        yield in_silence
    elif sys.stderr.isatty():
        with _bar(unit) as progress:
            yield _on_terminal(progress, title, total)
    else:
        yield _in_lines(title, total, unit)


def say(line: str) -> None:
    """Print one line about the work to the standard error stream."""
    if not _is_helper():
        print(line, file=sys.stderr, flush=True)


def _is_helper() -> bool:
    """Tell whether a launcher started this process beside the one that prints."""
    return os.environ.get("RANK", "0") != "0"


def _bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description:<38}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[rate]}} {{task.fields[note]}}"),
        TimeElapsedColumn(),
        # Not rich's own time left, which takes what another run did for this one's pace.
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
    )


def _on_terminal(progress: Progress, title: str, total: int | None) -> Advance:
    bar = progress.add_task(title, total=total, rate="", note="", left="")
    rates, count = _rates(), 0

    def advance(done: int, tokens: float, note: str, before: bool = False) -> None:
        nonlocal count
        count += done
        new, took, rate = rates(0 if before else done, tokens)
        seconds = _left(total, count, new, took)
        left = "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
        progress.update(bar, completed=count, rate=rate, note=note, left=left)

    return advance


def _in_lines(title: str, total: int | None, unit: str) -> Advance:
    rates, last, count, ended = _rates(), time.monotonic(), 0, False

    def advance(done: int, tokens: float, note: str, before: bool = False) -> None:
        nonlocal count, last, ended
        count += done
        new, took, rate = rates(0 if before else done, tokens)
        now = time.monotonic()
        # An answer that cannot be read may be followed by others behind the end.
        ends = not ended and total is not None and count >= total
        if not ends and now - last < SECONDS_BETWEEN_LINES:
            return
        last, ended = now, ended or ends
        if total is None:
            say(f"{title}: {count} {unit}, {rate}, {took:.0f} s {note}".rstrip())
        else:
            seconds = _left(total, count, new, took)
            left = "" if seconds is None else f", {seconds:.0f} s left"
            say(f"{title}: {count} of {total} {unit}, {rate}, {took:.0f} s{left} {note}".rstrip())

    return advance


def _left(total: int | None, count: int, new: int, took: float) -> float | None:
    """Give the seconds that what is left will take; nobody knows before something is done."""
    if total is None or (not new and count < total):
        return None
    return took / max(new, 1) * (total - count)


def _rates() -> Callable[[int, float], tuple[int, float, str]]:
    """Give a function that adds up units and tokens, and tells units, seconds and both rates."""
    began, count, seen = time.monotonic(), 0, 0.0

    def add(done: int, tokens: float) -> tuple[int, float, str]:
        nonlocal count, seen
        count, seen = count + done, seen + tokens
        took = max(time.monotonic() - began, 1e-9)
        digits = 1 if count < 100 * took else 0
        rate = f"{count / took:,.{digits}f}/s" + (f", {seen / took:,.0f} tokens/s" if seen else "")
        return count, took, rate

    return add
