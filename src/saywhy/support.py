"""Figures of stage 2 that need a model: what a reasoning does for its label under a scorer that never saw the row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from saywhy import store
from saywhy.config import Reasonings
from saywhy.data.split import text_key
from saywhy.lm import LM
from saywhy.lm.score import likelihood
from saywhy.predict import Classifier
from saywhy.predict.given import Asked, Chain, asked, log_shares, why_ids
from saywhy.records import Figures, RequestError, Row, Task
from saywhy.train.folder import Course, Lesson, encode
from saywhy.train.folder import train as train_folder
from saywhy.train.steps import plan_steps
from saywhy.trees import Floats, Ints

# A scorer is asked with and without the reasoning, so it is taught both.
ARM = "both"
FOLDS = 2
# Tokens of a tree that the likelihood is read off: of more, attention over the whole of it costs more than it saves.
MOST_IN_TREE = 2048
Measure = Callable[[Sequence[tuple[Row, str]]], list[Figures]]


def fold_of(text: str, folds: int = FOLDS) -> int:
    """Give the fold of a text, from 0: by a hash of what it is but for case and spacing, so duplicates share one."""
    digest = hashlib.sha256(text_key(Row("", text)).encode()).digest()
    return int.from_bytes(digest[:8], "little") % folds


def steps_of(plan: Course, taught: Sequence[Lesson]) -> int:
    """Count the steps that a course takes on its lessons."""
    return plan.settings.steps or len(plan_steps(encode(plan, taught).examples, plan.settings, plan.seed))


def course(plan: Course, arms: Sequence[int], share: float) -> Course:
    """Shorten the course of the arm `both` to a share of the steps of the longest of the `arms`, given by their steps.

    Raises ValueError where the course teaches another arm.
    """
    if plan.arm != ARM:
        raise ValueError(f"a scorer is asked with and without a reasoning; the arm {plan.arm} was not taught both")
    steps = max(1, round(share * max(arms)))
    return replace(plan, settings=plan.settings.model_copy(update={"steps": steps}))


def train(folder: Path, task: Task, plan: Course, taught: Sequence[Lesson], title: str) -> None:
    """Train a scorer into `folder`, which `saywhy.predict.load` then reads; no dev rows choose its checkpoint.

    `taught` are the lessons of all folds but the one that it will be asked about.
    """
    store.write_json(folder / "task.json", asdict(task))
    train_folder(folder, plan, taught, title)


def measure(scorers: Sequence[Classifier], base: LM | None, settings: Reasonings, budget: int) -> Measure:
    """Give the function that measures reasonings: length, support, wins, early and likelihood, the others None.

    `scorers[k]` is asked about the rows of fold k, `fold_of(row.text, len(scorers))`, and was trained on all rows but
    these. It reads row and reasoning as `both` is taught them. `base` has the weights that the student starts from, and
    is asked with the scorer's tokens; where it is None (from scratch its weights are random and say nothing) the
    scorer stands in. `length` counts the tokens of the whole reasoning; of one that does not fit behind its text,
    the end is left out of the other figures. `budget` bounds the tokens that are held at one time.

    The function raises RequestError for a row without a label, or with one that is not among its answers.
    """
    for scorer in scorers:
        if scorer.arm != ARM:
            raise ValueError(f"a scorer is a model of the arm {ARM}, and this one was taught {scorer.arm}")

    def measured(pairs: Sequence[tuple[Row, str]]) -> list[Figures]:
        found: dict[int, Figures] = {}
        folds = [fold_of(row.text, len(scorers)) for row, _ in pairs]
        for fold, scorer in enumerate(scorers):
            mine = [at for at, one in enumerate(folds) if one == fold]
            if mine:
                some = _candidates(scorer, [pairs[at] for at in mine])
                supports = _supports(scorer, some, settings.early_tokens, budget)
                likely = _likely(scorer.lm if base is None else base, some, budget)
                for at, length, figures, mean in zip(mine, some.lengths, supports, likely, strict=True):
                    known = None if np.isnan(mean) else float(mean)
                    found[at] = replace(figures, length=length, likelihood=known)
        return [found[at] for at in range(len(pairs))]

    return measured


@dataclass(frozen=True)
class _Candidates:
    """Reasonings in the order they were given: the question of each, the tokens that fit, and how many it has.

    `gold` is the place of each question's label among its answers.
    """

    asked: Asked
    gold: list[int]
    questions: list[int]
    whys: list[Ints]
    lengths: list[int]


def _candidates(scorer: Classifier, pairs: Sequence[tuple[Row, str]]) -> _Candidates:
    """Encode rows, each once, and their reasonings."""
    places = {row: at for at, row in enumerate(dict.fromkeys(row for row, _ in pairs))}
    gold = [_gold(scorer, row) for row in places]
    told = asked(scorer, list(places))
    questions = [places[row] for row, _ in pairs]
    ids = [why_ids(scorer, reasoning) for _, reasoning in pairs]
    whys = [told.fitting(question, one) for question, one in zip(questions, ids, strict=True)]
    return _Candidates(told, gold, questions, whys, list(map(len, ids)))


def _gold(scorer: Classifier, row: Row) -> int:
    answers = row.choices or scorer.task.labels
    if row.label is None or row.label not in answers:
        raise RequestError(
            f"row {row.id}: support is that of the row's label, and {row.label!r} is none of its answers "
            f"({', '.join(answers[:10])}); give the row one of them, or set reasonings.support to never"
        )
    return answers.index(row.label)


def _supports(scorer: Classifier, some: _Candidates, early: int, budget: int) -> list[Figures]:
    """Measure support, wins and early; the beginning of a reasoning is read once."""
    chains = [Chain(at, (why[:early], why)) for at, why in zip(some.questions, some.whys, strict=True)]
    alone, behind = log_shares(scorer, some.asked, chains, budget, alone=True)
    found = []
    for at, (begun, ended) in zip(some.questions, behind, strict=True):
        gold, before = some.gold[at], alone[at][some.gold[at]]
        wins = some.asked.questions[at].answers[int(np.argmax(ended))]
        found.append(Figures(support=float(ended[gold] - before), wins=wins, early=float(begun[gold] - before)))
    return found


def _likely(lm: LM, some: _Candidates, budget: int) -> Floats:
    """Measure the mean log-probability of the tokens of each reasoning behind its prompt, nan where it has none."""
    paths = [np.append(some.asked.opened(at), why) for at, why in zip(some.questions, some.whys, strict=True)]
    starts = [len(path) - len(why) for path, why in zip(paths, some.whys, strict=True)]
    return likelihood(lm.model, paths, starts, min(budget, MOST_IN_TREE), lm.reads_trees)
