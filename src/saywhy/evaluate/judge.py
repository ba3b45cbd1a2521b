"""Scores of systems, which of them is better, which to recommend, and metrics.json."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saywhy import metrics
from saywhy.evaluate.answers import Answers, arrays_of
from saywhy.metrics import Floats, Ints
from saywhy.records import RequestError, Task

Scores = dict[str, Any]

RESAMPLES = 2000
LINEAR_FLOOR = "floors/linear"
# The explanation follows a label that the same arm's mode `label` gives too: it decides nothing of its own.
EXPLAIN = "explain"
LABEL_ONLY = "label_only"


def temperature_of(task: Task, dev: Answers) -> float:
    """The temperature of a system, fitted on its answers to the dev split and on nothing else."""
    of_dev = arrays_of(task, dev)
    return metrics.fit_temperature(of_dev.probabilities, of_dev.gold)


def threshold_of(task: Task, label: Answers, reason: Answers, metric: str, keep: float, tokens: float | None) -> float:
    """The confidence of mode `label` below which mode `adaptive` reasons, chosen on the answers to the dev split.

    The lowest with at least `keep` of what reasoning gains in the metric; with `tokens`, the best among those that
    compute no more tokens a row, of equals the lowest. 0 where reasoning gains nothing: no row is reasoned then.
    """
    alone, reasoned = arrays_of(task, label), arrays_of(task, reason)
    calibrated = metrics.apply_temperature(alone.probabilities, temperature_of(task, label))
    sure = calibrated[np.arange(len(calibrated)), alone.predicted]
    seen = np.unique(sure)
    # Between two confidences that were seen: rounding in another batch then moves no row to the other side.
    candidates: list[float] = [0.0, *((seen[:-1] + seen[1:]) / 2).tolist(), 2.0]

    def reached(threshold: float) -> float:
        mixed = np.where(sure < threshold, reasoned.predicted, alone.predicted)
        counts = metrics.count(alone.gold, mixed, alone.labels)
        return float(metrics.METRICS[metric if task.labels else "accuracy"](counts))

    def cost(threshold: float) -> float:
        return float((np.array(label.tokens) + np.where(sure < threshold, np.array(reason.tokens), 0.0)).mean())

    if tokens is not None:
        affordable = [one for one in candidates if not one or cost(one) <= tokens]
        return max(affordable, key=lambda one: (reached(one), -one))
    gain = reached(2.0) - reached(0.0)
    if gain <= 0:
        return 0.0
    return next(one for one in candidates if reached(one) >= reached(0.0) + keep * gain)


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
    calibrated = metrics.apply_temperature(arrays.probabilities, temperature)
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
        "forced": _mean(answers.forced),
        # Modes that write no text have nothing to read strictly.
        "accuracy_unforced": _mean(strictly) if written else None,
        "rows_per_second": n / answers.seconds if n and answers.seconds > 0 else None,
        "tokens_per_row": _mean(answers.tokens),
    }
    if task.ordinal and shared:
        scores["mae"] = metrics.mae(arrays.gold, arrays.predicted)
        scores["mae_expected"] = metrics.mae_expected(calibrated, arrays.gold, metrics.scale_of(task.labels))
        scores["qwk"] = metrics.qwk(arrays.gold, arrays.predicted, arrays.labels)
    if abstain_below is not None:
        scores["abstained"] = _mean((sure < abstain_below).tolist())
        scores["accuracy_answered"] = _mean(right[sure >= abstain_below].tolist())
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
    task: Task, answers: Mapping[str, Mapping[str, Answers]], abstain_below: float | None = None
) -> dict[str, Scores | None]:
    """The floors' scores on test, from `floor_answers`; None for the linear one where it cannot be."""
    scores: dict[str, Scores | None] = {"majority": None, "linear": None}
    for name, splits in answers.items():
        _, scores[name], _ = _on_both(task, splits["dev"], splits["test"], abstain_below)
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
    abstain_below: float | None = None,
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
        "arms": _arms(task, dev, test, train, kinds or {}, abstain_below),
        "floors": floor_scores(task, floor, abstain_below),
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
class _Measured:
    """A system on rows in the order of their ids: which are right, and each metric on all rows and on resamples."""

    ids: tuple[str, ...]
    gold: tuple[str, ...]
    right: NDArray[np.bool_]
    values: dict[str, float]
    resampled: dict[str, Floats]


def _mean(values: Sequence[float]) -> float | None:
    # fsum, because cost decides between systems that may have answered in another order.
    return math.fsum(values) / len(values) if values else None


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
        arrays = arrays_of(task, answers)
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
    abstain_below: float | None,
) -> dict[str, Any]:
    """Each arm's training facts, and its modes' scores on both splits under the temperature of dev."""
    arms: dict[str, Any] = {arm: {"train": facts, "modes": {}} for arm, facts in train.items()}
    for name in {**dev, **test}:
        arm, _, mode = name.rpartition("/")
        # What was asked about no dev rows has the temperature of the label that it explains.
        calibrating = dev.get(name, dev.get(f"{arm}/label"))
        of_dev, of_test, temperature = _on_both(task, calibrating, test.get(name), abstain_below)
        arms.setdefault(arm, {"train": {}, "modes": {}})["modes"][mode] = {
            "dev": of_dev if name in dev else None,
            "test": of_test,
            "temperature": temperature,
        }
    for arm in arms.keys() & kinds.keys():
        arms[arm]["arm"] = kinds[arm]
    return arms
