"""Scores of systems, which of them is better, and metrics.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from saywhy import metrics
from saywhy.evaluate.answers import Answers, arrays_of
from saywhy.evaluate.choice import recommend
from saywhy.evaluate.measured import RESAMPLES, Measured, check_metric, mean, measure, temperature_of
from saywhy.metrics import Floats, Ints
from saywhy.records import Task

Scores = dict[str, Any]

# The floors that all arms are compared with; always answering the same decides nothing.
COMPARED_FLOORS = ("floors/linear", "floors/zero_shot", "floors/encoder")
# The explanation follows a label that the same arm's mode `label` gives too: it decides nothing of its own.
EXPLAIN = "explain"


def score(
    task: Task,
    answers: Answers,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
    abstain_below: float | None = None,
) -> Scores:
    """Every figure of a system on one split, as metrics.json has them; None where undefined.

    What is said of probabilities holds at the temperature. `thresholds` are those of `coverage` on dev, None where
    these rows are dev's. The tables by class are None where rows have own choices.
    """
    arrays, n = arrays_of(task, answers), len(answers.ids)
    counts = metrics.count(arrays.gold, arrays.predicted, arrays.labels)
    right = arrays.gold == arrays.predicted
    calibrated = arrays.calibrated(temperature)
    # Rows that differ by rounding alone are equally sure.
    sure = calibrated[np.arange(n), arrays.predicted].round(12)
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
        "ece": metrics.ece(sure, right),
        "reliability": [asdict(one) for one in metrics.reliability(sure, right)],
        "aurc": metrics.aurc(sure, right),
        "coverage": [asdict(one) for one in metrics.accuracy_at_coverage(sure, right, thresholds)],
        "recall_at_fpr": _recall_at_fpr(task.labels, calibrated, arrays.gold) if shared else None,
        "forced": mean(answers.forced),
        # Modes that write no text have nothing to read strictly.
        "accuracy_unforced": mean(strictly) if written else None,
        "rows_per_second": n / answers.seconds if n and answers.seconds > 0 else None,
        "tokens_per_row": mean(answers.tokens),
    }
    if task.ordinal and shared:
        scores["mae"] = metrics.number(metrics.mae(counts))
        scores["mae_expected"] = metrics.mae_expected(calibrated, arrays.gold, metrics.scale_of(task.labels))
        scores["qwk"] = metrics.number(metrics.qwk(counts))
    if abstain_below is not None:
        scores["abstained"] = mean((sure < abstain_below).tolist())
        scores["accuracy_answered"] = mean(right[sure >= abstain_below].tolist())
    return dict(plain(scores))


def _recall_at_fpr(labels: Sequence[str], probabilities: Floats, gold: Ints) -> dict[str, dict[str, float | None]]:
    """Each label's highest recall against the rest, by the false-positive rate that it may have."""
    return {
        label: {
            f"{most:g}": metrics.recall_at_fpr(probabilities[:, at], gold == at, most)
            for most in metrics.FALSE_POSITIVE_RATES
        }
        for at, label in enumerate(labels)
    }


def _on_both(
    task: Task, dev: Answers | None, test: Answers | None, abstain_below: float | None
) -> tuple[Scores | None, Scores | None, float]:
    """The scores of a system on dev and on test, at the temperature and the thresholds of dev, and the temperature."""
    temperature = 1.0 if dev is None else temperature_of(task, dev)
    of_dev = None if dev is None else score(task, dev, temperature, None, abstain_below)
    thresholds = None if of_dev is None else [point["threshold"] for point in of_dev["coverage"]]
    of_test = None if test is None else score(task, test, temperature, thresholds, abstain_below)
    return of_dev, of_test, temperature


def floor_scores(
    task: Task, answers: Mapping[str, Mapping[str, Answers] | None], abstain_below: float | None = None
) -> dict[str, Scores | None]:
    """The floors' scores on test, from their answers by split; None for a floor that cannot be."""
    scores: dict[str, Scores | None] = {"majority": None, "linear": None}
    for name, splits in answers.items():
        scores[name] = None
        if splits is not None:
            _, scores[name], _ = _on_both(task, splits["dev"], splits["test"], abstain_below)
    return scores


def compare(
    task: Task, a_name: str, a: Answers, b_name: str, b: Answers, metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """One system against another on the same rows: a − b, its paired bootstrap interval and exact McNemar.

    Rows are matched by id. `p_mcnemar` is None but for accuracy, `p_holm` always: one comparison has no family. `mde`
    is the smallest difference that the bootstrap's standard error lets be found, None where all resamples are equal.
    """
    check_metric(task, metric)
    measured = measure(task, {a_name: a, b_name: b}, (metric,), resamples, seed)
    return _row(a_name, measured[a_name], b_name, measured[b_name], metric)


def comparisons(
    task: Task, systems: Mapping[str, Answers], resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """All pairs of systems, each metric in turn; `p_holm` adjusts for all accuracy rows together.

    In a pair `b` is the earlier system of the mapping, so that a positive difference speaks for the later one; floors
    are earlier than all. They are not compared with each other, and `floors/majority` is left out.
    """
    arms = {name: x for name, x in systems.items() if not name.startswith("floors/")}
    floors = {name: systems[name] for name in COMPARED_FLOORS if name in systems}
    compared = {**floors, **arms}
    names = tuple(metrics.METRICS) if task.labels else ("accuracy",)
    measured = measure(task, compared, names, resamples, seed)
    pairs = [(b, a) for b, a in combinations(compared, 2) if a not in floors]
    rows = [_row(a, measured[a], b, measured[b], metric) for b, a in pairs for metric in names]
    tested = [row for row in rows if row["p_mcnemar"] is not None]
    for row, adjusted in zip(tested, metrics.holm([row["p_mcnemar"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return rows


def metrics_json(
    *,
    task: Task,
    dev: Mapping[str, Answers],
    test: Mapping[str, Answers],
    floor: Mapping[str, Mapping[str, Answers] | None],
    train: Mapping[str, Mapping[str, Any]],
    audit: Mapping[str, Any],
    versions: Mapping[str, Any],
    seed: int,
    recommend_by: str = "macro_f1",
    resamples: int = RESAMPLES,
    kinds: Mapping[str, str] | None = None,
    reasonings: Mapping[str, Any] | None = None,
    probes: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    abstain_below: float | None = None,
    tokens: float | None = None,
) -> dict[str, Any]:
    """Everything the report shows, strictly JSON: `dev` and `test` by `<arm>/<mode>`, `floor` by name
    and split, None for one that cannot be.

    The mode `explain` is scored, but neither compared nor recommended: its label is that of the mode `label`.
    """
    decisive = [name for name in test if name.rpartition("/")[2] != EXPLAIN]
    compared = {name: test[name] for name in decisive}
    compared |= {f"floors/{name}": splits["test"] for name, splits in floor.items() if splits is not None}
    candidates = {name: dev[name] for name in decisive if name in dev}
    chosen = recommend(task, candidates, recommend_by, resamples, seed, kinds, tokens) if candidates else None
    document: dict[str, Any] = {
        "task": {"name": task.name, "labels": task.labels, "ordinal": task.ordinal},
        "recommended": chosen,
        "arms": _arms(task, dev, test, train, kinds or {}, abstain_below),
        "floors": floor_scores(task, floor, abstain_below),
        "comparisons": comparisons(task, compared, resamples, seed),
        "audit": audit,
        "versions": versions,
        "seed": seed,
    }
    if reasonings is not None:
        document["reasonings"] = reasonings
    if probes:
        document["probes"] = probes
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


def _row(a_name: str, a: Measured, b_name: str, b: Measured, metric: str) -> dict[str, Any]:
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
        "mde": None if found is None else metrics.minimum_detectable(found[2]),
        "n": len(a.ids),
    }


def _arms(
    task: Task,
    dev: Mapping[str, Answers],
    test: Mapping[str, Answers],
    train: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, str],
    abstain_below: float | None,
) -> dict[str, Any]:
    """Each arm's training facts, and its modes' scores on both splits under the temperature of dev."""
    arms: dict[str, Any] = {arm: {"train": facts, "modes": {}} for arm, facts in train.items()}
    for name in {**dev, **test}:
        arm, _, mode = name.rpartition("/")
        # What was asked about no dev rows has the temperature of the label that it explains.
        calibrating = dev.get(name, dev.get(f"{arm}/label"))
        of_dev, of_test, temperature = _on_both(task, calibrating, test.get(name), abstain_below)
        found = {"dev": of_dev if name in dev else None, "test": of_test, "temperature": temperature}
        if prior := dict(test[name].prior if name in test else dev[name].prior):
            found["prior"] = prior
        arms.setdefault(arm, {"train": {}, "modes": {}})["modes"][mode] = found
    for arm in arms.keys() & kinds.keys():
        arms[arm]["arm"] = kinds[arm]
    return arms
