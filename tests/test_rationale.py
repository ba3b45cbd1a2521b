"""RQ, LAS and REV on tables that can be worked out by hand, and under the linear models that they are measured with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from saywhy import metrics
from saywhy.evaluate import Answers
from saywhy.evaluate.answers import PredictRows
from saywhy.evaluate.figures import means, share
from saywhy.evaluate.rationale import las, quality, rev
from saywhy.records import Prediction, RequestError, Row, Task

TASK = Task("t", "Which one?", ("red", "blue", "green"))
OWN = Task("c", "Which one?", ())


def answered(told: Sequence[tuple[str, str, str, str]], choices: tuple[str, ...] | None = None) -> Answers:
    """Answers of (text, gold, label, reasoning), with ids that do not rise with the rows."""
    n = len(told)
    texts, gold, labels, reasonings = (tuple(column) for column in zip(*told, strict=True)) if told else ((),) * 4
    options = choices or TASK.labels
    return Answers(
        ids=tuple(f"r{(7 * at + 3) % n:04}" for at in range(n)),
        texts=texts,
        gold=gold,
        labels=labels,
        probabilities=tuple(tuple(float(x == label) for x in options) for label in labels),
        reasonings=reasonings,
        tokens=(1.0,) * n,
        prompt_tokens=(1.0,) * n,
        forced=(False,) * n,
        strict=labels,
        pruned=(0.0,) * n,
        choices=(choices,) * n,
        seconds=1.0,
    )


def turned(answers: Answers) -> Answers:
    fields = {name: value[::-1] for name, value in vars(answers).items() if isinstance(value, tuple)}
    return replace(answers, **fields)


HANDMADE = [
    # text tells, reasoning tells, both tell
    ("red", "red", "red", "red"),
    ("mud a", "red", "red", "red"),
    ("mud b", "blue", "blue", "blue"),
    ("blue", "red", "blue", "mud"),
    ("mud c", "green", "green", "mud"),
    ("green", "green", "green", "mud"),
]


def by_first_name(task: Task, train: Sequence[Row]) -> PredictRows:
    """A simulator that answers with the first label it reads, and with none of ours where it reads none."""

    def predict(rows: Sequence[Row]) -> list[Prediction]:
        found = []
        for row in rows:
            names = [word for word in row.text.replace("why_", "").split() if word in task.labels]
            found.append(Prediction(names[0] if names else "none", {}))
        return found

    return predict


def test_quality_is_accuracy_with_less_accuracy_without() -> None:
    answers = answered(HANDMADE)
    # Rightly answered: 5 of 6 with the reasoning, without it the first three rows and the fourth.
    alone = replace(answers, labels=("red", "red", "blue", "red", "blue", "red"))
    found, missing = quality(TASK, answers, ("a/label", alone), 500, 0)
    assert missing == "" and found["n"] == 6 and found["without_system"] == "a/label"
    assert (found["with"], found["without"]) == (pytest.approx(5 / 6), pytest.approx(4 / 6))
    assert found["value"] == pytest.approx(1 / 6)
    low, high = found["ci95"]
    assert low < 1 / 6 < high and low >= -1 and high <= 1
    # Paired: a system against itself differs in no resample.
    assert quality(TASK, answers, ("a/reason", answers), 500, 0)[0]["ci95"] == [0.0, 0.0]
    assert quality(TASK, turned(answers), ("a/label", alone), 500, 0)[0] == found


def test_quality_needs_a_system_without_a_reasoning_on_the_same_rows() -> None:
    answers = answered(HANDMADE)
    found, missing = quality(TASK, answers, None, 100, 0)
    assert "no system" in missing and found["value"] is None and found["with"] == pytest.approx(5 / 6)
    with pytest.raises(RequestError, match="different rows"):
        quality(TASK, answers, ("a/label", answered(HANDMADE[:5])), 100, 0)


def test_las_is_the_mean_of_two_groups_worked_by_hand() -> None:
    found, missing = las(TASK, answered(HANDMADE), 500, 0, by_first_name)
    assert missing == ""
    # Leaking, by the reasoning alone: rows 0 to 2. There text and reasoning tell 3 answers, the text alone one.
    assert found["leaking"] == {"value": pytest.approx(2 / 3), "n": 3}
    # Hidden: rows 3 to 5, where the reasoning adds nothing.
    assert found["hidden"] == {"value": pytest.approx(0.0), "n": 3}
    assert found["value"] == pytest.approx(1 / 3)
    assert las(TASK, turned(answered(HANDMADE)), 500, 0, by_first_name)[0] == found


def test_las_weighs_both_groups_alike_and_a_misleading_reasoning_against() -> None:
    told = [("mud", "red", "red", "red")] * 3 + [("red x", "red", "red", "blue")] + [("blue", "blue", "blue", "mud")]
    told = [(f"{text} {at}", *rest) for at, (text, *rest) in enumerate(told)]

    def reasoning_first(task: Task, train: Sequence[Row]) -> PredictRows:
        read = by_first_name(task, train)
        return lambda rows: read([replace(row, text=" ".join(row.text.split("\n")[::-1])) for row in rows])

    found, _ = las(TASK, answered(told), 500, 0, reasoning_first)
    assert found["leaking"] == {"value": pytest.approx(1.0), "n": 3}
    # Of the two hidden rows one is no longer told where the reasoning names another label.
    assert found["hidden"] == {"value": pytest.approx(-0.5), "n": 2}
    assert found["value"] == pytest.approx(0.25)
    low, high = found["ci95"] or (math.nan, math.nan)
    assert math.isnan(low) or low <= 0.25 <= high


def test_las_without_a_group_is_none() -> None:
    found, _ = las(TASK, answered(HANDMADE[:3]), 100, 0, by_first_name)
    assert found["value"] is None and found["ci95"] is None
    assert found["leaking"]["n"] == 3 and found["hidden"] == {"value": None, "n": 0}


def sure_of(behind_reasoning: float, alone: float) -> Any:
    """An evaluator that gives a row's answer one probability where it reads `cue` in the reasoning, else another."""

    def learn(task: Task, train: Sequence[Row]) -> PredictRows:
        def predict(rows: Sequence[Row]) -> list[Prediction]:
            each = [behind_reasoning if "why_cue" in row.text else alone for row in rows]
            return [Prediction("red", {str(row.label): p}) for row, p in zip(rows, each, strict=True)]

        return predict

    return learn


def test_rev_is_what_the_reasoning_adds_to_the_vacuous_statement_worked_by_hand() -> None:
    told = [("a", "red", "red", "a cue"), ("b", "red", "blue", "cue"), ("c", "blue", "red", "Cue")]
    told.append(("d", "red", "red", "cue"))
    found, missing = rev(TASK, answered(told), 500, 0, sure_of(0.8, 0.4))
    assert missing == ""
    gain = math.log(2)
    assert found["all"] == {"mean": pytest.approx(3 * gain / 4), "n": 4, "ci95": found["all"]["ci95"]}
    assert (found["right"]["mean"], found["right"]["n"]) == (pytest.approx(gain), 2)
    assert (found["wrong"]["mean"], found["wrong"]["n"]) == (pytest.approx(gain / 2), 2)
    assert found["vacuous"] == {"mean": 0.0, "n": 4, "ci95": [0.0, 0.0]}
    low, high = found["all"]["ci95"]
    assert 0 <= low < 3 * gain / 4 < high <= gain
    assert rev(TASK, turned(answered(told)), 500, 0, sure_of(0.8, 0.4))[0] == found


def test_an_evaluator_that_rules_an_answer_out_is_charged_no_more_than_the_least_float() -> None:
    found, _ = rev(TASK, answered(HANDMADE), 100, 0, sure_of(0.5, 0.0))
    assert found["all"]["mean"] == 0.0


WORDS = {"red": "warm fire", "blue": "cold sea", "green": "fresh grass"}


def many(reasoning: Any, text: Any = lambda label, at: f"it is thing {at % 11} of {at % 7}") -> Answers:
    labels = enumerate(TASK.labels[(at * at + at // 5) % 3] for at in range(90))
    return answered([(f"n{at} {text(label, at)}", label, label, reasoning(label, at)) for at, label in labels])


def test_under_linear_models_telling_reasonings_gain_and_empty_ones_do_not() -> None:
    telling = many(lambda label, at: f"it has {WORDS[label]} {at % 5}")
    # The answer stands in the vacuous statement, so that its own words add little; those of the reasoning add more.
    found, _ = rev(TASK, telling, 200, 0)
    assert found["all"]["mean"] > 0.02 and found["all"]["ci95"][0] > 0
    assert abs(found["vacuous"]["mean"]) < 0.002
    simulated, _ = las(TASK, telling, 200, 0)
    assert simulated["leaking"]["n"] > 80 and simulated["leaking"]["value"] > 0.4
    empty, _ = rev(TASK, many(lambda label, at: "so."), 200, 0)
    assert abs(empty["all"]["mean"]) < 0.05
    nothing, _ = las(TASK, many(lambda label, at: ""), 200, 0)
    assert abs(nothing["leaking"]["value"]) < 0.2 and abs(nothing["hidden"]["value"]) < 0.2


def test_the_words_of_a_reasoning_count_apart_from_those_of_the_text() -> None:
    # Words of two labels stand in most rows, and only those in the reasoning are of the right one.
    some = many(lambda label, at: f"n{at} {WORDS[label]}", lambda label, at: WORDS[TASK.labels[at // 7 % 3]])
    found, _ = las(TASK, some, 200, 0)
    assert found["leaking"]["n"] > 80 and found["leaking"]["value"] > 0.5


def test_the_order_of_the_rows_changes_nothing() -> None:
    some = many(lambda label, at: f"{WORDS[label if at % 3 else TASK.labels[at % 2]]} {at % 5}")
    for measured in (las, rev):
        assert measured(TASK, turned(some), 200, 0) == measured(TASK, some, 200, 0)


@pytest.mark.parametrize("measure", [las, rev])
def test_what_cannot_be_measured_says_why(measure: Any) -> None:
    own = answered([("a", "x", "x", "so"), ("b", "y", "x", "so")], choices=("x", "y"))
    alike = answered([("a", "red", "red", "so")] * 3)
    for task, answers, why in ((OWN, own, "own choices"), (TASK, alike, "same answer")):
        found, missing = measure(task, answers, 100, 0)
        assert why in missing
        first = found["all"]["mean"] if measure is rev else found["value"]
        assert first is None
    assert quality(OWN, own, ("a/label", own), 100, 0)[0]["value"] == 0.0


def test_resampled_means_are_those_of_the_resamples_of_all_other_figures() -> None:
    gold, given = np.array([0, 1, 1, 0, 1, 0, 0]), np.array([0, 1, 0, 0, 1, 1, 0])
    right = (gold == given).astype(float)
    again = metrics.accuracy(metrics.resample(gold, given, 2, 300, 5))
    some = np.stack([right, np.where(gold == 1, right, np.nan)], axis=1)
    found = metrics.resampled_means(some, 300, 5)
    assert np.array_equal(found[:, 0], again)
    counts = metrics.resample(gold, given, 2, 300, 5)
    drawn = counts.gold[:, 1] > 0
    assert np.array_equal(found[drawn, 1], counts.hit[drawn, 1] / counts.gold[drawn, 1])
    assert not drawn.all() and np.isnan(found[~drawn, 1]).all()
    assert metrics.resampled_means(np.zeros((0, 2)), 5, 0).shape == (5, 2)


def test_shares_and_means_say_of_how_many_rows() -> None:
    assert share([True, False, True, True]) == {"share": 0.75, "n": 4, "ci95": metrics.wilson(3, 4)}
    assert share([]) == {"share": None, "n": 0, "ci95": None}
    one, other = means(np.array([[1.0, np.nan], [3.0, 5.0]]), 100, 0)
    assert (one["mean"], one["n"], other["mean"], other["n"]) == (2.0, 2, 5.0, 1)
    assert means(np.zeros((0, 1)), 100, 0) == [{"mean": None, "ci95": None, "n": 0}]
