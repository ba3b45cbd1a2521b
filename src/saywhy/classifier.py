"""Stage 3: one arm of the classifier is trained on the rows and, where it reasons, on their kept reasonings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saywhy import card, store
from saywhy.config import Arm, FromScratch, Train
from saywhy.controls import Tokens
from saywhy.lm import LM, bind
from saywhy.lm.encode import make_encoder, reasoning_tokens, render
from saywhy.lm.load import model_of, tokenizer_of
from saywhy.metrics import accuracy, count, macro_f1, mean_recall
from saywhy.predict import Classifier, answer
from saywhy.prompts import Part, row_pieces, target, targets, task_instruction
from saywhy.records import Row, Task
from saywhy.train.folder import Course, Lesson, encode
from saywhy.train.folder import train as train_folder
from saywhy.train.steps import packs_tokens, plan_steps
from saywhy.trees import pack_trees

METRICS = {"macro_f1": macro_f1, "accuracy": accuracy, "mean_recall": mean_recall}
# Steps that are laid out to learn how many tokens one takes.
SAMPLED_STEPS = 8
# Packs of this size count what arms of equal tokens compute, whatever packs they are trained with.
MATCHED_TOKENS = 2048


def lessons(
    arm: str,
    rows: Sequence[Row],
    kept: Mapping[str, tuple[str, ...]],
    weights: Mapping[str, int] | None = None,
) -> list[Lesson]:
    """Turn labelled rows into lessons; a row without a kept reasoning has its label-only target in every arm.

    A row with a weight of m becomes m lessons that share its reasonings, in every arm alike.
    """
    made = []
    for row in rows:
        some, times = kept.get(row.id, ()), (weights or {}).get(row.id, 1)
        for k in range(times):
            name = row.id if k == 0 else f"{row.id}#{k + 1}"
            parts = tuple(targets(arm, row.label or "", some[k::times]))
            made.append(Lesson(name, row_pieces(row), parts, row.label or ""))
    return made


def shown(task: Task, rows: Sequence[Row]) -> list[str]:
    """Write labelled rows as a model from scratch will meet them: what its tokenizer is trained on."""
    return [f"{task_instruction(task)}\n\n{row.text}\nLabel: {row.label}" for row in rows]


def tokens(task: Task, base: str, trust_remote_code: bool) -> Tokens:
    """Give the student's tokens, in which a control is as long as the reasoning that it replaces."""
    tokenizer = tokenizer_of(base, trust_remote_code)
    return reasoning_tokens(make_encoder(tokenizer, render(tokenizer, task_instruction(task))))


def course(
    task: Task,
    arm: str,
    base: str,
    settings: Train,
    rows: Sequence[Row],
    seed: int,
    on_overflow: str,
    trust: bool,
    save: str = "merged",
) -> Course:
    """Say how an arm is trained, and what is left of an adapter: merged or adapter."""
    answers = {label for row in rows for label in (row.choices or ())} | set(task.labels)
    longest = max(answers, key=len, default="")
    around = () if arm == "label_only" else tuple(p for p in _answer(arm, longest) if p.name != "reasoning")
    weights = _class_weights(rows) if settings.class_weights == "balanced" else ()
    shares = _shares(rows) if settings.is_balanced else ()
    return Course(arm, base, task_instruction(task), settings, seed, around, weights, on_overflow, trust, shares, save)


def untrained(task: Task, plan: Course, rows: Sequence[Row]) -> Classifier:
    """Give the base of a course as a classifier that was taught nothing, asked as the one trained on `rows` will be."""
    model = model_of(plan.base, plan.trust_remote_code)
    if torch.cuda.is_available():
        model.to("cuda")
    return Classifier(bind(model, encode(plan, lessons(plan.arm, rows, {})).encoder), task, plan.arm, {})


def _answer(arm: str, label: str) -> tuple[Part, ...]:
    return target("reason_then_label" if arm == "both" else arm, label, "")


def _class_weights(rows: Sequence[Row]) -> tuple[tuple[str, float], ...]:
    shares = _shares(rows)
    return tuple((label, 1 / (len(shares) * share)) for label, share in shares)


def _shares(rows: Sequence[Row]) -> tuple[tuple[str, float], ...]:
    counts = Counter(row.label or "" for row in rows)
    return tuple((label, n / len(rows)) for label, n in counts.items())


def train(
    folder: Path,
    task: Task,
    arm: Arm,
    plan: Course,
    taught: Sequence[Lesson],
    dev: Sequence[Row],
    metric: str,
    control: str = "none",
    data_hash: str = "",
) -> None:
    """Train one arm into `folder`; the dev rows choose the checkpoint by `metric`, in the mode of the arm.

    `control` names what stands in for the reasonings in what is taught, `data_hash` the training rows.
    """

    def dev_score(lm: LM) -> float:
        classifier = Classifier(lm, task, arm.arm, {})
        return score(task, rows, [p.label for p in answer(classifier, rows, classifier.mode)], metric)

    rows = _some(dev, plan.settings.dev_rows, plan.seed)
    store.write_json(folder / "task.json", asdict(task))
    train_folder(folder, plan, taught, arm.name, dev_score if rows else None, len(rows))
    describe(folder, task, arm, plan.base, len(taught), control, data_hash)


def describe(
    folder: Path,
    task: Task,
    arm: Arm,
    base: str | FromScratch,
    rows: int,
    control: str = "none",
    data_hash: str = "",
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write the model card of an arm's folder, with what its evaluation left there and `metrics` once it has."""
    facts, chosen = store.read_json(folder / "train.json"), folder / "calibration.json"
    calibration = store.read_json(chosen) if chosen.exists() else {}
    known = card.Known(arm.name, arm.arm, _named(base), rows, facts, data_hash, metrics, control, calibration)
    store.write_text(folder / "README.md", card.write(task, known))


def _named(base: str | FromScratch) -> str:
    """Name a base without the path to it: a card travels with its model."""
    if isinstance(base, FromScratch):
        size = base.scratch
        return f"random weights (width {size.width}, layers {size.layers}, vocabulary {size.vocabulary})"
    return f"the folder {Path(base).name}" if Path(base).is_dir() else base


def _some(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    order = np.random.default_rng(seed).permutation(len(rows))[:most]
    return [rows[i] for i in sorted(order)]


def score(task: Task, rows: Sequence[Row], answers: Sequence[str], metric: str) -> float:
    """Score answers by one metric; where every row has its own choices, by accuracy."""
    if not task.labels:
        return sum(row.label == given for row, given in zip(rows, answers, strict=True)) / len(rows)
    place = {label: i for i, label in enumerate(task.labels)}
    gold = np.array([place[row.label or ""] for row in rows])
    given = np.array([place[one] for one in answers])
    return float(METRICS[metric](count(gold, given, len(task.labels))))


def matched(
    plan: Course,
    taught: Sequence[Lesson],
    match: str | None,
    steps: int,
    other: tuple[Course, Sequence[Lesson]],
) -> Course:
    """Give a course as many steps as another arm takes, or as make its tokens those that the other takes in `steps`."""
    if match == "tokens":
        steps = max(1, round(steps * _tokens_of_step(*other) / _tokens_of_step(plan, taught)))
    return replace(plan, settings=plan.settings.model_copy(update={"steps": steps}))


def _tokens_of_step(plan: Course, taught: Sequence[Lesson]) -> float:
    """Count the tokens of a step as trees of one size: neither layout nor memory may change what arms are compared."""
    examples = encode(plan, taught).examples
    sampled = plan_steps(examples, plan.settings, plan.seed)[:SAMPLED_STEPS]
    laid = [[branch for row in step for branch in examples[row].branches] for step in sampled]
    return sum(packs_tokens(pack_trees(branches, MATCHED_TOKENS)) for branches in laid) / len(laid)
