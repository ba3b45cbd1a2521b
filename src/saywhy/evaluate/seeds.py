"""Runs that differ in their seed alone, put together: means and differences with intervals over rows and seeds.

A difference found on some test rows with some seeds has two sources of chance: other rows, and other seeds.

**Rows** are resampled with replacement, paired: both systems of a pair get the same rows, and so do all seeds that
answered the same ids (rows and seeds are crossed then); seeds with other rows are resampled on their own. This gives
the variance V_rows of the mean over these seeds, with its percentiles.

**Seeds** are few, and resampling few of them understates their variance: of m seeds it finds (m - 1)/m (Davison and
Hinkley 1997, section 3.8; Field and Welsh 2007), and percentiles of so few are narrower than Student's t. Resampling
both at once also counts up to three times what belongs to one row in one seed (Owen 2007, "The pigeonhole bootstrap").
So their variance is estimated, as in an analysis of variance with random effects (Searle, Casella and McCulloch 1992,
chapter 4): S², the sample variance of the seeds' values, holds the variance of seeds and e, the variance between seeds
that the choice of rows alone brings, which the resamples show. Then

    V = V_rows + max(0, S² - e) / m

with max(m - 1, V²(m - 1) / (S²/m)²) degrees of freedom (Satterthwaite 1946): few where seeds make up the variance, many
where rows do. The interval's ends are those of the resampled rows, moved outwards by what V and Student's t add to
them, as confidence limits are combined in Zou and Donner (2008). With one seed nothing is added: the interval is then
over rows alone, and says nothing of other seeds.

How often such intervals hold the truth: LOG.md, benchmarks/coverage.py.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from saywhy import metrics
from saywhy.evaluate.answers import Answers
from saywhy.evaluate.measured import RESAMPLES, Measured, check_metric, check_same_rows, measure_together
from saywhy.metrics import Floats, Metric
from saywhy.records import RequestError, Task

# A system measured with each seed, in the order of the seeds.
Seeds = tuple[Measured, ...]
Interval = tuple[float, float]

RECALL_OF = "recall:"


@dataclass(frozen=True)
class Difference:
    """A metric of system a less that of system b, over seeds; `by_seed`, `a_only` and `b_only` have one entry a seed.

    `ci95` is over rows and seeds, `error` its standard error and `p` that of no difference, Student's t of the
    difference by its error (over rows alone with one seed). `seed_ci95` and `p_seeds` are Student's t over the seeds'
    differences, on these very rows where seeds share them; None with one seed, and where all differences are equal,
    since nothing is seen of chance then. `p_mcnemar` is exact, one a seed, and None but for accuracy. `a_only` and
    `b_only` count the rows that one of the two alone answers rightly. `mde` is the smallest true difference that would
    be found four times out of five, None, as `p`, where the error is 0. `n` is the rows of a seed, the fewest where
    they differ. What is undefined is None.
    """

    difference: float | None
    by_seed: tuple[float | None, ...]
    ci95: Interval | None
    p: float | None
    seed_ci95: Interval | None
    p_seeds: float | None
    p_mcnemar: tuple[float, ...] | None
    a_only: tuple[int, ...]
    b_only: tuple[int, ...]
    error: float | None
    mde: float | None
    n: int


@dataclass(frozen=True)
class Mean:
    """A metric of one system over seeds: `ci95` over rows and seeds, `sd` between seeds (None with one)."""

    mean: float | None
    by_seed: tuple[float | None, ...]
    ci95: Interval | None
    sd: float | None


def over_seeds(
    task: Task,
    pairs: Sequence[tuple[Answers, Answers]],
    names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two systems by each metric named, a − b; each pair is one seed, and its rows are matched by id.

    Metrics are accuracy, macro_f1, mean_recall, `recall:<label>` and, where labels have an order, mae and qwk.
    RequestError for others, and where the two of a pair answered different rows.
    """
    systems = {"a": [a for a, _ in pairs], "b": [b for _, b in pairs]}
    measured = measure_seeds(task, systems, names, resamples, seed)
    return {name: difference_of(measured["a"], measured["b"], name) for name in names}


def mean_over_seeds(
    task: Task, systems: Sequence[Answers], names: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Mean]:
    """The mean of one system over its seeds, by each metric named; metrics and errors as in `over_seeds`."""
    measured = measure_seeds(task, {"it": systems}, names, resamples, seed)
    return {name: mean_of(measured["it"], name) for name in names}


def measure_seeds(
    task: Task,
    systems: Mapping[str, Sequence[Answers]],
    names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Seeds]:
    """Measure many systems at once, for any number of `difference_of` and `mean_of` among them.

    Each system brings its answers of every seed. Whoever answered the same ids gets the same resamples of them.
    """
    chosen = {name: _metric(task, name) for name in names}
    places = [(name, at) for name, answers in systems.items() for at in range(len(answers))]
    by_rows: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for name, at in places:
        by_rows.setdefault(tuple(sorted(systems[name][at].ids)), []).append((name, at))
    found: dict[tuple[str, int], Measured] = {}
    # In the order of their ids, so that the order of seeds makes no difference; one set of rows is drawn as a run's is.
    for number, rows in enumerate(sorted(by_rows)):
        together = by_rows[rows]
        own = [systems[name][at] for name, at in together]
        check_same_rows({f"{name} with seed number {at}": one for (name, at), one in zip(together, own, strict=True)})
        measured = measure_together(task, own, chosen, resamples, seed if number == 0 else (seed, number))
        found.update(zip(together, measured, strict=True))
    return {name: tuple(found[name, at] for at in range(len(answers))) for name, answers in systems.items()}


def difference_of(a: Seeds, b: Seeds, name: str) -> Difference:
    """System a less system b by one of the metrics they were measured by; RequestError where rows or seeds differ."""
    if len(a) != len(b) or not a:
        raise RequestError(f"systems are compared seed by seed, and these have {len(a)} and {len(b)} seeds")
    for number, (one, other) in enumerate(zip(a, b, strict=True)):
        # Comparing tuples takes no time; finding out what differs does, and a study compares thousands of times.
        if (one.ids, one.gold) != (other.ids, other.gold):
            check_same_rows({f"a with seed number {number}": one, f"b with seed number {number}": other})
    values = _values(a, name) - _values(b, name)
    found = _estimate(values, _resampled(a, name) - _resampled(b, name))
    low, high = _range(name)
    a_only = tuple(int((one.right & ~other.right).sum()) for one, other in zip(a, b, strict=True))
    b_only = tuple(int((other.right & ~one.right).sum()) for one, other in zip(a, b, strict=True))
    exact = (metrics.mcnemar_exact(*pair) for pair in zip(a_only, b_only, strict=True))
    of_seeds = _student(values)
    return Difference(
        difference=metrics.number(values.mean()),
        by_seed=tuple(metrics.number(value) for value in values),
        ci95=None if found is None else _within((found.low, found.high), low - high, high - low),
        p=None if found is None else _p(float(values.mean()), found.error, found.freedom),
        seed_ci95=None if of_seeds is None else _within(of_seeds[0], low - high, high - low),
        p_seeds=None if of_seeds is None else of_seeds[1],
        p_mcnemar=tuple(exact) if name == "accuracy" else None,
        a_only=a_only,
        b_only=b_only,
        error=None if found is None else found.error,
        mde=None if found is None else metrics.minimum_detectable(found.error, found.freedom),
        n=min(len(one.ids) for one in a),
    )


def mean_of(seeds: Seeds, name: str) -> Mean:
    """The mean of one system over its seeds by one of the metrics it was measured by.

    The interval of a share of rows (accuracy, recall of a label) is Wilson's, over as many independent rows as would
    have the variance found (Korn and Graubard 1998), since resamples of rows that are all right show no chance.
    """
    values, drawn = _values(seeds, name), _resampled(seeds, name)
    found = _estimate(values, drawn)
    ends = None if found is None else (found.low, found.high)
    if found is not None and (name == "accuracy" or name.startswith(RECALL_OF)):
        rows = min(_support(one, name) for one in seeds)
        share = float(values.mean())
        if len(seeds) > 1 and 0 < share < 1:
            rows = share * (1 - share) / found.error**2
        ends = metrics.score_interval(share, rows, float(student.ppf(0.975, found.freedom)))
    return Mean(
        mean=metrics.number(values.mean()) if len(values) else None,
        by_seed=tuple(metrics.number(value) for value in values),
        ci95=None if ends is None else _within(ends, *_range(name)),
        sd=metrics.number(values.std(ddof=1)) if len(values) > 1 else None,
    )


@dataclass(frozen=True)
class _Estimate:
    """The interval of a mean over seeds, its standard error, and the degrees of freedom of that."""

    low: float
    high: float
    error: float
    freedom: float


def _estimate(values: Floats, drawn: Floats) -> _Estimate | None:
    """The interval of the mean of `values` (seeds,), from the same on resampled rows, `drawn` (seeds, resamples).

    Resamples that leave the metric undefined are left out; None where more than half of them do.
    """
    defined = drawn[:, np.isfinite(drawn).all(axis=0)]
    if not len(values) or not np.isfinite(values).all() or 2 * defined.shape[1] < drawn.shape[1]:
        return None
    by_rows = metrics.interval(defined.mean(axis=0))
    if by_rows is None:
        return None
    low, high, error = by_rows
    seeds = len(values)
    if seeds == 1:
        return _Estimate(low, high, error, math.inf)
    between = float(values.var(ddof=1))
    centred = defined - defined.mean(axis=1, keepdims=True)
    expected = float(centred.var(axis=0, ddof=1).mean())
    variance = error**2 + max(0.0, between - expected) / seeds
    of_seeds = between / seeds
    freedom = math.inf
    if of_seeds > metrics.ROUNDING**2:
        freedom = max(seeds - 1, (variance / of_seeds) ** 2 * (seeds - 1))
    added = float(student.ppf(0.975, freedom)) ** 2 * variance - float(student.ppf(0.975, math.inf)) ** 2 * error**2
    mean = float(values.mean())
    return _Estimate(
        mean - math.sqrt(max(0.0, mean - low) ** 2 + added),
        mean + math.sqrt(max(0.0, high - mean) ** 2 + added),
        math.sqrt(variance),
        freedom,
    )


def _student(values: Floats) -> tuple[Interval, float | None] | None:
    """Student's 95% interval of the mean of `values` (seeds,), and the p value of its being 0."""
    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) < metrics.ROUNDING:
        return None
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    return (mean - half, mean + half), _p(mean, error, len(values) - 1)


def _p(mean: float, error: float, freedom: float) -> float | None:
    """The two-sided p value of Student's t, None without an error."""
    return float(2 * student.sf(abs(mean) / error, freedom)) if error > metrics.ROUNDING else None


def _metric(task: Task, name: str) -> Metric:
    """The metric of this name; RequestError where there is none, or not for this task."""
    if name.startswith(RECALL_OF):
        label = name.removeprefix(RECALL_OF)
        if label in task.labels:
            return metrics.recall_of(task.labels.index(label))
        near = difflib.get_close_matches(label, task.labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its labels are {', '.join(task.labels) or 'the rows own'}"
        raise RequestError(f"task {task.name!r} has no label {label!r} to take the recall of; {hint}")
    if name in metrics.ORDINAL_METRICS:
        if not (task.ordinal and task.labels):
            raise RequestError(f"{name} needs labels with an order; set task.ordinal, or use accuracy")
        return metrics.ORDINAL_METRICS[name]
    check_metric(task, name)
    return metrics.METRICS[name]


def _values(seeds: Seeds, name: str) -> Floats:
    return np.array([one.values[name] for one in seeds])


def _resampled(seeds: Seeds, name: str) -> Floats:
    return np.array([one.resampled[name] for one in seeds])


def _support(one: Measured, name: str) -> float:
    """The rows that a share is of."""
    if name.startswith(RECALL_OF):
        return one.gold.count(name.removeprefix(RECALL_OF))
    return len(one.ids)


def _range(name: str) -> Interval:
    """What a metric can be at the least and at the most."""
    return {"mae": (0.0, math.inf), "qwk": (-1.0, 1.0)}.get(name, (0.0, 1.0))


def _within(ends: Interval, least: float, most: float) -> Interval:
    return max(ends[0], least), min(ends[1], most)
