"""What reasonings are worth, by three measures of the literature, from saved answers alone.

The papers train T5 models to simulate and to evaluate. Ours count words under a linear model, out of folds (`folds`):
minutes become seconds and nothing is drawn, but what only a reader of sentences would see is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np

from saywhy import metrics
from saywhy.evaluate.answers import Answers
from saywhy.evaluate.figures import mean
from saywhy.evaluate.folds import MOST_ROWS, Learn, by_words, deal, out_of_folds
from saywhy.evaluate.measured import measure
from saywhy.metrics import Floats
from saywhy.records import Prediction, Row, Task


def quality(
    task: Task, answers: Answers, without: tuple[str, Answers] | None, resamples: int, seed: int
) -> tuple[dict[str, Any], str]:
    """Rationale quality: accuracy with the reasoning less accuracy without, on the same rows (2010.12762).

    `without` is a system that gives the label alone: in the paper another model (I→O beside IR→O), here whichever was
    trained beside. The interval is that of the paired bootstrap. The second value says what is missing, "" if nothing.
    """
    name, alone = without or ("", None)
    systems = {"with": answers, **({} if alone is None else {name: alone})}
    found = measure(task, systems, ("accuracy",), resamples, seed)
    accuracies = {system: metrics.number(one.values["accuracy"]) for system, one in found.items()}
    if alone is None:
        nothing = {"value": None, "ci95": None, "without": None, "without_system": None}
        missing = "rq: no system was asked for the label alone"
        return {**nothing, "with": accuracies["with"], "n": len(answers.ids)}, missing
    a, b = found["with"], found[name]
    interval = metrics.interval(a.resampled["accuracy"] - b.resampled["accuracy"])
    return {
        "value": metrics.number(a.values["accuracy"] - b.values["accuracy"]),
        "ci95": None if interval is None else [interval[0], interval[1]],
        "with": accuracies["with"],
        "without": accuracies[name],
        "n": len(answers.ids),
        "without_system": name,
    }, ""


def las(
    task: Task, answers: Answers, resamples: int, seed: int, learn: Learn = by_words
) -> tuple[dict[str, Any], str]:
    """Leakage-adjusted simulatability (2010.04119), and what is missing, "" if nothing.

    A simulator predicts the system's own answer. A row is `leaking` where one can from the reasoning alone. In each
    group: the share that one predicts from text and reasoning, less the share that one predicts from the text. LAS is
    the mean of the two groups, None where one is empty. The paper has one simulator, trained with parts of its input
    left out; ours are three, which `learn` teaches.
    """
    nothing = {"value": None, "n": 0}
    if missing := _missing(task, answers):
        return {"value": None, "ci95": None, "leaking": nothing, "hidden": nothing}, missing
    rows, reasonings = _shown(answers, seed)
    dealt = deal(rows, seed)

    def hits(shown: Sequence[Row]) -> Floats:
        (given,) = out_of_folds(task, dealt, learn, shown, shown)
        return np.array([float(one.label == row.label) for one, row in zip(given, shown, strict=True)])

    both = [_both(row.text, why) for row, why in zip(rows, reasonings, strict=True)]
    gained = hits(_in_place(rows, both)) - hits(_in_place(rows, [_framed(row.text) for row in rows]))
    leaks = hits(_in_place(rows, reasonings)) > 0
    grouped = np.stack([np.where(group, gained, np.nan) for group in (leaks, ~leaks)], axis=1)
    means = [metrics.number(gained[group].mean()) if group.any() else None for group in (leaks, ~leaks)]
    interval = metrics.interval(metrics.resampled_means(grouped, resamples, seed).mean(axis=1))
    return {
        "value": None if means[0] is None or means[1] is None else (means[0] + means[1]) / 2,
        "ci95": None if interval is None else [interval[0], interval[1]],
        "leaking": {"value": means[0], "n": int(leaks.sum())},
        "hidden": {"value": means[1], "n": int((~leaks).sum())},
    }, ""


def rev(
    task: Task, answers: Answers, resamples: int, seed: int, learn: Learn = by_words
) -> tuple[dict[str, Any], str]:
    """REV (2210.04982), in nats, and what is missing, "" if nothing.

    The mean of log p(y | r, b) − log p(y | b): what the reasoning r tells an evaluator of the system's answer y beyond
    the vacuous statement b, which is the text with that answer put as a sentence. Reported for right and wrong answers
    apart. `vacuous` is REV where b stands in the place of the reasoning too, and about 0 where the evaluators do as
    they should. The paper takes the mean over the tokens of a label; our evaluators,
    which `learn` teaches, know labels, not tokens.
    """
    kinds = ("all", "right", "wrong", "vacuous")
    if missing := _missing(task, answers):
        return {kind: mean([], resamples, seed) for kind in kinds}, missing
    rows, reasonings = _shown(answers, seed)
    dealt = deal(rows, seed)
    vacuous = [f"{row.text} The answer is {row.label}." for row in rows]

    def logs(texts: Sequence[str]) -> Floats:
        shown = _in_place(rows, texts)
        (given,) = out_of_folds(task, dealt, learn, shown, shown)
        return np.log([max(_of_label(one, row), metrics.SMALLEST) for one, row in zip(given, shown, strict=True)])

    known = logs([_framed(b) for b in vacuous])
    told = logs([_both(b, why) for b, why in zip(vacuous, reasonings, strict=True)]) - known
    again = logs([_both(b, b) for b in vacuous]) - known
    gold: Mapping[str, str] = dict(zip(answers.ids, answers.gold, strict=True))
    right = np.array([gold[row.id] == row.label for row in rows])
    values = (told, told[right], told[~right], again)
    return {kind: mean(some.tolist(), resamples, seed) for kind, some in zip(kinds, values, strict=True)}, ""


def _missing(task: Task, answers: Answers) -> str:
    if not task.labels:
        return "las, rev: rows have their own choices"
    if len(set(answers.labels)) < 2:
        return "las, rev: every row was given the same answer"
    return ""


def _shown(answers: Answers, seed: int) -> tuple[list[Row], list[str]]:
    """Give rows whose label is what was answered, in an order that is not the file's, and their reasonings."""
    order = sorted(range(len(answers.ids)), key=lambda at: answers.ids[at])
    if len(order) > MOST_ROWS:
        order = sorted(Random(seed).sample(order, MOST_ROWS), key=lambda at: answers.ids[at])
    rows = [Row(answers.ids[at], answers.texts[at], answers.labels[at]) for at in order]
    return rows, [answers.reasonings[at] or "" for at in order]


def _in_place(rows: Sequence[Row], texts: Sequence[str]) -> list[Row]:
    return [replace(row, text=text) for row, text in zip(rows, texts, strict=True)]


def _framed(text: str) -> str:
    """Put the same words around every text: the pair of words where two meet is then the same everywhere."""
    return f"begin {text} end"


def _both(text: str, reasoning: str) -> str:
    """Put a reasoning behind a text; its words count apart from those of the text, however they are spelt."""
    return f"{_framed(text)}\n" + re.sub(r"\w+", r"why_\g<0>", _framed(reasoning))


def _of_label(given: Prediction, row: Row) -> float:
    return given.probabilities.get(row.label or "", 0.0)
