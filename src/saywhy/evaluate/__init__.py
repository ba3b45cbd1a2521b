"""Answers of systems on the same rows, their scores, the floors below them, and which system is better.

A system is a function from rows to predictions and is known here by a name, `<arm>/<mode>` or `floors/<name>`. Every
figure is computed from saved answers, so that it can be computed again without a model.
"""

from __future__ import annotations

from saywhy.evaluate.answers import Answers, PredictRows, answer, collect, load_answers, save_answers
from saywhy.evaluate.choice import Budget, recommend, threshold_of, within
from saywhy.evaluate.floors import linear, majority
from saywhy.evaluate.judge import (
    compare,
    comparisons,
    floor_scores,
    metrics_json,
    plain,
    score,
)
from saywhy.evaluate.leaking import Leakage, Told, leakage
from saywhy.evaluate.measured import temperature_of
from saywhy.evaluate.seeds import (
    Difference,
    Mean,
    Seeds,
    difference_of,
    mean_of,
    mean_over_seeds,
    measure_seeds,
    over_seeds,
)

__all__ = [
    "Answers",
    "Budget",
    "Difference",
    "Leakage",
    "Mean",
    "PredictRows",
    "Seeds",
    "Told",
    "answer",
    "collect",
    "compare",
    "comparisons",
    "difference_of",
    "floor_scores",
    "leakage",
    "linear",
    "load_answers",
    "majority",
    "mean_of",
    "mean_over_seeds",
    "measure_seeds",
    "metrics_json",
    "over_seeds",
    "plain",
    "recommend",
    "save_answers",
    "score",
    "temperature_of",
    "threshold_of",
    "within",
]
