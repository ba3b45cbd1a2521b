"""Leakage: how much of the label a linear model reads from reasonings alone, without the text that they are about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from saywhy import metrics
from saywhy.checks import names
from saywhy.evaluate.floors import linear, majority
from saywhy.records import Row, Task

FOLDS = 5
# More rows than these say nothing more, and take minutes.
MOST_ROWS = 5000

Reasonings = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Told:
    """What reasonings tell of the labels of their rows, as shares of the reasonings.

    `accuracy` and `mean_recall` are those of a linear model that learnt to read such reasonings from other rows.
    `named` hold their row's label as a word, `other_named` another label.
    """

    accuracy: float
    mean_recall: float
    named: float
    other_named: float


@dataclass(frozen=True)
class Leakage:
    """What `written` reasonings tell of the labels, and what those that were `taught` in their place do.

    `taught_read_as_written` is the accuracy of the model that learnt from written reasonings where it reads the taught
    ones of rows it has not seen: below `majority`, the share of the most frequent label, it is told a wrong label.
    Shares are over `reasonings` of `rows`. `written` is None where nothing can be measured, and `missing` says why;
    `taught` is None where nothing was put in the place of the written ones.
    """

    rows: int
    reasonings: int
    majority: float | None
    written: Told | None
    taught: Told | None
    taught_read_as_written: float | None
    missing: str = ""


def leakage(task: Task, rows: Sequence[Row], written: Reasonings, taught: Reasonings | None, seed: int) -> Leakage:
    """Measure by cross-validation what reasonings tell of the labels of their rows.

    `taught` has as many reasonings for a row as `written`. Rows without any are left aside, as is what is over
    MOST_ROWS. Rows of one text stay in one fold.
    """
    rows = [row for row in rows if written.get(row.id)]
    if len(rows) > MOST_ROWS:
        rows = Random(seed).sample(rows, MOST_ROWS)
    counts = Counter(row.label for row in rows)
    before = _shown(rows, written)
    if why := _missing(task, counts):
        return Leakage(len(rows), len(before), None, None, None, None, why)
    folds = [fold for row, fold in zip(rows, _folds(rows, seed), strict=True) for _ in written[row.id]]
    most = max(Counter(row.label for row in before).values()) / len(before)
    if taught is None:
        (of_written,) = _read(task, folds, before, before)
        return Leakage(len(rows), len(before), most, _told(task, before, of_written), None, None)
    after = _shown(rows, taught)
    of_written, as_written = _read(task, folds, before, before, after)
    (of_taught,) = _read(task, folds, after, after)
    told = [_told(task, *pair) for pair in ((before, of_written), (after, of_taught), (after, as_written))]
    return Leakage(len(rows), len(before), most, told[0], told[1], told[2].accuracy)


def _shown(rows: Sequence[Row], reasonings: Reasonings) -> list[Row]:
    """Put each reasoning in the place of its row's text."""
    return [Row(row.id, text, row.label) for row in rows for text in reasonings[row.id]]


def _missing(task: Task, counts: Counter[str | None]) -> str:
    if not task.labels:
        return "rows have their own choices"
    if len(counts) < 2:
        return "fewer than two labels have reasonings"
    few = [str(label) for label, count in counts.items() if count < 2]
    return f"fewer than two rows of {', '.join(few[:5])} have reasonings" if few else ""


def _folds(rows: Sequence[Row], seed: int) -> list[int]:
    """Deal rows out label by label, those of one text together."""
    texts: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        texts[row.text].append(at)
    together = list(texts.values())
    Random(seed).shuffle(together)
    together.sort(key=lambda places: str(rows[places[0]].label))
    fold = {at: number % FOLDS for number, places in enumerate(together) for at in places}
    return [fold[at] for at in range(len(rows))]


def _read(task: Task, folds: Sequence[int], learnt: Sequence[Row], *asked: Sequence[Row]) -> list[list[str]]:
    """Learn to read labels in all folds but one and read those of that one, in each of `asked`, row for row."""
    given = [[""] * len(folds) for _ in asked]
    for own in sorted(set(folds)):
        inside = [at for at, fold in enumerate(folds) if fold == own]
        others = [row for row, fold in zip(learnt, folds, strict=True) if fold != own]
        # Reasonings without a single word, as fillers are, can only be guessed at.
        read = linear(task, others, ()) or majority(task, others)
        for answers, shown in zip(given, asked, strict=True):
            for at, one in zip(inside, read([shown[at] for at in inside]), strict=True):
                answers[at] = one.label
    return given


def _told(task: Task, shown: Sequence[Row], given: Sequence[str]) -> Told:
    place = {label: at for at, label in enumerate(task.labels)}
    gold = np.array([place[row.label or ""] for row in shown])
    predicted = np.array([place[label] for label in given])
    counts = metrics.count(gold, predicted, len(task.labels))
    named = [[label for label in task.labels if names(row.text, label)] for row in shown]
    return Told(
        float(metrics.accuracy(counts)),
        float(metrics.mean_recall(counts)),
        float(np.mean([row.label in found for row, found in zip(shown, named, strict=True)])),
        float(np.mean([bool(set(found) - {row.label}) for row, found in zip(shown, named, strict=True)])),
    )
