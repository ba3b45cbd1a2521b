"""Answers about rows by a system that learnt from the rows of the other folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

from saywhy.evaluate.answers import PredictRows
from saywhy.evaluate.floors import linear, majority
from saywhy.records import Prediction, Row, Task

FOLDS = 5
# More rows than these say nothing more, and take minutes.
MOST_ROWS = 5000

Learn = Callable[[Task, Sequence[Row]], PredictRows]


def by_words(task: Task, train: Sequence[Row]) -> PredictRows:
    """The linear floor, taught without dev rows; what is without a single word, as fillers are, can only be guessed."""
    return linear(task, train, ()) or majority(task, train)


def deal(rows: Sequence[Row], seed: int) -> list[int]:
    """Deal rows out label by label, those of one text together: the fold of each."""
    texts: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        texts[row.text].append(at)
    together = list(texts.values())
    Random(seed).shuffle(together)
    together.sort(key=lambda places: str(rows[places[0]].label))
    fold = {at: number % FOLDS for number, places in enumerate(together) for at in places}
    return [fold[at] for at in range(len(rows))]


def out_of_folds(
    task: Task, folds: Sequence[int], learn: Learn, learnt: Sequence[Row], *asked: Sequence[Row]
) -> list[list[Prediction]]:
    """Learn to answer in all folds but one and answer those of that one, in each of `asked`, row for row."""
    given: list[dict[int, Prediction]] = [{} for _ in asked]
    for own in sorted(set(folds)):
        inside = [at for at, fold in enumerate(folds) if fold == own]
        system = learn(task, [row for row, fold in zip(learnt, folds, strict=True) if fold != own])
        for answers, shown in zip(given, asked, strict=True):
            answers.update(zip(inside, system([shown[at] for at in inside]), strict=True))
    return [[answers[at] for at in range(len(folds))] for answers in given]
