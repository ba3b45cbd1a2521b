"""Leakage: how much of the label a linear model reads from reasonings alone, without the text that they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from random import Random

import numpy as np

from saywhy import metrics
from saywhy.checks import names_label
from saywhy.evaluate.folds import MOST_ROWS, by_words, deal, out_of_folds
from saywhy.records import Row, Task

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

    `crossed` says how a model that learnt from written reasonings reads the taught ones of rows it has not seen.
    `majority` is the share of the most frequent label. Where nothing is told, mean recall is `chance`, one divided by
    the labels that occur, with the standard error `chance_error`: further below it, a wrong label is told. `written` is
    None where nothing can be measured, and `missing` says why; `taught` and `crossed` are None where nothing was put in
    the place of the written ones.
    """

    rows: int
    reasonings: int
    majority: float | None = None
    chance: float | None = None
    chance_error: float | None = None
    written: Told | None = None
    taught: Told | None = None
    crossed: Told | None = None
    missing: str = ""


def leakage(task: Task, rows: Sequence[Row], written: Reasonings, taught: Reasonings | None, seed: int) -> Leakage:
    """Measure by cross-validation what reasonings tell of the labels of their rows.

    `taught` has as many reasonings for a row as `written`. Rows without any are left aside, as is what is over
    MOST_ROWS. Rows of one text stay in one fold.
    """
    rows = [row for row in rows if written.get(row.id)]
    if len(rows) > MOST_ROWS:
        rows = Random(seed).sample(rows, MOST_ROWS)
    before = _shown(rows, written)
    if why := _missing(task, Counter(row.label for row in rows)):
        return Leakage(len(rows), len(before), missing=why)
    folds = [fold for row, fold in zip(rows, deal(rows, seed), strict=True) for _ in written[row.id]]
    counts = Counter(row.label for row in before)
    chance = 1 / len(counts)
    error = sqrt(sum(chance * (1 - chance) / count for count in counts.values())) / len(counts)
    known = partial(Leakage, len(rows), len(before), max(counts.values()) / len(before), chance, error)
    if taught is None:
        (of_written,) = _read(task, folds, before, before)
        return known(_told(task, before, of_written))
    after = _shown(rows, taught)
    of_written, crossed = _read(task, folds, before, before, after)
    (of_taught,) = _read(task, folds, after, after)
    return known(_told(task, before, of_written), _told(task, after, of_taught), _told(task, after, crossed))


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


def _read(task: Task, folds: Sequence[int], learnt: Sequence[Row], *asked: Sequence[Row]) -> list[list[str]]:
    """Give the label that a linear model reads in each of `asked`, row for row, learnt from the other folds."""
    return [[one.label for one in given] for given in out_of_folds(task, folds, by_words, learnt, *asked)]


def _told(task: Task, shown: Sequence[Row], given: Sequence[str]) -> Told:
    place = {label: at for at, label in enumerate(task.labels)}
    gold = np.array([place[row.label or ""] for row in shown])
    predicted = np.array([place[label] for label in given])
    counts = metrics.count(gold, predicted, len(task.labels))
    named = [[label for label in task.labels if names_label(row.text, label)] for row in shown]
    return Told(
        float(metrics.accuracy(counts)),
        float(metrics.mean_recall(counts)),
        float(np.mean([row.label in found for row, found in zip(shown, named, strict=True)])),
        float(np.mean([bool(set(found) - {row.label}) for row, found in zip(shown, named, strict=True)])),
    )
