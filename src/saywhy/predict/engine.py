"""A classifier that many ask at the same time: one thread, batches of what waits, labels before reasonings."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saywhy.lm.cache import tokens_per_pass
from saywhy.lm.encode import decode
from saywhy.machine import give_back_freed
from saywhy.predict.folder import is_evaluated, read_figures
from saywhy.predict.modes import Watch
from saywhy.predict.texts import TextClassifier, open_classifier, text_row
from saywhy.records import LABEL_CUE, Prediction, RequestError, Row, WorkError
from saywhy.serve import About, Answer, Event, Failure, Full, ModeFigures, Piece, Stopped, Tell

LOG = logging.getLogger("saywhy.engine")
# A character is about so many tokens; how long a text is decides which others it is asked with, nothing else.
TOKENS_PER_CHARACTER = 0.25
# What stands around a text: cues, and the tokens of the labels.
TOKENS_AROUND = 8
# What batches have freed is given back where no text comes for so long, and after so many seconds of work.
IDLE_SECONDS = 1.0
BUSY_SECONDS = 10.0
# What a model, or a text that is too odd for one, may raise. Anything else ends the engine, which says so.
FAILURES = (
    RequestError, WorkError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError,
    AttributeError, AssertionError, OSError,
)  # fmt: skip
# Modes that write one text, which can be told as it is written.
TOLD_AS_WRITTEN = ("reason", "explain", "ensemble", "adaptive")


class Asked:
    """A request that was taken: `left` of its texts are unanswered, and with `gone` nobody waits for them."""

    def __init__(self, engine: Engine, mode: str, tell: Tell, pieces: bool, left: int) -> None:
        self.engine, self.mode, self.tell_it, self.left = engine, mode, tell, left
        self.pieces = pieces and mode in TOLD_AS_WRITTEN
        self.gone = False

    def cancel(self) -> None:
        """Leave out what is not begun; what is being written ends between two tokens."""
        self.gone = True
        self.engine.forget(self)

    def tell(self, event: Event) -> None:
        """Tell an event, if anybody waits for it."""
        if not self.gone:
            self.tell_it(event)
            self.left -= isinstance(event, Answer)
            # Never set to False again: another thread may have given the request up meanwhile.
            if self.left == 0 or isinstance(event, Failure):
                self.gone = True


@dataclass(eq=False)
class _Job:
    """One text of a request; `shown` of its reasoning was told."""

    asked: Asked
    index: int
    row: Row
    shown: str = ""

    @property
    def length(self) -> float:
        return len(self.row.text) * TOKENS_PER_CHARACTER + TOKENS_AROUND


class Engine:
    """A classifier behind a queue (contract: `saywhy.serve.Engine`), loaded and asked by one thread.

    Of two threads that compute, each has helpers of its own, and OpenMP lets them sleep where there are more of them
    than cores: a model that another thread loaded took twice as long for one text (LOG.md, 2026-11-30).
    What waits is asked in batches of about the tokens that one pass reads: the oldest text of a mode, and those nearest
    to it in length. The thread waits `window` seconds for more where it was idle. A batch that writes reasonings gives
    way between two tokens: texts that want the label alone are then asked first. Of those and of all others at most
    `max_queue` wait each.
    """

    def __init__(
        self, load: Callable[[], tuple[TextClassifier, About]], max_queue: int = 1024, window: float = 0.004
    ) -> None:
        """Raises what `load` raises."""
        self._max_queue, self._window = max_queue, window
        self._lock = threading.Condition()
        self._labels: list[_Job] = []
        self._reasoned: list[_Job] = []
        self._running: list[_Job] = []
        # By whether they want the label alone.
        self._seconds_per_text = {True: 0.0, False: 0.0}
        self._closing = self._began = False
        self._kept_since = time.monotonic()
        self._loaded = threading.Event()
        self._problem: Exception | None = WorkError("the model could not be loaded; the log says why")
        self._thread = threading.Thread(target=self._run, args=(load,), name="saywhy-engine", daemon=True)
        self._thread.start()
        self._loaded.wait()
        if self._problem is not None:
            raise self._problem

    def submit(self, texts: Sequence[str], mode: str, tell: Tell, pieces: bool = False) -> Asked:
        """Take texts to be answered in one mode; see the contract.

        Raises Full, Stopped, and RequestError for a text that cannot be asked.
        """
        rows = [text_row(self._ask.classifier.task, text, str(at)) for at, text in enumerate(texts)]
        asked = Asked(self, mode, tell, pieces, len(rows))
        with self._lock:
            if self._closing:
                raise Stopped("the server is stopping and takes no more requests")
            queue = self._labels if mode == "label" else self._reasoned
            if len(queue) + len(rows) > self._max_queue:
                raise Full(max(1, math.ceil(len(queue) * self._seconds_per_text[mode == "label"])))
            queue += [_Job(asked, at, row) for at, row in enumerate(rows)]
            self._lock.notify()
        return asked

    def forget(self, asked: Asked) -> None:
        """Leave out what is not begun of a request."""
        with self._lock:
            for queue in (self._labels, self._reasoned):
                queue[:] = [job for job in queue if job.asked is not asked]

    def ready(self) -> bool:
        """Tell whether the model is loaded, and its thread alive and taking requests."""
        return self._began and not self._closing

    def waiting(self) -> int:
        """Count the texts that are not answered yet."""
        return len(self._labels) + len(self._reasoned) + len(self._running)

    def close(self) -> None:
        """Take no more requests, and come back when those that were taken are answered."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    def _run(self, load: Callable[[], tuple[TextClassifier, About]]) -> None:
        try:
            self._ask, self.about = load()
            self._pass = min(tokens_per_pass(self._ask.classifier.lm.model), self._ask.max_tokens_in_flight)
            self._problem = None
        except (*FAILURES, OSError, ImportError) as problem:
            self._problem = problem
        finally:
            self._loaded.set()
        if self._problem is None:
            self._work()

    def _work(self) -> None:
        try:
            # Every prompt begins with the trunk; read here, no request has to wait for it.
            _ = self._ask.classifier.trunk
            self._began = True
            while self._wait():
                # In turns, so that however many labels are wanted, reasonings get on by a token at least.
                self._answer(self._take(self._labels))
                self._answer(self._take(self._reasoned))
        finally:
            # Also where something unforeseen ended the thread: nobody is left waiting.
            with self._lock:
                self._closing = True
                left = [*self._running, *self._labels, *self._reasoned]
                self._labels, self._reasoned = [], []
            for job in left:
                job.asked.tell(Failure("the engine stopped; the server's log says why", stopped=True))

    def _wait(self) -> bool:
        """Wait for texts; False where none will come."""
        busy = self._come(0.0)
        idle = not busy and not self._come(IDLE_SECONDS)
        if idle or time.monotonic() > self._kept_since + BUSY_SECONDS:
            give_back_freed()
            self._kept_since = time.monotonic()
        self._come(None)
        with self._lock:
            if not busy:
                self._lock.wait_for(lambda: self._closing or self._full(), timeout=self._window)
            return bool(self._labels or self._reasoned)

    def _come(self, seconds: float | None) -> bool:
        """Wait until there are texts, or the end, for some seconds or for ever; False where nothing came."""
        with self._lock:
            return self._lock.wait_for(lambda: bool(self._labels or self._reasoned or self._closing), seconds)

    def _full(self) -> bool:
        """Tell whether a batch would not become larger by waiting."""
        return any(sum(job.length for job in queue) >= self._pass for queue in (self._labels, self._reasoned))

    def _take(self, queue: list[_Job]) -> list[_Job]:
        """Take the oldest text and those of its mode that are nearest in length, as many as one pass reads."""
        with self._lock:
            if not queue:
                return []
            oldest, taken, longest = queue[0], list[_Job](), 0.0
            near = (job for job in queue if job.asked.mode == oldest.asked.mode)
            for job in sorted(near, key=lambda job: (abs(job.length - oldest.length), job is not oldest)):
                longest = max(longest, job.length)
                if taken and longest * (len(taken) + 1) > self._pass:
                    break
                taken.append(job)
            chosen = set(taken)
            queue[:] = [job for job in queue if job not in chosen]
            self._running += taken
        return taken

    def _answer(self, jobs: list[_Job]) -> None:
        """Ask the model about texts of one mode and tell what it says, or that it failed."""
        if not jobs:
            return
        began = time.perf_counter()
        if not self._asked(jobs):
            # One text may be at fault: the others are answered without it.
            for job in jobs:
                if not job.asked.gone and not (len(jobs) > 1 and self._asked([job])):
                    job.asked.tell(Failure("the model failed with a text of this request; the server's log says where"))
        with self._lock:
            done = set(jobs)
            self._running = [job for job in self._running if job not in done]
            # A moving mean over batches, for what Retry-After says.
            latest = (time.perf_counter() - began) / len(jobs)
            label = jobs[0].asked.mode == "label"
            self._seconds_per_text[label] += 0.2 * (latest - self._seconds_per_text[label])

    def _asked(self, jobs: list[_Job]) -> bool:
        """Ask the model about texts of one mode and tell what it says; False where it failed, which the log says."""
        mode = jobs[0].asked.mode
        rows = [replace(job.row, id=str(at)) for at, job in enumerate(jobs)]
        try:
            watch = None if mode == "label" else self._watch(jobs)
            found = self._ask.rows(rows, mode=mode, watch=watch)
        except FAILURES as problem:
            # Where it happened and not what was said about it: that may quote a text.
            where = "".join(traceback.format_tb(problem.__traceback__))
            LOG.error("%s with %d texts in mode %s\n%s", type(problem).__name__, len(jobs), mode, where)
            return False
        for job, one in zip(jobs, found, strict=True):
            self._finish(job, one)
        return True

    def _watch(self, jobs: Sequence[_Job]) -> Watch:
        """Make what looks on between two tokens of a batch: it gives way to labels, and tells what was written."""
        encoder = self._ask.classifier.lm.encoder

        def watch(texts: Sequence[tuple[str, Sequence[int]]]) -> set[str]:
            self._answer(self._take(self._labels))
            for name, ids in texts:
                job = jobs[int(name)]
                if job.asked.pieces and not job.asked.gone:
                    _show(job, settled(decode(encoder, ids)))
            return {str(at) for at, job in enumerate(jobs) if job.asked.gone}

        return watch

    def _finish(self, job: _Job, found: Prediction) -> None:
        if job.asked.pieces and found.reasoning is not None:
            _show(job, found.reasoning)
        job.asked.tell(Answer(job.index, found))


def _show(job: _Job, text: str) -> None:
    """Tell what a reasoning has gained, as long as it goes on as it began."""
    if len(text) > len(job.shown) and text.startswith(job.shown):
        job.asked.tell(Piece(job.index, text[len(job.shown) :]))
        job.shown = text


def settled(written: str) -> str:
    """Give what will stand in the reasoning whatever is written next: the words before the label's cue.

    Half of a character, and what may be the beginning of the cue, are kept back.
    """
    text = " ".join(written.partition(LABEL_CUE)[0].rstrip("\N{REPLACEMENT CHARACTER}").split())
    begun = (LABEL_CUE[:n] for n in range(len(LABEL_CUE) - 1, 0, -1))
    return text.removesuffix(next((part for part in begun if text.endswith(part)), "")).rstrip()


def about(classifier: TextClassifier, name: str | None = None) -> About:
    """Say what a classifier is, with what its modes gave and cost where it stands in a run; `name` for its task's."""
    known, task = classifier.classifier, classifier.classifier.task
    modes = {mode: ModeFigures() for mode in known.modes if mode != "adaptive" or known.threshold is not None}
    for mode, scores in (_figures(known.folder.resolve()) if known.folder is not None else {}).items():
        if mode in modes:
            modes[mode] = ModeFigures(*(scores.get(one) for one in ("tokens_per_row", "rows_per_second", "accuracy")))
    return About(name or task.name, task, modes, classifier.mode)


def _figures(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Give the test figures of an arm's modes, where it stands in the run that evaluated it."""
    if not (folder.parent / "metrics.json").exists():
        return {}
    try:
        entry = read_figures(folder.parent)["arms"].get(folder.name)
    except RequestError:  # another tool's
        return {}
    if entry is None or not is_evaluated(folder, entry):
        return {}
    return {mode: one["test"] or {} for mode, one in entry["modes"].items()}


def open_engine(folder: str | Path, mode: str | None = None, name: str | None = None, max_queue: int = 1024) -> Engine:
    """Load a model folder, or a run's recommended arm, as an engine; `name` is what its clients call it.

    Raises RequestError for what `open_classifier` refuses, and for a task whose rows bring their own choices.
    """

    def load() -> tuple[TextClassifier, About]:
        classifier = open_classifier(folder, mode)
        if not classifier.classes_:
            why = "each row of this task brings its own choices, which a server is not told; use saywhy predict"
            raise RequestError(f"{folder}: {why}")
        return classifier, about(classifier, name)

    return Engine(load, max_queue)
