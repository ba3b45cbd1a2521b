"""Show how far long work has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0

Advance = Callable[[int, float, str], None]


@contextmanager
def track(title: str, total: int | None, unit: str, show: bool = True) -> Iterator[Advance]:
    """Give a function `advance(done, tokens, note)` that counts `done` of `total` units and the tokens they took.

    Where nobody knows `total`, it is None, and lines tell how many units are done.
    """
    if not show or _is_helper():
        yield lambda done, tokens, note: None
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
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _on_terminal(progress: Progress, title: str, total: int | None) -> Advance:
    bar = progress.add_task(title, total=total, rate="", note="")
    began = time.monotonic()
    count, seen = 0, 0.0

    def advance(done: int, tokens: float, note: str) -> None:
        nonlocal count, seen
        count, seen = count + done, seen + tokens
        took = max(time.monotonic() - began, 1e-9)
        rate = f"{seen / took:,.0f} tokens/s" if seen else f"{count / took:,.0f}/s"
        progress.update(bar, advance=done, rate=rate, note=note)

    return advance


def _in_lines(title: str, total: int | None, unit: str) -> Advance:
    began = last = time.monotonic()
    count, seen = 0, 0.0

    def advance(done: int, tokens: float, note: str) -> None:
        nonlocal count, seen, last
        count, seen = count + done, seen + tokens
        now = time.monotonic()
        if (total is None or count < total) and now - last < SECONDS_BETWEEN_LINES:
            return
        last, took = now, max(now - began, 1e-9)
        rate = f", {seen / took:,.0f} tokens/s" if seen else ""
        if total is None:
            say(f"{title}: {count} {unit}{rate}, {took:.0f} s {note}".rstrip())
        else:
            left = took / max(count, 1) * (total - count)
            say(f"{title}: {count} of {total} {unit}{rate}, {took:.0f} s, {left:.0f} s left {note}".rstrip())

    return advance
