"""Scores, intervals, paired tests and calibration as pure functions of arrays.

Labels are integers from 0, in the order of the task's labels. `Ints` are int64 arrays of shape (rows,), `Floats` are
float64. Shares run from 0 to 1. A figure that is undefined (0 divided by 0, no rows) is None, or NaN in an array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import logsumexp
from scipy.stats import binomtest, norm
from scipy.stats import t as student

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# The least probability a gold label is charged for: a zero would make the mean infinite. As in scikit-learn's log_loss.
SMALLEST = float(np.finfo(np.float64).eps)
ECE_BINS = 15
# Shares of the rows to answer, the surest first, and the false-positive rates that recall is asked at.
COVERAGES = tuple(share / 20 for share in range(20, 0, -1))
FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1)
# Temperatures that are searched. Beyond them a distribution is one-hot or uniform for every practical purpose.
COLDEST, HOTTEST = 0.05, 20.0
# A spread below this is rounding, and none.
ROUNDING = 1e-12
# Numbers drawn at once by the bootstrap: bounds its memory to some tens of megabytes.
DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Counts:
    """Rows by label: answered rightly, being the label, and answered with it; each of shape (..., labels).

    `away` and `squared` are the sums over rows of the steps between gold and answer, and of their squares, shape (...).
    This is all that accuracy, F1, recall and the ordinal metrics need, so that a stack of resamples needs no stack of
    confusion matrices.
    """

    hit: Floats
    gold: Floats
    predicted: Floats
    away: Floats
    squared: Floats


Metric = Callable[[Counts], Floats]


def number(value: Any) -> float | None:
    """A float of plain Python, None where the value is NaN or infinite."""
    plain = float(value)
    return plain if math.isfinite(plain) else None


def count(gold: Ints, predicted: Ints, labels: int) -> Counts:
    """The counts of one system on its rows."""
    found = count_drawn(gold, predicted, labels, np.ones((len(gold), 1)))
    return Counts(found.hit[0], found.gold[0], found.predicted[0], found.away[0], found.squared[0])


def count_drawn(gold: Ints, predicted: Ints, labels: int, times: Floats) -> Counts:
    """The counts of one system on resamples: `times` (rows, resamples) says how often each drew a row."""
    # Sparse, so that the work does not grow with the number of labels.
    rows = np.arange(len(gold))
    hit = gold == predicted

    def by_label(of_row: Ints, chosen: Ints) -> Floats:
        picked = csr_array((np.ones(len(chosen)), (of_row[chosen], chosen)), shape=(labels, len(rows)))
        summed: Floats = (picked @ times).T
        return summed

    away = np.abs(gold - predicted).astype(np.float64)
    of_labels = by_label(gold, rows[hit]), by_label(gold, rows), by_label(predicted, rows)
    return Counts(*of_labels, away @ times, away**2 @ times)


def accuracy(counts: Counts) -> Floats:
    """The share of rows answered rightly, shape (...)."""
    return _divide(counts.hit.sum(axis=-1), counts.gold.sum(axis=-1))


def macro_f1(counts: Counts) -> Floats:
    """The mean F1 of the labels that some row has, shape (...); a label that is never predicted counts 0."""
    f1 = _divide(2 * counts.hit, counts.gold + counts.predicted)
    return _mean_where(f1, counts.gold > 0)


def mean_recall(counts: Counts) -> Floats:
    """The mean recall of the labels that some row has (balanced accuracy), shape (...)."""
    return _mean_where(_divide(counts.hit, counts.gold), counts.gold > 0)


def recall_of(label: int) -> Metric:
    """The recall of one label as a metric; NaN where no row has it."""

    def recall(counts: Counts) -> Floats:
        return _divide(counts.hit[..., label], counts.gold[..., label])

    return recall


def mae(counts: Counts) -> Floats:
    """The mean distance, in steps of the ordered labels, between gold and answer, shape (...)."""
    return _divide(counts.away, counts.gold.sum(axis=-1))


def qwk(counts: Counts) -> Floats:
    """Cohen's kappa with quadratic weights (Cohen 1968), shape (...); NaN where gold and answers are one label."""
    steps = np.arange(counts.gold.shape[-1], dtype=np.float64)
    rows = counts.gold.sum(axis=-1)
    # The squared distance of an independent pair with these margins: both squares less twice the product of the means.
    squares = (counts.gold + counts.predicted) @ steps**2
    by_chance = squares - 2 * _divide((counts.gold @ steps) * (counts.predicted @ steps), rows)
    return 1 - _divide(counts.squared, by_chance)


# The metrics that systems are compared by, by the names that the config and metrics.json use.
METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1, "mean_recall": mean_recall}
# Those that only labels with an order have.
ORDINAL_METRICS: Mapping[str, Metric] = {"mae": mae, "qwk": qwk}


def confusion(gold: Ints, predicted: Ints, labels: int) -> list[list[int]]:
    """How often each label (first index) was answered with each label (second index)."""
    cells = np.bincount(gold * labels + predicted, minlength=labels * labels)
    table: list[list[int]] = cells.reshape(labels, labels).tolist()
    return table


def per_class(counts: Counts, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and support of each label by name; None where there is nothing to divide by.

    `recall_ci95` and `precision_ci95` are Wilson's, over the rows of the label and over those answered with it.
    """
    precision = _divide(counts.hit, counts.predicted)
    recall = _divide(counts.hit, counts.gold)
    f1 = _divide(2 * counts.hit, counts.gold + counts.predicted)
    return {
        name: {
            "precision": number(precision[i]),
            "recall": number(recall[i]),
            "f1": number(f1[i]),
            "support": int(counts.gold[i]),
            "recall_ci95": wilson(int(counts.hit[i]), int(counts.gold[i])),
            "precision_ci95": wilson(int(counts.hit[i]), int(counts.predicted[i])),
        }
        for i, name in enumerate(names)
    }


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Wilson's score interval of the share `right / n` (Wilson 1927); None without rows."""
    return None if n == 0 else score_interval(right / n, n, float(norm.ppf(0.5 + confidence / 2)))


def score_interval(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share of `n` rows, as many as they are worth, at the quantile `z`."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the bound is exactly 0 or 1; rounding would leave it a hair beside.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def nll(probabilities: Floats, gold: Ints) -> float | None:
    """The mean negative log-likelihood of the gold labels in nats; `probabilities` has shape (rows, labels)."""
    if len(gold) == 0:
        return None
    of_gold = probabilities[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(of_gold, SMALLEST)).mean())


def brier(probabilities: Floats, gold: Ints) -> float | None:
    """The mean over rows of the squared distance to the one-hot gold label (Brier 1950): from 0 to 2."""
    if len(gold) == 0:
        return None
    errors = probabilities.copy()
    errors[np.arange(len(gold)), gold] -= 1
    return float((errors**2).sum(axis=1).mean())


@dataclass(frozen=True)
class Bin:
    """Some rows of like confidence: their mean confidence, the share of them that is right, and how many they are."""

    confidence: float
    right: float
    n: int


def reliability(confidence: Floats, right: NDArray[np.bool_], bins: int = ECE_BINS) -> list[Bin]:
    """Rows by the probability of their answer, the least sure first, in bins of equally many; empty without rows.

    Rows of equal confidence share their mean correctness: where a bin's edge cuts a tie, row order does not matter.
    """
    if len(confidence) == 0:
        return []
    sure, share = (np.array_split(each, min(bins, len(right))) for each in _by_confidence(confidence, right))
    return [Bin(float(a.mean()), float(b.mean()), len(a)) for a, b in zip(sure, share, strict=True)]


def ece(confidence: Floats, right: NDArray[np.bool_], bins: int = ECE_BINS) -> float | None:
    """The expected calibration error: the mean distance of confidence to correctness over the bins of `reliability`."""
    found = reliability(confidence, right, bins)
    return sum(one.n * abs(one.right - one.confidence) for one in found) / len(confidence) if found else None


def aurc(confidence: Floats, right: NDArray[np.bool_]) -> float | None:
    """The area under the risk-coverage curve (Geifman and El-Yaniv 2017; Geifman et al. 2019); 0 is best.

    It is the mean, over every number k of rows, of the share of wrong answers among the k surest. Rows of equal
    confidence count as their mean over every order.
    """
    if len(confidence) == 0:
        return None
    _, share = _by_confidence(confidence, right)
    return float((np.cumsum(1 - share[::-1]) / np.arange(1, len(share) + 1)).mean())


def recall_at_fpr(probability: Floats, positive: NDArray[np.bool_], most: float) -> float | None:
    """The highest recall of one label against the rest at a false-positive rate of at most `most`.

    `probability` (rows,) is that of the label, `positive` (rows,) says which rows have it. Rows of equal probability
    are found together or not at all. None where no row has the label, or every one.
    """
    if positive.all() or not positive.any():
        return None
    _, group = np.unique(-probability, return_inverse=True)
    hits = np.cumsum(np.bincount(group, weights=positive))
    false = np.cumsum(np.bincount(group, weights=~positive))
    # Quotients, not products: 1 of 20 is then exactly 0.05.
    return float(hits[false / false[-1] <= most].max(initial=0.0) / hits[-1])


@dataclass(frozen=True)
class Answered:
    """What answering only the surest rows gives: `share` was asked for, `coverage` is what `threshold` really answers.

    `accuracy` is that of the answered rows, None where there are none.
    """

    share: float
    threshold: float
    coverage: float
    accuracy: float | None


def accuracy_at_coverage(
    confidence: Floats,
    right: NDArray[np.bool_],
    thresholds: Sequence[float] | None = None,
    shares: Sequence[float] = COVERAGES,
) -> list[Answered]:
    """How accurate the answers are where only the surest share is given; empty without rows.

    `thresholds` are those of the shares on other rows, such as dev's; None takes these rows' own. A row is answered
    where its confidence is not below the threshold.
    """
    if len(confidence) == 0:
        return []
    found = []
    chosen = thresholds_at(confidence, shares) if thresholds is None else thresholds
    # Other rows may be none; they set no thresholds then.
    for share, threshold in zip(shares, chosen, strict=False):
        answered = confidence >= threshold
        accurate = float(right[answered].mean()) if answered.any() else None
        found.append(Answered(share, threshold, float(answered.mean()), accurate))
    return found


def thresholds_at(confidence: Floats, shares: Sequence[float] = COVERAGES) -> list[float]:
    """The confidence below which rows must stay unanswered so that at least each share is answered; (rows,) not empty.

    It lies between two confidences that were seen, so that rounding in another batch moves no row to the other side;
    0 where every row is answered.
    """
    seen, counts = np.unique(confidence, return_counts=True)
    at_least = np.cumsum(counts[::-1])[::-1] / len(confidence)
    last = [int(np.flatnonzero(at_least >= share)[-1]) for share in shares]
    return [float((seen[at - 1] + seen[at]) / 2) if at else 0.0 for at in last]


def scale_of(labels: Sequence[str]) -> Floats:
    """What the labels of an order count as, shape (labels,): their own numbers, or 1 to n.

    Their own where all are numbers that rise throughout, or fall: others would contradict the order.
    """
    try:
        own = np.array([float(label) for label in labels])
    except ValueError:
        own = np.array([])
    steps = np.diff(own)
    if len(own) and np.isfinite(own).all() and ((steps > 0).all() or (steps < 0).all()):
        return own
    return np.arange(1.0, len(labels) + 1)


def coincidences(votes: Ints) -> Floats:
    """How often two raters of one row gave this pair of labels, shape (labels, labels); sums over rows may be added.

    `votes` (rows, labels) counts the raters of a row that gave each label. A row weighs as many pairs as it has raters,
    one with a single rater none (Krippendorff 2011, coincidence matrix).
    """
    raters = votes.sum(axis=1)
    paired = votes[raters > 1].astype(np.float64)
    weight = 1 / (raters[raters > 1] - 1)
    found: Floats = (paired * weight[:, None]).T @ paired - np.diag((paired * weight[:, None]).sum(axis=0))
    return found


def krippendorff_alpha(pairs: Floats, scale: Floats | None = None) -> float | None:
    """Krippendorff's alpha from the sum of `coincidences`: 1 is agreement, 0 what chance gives (Krippendorff 2011).

    Every disagreement counts alike, or as its squared distance on `scale` (labels,). None where all labels are one.
    """
    of_label = pairs.sum(axis=1)
    total = float(of_label.sum())
    distance = 1 - np.eye(len(pairs)) if scale is None else np.square(np.subtract.outer(scale, scale))
    expected = float((np.outer(of_label, of_label) * distance).sum())
    return 1 - (total - 1) * float((pairs * distance).sum()) / expected if expected > 0 else None


def mae_expected(probabilities: Floats, gold: Ints, scale: Floats) -> float | None:
    """The mean distance of the expected rating to the gold one; `scale` (labels,) is what each label counts as."""
    return float(np.abs(probabilities @ scale - scale[gold]).mean()) if len(gold) else None


def give_back_pruned(probabilities: Floats, pruned: Floats, possible: NDArray[np.bool_]) -> Floats:
    """The probabilities where labels that scoring left out, and gave 0, share the bound on what it left out.

    `pruned` is that bound, shape (rows,); `possible`, shape (rows, labels), is false where a row has no such label.
    Without this, one confident mistake would cost as much as the smallest float allows, though its size is known.
    """
    left_out = possible & (probabilities == 0)
    share = pruned / np.maximum(left_out.sum(axis=1), 1)
    filled = np.where(left_out, share[:, None], probabilities)
    normalised: Floats = filled / filled.sum(axis=1, keepdims=True)
    return normalised


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities to the power 1 / temperature, normalised again, shape (rows, labels); zeros stay zero."""
    if temperature <= 0:
        raise ValueError(f"a temperature is greater than 0, not {temperature}")
    if probabilities.size == 0:
        return probabilities.copy()
    # Relative to each row's largest, so that nothing underflows to a row of zeros at a low temperature.
    relative = probabilities / probabilities.max(axis=1, keepdims=True)
    powered = relative ** (1 / temperature)
    normalised: Floats = powered / powered.sum(axis=1, keepdims=True)
    return normalised


def apply_prior(probabilities: Floats, factors: Floats) -> Floats:
    """The probabilities times each label's factor, normalised again, shape (rows, labels).

    With factors π(y) / π'(y) answers under the prior π' become those under π (Elkan 2001, theorem 2; Saerens, Latinne
    and Decaestecker 2002, equation 4): right where they were right under π', so they come after a temperature.
    """
    weighted = probabilities * factors
    normalised: Floats = weighted / weighted.sum(axis=1, keepdims=True)
    return normalised


def fit_temperature(probabilities: Floats, gold: Ints, factors: Floats | None = None) -> float:
    """The temperature that makes the gold labels likeliest, between 0.05 and 20 (Guo et al. 2017).

    With `factors` (labels,) they are likeliest after `apply_prior`, which follows the temperature.
    It is 1.0 where the rows cannot tell: none, or every gold label already the likeliest, when colder is always better.
    A gold label of probability 0 is taken for one of `SMALLEST`, so that a sure mistake still tells of overconfidence.
    """
    rows = np.arange(len(gold))
    if len(gold) == 0 or bool((probabilities[rows, gold] == probabilities.max(axis=1)).all()):
        return 1.0
    safe = probabilities.copy()
    safe[rows, gold] = np.maximum(safe[rows, gold], SMALLEST)
    with np.errstate(divide="ignore"):
        logs = np.log(safe)
    offsets = 0.0 if factors is None else np.log(factors)

    def loss(log_temperature: float) -> float:
        scaled = logs / math.exp(log_temperature) + offsets
        return float((logsumexp(scaled, axis=1) - scaled[rows, gold]).mean())

    # The loss is convex in 1 / temperature, so it has one minimum and a bounded search finds it.
    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(float(found.x))


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """The two-sided exact McNemar p value from the rows that only one of two systems answered rightly."""
    if a_only + b_only == 0:
        return 1.0
    return float(binomtest(a_only, a_only + b_only, 0.5).pvalue)


def holm(pvalues: Sequence[float]) -> list[float]:
    """The p values adjusted for their number by Holm's step-down method (Holm 1979), in the order given."""
    adjusted = [1.0] * len(pvalues)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        highest = max(highest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = highest
    return adjusted


def resample(gold: Ints, predicted: Ints, labels: int, n: int, seed: int) -> Counts:
    """The counts of `n` resamples of the rows with replacement, each of shape (n, labels).

    The rows drawn depend on their number and the seed alone: systems on the same rows get the same resamples, so that
    differences between them are paired.
    """
    drawn = [count_drawn(gold, predicted, labels, times) for times in draws(len(gold), n, seed)]
    drawn.append(count_drawn(gold, predicted, labels, np.zeros((len(gold), 0))))
    fields = ("hit", "gold", "predicted", "away", "squared")
    return Counts(*(np.concatenate([getattr(one, field) for one in drawn]) for field in fields))


def draws(rows: int, n: int, seed: int | Sequence[int]) -> Iterator[Floats]:
    """How often each of `n` resamples draws each row, (rows, resamples) at a time: some of the resamples in turn.

    They depend on the three numbers alone, so that systems on the same rows get the same resamples.
    """
    at_once = max(1, DRAWS_AT_ONCE // max(rows, 1))
    random = np.random.default_rng(seed)
    for start in range(0, n, at_once):
        size = min(at_once, n - start)
        picks = random.integers(rows, size=(size, rows)) if rows else np.zeros((size, 0), dtype=np.int64)
        picks *= size
        picks += np.arange(size)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def resampled_means(values: Floats, n: int, seed: int) -> Floats:
    """The mean of each column of `values` (rows, columns) over the rows of `n` resamples, shape (n, columns).

    NaN counts in no mean; a mean of nothing is NaN. The resamples are those of `resample`.
    """
    finite = np.isfinite(values)
    filled, counted = np.where(finite, values, 0.0), finite.astype(np.float64)
    means = [_divide(times.T @ filled, times.T @ counted) for times in draws(len(values), n, seed)]
    return np.concatenate(means) if means else np.zeros((0, values.shape[1]))


def interval(differences: Floats) -> tuple[float, float, float] | None:
    """The 95% percentile interval of resampled differences and their standard error: (low, high, error)."""
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high), float(differences.std(ddof=1))


def minimum_detectable(error: float, freedom: float = math.inf, power: float = 0.8) -> float | None:
    """The smallest true difference that a two-sided test at 5% finds with this power: the minimum detectable effect.

    (quantile of 0.975 + quantile of the power) · error, of the normal distribution (Bloom 1995), of Student's where the
    error has few degrees of freedom (Burlig, Preonas and Woerman 2020, equation 1). None where the error is 0: nothing
    was seen of chance then.
    """
    return float(student.ppf(0.975, freedom) + student.ppf(power, freedom)) * error if error > ROUNDING else None


def paired_bootstrap(
    metric: Metric, gold: Ints, a: Ints, b: Ints, n: int, seed: int
) -> tuple[float, float, float] | None:
    """The interval of `metric(a) - metric(b)` over `n` resamples of the rows: (low, high, standard error)."""
    labels = 1 + max((int(x.max()) for x in (gold, a, b) if len(x)), default=0)
    return interval(metric(resample(gold, a, labels, n, seed)) - metric(resample(gold, b, labels, n, seed)))


def _by_confidence(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Confidences in rising order, and for each the share right of all rows that have it; both of shape (rows,)."""
    values, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    share = np.bincount(group, weights=right.astype(np.float64), minlength=len(values)) / sizes
    return np.repeat(values, sizes), np.repeat(share, sizes)


def _divide(top: Floats, bottom: Floats) -> Floats:
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) > 0)
    return quotient


def _mean_where(values: Floats, counted: NDArray[np.bool_]) -> Floats:
    return _divide(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1).astype(np.float64))
