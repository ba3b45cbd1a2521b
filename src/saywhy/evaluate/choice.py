"""Which arm and mode to use, and where adaptive reasons: chosen on the dev split within the user's budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saywhy import metrics
from saywhy.evaluate.answers import Answers, arrays_of
from saywhy.evaluate.measured import RESAMPLES, check_metric, mean, measure, standard_error, temperature_of
from saywhy.metrics import Floats
from saywhy.records import RequestError, Task

LABEL_ONLY = "label_only"


@dataclass(frozen=True)
class Budget:
    """What a user allows: the share of reasoning's gain that adaptive has to keep, or else tokens a row."""

    keep: float = 0.95
    tokens: float | None = None


def threshold_of(task: Task, label: Answers, reason: Answers, metric: str, budget: Budget) -> float:
    """The confidence of mode `label` below which mode `adaptive` reasons, chosen on the answers to the dev split.

    The lowest with at least the share of reasoning's gain in the metric that is to be kept. Where tokens are limited,
    the highest that computes no more a row: who gives tokens wants them used, unless dev says that fewer are better by
    more than one paired standard error. 0 where reasoning gains nothing: no row is reasoned then.
    """
    gold, alone, reasoned = arrays_of(task, label).gold, arrays_of(task, label), arrays_of(task, reason)
    sure = _confidence(task, label)
    seen = np.unique(sure)
    # Between two confidences that were seen: rounding in another batch then moves no row to the other side.
    candidates: list[float] = [0.0, *((seen[:-1] + seen[1:]) / 2).tolist(), 2.0]

    def reached(threshold: float) -> float:
        mixed = np.where(sure < threshold, reasoned.predicted, alone.predicted)
        counts = metrics.count(gold, mixed, alone.labels)
        return float(metrics.METRICS[metric if task.labels else "accuracy"](counts))

    least, most = reached(0.0), reached(2.0)
    # Without rows both are undefined, and nothing is gained.
    if not most > least:
        return 0.0
    if budget.tokens is None:
        enough = min(most, least + budget.keep * (most - least))
        return next(one for one in candidates if reached(one) >= enough)
    costs = {one: np.where(sure < one, *_tokens(label, reason)).mean() for one in candidates}
    affordable = [one for one in candidates if not one or costs[one] <= budget.tokens]
    best = max(affordable, key=reached)

    def error(threshold: float) -> float:
        right = [np.where(sure < one, reasoned.predicted, alone.predicted) == gold for one in (best, threshold)]
        return float((right[0].astype(float) - right[1]).std() / np.sqrt(len(gold)))

    return max(one for one in affordable if reached(best) - reached(one) <= error(one))


def within(
    task: Task, dev: Mapping[str, Answers], metric: str, budget: Budget
) -> tuple[dict[str, Answers], dict[str, float]]:
    """Choose adaptive's threshold again under another budget: the answers to dev then, and the threshold of each arm.

    `dev` by `<arm>/<mode>`. What adaptive would answer is known from the answers of `label` and `reason`.
    """
    answers, thresholds = dict(dev), {}
    for name in dev:
        arm, _, mode = name.rpartition("/")
        if mode == "adaptive":
            label, reason = dev[f"{arm}/label"], dev[f"{arm}/reason"]
            thresholds[arm] = threshold_of(task, label, reason, metric, budget)
            answers[name] = mixed(task, label, reason, thresholds[arm])
    return answers, thresholds


def mixed(task: Task, label: Answers, reason: Answers, threshold: float) -> Answers:
    """The answers of mode `adaptive` at a threshold, from those of `label` and `reason` to the same rows."""
    unsure = _confidence(task, label) < threshold
    tokens = np.where(unsure, *_tokens(label, reason))

    def chosen(name: str) -> Any:
        pairs = zip(unsure, getattr(reason, name), getattr(label, name), strict=True)
        return tuple(one if is_reasoned else other for is_reasoned, one, other in pairs)

    taken = ("labels", "probabilities", "reasonings", "forced", "strict", "pruned")
    seconds = label.seconds + float(unsure.mean()) * reason.seconds if len(unsure) else 0.0
    return replace(
        label, **{name: chosen(name) for name in taken}, tokens=tuple(float(x) for x in tokens), seconds=seconds
    )


def _confidence(task: Task, label: Answers) -> Floats:
    """The calibrated probability of each label."""
    alone = arrays_of(task, label)
    calibrated = alone.calibrated(temperature_of(task, label))
    sure: Floats = calibrated[np.arange(len(calibrated)), alone.predicted]
    return sure


def _tokens(label: Answers, reason: Answers) -> tuple[Floats, Floats]:
    """What each row costs in `adaptive` when it is reasoned, its prompt being read already, and when it is not."""
    alone = np.array(label.tokens)
    return alone + np.array(reason.tokens) - np.array(reason.prompt_tokens), alone


def recommend(
    task: Task,
    dev: Mapping[str, Answers],
    metric: str = "macro_f1",
    resamples: int = RESAMPLES,
    seed: int = 0,
    kinds: Mapping[str, str] | None = None,
    tokens: float | None = None,
) -> dict[str, str]:
    """The arm and mode to use, from the dev split alone, with the sentence that says why.

    What lies within one paired standard error of the highest metric counts as equal to it. Of those the fewest computed
    tokens a row win, then `label_only`. `tokens` is how many a row may be computed: what needs more is left out, but
    for the cheapest. `kinds` says which arm an arm with a name of its own is. Where rows have their own choices only
    accuracy is defined, and is used.
    """
    if not dev:
        raise RequestError("there is no arm and mode to recommend: none has answered the dev split")
    everything = {name: mean(answers.tokens) or 0.0 for name, answers in dev.items()}
    least = min(everything.values())
    dev = {name: dev[name] for name, needed in everything.items() if tokens is None or needed <= max(tokens, least)}
    metric = metric if task.labels else "accuracy"
    check_metric(task, metric)
    measured = measure(task, dev, (metric,), resamples, seed)
    values = {name: system.values[metric] for name, system in measured.items()}
    best = max(values, key=lambda name: values[name] if np.isfinite(values[name]) else -1.0)
    errors = {name: standard_error(measured[best], system, metric) for name, system in measured.items()}
    equal = [name for name in values if not values[best] - values[name] > errors[name]]

    def cost(name: str) -> tuple[float, bool, float]:
        arm = name.rpartition("/")[0]
        return everything[name], (kinds or {}).get(arm, arm) != LABEL_ONLY, -values[name]

    chosen = min(equal, key=cost)
    arm, _, mode = chosen.rpartition("/")
    why = _why(chosen, best, metric, values, errors, {name: everything[name] for name in equal})
    if tokens is not None:
        left_out = len(everything) - len(dev)
        limit = f"Of what needs at most {tokens:g} tokens a row ({left_out} of {len(everything)} need more)"
        why = f"{limit if least <= tokens else f'Nothing needs as few as {tokens:g} tokens a row'}: {why}"
    return {"arm": arm, "mode": mode, "metric": metric, "why": why}


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
