"""Shares and means of rows with their intervals, in the form that metrics.json has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from saywhy import metrics
from saywhy.metrics import Floats


def share(hits: Iterable[bool]) -> dict[str, Any]:
    """The share of rows that hit, with Wilson's interval: `share`, `n`, `ci95`; None without rows."""
    found = list(hits)
    right, n = sum(found), len(found)
    return {"share": right / n if n else None, "n": n, "ci95": metrics.wilson(right, n)}


def means(values: Floats, resamples: int, seed: int) -> list[dict[str, Any]]:
    """The mean of each column of (rows, columns), with the interval of the same resamples: `mean`, `ci95`, `n`.

    A row that is NaN in a column does not count there; without rows figures are None.
    """
    counts = np.isfinite(values).sum(0).tolist()
    again = metrics.resampled_means(values, resamples, seed)
    # fsum, so that the order of the rows changes nothing.
    sums = [math.fsum(column[np.isfinite(column)]) for column in values.T]
    found = [metrics.interval(column) for column in again.T]
    return [
        {"mean": total / n if n else None, "ci95": None if of is None else [of[0], of[1]], "n": n}
        for total, of, n in zip(sums, found, counts, strict=True)
    ]


def mean(values: Iterable[float], resamples: int, seed: int) -> dict[str, Any]:
    """The mean of one value a row, as `means` gives it."""
    return means(np.array(list(values), dtype=np.float64)[:, None], resamples, seed)[0]
