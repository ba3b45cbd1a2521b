"""The floors that every arm has to beat: the most frequent label, and words counted under a linear model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from saywhy import metrics
from saywhy.evaluate.answers import PredictRows, options_of
from saywhy.metrics import Floats, Ints
from saywhy.records import Prediction, Row, Task

# What the linear floor chooses from on the dev split: inverse strength of its penalty, and weights of the classes.
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
CLASS_WEIGHTS = (None, "balanced")
# What is taken without dev rows: the best of seven in cross-validation, on 5,000 texts of emotion and on reasonings.
WITHOUT_DEV = (10.0, "balanced")
# Where the solver stops. Ten times closer takes thrice as long and gains no F1 (emotion, 16,000 rows).
TOLERANCE = 1e-3
# From this many rows on, words seen once are left out: half the time and no worse (16,000 rows of emotion).
MANY_ROWS = 1000


def majority(task: Task, train: Sequence[Row]) -> PredictRows:
    """The system that always answers train's most frequent label, or position where rows have their own choices.

    Its probabilities are train's shares with one row added to each, so that what train lacks is not impossible.
    """
    seen = Counter(options_of(task, row.choices).index(row.label) for row in train if row.label is not None)

    def predict(rows: Sequence[Row]) -> list[Prediction]:
        predictions = []
        for options in (options_of(task, row.choices) for row in rows):
            shares = np.array([seen[i] + 1 for i in range(len(options))], dtype=np.float64)
            predictions.append(_floor_prediction(options, shares / shares.sum()))
        return predictions

    return predict


def linear(task: Task, train: Sequence[Row], dev: Sequence[Row]) -> PredictRows | None:
    """TF-IDF of words and pairs of words under logistic regression, chosen on dev by macro F1 where dev has rows.

    None where it cannot be: rows with their own choices, fewer than two labels, or no words that count.
    """
    of_train = [task.labels.index(str(row.label)) for row in train] if task.labels else []
    if len(set(of_train)) < 2 or not any(re.search(r"\w", row.text) for row in train):
        return None
    least = 2 if len(train) >= MANY_ROWS else 1
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True, min_df=least)
    try:
        train_matrix = vectorizer.fit_transform(row.text for row in train)
    except ValueError:  # of many rows no two share a word: a script without spaces, say
        return None
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


def _floor_prediction(options: Sequence[str], probabilities: Floats) -> Prediction:
    """The likeliest option; a floor computes no tokens."""
    shares = dict(zip(options, probabilities.tolist(), strict=True))
    return Prediction(label=options[int(probabilities.argmax())], probabilities=shares)


def _best_linear(
    train_matrix: Any, of_train: NDArray[np.int64], dev_matrix: Any, of_dev: Ints, labels: int
) -> LogisticRegression:
    """The model of the grid that is best on dev; the plainest where two are equal."""
    if dev_matrix is None:
        plain = LogisticRegression(C=WITHOUT_DEV[0], class_weight=WITHOUT_DEV[1], tol=TOLERANCE, max_iter=1000)
        return plain.fit(train_matrix, of_train)
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
