"""What one system answered on some rows: asked with the clock running, saved, loaded again, and turned into numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from saywhy import metrics, store
from saywhy.metrics import Floats, Ints
from saywhy.records import Prediction, RequestError, Row, Task, WorkError

PredictRows = Callable[[Sequence[Row]], list[Prediction]]

# A file of predictions: each column's name, the field of `Answers` it holds, and its type.
COLUMNS = (
    ("id", "ids", pa.string()),
    ("text", "texts", pa.string()),
    ("gold", "gold", pa.string()),
    ("label", "labels", pa.string()),
    ("probabilities", "probabilities", pa.list_(pa.float64())),
    ("reasoning", "reasonings", pa.string()),
    ("tokens", "tokens", pa.float64()),
    ("prompt_tokens", "prompt_tokens", pa.float64()),
    ("forced", "forced", pa.bool_()),
    ("strict", "strict", pa.string()),
    ("pruned", "pruned", pa.float64()),
    ("choices", "choices", pa.list_(pa.string())),
)


@dataclass(frozen=True)
class Answers:
    """What one system answered on the rows of one split; every tuple has one entry a row.

    `probabilities` follow the task's labels, or the row's `choices` where it has its own, before any temperature.
    `seconds` is the time that all rows took together. `prior` has the factor of each label by which probabilities are
    corrected after the temperature, where training balanced the labels; without one nothing is to be corrected.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    gold: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    reasonings: tuple[str | None, ...]
    tokens: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    forced: tuple[bool, ...]
    strict: tuple[str | None, ...]
    pruned: tuple[float, ...]
    choices: tuple[tuple[str, ...] | None, ...]
    seconds: float
    prior: Mapping[str, float] = field(default_factory=dict)


def answer(
    predict: PredictRows,
    rows: Sequence[Row],
    path: Path,
    task: Task,
    stamp: str = "",
    facts: Mapping[str, object] | None = None,
) -> None:
    """Ask a system about every row, with the clock running, and save its answers with a stamp and `facts` of them."""
    save_answers(collect(predict, rows, task), path, stamp, facts)


def collect(predict: PredictRows, rows: Sequence[Row], task: Task) -> Answers:
    """The answers of a system to these rows; RequestError for a row without a label that it may have."""
    for row in rows:
        if row.label is None or row.label not in options_of(task, row.choices):
            raise RequestError(f"row {row.id!r} has the label {row.label!r}, which is not one of its possible answers")
    started = time.perf_counter()
    predictions = predict(rows)
    seconds = time.perf_counter() - started
    if len(predictions) != len(rows):
        raise WorkError(f"{len(rows)} rows were asked and {len(predictions)} answers came back")
    return Answers(
        ids=tuple(row.id for row in rows),
        texts=tuple(row.text for row in rows),
        gold=tuple(str(row.label) for row in rows),
        labels=tuple(prediction.label for prediction in predictions),
        probabilities=tuple(_in_order(task, *pair) for pair in zip(rows, predictions, strict=True)),
        reasonings=tuple(prediction.reasoning for prediction in predictions),
        tokens=tuple(float(prediction.tokens) for prediction in predictions),
        prompt_tokens=tuple(float(prediction.prompt_tokens) for prediction in predictions),
        forced=tuple(bool(prediction.forced) for prediction in predictions),
        strict=tuple(prediction.strict for prediction in predictions),
        pruned=tuple(float(prediction.pruned) for prediction in predictions),
        choices=tuple(row.choices for row in rows),
        seconds=seconds,
    )


def save_answers(answers: Answers, path: Path, stamp: str = "", facts: Mapping[str, object] | None = None) -> None:
    """Write answers as Parquet, with `facts` and the time they took in the file's metadata."""
    table = pa.table({name: pa.array(list(getattr(answers, field)), type=kind) for name, field, kind in COLUMNS})
    store.write_table(path, table, stamp, {**(facts or {}), "seconds": answers.seconds})


def load_answers(path: Path, task: Task) -> Answers:
    """The answers saved in a file; RequestError where they are not answers to this task."""
    table = store.read_table(path)
    missing = [name for name, _, _ in COLUMNS if name not in table.column_names]
    if missing:
        raise RequestError(f"{path} is not a file of predictions: it lacks the columns {', '.join(missing)}")
    columns: dict[str, Any] = {field: tuple(table.column(name).to_pylist()) for name, field, _ in COLUMNS}
    for nested in ("probabilities", "choices"):
        columns[nested] = tuple(None if of_row is None else tuple(of_row) for of_row in columns[nested])
    extra: Mapping[str, Any] = store.table_extra(path)
    answers = Answers(**columns, seconds=float(extra.get("seconds", 0.0)), prior=extra.get("prior", {}))
    for i, own in enumerate(answers.choices):
        options = options_of(task, own)
        if not {answers.gold[i], answers.labels[i]} <= set(options) or len(answers.probabilities[i]) != len(options):
            raise RequestError(
                f"{path}: row {answers.ids[i]!r} was answered under other labels than {', '.join(options)}; "
                "evaluate again"
            )
    return answers


@dataclass(frozen=True)
class Arrays:
    """Answers as numbers: `labels` is how many there are, at most, to a row; `prior` (labels,) is None without one."""

    gold: Ints
    predicted: Ints
    probabilities: Floats
    labels: int
    prior: Floats | None

    def calibrated(self, temperature: float) -> Floats:
        """The probabilities at a temperature, then under the prior of the training rows, shape (rows, labels)."""
        scaled = metrics.apply_temperature(self.probabilities, temperature)
        return scaled if self.prior is None else metrics.apply_prior(scaled, self.prior)


def options_of(task: Task, choices: tuple[str, ...] | None) -> tuple[str, ...]:
    """Give what a row may be answered with: its own choices, or else the labels of the task."""
    return task.labels if choices is None else choices


def _in_order(task: Task, row: Row, prediction: Prediction) -> tuple[float, ...]:
    """The probabilities of one prediction in the order of the possible answers; WorkError where they are not sound."""
    options = options_of(task, row.choices)
    given = tuple(float(prediction.probabilities.get(option, np.nan)) for option in options)
    sound = all(0 <= p <= 1 + 1e-6 for p in given) and abs(sum(given) - 1) < 1e-3
    if prediction.label not in options or not sound:
        raise WorkError(
            f"row {row.id!r} was answered {prediction.label!r} with {dict(prediction.probabilities)}; it takes one of "
            f"{', '.join(options)} and probabilities of them that sum to 1"
        )
    return given


def arrays_of(task: Task, answers: Answers) -> Arrays:
    """Put answers into arrays, labels by their place among those that a row may have."""
    options = [options_of(task, own) for own in answers.choices]
    labels = max((len(x) for x in options), default=len(task.labels))
    probabilities = np.zeros((len(options), labels))
    possible = np.zeros((len(options), labels), dtype=np.bool_)
    for i, of_row in enumerate(answers.probabilities):
        probabilities[i, : len(of_row)] = of_row
        possible[i, : len(of_row)] = True
    return Arrays(
        gold=np.array([x.index(label) for x, label in zip(options, answers.gold, strict=True)], dtype=np.int64),
        predicted=np.array([x.index(label) for x, label in zip(options, answers.labels, strict=True)], dtype=np.int64),
        probabilities=metrics.give_back_pruned(probabilities, np.array(answers.pruned, dtype=np.float64), possible),
        labels=labels,
        prior=np.array([answers.prior.get(label, 1.0) for label in task.labels]) if answers.prior else None,
    )
