"""Answers of systems on the same rows, their scores, the floors below them, and which system is better.

A system is a function from rows to predictions and is known here by a name, `<arm>/<mode>` or `floors/<name>`. Every
figure is computed from saved answers, so that it can be computed again without a model.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from saywhy import metrics, store
from saywhy.metrics import Floats, Ints
from saywhy.records import Prediction, RequestError, Row, Task, WorkError

PredictRows = Callable[[Sequence[Row]], list[Prediction]]
Scores = dict[str, Any]

RESAMPLES = 2000
LINEAR_FLOOR = "floors/linear"
# The explanation follows a label that the same arm's mode `label` gives too: it decides nothing of its own.
EXPLAIN = "explain"
LABEL_ONLY = "label_only"

# What the linear floor chooses from on the dev split: inverse strength of its penalty, and weights of the classes.
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
CLASS_WEIGHTS = (None, "balanced")
# Where the solver stops. Ten times closer takes thrice as long and gains no F1 (emotion, 16,000 rows).
TOLERANCE = 1e-3
# From this many rows on, words seen once are left out: half the time and no worse (16,000 rows of emotion).
MANY_ROWS = 1000

# A file of predictions: each column's name, the field of `Answers` it holds, and its type.
COLUMNS = (
    ("id", "ids", pa.string()),
    ("text", "texts", pa.string()),
    ("gold", "gold", pa.string()),
    ("label", "labels", pa.string()),
    ("probabilities", "probabilities", pa.list_(pa.float64())),
    ("reasoning", "reasonings", pa.string()),
    ("tokens", "tokens", pa.float64()),
    ("forced", "forced", pa.bool_()),
    ("strict", "strict", pa.string()),
    ("pruned", "pruned", pa.float64()),
    ("choices", "choices", pa.list_(pa.string())),
)


@dataclass(frozen=True)
class Answers:
    """What one system answered on the rows of one split; every tuple has one entry a row.

    `probabilities` follow the task's labels, or the row's `choices` where it has its own, before any temperature.
    `seconds` is the time that all rows took together.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    gold: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    reasonings: tuple[str | None, ...]
    tokens: tuple[float, ...]
    forced: tuple[bool, ...]
    strict: tuple[str | None, ...]
    pruned: tuple[float, ...]
    choices: tuple[tuple[str, ...] | None, ...]
    seconds: float


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
        if row.label is None or row.label not in _options(task, row.choices):
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
    answers = Answers(**columns, seconds=float(store.table_extra(path).get("seconds", 0.0)))
    for i, own in enumerate(answers.choices):
        options = _options(task, own)
        if not {answers.gold[i], answers.labels[i]} <= set(options) or len(answers.probabilities[i]) != len(options):
            raise RequestError(
                f"{path}: row {answers.ids[i]!r} was answered under other labels than {', '.join(options)}; "
                "evaluate again"
            )
    return answers


def temperature_of(task: Task, dev: Answers) -> float:
    """The temperature of a system, fitted on its answers to the dev split and on nothing else."""
    of_dev = _arrays(task, dev)
    return metrics.fit_temperature(of_dev.probabilities, of_dev.gold)


def score(task: Task, answers: Answers, temperature: float = 1.0) -> Scores:
    """Every figure of a system on one split, as metrics.json has them; None where undefined.

    Only `nll`, `brier` and `ece` depend on the temperature. The tables by class are None where rows have own choices.
    """
    arrays, n = _arrays(task, answers), len(answers.ids)
    counts = metrics.count(arrays.gold, arrays.predicted, arrays.labels)
    right = arrays.gold == arrays.predicted
    calibrated = metrics.apply_temperature(arrays.probabilities, temperature)
    shared = bool(task.labels)
    written = any(x is not None for x in (*answers.reasonings, *answers.strict))
    strictly = [strict == gold for strict, gold in zip(answers.strict, answers.gold, strict=True)]
    scores: Scores = {
        "n": n,
        "accuracy": metrics.number(metrics.accuracy(counts)),
        "accuracy_ci95": metrics.wilson(int(right.sum()), n),
        "macro_f1": metrics.number(metrics.macro_f1(counts)) if shared else None,
        "mean_recall": metrics.number(metrics.mean_recall(counts)) if shared else None,
        "per_class": metrics.per_class(counts, task.labels) if shared else None,
        "confusion": metrics.confusion(arrays.gold, arrays.predicted, arrays.labels) if shared else None,
        "nll": metrics.nll(calibrated, arrays.gold),
        "brier": metrics.brier(calibrated, arrays.gold),
        "ece": metrics.ece(calibrated[np.arange(n), arrays.predicted], right),
        "forced": _mean(answers.forced),
        # Modes that write no text have nothing to read strictly.
        "accuracy_unforced": _mean(strictly) if written else None,
        "rows_per_second": n / answers.seconds if n and answers.seconds > 0 else None,
        "tokens_per_row": _mean(answers.tokens),
    }
    if task.ordinal and shared:
        scores["mae"] = metrics.mae(arrays.gold, arrays.predicted)
        scores["qwk"] = metrics.qwk(arrays.gold, arrays.predicted, arrays.labels)
    return dict(plain(scores))


def majority(task: Task, train: Sequence[Row]) -> PredictRows:
    """The system that always answers train's most frequent label, or position where rows have their own choices.

    Its probabilities are train's shares with one row added to each, so that what train lacks is not impossible.
    """
    seen = Counter(_options(task, row.choices).index(row.label) for row in train if row.label is not None)

    def predict(rows: Sequence[Row]) -> list[Prediction]:
        predictions = []
        for options in (_options(task, row.choices) for row in rows):
            shares = np.array([seen[i] + 1 for i in range(len(options))], dtype=np.float64)
            predictions.append(_floor_prediction(options, shares / shares.sum()))
        return predictions

    return predict


def linear(task: Task, train: Sequence[Row], dev: Sequence[Row]) -> PredictRows | None:
    """TF-IDF of words and pairs of words under logistic regression, chosen on dev by macro F1.

    None where it cannot be: rows with their own choices, fewer than two labels, or no words at all.
    """
    of_train = [task.labels.index(str(row.label)) for row in train] if task.labels else []
    if len(set(of_train)) < 2 or not any(re.search(r"\w", row.text) for row in train):
        return None
    least = 2 if len(train) >= MANY_ROWS else 1
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True, min_df=least)
    train_matrix = vectorizer.fit_transform(row.text for row in train)
    dev_matrix = vectorizer.transform([row.text for row in dev]) if dev else None
    of_dev = np.array([task.labels.index(str(row.label)) for row in dev], dtype=np.int64)
    model = _best_linear(train_matrix, np.array(of_train), dev_matrix, of_dev, len(task.labels))

    def predict(rows: Sequence[Row]) -> list[Prediction]:
        if not rows:
            return []
        probabilities = np.zeros((len(rows), len(task.labels)))
        # A label that train lacks keeps 0.
        probabilities[:, model.classes_] = model.predict_proba(vectorizer.transform([row.text for row in rows]))
        return [_floor_prediction(task.labels, of_row) for of_row in probabilities]

    return predict


def floor_answers(
    task: Task, train: Sequence[Row], dev: Sequence[Row], test: Sequence[Row]
) -> dict[str, dict[str, Answers]]:
    """The floors' answers by name (`majority`, and `linear` where it can be) and split (`dev`, `test`)."""
    systems = {"majority": majority(task, train), "linear": linear(task, train, dev)}
    splits = {"dev": dev, "test": test}
    return {
        name: {split: collect(predict, rows, task) for split, rows in splits.items()}
        for name, predict in systems.items()
        if predict is not None
    }


def floors(task: Task, answers: Mapping[str, Mapping[str, Answers]]) -> dict[str, Scores | None]:
    """The floors' scores on test, from `floor_answers`; None for the linear one where it cannot be."""
    scores: dict[str, Scores | None] = {"majority": None, "linear": None}
    for name, splits in answers.items():
        scores[name] = score(task, splits["test"], temperature_of(task, splits["dev"]))
    return scores


def compare(
    task: Task, a_name: str, a: Answers, b_name: str, b: Answers, metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """One system against another on the same rows: a − b, its paired bootstrap interval and exact McNemar.

    Rows are matched by id. `p_mcnemar` is None but for accuracy, `p_holm` always: one comparison has no family.
    """
    _check_metric(task, metric)
    measured = _measure(task, {a_name: a, b_name: b}, (metric,), resamples, seed)
    return _row(a_name, measured[a_name], b_name, measured[b_name], metric)


def comparisons(
    task: Task, systems: Mapping[str, Answers], resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """All pairs of systems, each metric in turn; `p_holm` adjusts for all accuracy rows together.

    In a pair `b` is the earlier system of the mapping, so that a positive difference speaks for the later one;
    `floors/linear` is earlier than all. Other floors are left out.
    """
    compared = {name: x for name, x in systems.items() if not name.startswith("floors/")}
    if LINEAR_FLOOR in systems:
        compared = {LINEAR_FLOOR: systems[LINEAR_FLOOR], **compared}
    names = tuple(metrics.METRICS) if task.labels else ("accuracy",)
    measured = _measure(task, compared, names, resamples, seed)
    pairs = list(combinations(compared, 2))
    rows = [_row(a, measured[a], b, measured[b], metric) for b, a in pairs for metric in names]
    tested = [row for row in rows if row["p_mcnemar"] is not None]
    for row, adjusted in zip(tested, metrics.holm([row["p_mcnemar"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return rows


def recommend(
    task: Task,
    dev: Mapping[str, Answers],
    metric: str = "macro_f1",
    resamples: int = RESAMPLES,
    seed: int = 0,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The arm and mode to use, from the dev split alone, with the sentence that says why.

    What lies within one paired standard error of the highest metric counts as equal to it. Of those the fewest computed
    tokens a row win, then `label_only`. `kinds` says which arm an arm with a name of its own is. Where rows have their
    own choices only accuracy is defined, and is used.
    """
    if not dev:
        raise RequestError("there is no arm and mode to recommend: none has answered the dev split")
    metric = metric if task.labels else "accuracy"
    _check_metric(task, metric)
    measured = _measure(task, dev, (metric,), resamples, seed)
    values = {name: system.values[metric] for name, system in measured.items()}
    best = max(values, key=lambda name: values[name] if np.isfinite(values[name]) else -1.0)
    errors = {name: _standard_error(measured[best], system, metric) for name, system in measured.items()}
    equal = [name for name in values if not values[best] - values[name] > errors[name]]

    def cost(name: str) -> tuple[float, bool, float]:
        arm = name.rpartition("/")[0]
        return _mean(dev[name].tokens) or 0.0, (kinds or {}).get(arm, arm) != LABEL_ONLY, -values[name]

    chosen = min(equal, key=cost)
    arm, _, mode = chosen.rpartition("/")
    why = _why(chosen, best, metric, values, errors, {name: cost(name)[0] for name in equal})
    return {"arm": arm, "mode": mode, "metric": metric, "why": why}


def metrics_json(
    *,
    task: Task,
    dev: Mapping[str, Answers],
    test: Mapping[str, Answers],
    floor: Mapping[str, Mapping[str, Answers]],
    train: Mapping[str, Mapping[str, Any]],
    audit: Mapping[str, Any],
    versions: Mapping[str, Any],
    seed: int,
    recommend_by: str = "macro_f1",
    resamples: int = RESAMPLES,
    kinds: Mapping[str, str] | None = None,
    reasonings: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """Everything the report shows, strictly JSON: `dev` and `test` by `<arm>/<mode>`, `floor` from `floor_answers`.

    The mode `explain` is scored, but neither compared nor recommended: its label is that of the mode `label`.
    """
    decisive = [name for name in test if name.rpartition("/")[2] != EXPLAIN]
    compared = {name: test[name] for name in decisive}
    compared |= {f"floors/{name}": splits["test"] for name, splits in floor.items()}
    candidates = {name: dev[name] for name in decisive if name in dev}
    document: dict[str, Any] = {
        "task": {"name": task.name, "labels": task.labels, "ordinal": task.ordinal},
        "recommended": recommend(task, candidates, recommend_by, resamples, seed, kinds) if candidates else None,
        "arms": _arms(task, dev, test, train, kinds or {}),
        "floors": floors(task, floor),
        "comparisons": comparisons(task, compared, resamples, seed),
        "audit": audit,
        "versions": versions,
        "seed": seed,
    }
    if reasonings is not None:
        document["reasonings"] = reasonings
    return dict(plain({**document, "notes": list(notes)}))


def plain(value: Any) -> Any:
    """The value in dicts, lists and scalars of plain Python, None for NaN and infinities, as strict JSON needs it."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return metrics.number(value) if isinstance(value, float) else value


@dataclass(frozen=True)
class _Arrays:
    """Answers as numbers: `labels` is how many there are, at most, to a row."""

    gold: Ints
    predicted: Ints
    probabilities: Floats
    labels: int


@dataclass(frozen=True)
class _Measured:
    """A system on rows in the order of their ids: which are right, and each metric on all rows and on resamples."""

    ids: tuple[str, ...]
    gold: tuple[str, ...]
    right: NDArray[np.bool_]
    values: dict[str, float]
    resampled: dict[str, Floats]


def _options(task: Task, choices: tuple[str, ...] | None) -> tuple[str, ...]:
    return task.labels if choices is None else choices


def _in_order(task: Task, row: Row, prediction: Prediction) -> tuple[float, ...]:
    """The probabilities of one prediction in the order of the possible answers; WorkError where they are not sound."""
    options = _options(task, row.choices)
    given = tuple(float(prediction.probabilities.get(option, np.nan)) for option in options)
    sound = all(0 <= p <= 1 + 1e-6 for p in given) and abs(sum(given) - 1) < 1e-3
    if prediction.label not in options or not sound:
        raise WorkError(
            f"row {row.id!r} was answered {prediction.label!r} with {dict(prediction.probabilities)}; it takes one of "
            f"{', '.join(options)} and probabilities of them that sum to 1"
        )
    return given


def _arrays(task: Task, answers: Answers) -> _Arrays:
    options = [_options(task, own) for own in answers.choices]
    labels = max((len(x) for x in options), default=len(task.labels))
    probabilities = np.zeros((len(options), labels))
    possible = np.zeros((len(options), labels), dtype=np.bool_)
    for i, of_row in enumerate(answers.probabilities):
        probabilities[i, : len(of_row)] = of_row
        possible[i, : len(of_row)] = True
    return _Arrays(
        gold=np.array([x.index(label) for x, label in zip(options, answers.gold, strict=True)], dtype=np.int64),
        predicted=np.array([x.index(label) for x, label in zip(options, answers.labels, strict=True)], dtype=np.int64),
        probabilities=metrics.give_back_pruned(probabilities, np.array(answers.pruned, dtype=np.float64), possible),
        labels=labels,
    )


def _mean(values: Sequence[float]) -> float | None:
    # fsum, because cost decides between systems that may have answered in another order.
    return math.fsum(values) / len(values) if values else None


def _floor_prediction(options: Sequence[str], probabilities: Floats) -> Prediction:
    """The likeliest option; a floor computes no tokens."""
    shares = dict(zip(options, probabilities.tolist(), strict=True))
    return Prediction(label=options[int(probabilities.argmax())], probabilities=shares)


def _best_linear(
    train_matrix: Any, of_train: NDArray[np.int64], dev_matrix: Any, of_dev: Ints, labels: int
) -> LogisticRegression:
    """The model of the grid that is best on dev; the plainest where two are equal or dev has no rows."""
    if dev_matrix is None:
        return LogisticRegression(C=1.0, tol=TOLERANCE, max_iter=1000).fit(train_matrix, of_train)
    best, highest = None, -1.0
    for weights in CLASS_WEIGHTS:
        for penalty in PENALTIES:
            # Each starts cold: from the last one's weights the solver's stopping rule, which is relative, ends at once.
            model = LogisticRegression(C=penalty, class_weight=weights, tol=TOLERANCE, max_iter=1000)
            predicted = model.fit(train_matrix, of_train).predict(dev_matrix).astype(np.int64)
            reached = float(metrics.macro_f1(metrics.count(of_dev, predicted, labels)))
            if reached > highest:
                best, highest = model, reached
    return best


def _check_metric(task: Task, metric: str) -> None:
    if metric not in metrics.METRICS:
        near = difflib.get_close_matches(metric, metrics.METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(metrics.METRICS)}"
        raise RequestError(f"no metric is called {metric!r}; {hint}")
    if metric != "accuracy" and not task.labels:
        raise RequestError(f"{metric} is undefined where each row has its own choices; use accuracy")


def _measure(
    task: Task, systems: Mapping[str, Answers], names: Sequence[str], resamples: int, seed: int
) -> dict[str, _Measured]:
    """Each system measured on the same rows and the same resamples of them; RequestError where rows differ."""
    measured: dict[str, _Measured] = {}
    for name, answers in systems.items():
        order = sorted(range(len(answers.ids)), key=lambda i: answers.ids[i])
        arrays = _arrays(task, answers)
        gold, predicted = arrays.gold[order], arrays.predicted[order]
        counts = metrics.count(gold, predicted, arrays.labels)
        again = metrics.resample(gold, predicted, arrays.labels, resamples, seed)
        measured[name] = _Measured(
            ids=tuple(answers.ids[i] for i in order),
            gold=tuple(answers.gold[i] for i in order),
            right=gold == predicted,
            values={metric: float(metrics.METRICS[metric](counts)) for metric in names},
            resampled={metric: metrics.METRICS[metric](again) for metric in names},
        )
        first = next(iter(measured))
        _check_same_rows(first, measured[first], name, measured[name])
    return measured


def _check_same_rows(a_name: str, a: _Measured, b_name: str, b: _Measured) -> None:
    twice = next((one for one, two in zip(b.ids, b.ids[1:], strict=False) if one == two), None)
    if twice is not None:
        raise RequestError(f"{b_name} answered the id {twice!r} twice; ids must be unique to match rows")
    if a.ids != b.ids:
        only = sorted(set(a.ids) ^ set(b.ids))
        raise RequestError(
            f"{a_name} and {b_name} answered different rows: {len(only)} ids are only in one of them, such as "
            f"{only[0]!r}; evaluate both on the same split"
        )
    if a.gold != b.gold:
        other = next(i for i, pair in enumerate(zip(a.gold, b.gold, strict=True)) if pair[0] != pair[1])
        raise RequestError(
            f"{a_name} and {b_name} were held against different labels: row {a.ids[other]!r} is {a.gold[other]!r} in "
            f"one and {b.gold[other]!r} in the other; evaluate both on the same split"
        )


def _row(a_name: str, a: _Measured, b_name: str, b: _Measured, metric: str) -> dict[str, Any]:
    a_only, b_only = int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())
    found = metrics.interval(a.resampled[metric] - b.resampled[metric])
    return {
        "a": a_name,
        "b": b_name,
        "metric": metric,
        "difference": metrics.number(a.values[metric] - b.values[metric]),
        "ci95": None if found is None else [found[0], found[1]],
        "p_mcnemar": metrics.mcnemar_exact(a_only, b_only) if metric == "accuracy" else None,
        "p_holm": None,
        "a_only": a_only,
        "b_only": b_only,
        "n": len(a.ids),
    }


def _standard_error(a: _Measured, b: _Measured, metric: str) -> float:
    found = metrics.interval(a.resampled[metric] - b.resampled[metric])
    return 0.0 if found is None else found[2]


def _why(
    chosen: str,
    best: str,
    metric: str,
    values: Mapping[str, float],
    errors: Mapping[str, float],
    tokens: Mapping[str, float],
) -> str:
    """One sentence with the figures that decided; `tokens` holds the systems that count as equal to the best."""
    if not np.isfinite(values[best]):
        return f"Without rows in the dev split nothing was measured; {chosen} is named for its cost alone."
    below = {name: values[best] - value for name, value in values.items()}
    told = f"{chosen} reaches a dev {metric} of {values[chosen]:.3f} at {tokens[chosen]:.1f} computed tokens a row"
    if chosen == best:
        told += ", the highest"
    else:
        told += f", {below[chosen]:.3f} below {best} and within one paired standard error of it ({errors[chosen]:.3f})"
    others = [name for name in tokens if name != chosen]
    if others:
        listed = ", ".join(f"{name} at {tokens[name]:.1f}" for name in others)
        return f"{told}; of what counts as equal none costs less: {listed}."
    if len(values) == 1:
        return f"{told}; there is no other."
    near = min((name for name in values if name != chosen), key=lambda name: below[name])
    return f"{told}; the next, {near}, is {below[near]:.3f} below at a paired standard error of {errors[near]:.3f}."


def _arms(
    task: Task,
    dev: Mapping[str, Answers],
    test: Mapping[str, Answers],
    train: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, str],
) -> dict[str, Any]:
    """Each arm's training facts, and its modes' scores on both splits under the temperature of dev."""
    arms: dict[str, Any] = {arm: {"train": facts, "modes": {}} for arm, facts in train.items()}
    for name in {**dev, **test}:
        arm, _, mode = name.rpartition("/")
        # What was asked about no dev rows has the temperature of the label that it explains.
        calibrating = dev.get(name, dev.get(f"{arm}/label"))
        temperature = 1.0 if calibrating is None else temperature_of(task, calibrating)
        arms.setdefault(arm, {"train": {}, "modes": {}})["modes"][mode] = {
            "dev": score(task, dev[name], temperature) if name in dev else None,
            "test": score(task, test[name], temperature) if name in test else None,
            "temperature": temperature,
        }
    for arm in arms.keys() & kinds.keys():
        arms[arm]["arm"] = kinds[arm]
    return arms
