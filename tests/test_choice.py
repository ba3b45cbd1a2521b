"""What a budget buys: where adaptive reasons, what it would then answer, and which arm and mode is chosen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from saywhy import evaluate, metrics
from saywhy.evaluate import Answers, Budget
from saywhy.evaluate.choice import mixed
from test_evaluate import TASK, answered

GOLD = ("sad", "glad", "mad", "sad", "glad", "mad", "sad", "glad")
# Right where it is sure, wrong on the four rows below; the other system is right on three of those four.
SURE = answered(
    [("sad", 0.95), ("glad", 0.9), ("mad", 0.85), ("sad", 0.8),
     ("sad", 0.7), ("sad", 0.6), ("mad", 0.5), ("mad", 0.4)], GOLD, 10.0,
)  # fmt: skip
WORDY = answered(
    [("mad", 0.9), ("glad", 0.9), ("mad", 0.9), ("sad", 0.9),
     ("sad", 0.9), ("mad", 0.9), ("sad", 0.9), ("glad", 0.9)], GOLD, 40.0, 8.0,
)  # fmt: skip


def rows_reasoned(threshold: float) -> int:
    temperature = evaluate.temperature_of(TASK, SURE)
    shares = metrics.apply_temperature(np.array(SURE.probabilities), temperature)
    return int((shares.max(1) < threshold).sum())


@pytest.mark.parametrize(
    ("keep", "tokens", "reasoned"),
    # label 4 of 8 right, reason 6, the last k rows reasoned: 5, 6, 7 right for k = 1, 2, 3, then 7 until the first row.
    # A reasoned row costs 32 tokens more: 40, less the 8 of the prompt that the label has read.
    [(0.5, None, 1), (0.51, None, 2), (1.0, None, 2), (0.95, 9.0, 0), (0.95, 14.0, 1), (0.95, 21.9, 2), (0.95, 22.0, 3),
     # The seven least sure have as many right as the three; with the eighth one fewer, by more than an error of .117.
     (0.1, 1e9, 7)],
)  # fmt: skip
def test_a_threshold_keeps_the_gain_or_the_budget(keep: float, tokens: float | None, reasoned: int) -> None:
    threshold = evaluate.threshold_of(TASK, SURE, WORDY, "accuracy", Budget(keep, tokens))
    assert rows_reasoned(threshold) == reasoned


@pytest.mark.parametrize("budget", [Budget(), Budget(tokens=1e9), Budget(keep=1e-9)])
def test_without_a_gain_no_row_is_reasoned(budget: Budget) -> None:
    assert evaluate.threshold_of(TASK, WORDY, SURE, "accuracy", budget) == 0.0
    assert evaluate.threshold_of(TASK, SURE, SURE, "macro_f1", budget) == 0.0


def test_mixed_answers_are_those_of_reason_below_the_threshold() -> None:
    threshold = evaluate.threshold_of(TASK, SURE, WORDY, "accuracy", Budget(1.0))
    found = mixed(TASK, SURE, WORDY, threshold)
    assert found.labels == (*SURE.labels[:6], *WORDY.labels[6:])
    assert found.probabilities == (*SURE.probabilities[:6], *WORDY.probabilities[6:])
    assert found.tokens == (10.0,) * 6 + (42.0,) * 2
    assert (found.ids, found.gold) == (SURE.ids, SURE.gold)
    assert mixed(TASK, SURE, WORDY, 0.0).labels == SURE.labels
    assert mixed(TASK, SURE, WORDY, 2.0).labels == WORDY.labels


def dev(adaptive: float) -> dict[str, Answers]:
    """Answers of three modes of one arm and of one more arm, as a run with that threshold left them."""
    chosen = mixed(TASK, SURE, WORDY, adaptive)
    return {"plain/label": SURE, "both/label": SURE, "both/reason": WORDY, "both/adaptive": chosen}


def test_another_budget_changes_adaptive_alone() -> None:
    before = dev(2.0)
    answers, thresholds = evaluate.within(TASK, before, "accuracy", Budget(0.5))
    assert list(thresholds) == ["both"] and rows_reasoned(thresholds["both"]) == 1
    assert answers["both/adaptive"] == mixed(TASK, SURE, WORDY, thresholds["both"]) != before["both/adaptive"]
    assert {name: one for name, one in answers.items() if name != "both/adaptive"} == {
        name: one for name, one in before.items() if name != "both/adaptive"
    }


@pytest.mark.parametrize(
    ("tokens", "modes", "left_out"),
    [(None, {"reason", "adaptive"}, None), (41.0, {"reason", "adaptive"}, 0), (39.0, {"adaptive"}, 1),
     (17.0, {"label"}, 2), (3.0, {"label"}, None)],
)  # fmt: skip
def test_what_needs_more_than_the_budget_is_not_recommended(
    tokens: float | None, modes: set[str], left_out: int | None
) -> None:
    # 50 times the eight rows, so that two more right ones are beyond a standard error.
    many = {
        name: dataclasses.replace(
            one,
            **{
                field.name: getattr(one, field.name) * 50
                for field in dataclasses.fields(one)
                if field.name not in ("seconds", "ids", "prior")
            },
            ids=tuple(f"{i}" for i in range(400)),
        )
        for name, one in dev(evaluate.threshold_of(TASK, SURE, WORDY, "accuracy", Budget(1.0))).items()
    }
    found = evaluate.recommend(TASK, many, "accuracy", tokens=tokens)
    assert found["mode"] in modes
    if tokens is None:
        assert "tokens a row (" not in found["why"]
    elif left_out is None:
        assert found["why"].startswith("Nothing needs as few as 3 tokens a row: ") and found["arm"] == "plain"
    else:
        assert found["why"].startswith(f"Of what needs at most {tokens:g} tokens a row ({left_out} of 4 need more): ")


def test_all_of_the_gain_can_be_asked_for_whatever_the_rounding() -> None:
    # 1 of 9 and 6 of 9: the share right alone and all that is gained add up to more than the share right in the end.
    gold = ["sad"] * 9
    alone = answered([("sad", 0.9)] + [("mad", 0.8 - 0.01 * i) for i in range(8)], gold, 10.0)
    reasoned = answered([("sad", 0.9)] * 6 + [("mad", 0.9)] * 3, gold, 40.0)
    threshold = evaluate.threshold_of(TASK, alone, reasoned, "accuracy", Budget(1.0))
    assert mixed(TASK, alone, reasoned, threshold).labels.count("sad") == 6


@pytest.mark.parametrize("budget", [Budget(), Budget(tokens=5.0)])
def test_without_rows_nothing_is_reasoned(budget: Budget) -> None:
    nothing = answered([], [], 1.0)
    assert evaluate.threshold_of(TASK, nothing, nothing, "accuracy", budget) == 0.0
