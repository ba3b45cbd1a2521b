"""Scores, intervals, tests and calibration against hand-worked tables, textbook values, scikit-learn and SciPy."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    roc_curve,
)
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from saywhy import metrics
from saywhy.metrics import Floats, Ints

# Three labels; the third is never predicted. Right: 3 of 4 zeros, 1 of 2 ones, 0 of 1 twos.
GOLD = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 0])

some_labels = st.integers(2, 5)
unhurried = settings(deadline=None, max_examples=60)


@st.composite
def answered(draw: st.DrawFn) -> tuple[Ints, Ints, int]:
    labels = draw(some_labels)
    rows = draw(st.lists(st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1)), min_size=1, max_size=40))
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), labels


@st.composite
def believed(draw: st.DrawFn) -> tuple[Floats, Ints]:
    labels, rows = draw(some_labels), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probabilities = random.dirichlet(np.full(labels, draw(st.sampled_from([0.05, 0.5, 5.0]))), size=rows)
    return probabilities, random.integers(labels, size=rows)


def noisy(labels: int, rows: int, right: float, seed: int) -> tuple[Ints, Ints]:
    random = np.random.default_rng(seed)
    gold = random.integers(labels, size=rows)
    return gold, np.where(random.random(rows) < right, gold, random.integers(labels, size=rows))


def test_counts_and_scores_of_a_hand_worked_table() -> None:
    counts = metrics.count(GOLD, PREDICTED, 3)
    assert metrics.confusion(GOLD, PREDICTED, 3) == [[3, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert metrics.number(metrics.accuracy(counts)) == 4 / 7
    # F1: 2·3/(4+5), 2·1/(2+2), 0. Recall: 3/4, 1/2, 0.
    assert metrics.number(metrics.macro_f1(counts)) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.number(metrics.mean_recall(counts)) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)


def test_per_class_is_null_exactly_where_undefined() -> None:
    # A fourth label that no row has but one is answered with, and a fifth that does not occur at all.
    counts = metrics.count(np.append(GOLD, 0), np.append(PREDICTED, 3), 5)
    found = metrics.per_class(counts, list("abcde"))
    assert list(found) == list("abcde")
    intervals = {name: (row.pop("recall_ci95"), row.pop("precision_ci95")) for name, row in found.items()}
    assert intervals["a"] == (metrics.wilson(3, 5), metrics.wilson(3, 5))
    assert intervals["b"] == (metrics.wilson(1, 2), metrics.wilson(1, 2))
    assert intervals["c"] == (metrics.wilson(0, 1), None)
    assert intervals["d"] == (None, metrics.wilson(0, 1))
    assert intervals["e"] == (None, None)
    table: dict[str, dict[str, float | int | None]] = found
    assert table["a"] == {"precision": 3 / 5, "recall": 3 / 5, "f1": 3 / 5, "support": 5}
    assert table["c"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert table["d"] == {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    assert table["e"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert {type(x) for row in table.values() for x in row.values()} == {float, int, type(None)}


@given(answered())
@unhurried
def test_scores_agree_with_scikit_learn(case: tuple[Ints, Ints, int]) -> None:
    gold, predicted, labels = case
    counts = metrics.count(gold, predicted, labels)
    present = sorted(set(gold.tolist()))
    f1 = f1_score(gold, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.number(metrics.macro_f1(counts)) == pytest.approx(f1)
    assert (
        metrics.confusion(gold, predicted, labels) == confusion_matrix(gold, predicted, labels=range(labels)).tolist()
    )
    precision, recall, by_class, support = precision_recall_fscore_support(
        gold, predicted, labels=range(labels), zero_division=np.nan
    )
    for i, row in enumerate(metrics.per_class(counts, [str(i) for i in range(labels)]).values()):
        assert row["precision"] == pytest.approx(metrics.number(precision[i]))
        assert row["recall"] == pytest.approx(metrics.number(recall[i]))
        assert row["support"] == support[i]
        assert row["f1"] == pytest.approx(metrics.number(by_class[i]))


@given(answered())
@unhurried
def test_recall_and_ordinal_scores_agree_with_scikit_learn(case: tuple[Ints, Ints, int]) -> None:
    gold, predicted, labels = case
    counts = metrics.count(gold, predicted, labels)
    # scikit-learn's warns about one label alone and about answers that are nobody's label.
    if len(set(gold.tolist())) > 1 and np.isin(predicted, gold).all():
        assert metrics.number(metrics.mean_recall(counts)) == pytest.approx(balanced_accuracy_score(gold, predicted))
    assert metrics.number(metrics.mae(counts)) == pytest.approx(mean_absolute_error(gold, predicted))
    kappa = metrics.number(metrics.qwk(counts))
    if len({*gold.tolist(), *predicted.tolist()}) == 1:
        assert kappa is None
    else:
        oracle = cohen_kappa_score(gold, predicted, labels=range(labels), weights="quadratic")
        assert kappa == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_values_of_newcombe_1998(right: int, n: int, low: float, high: float) -> None:
    assert metrics.wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400), st.floats(0, 1))
@unhurried
def test_wilson_agrees_with_scipy_and_mirrors(n: int, share: float) -> None:
    right = round(share * n)
    found, mirrored = metrics.wilson(right, n), metrics.wilson(n - right, n)
    assert found is not None
    assert mirrored is not None
    oracle = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert found == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-12)
    assert found == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)
    assert 0 <= found[0] <= right / n <= found[1] <= 1


def test_no_rows_leave_every_figure_undefined() -> None:
    none = np.array([], dtype=np.int64)
    counts = metrics.count(none, none, 2)
    assert [metrics.number(metric(counts)) for metric in metrics.METRICS.values()] == [None, None, None]
    assert metrics.wilson(0, 0) is None
    assert metrics.nll(np.zeros((0, 2)), none) is None
    assert metrics.brier(np.zeros((0, 2)), none) is None
    assert metrics.ece(np.zeros(0), np.zeros(0, dtype=np.bool_)) is None
    assert metrics.reliability(np.zeros(0), np.zeros(0, dtype=np.bool_)) == []
    assert metrics.aurc(np.zeros(0), np.zeros(0, dtype=np.bool_)) is None
    assert metrics.recall_at_fpr(np.zeros(0), np.zeros(0, dtype=np.bool_), 0.05) is None
    assert metrics.accuracy_at_coverage(np.zeros(0), np.zeros(0, dtype=np.bool_)) == []
    assert metrics.number(metrics.mae(counts)) is None
    assert metrics.mae_expected(np.zeros((0, 2)), none, np.array([1.0, 2.0])) is None
    assert metrics.number(metrics.qwk(counts)) is None
    assert metrics.paired_bootstrap(metrics.macro_f1, none, none, none, 10, 0) is None


@given(believed())
@unhurried
def test_nll_agrees_with_scikit_learn_and_brier_with_its_definition(case: tuple[Floats, Ints]) -> None:
    probabilities, gold = case
    labels = probabilities.shape[1]
    assert metrics.nll(probabilities, gold) == pytest.approx(log_loss(gold, probabilities, labels=range(labels)))
    by_hand = [
        sum((p - (label == right)) ** 2 for label, p in enumerate(row))
        for row, right in zip(probabilities.tolist(), gold.tolist(), strict=True)
    ]
    assert metrics.brier(probabilities, gold) == pytest.approx(sum(by_hand) / len(by_hand))
    oracle = brier_score_loss(gold, probabilities, labels=range(labels), scale_by_half=False)
    assert metrics.brier(probabilities, gold) == pytest.approx(oracle)


def test_nll_of_an_impossible_label_is_finite_and_brier_is_two() -> None:
    certain = np.array([[1.0, 0.0]])
    assert metrics.nll(certain, np.array([1])) == pytest.approx(-math.log(2.220446049250313e-16))
    assert metrics.brier(certain, np.array([1])) == 2.0


def test_ece_has_bins_of_equally_many_rows() -> None:
    # Two bins of three rows: |mean right - mean confidence| is |1/3 - 0.4| and |1 - 0.8|, weighted by one half each.
    confidence = np.array([0.9, 0.3, 0.8, 0.4, 0.7, 0.5])
    right = np.array([True, False, True, True, True, False])
    assert metrics.ece(confidence, right, bins=2) == pytest.approx((1 / 15 + 0.2) / 2)
    # Bins of equal width would say something else: [0, 0.5] and (0.5, 1] hold three rows each, [0, 1/3] only one.
    assert metrics.ece(confidence, right, bins=3) == pytest.approx((abs(1 - 0.7) + abs(1 - 1.2) + abs(2 - 1.7)) / 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_ece_is_the_mean_gap_of_scikit_learns_calibration_curve(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.permutation(np.linspace(0.3, 0.99, 10 * metrics.ECE_BINS))
    right = random.random(len(confidence)) < confidence**2
    shares, means = calibration_curve(right, confidence, n_bins=metrics.ECE_BINS, strategy="quantile")
    assert metrics.ece(confidence, right) == pytest.approx(np.abs(shares - means).mean())


def test_ece_does_not_depend_on_the_order_of_tied_rows() -> None:
    confidence, right = np.full(40, 0.5), np.arange(40) < 20
    assert metrics.ece(confidence, right) == pytest.approx(0.0)
    assert metrics.ece(confidence, right[::-1]) == pytest.approx(0.0)
    assert metrics.ece(confidence, np.ones(40, dtype=np.bool_)) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.6, 0.99]), st.booleans()), min_size=1, max_size=50))
@unhurried
def test_ece_is_a_share_and_free_of_order(rows: list[tuple[float, bool]]) -> None:
    def of(some: list[tuple[float, bool]]) -> float | None:
        return metrics.ece(np.array([row[0] for row in some]), np.array([row[1] for row in some], dtype=np.bool_))

    found = of(rows)
    assert found is not None
    assert 0 <= found <= 1
    assert of(sorted(rows)) == pytest.approx(found)
    assert of(rows[::-1]) == pytest.approx(found)


def test_reliability_of_a_hand_worked_table() -> None:
    confidence = np.array([0.9, 0.3, 0.8, 0.4, 0.7])
    right = np.array([True, False, True, True, False])
    # Of five rows the first of two bins holds three: the least sure.
    assert metrics.reliability(confidence, right, bins=2) == [
        metrics.Bin(pytest.approx((0.3 + 0.4 + 0.7) / 3), pytest.approx(1 / 3), 3),
        metrics.Bin(pytest.approx((0.8 + 0.9) / 2), 1.0, 2),
    ]
    # Six rows of which four are equally sure and two of those right: each of the four counts as half right.
    tied = metrics.reliability(np.array([0.2, 0.6, 0.6, 0.6, 0.6, 0.9]), np.arange(6) > 2, bins=2)
    assert [(one.right, one.n) for one in tied] == [(pytest.approx((0 + 0.5 + 0.5) / 3), 3), (pytest.approx(2 / 3), 3)]
    assert len(metrics.reliability(confidence, right)) == 5


sure_rows = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.6, 0.99]), st.booleans()), min_size=1, max_size=40)


def columns(rows: list[tuple[float, bool]]) -> tuple[Floats, NDArray[np.bool_]]:
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=np.bool_)


@given(sure_rows, st.integers(1, 8))
@unhurried
def test_reliability_holds_every_row_once_in_bins_of_one_size(rows: list[tuple[float, bool]], bins: int) -> None:
    confidence, right = columns(rows)
    found = metrics.reliability(confidence, right, bins)
    sizes = [one.n for one in found]
    assert sum(sizes) == len(rows) and max(sizes) - min(sizes) <= 1
    assert sum(one.n * one.confidence for one in found) == pytest.approx(confidence.sum())
    assert sum(one.n * one.right for one in found) == pytest.approx(right.sum())
    assert [one.confidence for one in found] == sorted(one.confidence for one in found)
    gaps = sum(one.n * abs(one.right - one.confidence) for one in found) / len(rows)
    assert metrics.ece(confidence, right, bins) == pytest.approx(gaps)


def test_aurc_of_a_hand_worked_table() -> None:
    # The surest row first: wrong 0/1, 1/2, 1/3, 2/4.
    confidence, right = np.array([0.5, 0.9, 0.6, 0.8]), np.array([False, True, True, False])
    assert metrics.aurc(confidence, right) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert metrics.aurc(confidence, np.ones(4, dtype=np.bool_)) == 0.0
    assert metrics.aurc(confidence, np.zeros(4, dtype=np.bool_)) == 1.0
    # Sureness that says nothing leaves the error rate.
    assert metrics.aurc(np.full(4, 0.7), right) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.6]), st.booleans()), min_size=1, max_size=5))
@unhurried
def test_aurc_of_ties_is_the_mean_over_every_order_of_the_rows(rows: list[tuple[float, bool]]) -> None:
    each = []
    for order in permutations(rows):
        ranked = sorted(order, key=lambda row: -row[0])
        wrong = np.cumsum([not row[1] for row in ranked])
        each.append(float((wrong / np.arange(1, len(rows) + 1)).mean()))
    assert metrics.aurc(*columns(rows)) == pytest.approx(sum(each) / len(each))
    assert metrics.aurc(*columns(rows[::-1])) == metrics.aurc(*columns(sorted(rows)))


def test_recall_at_fpr_of_a_hand_worked_table() -> None:
    # Rising doubt: one of the label, two of others, three of the label, and then 18 others: a step of 0.05 each.
    probability = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, *np.linspace(0.4, 0.1, 18)])
    positive = np.isin(np.arange(24), [0, 3, 4, 5])
    assert metrics.recall_at_fpr(probability, positive, 0.05) == 1 / 4
    assert metrics.recall_at_fpr(probability, positive, 0.1) == 1.0
    assert metrics.recall_at_fpr(-probability, positive, 0.1) == 0.0
    assert metrics.recall_at_fpr(probability, np.ones(24, dtype=np.bool_), 0.1) is None
    assert metrics.recall_at_fpr(probability, np.zeros(24, dtype=np.bool_), 0.1) is None
    # All equal: every row or none, and the rate of every row is 1.
    assert metrics.recall_at_fpr(np.full(24, 0.5), positive, 0.1) == 0.0
    assert metrics.recall_at_fpr(np.full(24, 0.5), positive, 1.0) == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=80),
    st.sampled_from([0.0, *metrics.FALSE_POSITIVE_RATES, 0.5]),
)
@unhurried
def test_recall_at_fpr_agrees_with_scikit_learn(rows: list[tuple[int, bool]], most: float) -> None:
    probability, positive = columns([(score / 12, found) for score, found in rows])
    found = metrics.recall_at_fpr(probability, positive, most)
    if positive.all() or not positive.any():
        assert found is None
        return
    false, recall, _ = roc_curve(positive, probability, drop_intermediate=False)
    assert found == recall[false <= most].max()


def test_accuracy_at_coverage_of_a_hand_worked_table() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3, 0.2])
    right = np.array([True, True, False, True, True, True, False, False, True, False])
    found = metrics.accuracy_at_coverage(confidence, right, shares=(1.0, 0.8, 0.5, 0.05))
    assert [one.share for one in found] == [1.0, 0.8, 0.5, 0.05]
    # Three rows are equally sure, so 8 of 10 cannot be answered without the ninth.
    assert [one.coverage for one in found] == [1.0, 0.9, 0.5, 0.1]
    assert [one.accuracy for one in found] == [0.6, pytest.approx(6 / 9), 0.8, 1.0]
    assert [one.threshold for one in found] == [0.0, pytest.approx(0.25), pytest.approx(0.45), pytest.approx(0.85)]


def test_coverage_at_the_thresholds_of_other_rows_is_what_they_answer_here() -> None:
    confidence, right = np.array([0.4, 0.5, 0.6]), np.array([False, True, False])
    found = metrics.accuracy_at_coverage(confidence, right, (0.0, 0.5, 0.7), (1.0, 0.9, 0.5))
    assert [(one.share, one.threshold) for one in found] == [(1.0, 0.0), (0.9, 0.5), (0.5, 0.7)]
    assert [one.coverage for one in found] == pytest.approx([1.0, 2 / 3, 0.0])
    assert [one.accuracy for one in found] == [pytest.approx(1 / 3), 0.5, None]


@given(sure_rows)
@unhurried
def test_every_share_asked_for_is_reached_and_by_no_more_rows_than_it_takes(rows: list[tuple[float, bool]]) -> None:
    confidence, right = columns(rows)
    for one in metrics.accuracy_at_coverage(confidence, right):
        assert one.coverage >= one.share
        answered = confidence >= one.threshold
        assert one.accuracy == right[answered].mean()
        surer = confidence > confidence[answered].min()
        assert surer.mean() < one.share
    backwards = metrics.accuracy_at_coverage(confidence[::-1], right[::-1])
    assert backwards == metrics.accuracy_at_coverage(confidence, right)


@pytest.mark.parametrize(
    ("labels", "scale"),
    [
        (("1", "2", "3"), [1, 2, 3]),
        (("0", "2.5", "10"), [0, 2.5, 10]),
        (("3", "2", "-1"), [3, 2, -1]),
        (("bad", "2", "good"), [1, 2, 3]),
        (("1", "3", "2"), [1, 2, 3]),
        (("1", "1.0", "2"), [1, 2, 3]),
        (("1", "2", "inf"), [1, 2, 3]),
        (("nan", "2", "3"), [1, 2, 3]),
        ((), []),
    ],
)
def test_a_scale_has_its_own_numbers_where_they_follow_its_order(labels: tuple[str, ...], scale: list[float]) -> None:
    assert metrics.scale_of(labels).tolist() == scale


def test_the_expected_rating_of_a_hand_worked_table() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.25, 0.5, 0.25]])
    gold = np.array([0, 2, 0])
    # Expected 1.5, 2.8 and 2 against 1, 3 and 1.
    assert metrics.mae_expected(probabilities, gold, np.array([1.0, 2, 3])) == pytest.approx((0.5 + 0.2 + 1) / 3)
    assert metrics.mae_expected(probabilities, gold, np.array([10.0, 20, 30])) == pytest.approx(17 / 3)


@given(answered())
@unhurried
def test_certain_ratings_are_expected_as_they_are(case: tuple[Ints, Ints, int]) -> None:
    gold, predicted, labels = case
    scale = metrics.scale_of([str(i) for i in range(labels)])
    distance = metrics.number(metrics.mae(metrics.count(gold, predicted, labels)))
    assert metrics.mae_expected(np.eye(labels)[predicted], gold, scale) == distance


def test_a_fitted_temperature_undoes_overconfidence() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 4))
    calibrated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gold = (random.random((20_000, 1)) > calibrated.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    overconfident = metrics.apply_temperature(calibrated, 1 / 2.5)
    found = metrics.fit_temperature(overconfident, gold)
    assert found == pytest.approx(2.5, rel=0.05)
    restored = metrics.apply_temperature(overconfident, found)
    grid = [metrics.nll(metrics.apply_temperature(overconfident, t), gold) for t in np.linspace(0.5, 5, 50)]
    assert (metrics.nll(restored, gold) or 0) <= min(x for x in grid if x is not None) + 1e-6
    assert (metrics.ece(restored.max(axis=1), restored.argmax(axis=1) == gold) or 0) < 0.02


@given(believed(), st.floats(0.05, 20))
@unhurried
def test_temperature_keeps_the_argmax_and_the_order(case: tuple[Floats, Ints], temperature: float) -> None:
    probabilities, _ = case
    scaled = metrics.apply_temperature(probabilities, temperature)
    rows = np.arange(len(scaled))
    # Rounding may make two labels equal, it must not put another one in front.
    assert (scaled[rows, probabilities.argmax(axis=1)] == scaled.max(axis=1)).all()
    assert np.allclose(scaled.sum(axis=1), 1)
    order = probabilities.argsort(axis=1)
    assert (np.diff(np.take_along_axis(scaled, order, axis=1), axis=1) >= 0).all()


@given(believed())
@unhurried
def test_a_fitted_temperature_is_never_worse_than_none(case: tuple[Floats, Ints]) -> None:
    probabilities, gold = case
    # Below the smallest float that is charged, what is fitted and what is charged differ.
    probabilities = 0.999999 * probabilities + 0.000001 / probabilities.shape[1]
    before = metrics.nll(probabilities, gold)
    after = metrics.nll(metrics.apply_temperature(probabilities, metrics.fit_temperature(probabilities, gold)), gold)
    assert before is not None
    assert after is not None
    assert after <= before + 1e-6


def test_temperature_leaves_zeros_and_ones_alone() -> None:
    certain = np.array([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    scaled = metrics.apply_temperature(certain, 2.0)
    assert scaled[0].tolist() == [0.0, 1.0, 0.0]
    assert scaled[1].tolist() == pytest.approx([0.5 / (0.5 + 0.75**0.5), 0.0, 0.75**0.5 / (0.5 + 0.75**0.5)])
    assert np.allclose(metrics.apply_temperature(np.array([[1e-300, 1e-310]]), 0.05).sum(), 1)
    with pytest.raises(ValueError, match="greater than 0"):
        metrics.apply_temperature(certain, 0.0)


@pytest.mark.parametrize(
    ("probabilities", "gold"),
    [
        (np.zeros((0, 3)), []),
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1]),  # all right: colder is always better, and two rows prove no certainty
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1]),
        ([[1.0], [1.0]], [0, 0]),
    ],
)
def test_a_temperature_that_cannot_be_fitted_is_one(probabilities: list[list[float]], gold: list[int]) -> None:
    assert metrics.fit_temperature(np.array(probabilities), np.array(gold, dtype=np.int64)) == 1.0


def test_a_temperature_is_found_although_a_gold_label_has_probability_zero() -> None:
    found = metrics.fit_temperature(np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.4]]), np.array([0, 1, 0]))
    assert 1.0 < found <= metrics.HOTTEST + 1e-9


def test_pruned_labels_share_the_bound_on_what_was_left_out() -> None:
    probabilities = np.array([[0.8, 0.2, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    possible = np.array([[True, True, True, True], [True, True, False, False], [True, True, False, False]])
    found = metrics.give_back_pruned(probabilities, np.array([1e-3, 1e-4, 0.0]), possible)
    assert found[0].tolist() == pytest.approx([0.8 / 1.001, 0.2 / 1.001, 5e-4 / 1.001, 5e-4 / 1.001])
    assert found[1].tolist() == pytest.approx([1 / 1.0001, 1e-4 / 1.0001, 0.0, 0.0])
    assert found[2].tolist() == [0.5, 0.5, 0.0, 0.0]


def test_mcnemar_by_hand() -> None:
    assert metrics.mcnemar_exact(5, 1) == pytest.approx(2 * (1 + 6) / 2**6)
    assert metrics.mcnemar_exact(0, 0) == 1.0
    assert metrics.mcnemar_exact(3, 3) == 1.0
    assert metrics.mcnemar_exact(10, 0) == pytest.approx(2 / 2**10)


@given(st.integers(0, 60), st.integers(0, 60))
@unhurried
def test_mcnemar_is_exact_and_symmetric(a_only: int, b_only: int) -> None:
    n = a_only + b_only
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(a_only, b_only) + 1))
    assert metrics.mcnemar_exact(a_only, b_only) == pytest.approx(float(min(Fraction(1), 2 * tail)))
    assert metrics.mcnemar_exact(a_only, b_only) == pytest.approx(metrics.mcnemar_exact(b_only, a_only))
    if n:
        oracle = mcnemar([[7, a_only], [b_only, 2]], exact=True).pvalue
        assert metrics.mcnemar_exact(a_only, b_only) == pytest.approx(oracle)


def test_holm_by_hand_is_monotone_and_in_the_order_given() -> None:
    # Sorted: 0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not fall below the one before.
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert metrics.holm([]) == []


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_holm_agrees_with_statsmodels(size: int) -> None:
    # With ties, and with values that Bonferroni would put above 1.
    pvalues = (np.random.default_rng(size).random(size) ** 3).round(2).tolist()
    assert metrics.holm(pvalues) == pytest.approx(multipletests(pvalues, method="holm")[1])


@given(st.lists(st.floats(0, 1), max_size=12))
@unhurried
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(pvalues: list[float]) -> None:
    adjusted = metrics.holm(pvalues)
    for p, q in zip(pvalues, adjusted, strict=True):
        assert p <= q <= min(1.0, len(pvalues) * p) + 1e-12
    assert [q for _, q in sorted(zip(pvalues, adjusted, strict=True))] == sorted(adjusted)


@given(answered(), st.integers(0, 5))
@unhurried
def test_the_interval_of_identical_systems_is_zero(case: tuple[Ints, Ints, int], seed: int) -> None:
    gold, predicted, _ = case
    for metric in metrics.METRICS.values():
        assert metrics.paired_bootstrap(metric, gold, predicted, predicted.copy(), 50, seed) == (0.0, 0.0, 0.0)


def test_the_bootstrap_of_accuracy_agrees_with_scipy_and_with_the_formula() -> None:
    gold, a = noisy(3, 300, 0.8, 1)
    b = np.where(np.random.default_rng(2).random(300) < 0.85, a, (a + 1) % 3)
    found = metrics.paired_bootstrap(metrics.accuracy, gold, a, b, 8000, 3)
    assert found is not None
    differences = (a == gold).astype(float) - (b == gold)
    low, high, error = found
    assert error == pytest.approx(differences.std() / math.sqrt(300), rel=0.03)
    oracle = bootstrap((differences,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(4))
    assert (low, high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.004)
    # Were the resamples of the two systems not the same, the error would be this much larger.
    unpaired = math.sqrt((a == gold).var() / 300 + (b == gold).var() / 300)
    assert error < 0.7 * unpaired


@pytest.mark.parametrize("name", ["macro_f1", "mean_recall"])
def test_the_bootstrap_of_a_metric_is_that_of_scikit_learn_on_the_rows_drawn(name: str) -> None:
    gold, a = noisy(4, 60, 0.7, 5)
    _, b = noisy(4, 60, 0.5, 5)
    found = metrics.paired_bootstrap(metrics.METRICS[name], gold, a, b, 200, 6)
    draws = np.random.default_rng(6).integers(60, size=(200, 60))

    def of(answers: Ints, rows: Ints) -> float:
        present = sorted(set(gold[rows].tolist()))
        row = precision_recall_fscore_support(gold[rows], answers[rows], labels=present, zero_division=0)
        return float(row[2 if name == "macro_f1" else 1].mean())

    differences = np.array([of(a, rows) - of(b, rows) for rows in draws])
    assert found == pytest.approx((*np.quantile(differences, [0.025, 0.975]), differences.std(ddof=1)))


def test_the_bootstrap_is_seeded_and_turns_sign_with_the_systems() -> None:
    gold, a = noisy(3, 100, 0.8, 7)
    _, b = noisy(3, 100, 0.6, 7)
    one = metrics.paired_bootstrap(metrics.macro_f1, gold, a, b, 300, 0)
    assert one is not None
    assert metrics.paired_bootstrap(metrics.macro_f1, gold, a, b, 300, 0) == one
    assert metrics.paired_bootstrap(metrics.macro_f1, gold, a, b, 300, 1) != one
    assert metrics.paired_bootstrap(metrics.macro_f1, gold, b, a, 300, 0) == pytest.approx((-one[1], -one[0], one[2]))
    assert one[0] > 0


def test_resamples_are_the_same_whatever_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, predicted = noisy(3, 50, 0.7, 8)
    whole = metrics.resample(gold, predicted, 3, 20, 0)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 150)
    parts = metrics.resample(gold, predicted, 3, 20, 0)
    assert (whole.hit == parts.hit).all()
    assert (whole.predicted == parts.predicted).all()
    assert whole.gold.shape == (20, 3)
    assert (whole.gold.sum(axis=1) == 50).all()
    assert (whole.predicted.sum(axis=1) == 50).all()


def test_two_thousand_resamples_of_two_thousand_rows_take_well_under_two_seconds() -> None:
    gold, a = noisy(77, 2000, 0.8, 9)
    _, b = noisy(77, 2000, 0.7, 9)
    started = time.process_time()
    assert metrics.paired_bootstrap(metrics.macro_f1, gold, a, b, 2000, 0) is not None
    assert time.process_time() - started < 4  # processor time of all threads


def test_the_minimum_detectable_effect_is_that_of_statsmodels() -> None:
    # 1.96 + 0.84 standard errors, as in Bloom (1995).
    assert metrics.minimum_detectable(0.5) == pytest.approx(1.4008, abs=5e-5)
    many = TTestPower().solve_power(nobs=1e6, alpha=0.05, power=0.8) * 1e3
    assert metrics.minimum_detectable(1.0) == pytest.approx(many, rel=1e-3)
    # Quantiles of Student's t are a little below the exact ones, which are of his noncentral distribution.
    for seeds, apart in ((3, 0.06), (5, 0.02), (10, 0.002), (50, 0.002)):
        exact = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8) * math.sqrt(seeds)
        assert metrics.minimum_detectable(1.0, seeds - 1) == pytest.approx(exact, rel=apart)
    assert metrics.minimum_detectable(0.0) is None


def test_number_is_plain_or_none() -> None:
    assert type(metrics.number(np.float64(0.5))) is float
    assert metrics.number(np.nan) is None
    assert metrics.number(math.inf) is None


# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability": twelve units, four observers, some of them silent.
OBSERVED = ("123321412...", "123322412" + "5.3", ".333234225" + "1.", "1233244125" + "1.")


def observed(lines: tuple[str, ...]) -> Ints:
    votes = np.zeros((len(lines[0]), 5), dtype=np.int64)
    for line in lines:
        for unit, value in enumerate(line):
            if value != ".":
                votes[unit, int(value) - 1] += 1
    return votes


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    pairs = metrics.coincidences(observed(OBSERVED))
    # The paper's matrix of coincidences: 40 values can be paired.
    assert np.diag(pairs).tolist() == pytest.approx([7, 10, 8, 4, 3])
    assert pairs.sum() == pytest.approx(40)
    assert pairs[0].tolist() == pytest.approx([7, 4 / 3, 1 / 3, 1 / 3, 0])
    assert metrics.krippendorff_alpha(pairs) == pytest.approx(0.743, abs=5e-4)
    assert metrics.krippendorff_alpha(pairs, np.arange(1.0, 6)) == pytest.approx(0.849, abs=5e-4)


def test_alpha_by_hand() -> None:
    # Two raters, three rows: aa, ab, bb. Values: a 3, b 3; observed 2 of 6 pairs differ, expected 18 / 5 of 6.
    votes = np.array([[2, 0], [1, 1], [0, 2]])
    assert metrics.krippendorff_alpha(metrics.coincidences(votes)) == pytest.approx(1 - 5 * 2 / 18)
    assert metrics.krippendorff_alpha(metrics.coincidences(np.array([[2, 0], [3, 0]]))) is None
    assert metrics.krippendorff_alpha(metrics.coincidences(np.array([[1, 0], [0, 1]]))) is None
    assert metrics.krippendorff_alpha(metrics.coincidences(np.array([[2, 0], [0, 3]]))) == 1.0


def test_coincidences_add_up_over_parts() -> None:
    votes = observed(OBSERVED)
    parts = metrics.coincidences(votes[:5]) + metrics.coincidences(votes[5:])
    assert parts == pytest.approx(metrics.coincidences(votes))
