"""Systems measured on the same rows and the same resamples of them, so that differences between them are paired."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saywhy import metrics
from saywhy.evaluate.answers import Answers, arrays_of
from saywhy.metrics import Floats
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
    measured: dict[str, Measured] = {}
    for name, answers in systems.items():
        order = sorted(range(len(answers.ids)), key=lambda i: answers.ids[i])
        arrays = arrays_of(task, answers)
        gold, predicted = arrays.gold[order], arrays.predicted[order]
        counts = metrics.count(gold, predicted, arrays.labels)
        again = metrics.resample(gold, predicted, arrays.labels, resamples, seed)
        measured[name] = Measured(
            ids=tuple(answers.ids[i] for i in order),
            gold=tuple(answers.gold[i] for i in order),
            right=gold == predicted,
            values={metric: float(metrics.METRICS[metric](counts)) for metric in names},
            resampled={metric: metrics.METRICS[metric](again) for metric in names},
        )
        first = next(iter(measured))
        _check_same_rows(first, measured[first], name, measured[name])
    return measured


def check_metric(task: Task, metric: str) -> None:
    if metric not in metrics.METRICS:
        near = difflib.get_close_matches(metric, metrics.METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(metrics.METRICS)}"
        raise RequestError(f"no metric is called {metric!r}; {hint}")
    if metric != "accuracy" and not task.labels:
        raise RequestError(f"{metric} is undefined where each row has its own choices; use accuracy")


def mean(values: Sequence[float]) -> float | None:
    # fsum, because cost decides between systems that may have answered in another order.
    return math.fsum(values) / len(values) if values else None


def _check_same_rows(a_name: str, a: Measured, b_name: str, b: Measured) -> None:
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


def standard_error(a: Measured, b: Measured, metric: str) -> float:
    found = metrics.interval(a.resampled[metric] - b.resampled[metric])
    return 0.0 if found is None else found[2]
