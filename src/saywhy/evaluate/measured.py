"""Systems measured on the same rows and the same resamples of them, so that differences between them are paired."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saywhy import metrics
from saywhy.evaluate.answers import Answers, arrays_of
from saywhy.metrics import Floats, Metric
from saywhy.records import RequestError, Task

RESAMPLES = 2000


def temperature_of(task: Task, dev: Answers) -> float:
    """The temperature of a system, fitted on its answers to the dev split and on nothing else."""
    of_dev = arrays_of(task, dev)
    return metrics.fit_temperature(of_dev.probabilities, of_dev.gold, of_dev.prior)


@dataclass(frozen=True)
class Measured:
    """A system on rows in the order of their ids: which are right, and each metric on all rows and on resamples."""

    ids: tuple[str, ...]
    gold: tuple[str, ...]
    right: NDArray[np.bool_]
    values: dict[str, float]
    resampled: dict[str, Floats]


def measure(
    task: Task, systems: Mapping[str, Answers], names: Sequence[str], resamples: int, seed: int
) -> dict[str, Measured]:
    """Each system measured on the same rows and the same resamples of them; RequestError where rows differ."""
    check_same_rows(systems)
    chosen = {name: metrics.METRICS[name] for name in names}
    return dict(zip(systems, measure_together(task, list(systems.values()), chosen, resamples, seed), strict=True))


def measure_together(
    task: Task, systems: Sequence[Answers], chosen: Mapping[str, Metric], resamples: int, seed: int | Sequence[int]
) -> list[Measured]:
    """Measure systems that answered the same rows; the resamples are drawn once for all of them."""
    orders = [sorted(range(len(one.ids)), key=one.ids.__getitem__) for one in systems]
    arrays = [arrays_of(task, one) for one in systems]
    sides = [(one.gold[order], one.predicted[order], one.labels) for one, order in zip(arrays, orders, strict=True)]
    drawn: list[dict[str, list[Floats]]] = [{name: [np.zeros(0)] for name in chosen} for _ in systems]
    for times in metrics.draws(len(systems[0].ids) if systems else 0, resamples, seed):
        for side, found in zip(sides, drawn, strict=True):
            counts = metrics.count_drawn(*side, times)
            for name, metric in chosen.items():
                found[name].append(metric(counts))
    return [
        Measured(
            ids=tuple(one.ids[i] for i in order),
            gold=tuple(one.gold[i] for i in order),
            right=side[0] == side[1],
            values={name: float(metric(metrics.count(*side))) for name, metric in chosen.items()},
            resampled={name: np.concatenate(found[name]) for name in chosen},
        )
        for one, order, side, found in zip(systems, orders, sides, drawn, strict=True)
    ]


def check_metric(task: Task, metric: str) -> None:
    """Raise RequestError for a metric that does not exist, or that this task does not have."""
    if metric not in metrics.METRICS:
        near = difflib.get_close_matches(metric, metrics.METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(metrics.METRICS)}"
        raise RequestError(f"no metric is called {metric!r}; {hint}")
    if metric != "accuracy" and not task.labels:
        raise RequestError(f"{metric} is undefined where each row has its own choices; use accuracy")


def mean(values: Sequence[float]) -> float | None:
    """Give the mean, the same whatever the order of the values; None of none."""
    # fsum, because cost decides between systems that may have answered in another order.
    return math.fsum(values) / len(values) if values else None


def check_same_rows(systems: Mapping[str, Answers] | Mapping[str, Measured]) -> None:
    """RequestError, with both names, unless all answered the same ids once each, held against the same labels."""
    gold_of: dict[str, dict[str, str]] = {}
    for name, answers in systems.items():
        twice = next((one for one, times in Counter(answers.ids).items() if times > 1), None)
        if twice is not None:
            raise RequestError(f"{name} answered the id {twice!r} twice; ids must be unique to match rows")
        gold_of[name] = dict(zip(answers.ids, answers.gold, strict=True))
        first = next(iter(gold_of))
        a, b = gold_of[first], gold_of[name]
        if only := sorted(a.keys() ^ b.keys()):
            raise RequestError(
                f"{first} and {name} answered different rows: {len(only)} ids are only in one of them, such as "
                f"{only[0]!r}; evaluate both on the same split"
            )
        other = next((one for one in a if a[one] != b[one]), None)
        if other is not None:
            raise RequestError(
                f"{first} and {name} were held against different labels: row {other!r} is {a[other]!r} in one and "
                f"{b[other]!r} in the other; evaluate both on the same split"
            )


def standard_error(a: Measured, b: Measured, metric: str) -> float:
    """Give the paired standard error of the difference of two systems in a metric; 0 where it is not defined."""
    found = metrics.interval(a.resampled[metric] - b.resampled[metric])
    return 0.0 if found is None else found[2]
