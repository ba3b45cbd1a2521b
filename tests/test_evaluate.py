"""Answers saved and scored, floors, comparisons and the recommendation, on rows where the right figures are known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from saywhy import evaluate, metrics, store
from saywhy.evaluate import Answers
from saywhy.records import Prediction, RequestError, Row, Task, WorkError

LABELS = ("sad", "glad", "mad")
TASK = Task("moods", "Which mood?", LABELS)
SCALE = Task("stars", "How many stars?", ("1", "2", "3", "4"), ordinal=True)
PICK = Task("pick", "Which answer is right?", ())

# What a model that has learned its lesson says. The test split has one deliberately wrong gold label, t3.
TRUE_MOOD = {"rain": "sad", "sun": "glad", "noise": "mad"}
TEST = (
    Row("t0", "rain again", "sad"),
    Row("t1", "sun at last", "glad"),
    Row("t2", "noise all night", "mad"),
    Row("t3", "rain and rain", "mad"),
    Row("t4", "sun and sea", "glad"),
    Row("t5", "noise next door", "mad"),
)


def certain(label: str, task: Task = TASK, p: float = 0.8, **more: Any) -> Prediction:
    rest = (1 - p) / (len(task.labels) - 1)
    return Prediction(label, {name: p if name == label else rest for name in task.labels}, **more)


def know_all(rows: Sequence[Row]) -> list[Prediction]:
    return [certain(TRUE_MOOD[row.text.split()[0]]) for row in rows]


def given_answers(
    gold: str, labels: str, tokens: float = 10.0, ids: Sequence[str] | None = None, task: Task = TASK, p: float = 0.8
) -> Answers:
    """Answers from the first letters of gold labels and answers, `s`, `g`, `m` (or a digit of the scale)."""
    by_letter = {label[0]: label for label in task.labels}
    names = list(ids) if ids is not None else [f"r{i:03d}" for i in range(len(gold))]
    rows = [Row(name, f"text {name}", by_letter[letter]) for name, letter in zip(names, gold, strict=True)]
    return evaluate.collect(lambda _: [certain(by_letter[x], task, p, tokens=tokens) for x in labels], rows, task)


def answered(said: Sequence[tuple[str, float]], gold: Sequence[str], tokens: float, prompt: float = 0.0) -> Answers:
    """Answers of one system: a label with its probability a row, the rest shared by the others."""
    rows = [Row(f"r{i}", "x", label) for i, label in enumerate(gold)]
    shares = [{one: p if one == label else (1 - p) / 2 for one in TASK.labels} for label, p in said]
    pairs = zip(said, shares, strict=True)
    found = [Prediction(label, of_row, tokens=tokens, prompt_tokens=prompt) for (label, _), of_row in pairs]
    return evaluate.collect(lambda _: found, rows, TASK)


def shuffled(answers: Answers, seed: int) -> Answers:
    order = np.random.default_rng(seed).permutation(len(answers.ids)).tolist()
    columns: dict[str, Any] = {
        field.name: tuple(getattr(answers, field.name)[i] for i in order)
        for field in dataclasses.fields(answers)
        if field.name not in ("seconds", "prior")
    }
    return dataclasses.replace(answers, **columns)


def random_answers(rows: int, right: float, seed: int, tokens: float = 10.0) -> Answers:
    random = np.random.default_rng(seed)
    gold = [LABELS[i] for i in np.random.default_rng(99).integers(3, size=rows)]
    said = [label if random.random() < right else LABELS[int(random.integers(3))] for label in gold]
    return given_answers("".join(x[0] for x in gold), "".join(x[0] for x in said), tokens)


def assert_plain(value: object) -> None:
    """Only JSON's own types, and nothing that strict JSON cannot say."""
    if type(value) is dict:
        for key, inner in value.items():
            assert type(key) is str
            assert_plain(inner)
    elif type(value) is list:
        for inner in value:
            assert_plain(inner)
    else:
        assert type(value) in (str, int, float, bool, type(None)), type(value)
        assert not isinstance(value, float) or math.isfinite(value)


def test_answers_survive_being_saved(tmp_path: Path) -> None:
    said = [
        certain("sad", reasoning="rain is\ntypical", tokens=12.5, forced=True, strict="glad", pruned=1e-5),
        certain("glad", reasoning=""),
        *know_all(TEST[2:]),
    ]
    path = tmp_path / "a-label-test.parquet"
    evaluate.answer(lambda _: said, TEST, path, TASK, "stamp")
    loaded = evaluate.load_answers(path, TASK)
    assert store.table_stamp(path) == "stamp"
    assert loaded == dataclasses.replace(evaluate.collect(lambda _: said, TEST, TASK), seconds=loaded.seconds)
    assert loaded.seconds == store.table_extra(path)["seconds"] > 0
    assert loaded.reasonings[:3] == ("rain is\ntypical", "", None)
    assert loaded.strict[:2] == ("glad", None)
    assert pq.read_table(path).column_names == [
        *(
            "id",
            "text",
            "gold",
            "label",
            "probabilities",
            "reasoning",
            "tokens",
            "prompt_tokens",
            "forced",
            "strict",
            "pruned",
            "choices",
        )
    ]


def test_probabilities_are_stored_in_the_order_of_the_labels(tmp_path: Path) -> None:
    said = Prediction("mad", {"mad": 0.7, "sad": 0.2, "glad": 0.1})
    evaluate.answer(lambda _: [said], TEST[2:3], tmp_path / "p.parquet", TASK)
    assert evaluate.load_answers(tmp_path / "p.parquet", TASK).probabilities == ((0.2, 0.1, 0.7),)


def test_own_choices_survive_being_saved(tmp_path: Path) -> None:
    rows = [Row("a", "x", "no", ("yes", "no")), Row("b", "y", "1", ("1", "2", "NA"))]
    said = [Prediction("yes", {"no": 0.4, "yes": 0.6}), Prediction("1", {"1": 0.5, "2": 0.3, "NA": 0.2})]
    evaluate.answer(lambda _: said, rows, tmp_path / "p.parquet", PICK)
    loaded = evaluate.load_answers(tmp_path / "p.parquet", PICK)
    assert loaded.choices == (("yes", "no"), ("1", "2", "NA"))
    assert loaded.probabilities == ((0.6, 0.4), (0.5, 0.3, 0.2))


@pytest.mark.parametrize(
    "said",
    [
        Prediction("bad", {"sad": 0.2, "glad": 0.1, "mad": 0.7}),
        Prediction("sad", {"sad": 1.0}),
        Prediction("sad", {"sad": math.nan, "glad": 0.5, "mad": 0.5}),
        Prediction("sad", {"sad": 0.9, "glad": 0.9, "mad": 0.1}),
        Prediction("sad", {"sad": 1.2, "glad": -0.2, "mad": 0.0}),
    ],
)
def test_an_unsound_prediction_stops_the_work(said: Prediction) -> None:
    with pytest.raises(WorkError, match=r"'t0'.*sad, glad, mad"):
        evaluate.collect(lambda _: [said], TEST[:1], TASK)


def test_missing_answers_and_impossible_gold_labels_are_refused() -> None:
    with pytest.raises(WorkError, match="6 rows were asked and 5 answers"):
        evaluate.collect(lambda rows: know_all(rows)[1:], TEST, TASK)
    with pytest.raises(RequestError, match="'t9' has the label 'rage'"):
        evaluate.collect(know_all, [Row("t9", "noise", "rage")], TASK)
    with pytest.raises(RequestError, match="'t9' has the label None"):
        evaluate.collect(know_all, [Row("t9", "noise")], TASK)


def test_saved_answers_of_another_task_are_refused(tmp_path: Path) -> None:
    evaluate.answer(know_all, TEST, tmp_path / "p.parquet", TASK)
    with pytest.raises(RequestError, match=r"p\.parquet: row 't0' was answered under other labels than sad, mad"):
        evaluate.load_answers(tmp_path / "p.parquet", Task("moods", "", ("sad", "mad")))
    with pytest.raises(RequestError, match="'t0' was answered under other labels"):
        evaluate.load_answers(tmp_path / "p.parquet", Task("moods", "", (*LABELS, "calm")))
    store.write_table(tmp_path / "q.parquet", pa.table({"id": ["a"]}))
    with pytest.raises(RequestError, match="lacks the columns text, gold, label"):
        evaluate.load_answers(tmp_path / "q.parquet", TASK)


def test_nobody_reaches_everything_against_a_wrong_gold_label() -> None:
    scores = evaluate.score(TASK, evaluate.collect(know_all, TEST, TASK))
    assert scores["n"] == 6
    assert scores["accuracy"] == 5 / 6
    assert scores["confusion"] == [[1, 0, 0], [0, 2, 0], [1, 0, 2]]
    assert scores["per_class"]["sad"] == {
        **{"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
        **{"precision_ci95": list(metrics.wilson(1, 2) or ()), "recall_ci95": list(metrics.wilson(1, 1) or ())},
    }
    assert scores["per_class"]["mad"] == {
        **{"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": 0.8, "support": 3},
        **{"precision_ci95": list(metrics.wilson(2, 2) or ()), "recall_ci95": list(metrics.wilson(2, 3) or ())},
    }
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 + 0.8) / 3)
    assert scores["mean_recall"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert scores["nll"] == pytest.approx(-(5 * math.log(0.8) + math.log(0.1)) / 6)
    assert scores["brier"] == pytest.approx((5 * (0.04 + 0.02) + 0.64 + 0.01 + 0.81) / 6)
    assert scores["ece"] == pytest.approx(5 / 6 - 0.8)
    assert scores["rows_per_second"] > 0


def test_scores_name_exactly_what_the_contract_names() -> None:
    names = {
        *("n", "accuracy", "accuracy_ci95", "macro_f1", "mean_recall", "per_class", "confusion", "nll", "brier", "ece"),
        *("forced", "accuracy_unforced", "rows_per_second", "tokens_per_row"),
        *("reliability", "aurc", "coverage", "recall_at_fpr"),
    }
    answers = evaluate.collect(know_all, TEST, TASK)
    assert set(evaluate.score(TASK, answers)) == names
    assert set(evaluate.score(TASK, answers, abstain_below=0.5)) == names | {"abstained", "accuracy_answered"}
    assert set(evaluate.score(SCALE, given_answers("1", "2", task=SCALE))) == names | {"mae", "mae_expected", "qwk"}


def test_scores_say_how_far_sureness_can_be_trusted() -> None:
    # Two rows a step of sureness; of the least sure pair one is right, and one of the surest is wrong.
    said = [("sad", 0.9), ("mad", 0.9), ("mad", 0.7), ("glad", 0.7), ("sad", 0.5), ("sad", 0.5)]
    gold = ["sad", "sad", "mad", "glad", "sad", "mad"]
    scores = evaluate.score(TASK, answered(said, gold, 1.0))
    assert scores["reliability"] == [
        {"confidence": pytest.approx(p), "right": right, "n": 1}
        for p, right in ((0.5, 0.5), (0.5, 0.5), (0.7, 1.0), (0.7, 1.0), (0.9, 0.5), (0.9, 0.5))
    ]
    assert scores["ece"] == pytest.approx((2 * 0 + 2 * 0.3 + 2 * 0.4) / 6)
    assert scores["aurc"] == pytest.approx((0.5 + 0.5 + 1 / 3 + 1 / 4 + 1.5 / 5 + 2 / 6) / 6)
    by_share = {one["share"]: one for one in scores["coverage"]}
    assert list(by_share)[:3] == [1.0, 0.95, 0.9]
    assert by_share[1.0] == {"share": 1.0, "threshold": 0.0, "coverage": 1.0, "accuracy": pytest.approx(4 / 6)}
    assert by_share[0.5] == {
        "share": 0.5, "threshold": pytest.approx(0.6), "coverage": pytest.approx(4 / 6), "accuracy": 0.75
    }  # fmt: skip
    # By the probability of sad: 0.9 (sad), 0.5 (sad) and 0.5 (mad), 0.15 twice, 0.05 (sad).
    assert scores["recall_at_fpr"]["sad"] == {"0.01": pytest.approx(1 / 3), "0.05": pytest.approx(1 / 3),
                                              "0.1": pytest.approx(1 / 3)}  # fmt: skip
    assert scores["recall_at_fpr"]["glad"] == {"0.01": 1.0, "0.05": 1.0, "0.1": 1.0}
    assert evaluate.score(TASK, answered(said[:1], ["sad"], 1.0))["recall_at_fpr"]["sad"]["0.01"] is None


def test_abstaining_counts_the_rows_below_and_the_accuracy_of_the_others() -> None:
    said = [("sad", 0.9), ("glad", 0.8), ("mad", 0.6), ("sad", 0.4)]
    answers = answered(said, ["sad", "mad", "mad", "sad"], 1.0)
    found = {
        below: (scores["abstained"], scores["accuracy_answered"])
        for below in (0.0, 0.6, 0.7, 1.0)
        for scores in [evaluate.score(TASK, answers, abstain_below=below)]
    }
    assert found == {0.0: (0.0, 0.75), 0.6: (0.25, pytest.approx(2 / 3)), 0.7: (0.5, 0.5), 1.0: (1.0, None)}
    # At a temperature of 2 the surest is no longer sure enough: 0.9^0.5 of 0.9^0.5 + 2 * 0.05^0.5.
    assert evaluate.score(TASK, answers, 2.0, abstain_below=0.7)["abstained"] == 1.0


def test_the_thresholds_of_coverage_are_those_of_dev() -> None:
    dev = answered([("sad", 0.9), ("sad", 0.8), ("sad", 0.7), ("sad", 0.6)], ["sad"] * 3 + ["mad"], 1.0)
    test = answered([("sad", 0.95), ("sad", 0.5), ("sad", 0.45), ("sad", 0.4)], ["sad"] * 4, 1.0)
    floor = {"linear": {"dev": dev, "test": test}}
    found = document({"label_only/label": dev}, {"label_only/label": test}, floor=floor, abstain_below=0.5)
    assert found["floors"]["linear"]["abstained"] == found["arms"]["label_only"]["modes"]["label"]["test"]["abstained"]
    mode = found["arms"]["label_only"]["modes"]["label"]
    of_dev, of_test = mode["dev"]["coverage"], mode["test"]["coverage"]
    assert [one["threshold"] for one in of_dev] == [one["threshold"] for one in of_test]
    halves = [next(one for one in points if one["share"] == 0.5) for points in (of_dev, of_test)]
    assert [one["coverage"] for one in halves] == [0.5, 0.25]
    assert mode["dev"]["abstained"] is not None and mode["test"]["abstained"] is not None
    without = document({"label_only/label": answered([], [], 1.0)}, {"label_only/label": test})
    assert without["arms"]["label_only"]["modes"]["label"]["test"]["coverage"] == []


def test_the_floors_are_scored_at_the_same_probability_and_by_dev_too() -> None:
    dev, test = overconfident(50, 0.6, 0, "d"), overconfident(50, 0.9, 1, "t")
    scores = evaluate.floor_scores(TASK, {"linear": {"dev": dev, "test": test}}, 0.9)["linear"] or {}
    sure = metrics.apply_temperature(np.array(test.probabilities), evaluate.temperature_of(TASK, dev)).max(1)
    assert scores["abstained"] == (sure < 0.9).mean()


def test_an_expected_rating_knows_the_numbers_of_the_scale() -> None:
    tens = Task("marks", "How many marks?", ("10", "20", "30"), ordinal=True)
    words = Task("marks", "How many marks?", ("few", "some", "many"), ordinal=True)
    for task, unit in ((tens, 10.0), (words, 1.0)):
        one, two, three = task.labels
        said = [Prediction(one, {one: 0.5, two: 0.25, three: 0.25}), Prediction(three, {one: 0, two: 0.5, three: 0.5})]
        rows = [Row("a", "x", one), Row("b", "y", two)]
        scores = evaluate.score(task, evaluate.collect(lambda _, said=said: said, rows, task))
        assert scores["mae"] == 0.5
        assert scores["mae_expected"] == pytest.approx(unit * (0.75 + 0.5) / 2)
        raised = evaluate.score(task, evaluate.collect(lambda _, said=said: said, rows, task), 0.5)
        assert raised["mae_expected"] != pytest.approx(scores["mae_expected"])


def test_confusion_and_tables_are_in_the_order_of_the_labels() -> None:
    turned = Task("moods", "", ("mad", "sad", "glad"))
    scores = evaluate.score(turned, given_answers("mmsg", "msss", task=turned))
    assert scores["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert list(scores["per_class"]) == ["mad", "sad", "glad"]


def test_ordinal_scores_know_how_far_an_answer_is_off() -> None:
    near = evaluate.score(SCALE, given_answers("1234", "2234", task=SCALE))
    far = evaluate.score(SCALE, given_answers("1234", "4234", task=SCALE))
    assert near["accuracy"] == far["accuracy"] == 0.75
    assert (near["mae"], far["mae"]) == (0.25, 0.75)
    # Squared distances: seen 1 and 9; by chance, over all 16 pairs of a gold label and an answer, 32/4 and 40/4.
    assert near["qwk"] == pytest.approx(1 - 1 / (32 / 4))
    assert far["qwk"] == pytest.approx(1 - 9 / (40 / 4))
    assert evaluate.score(SCALE, given_answers("22", "22", task=SCALE))["qwk"] is None


def test_forced_and_strict_reading_are_counted() -> None:
    said = [
        certain("sad", reasoning="r", strict="sad", tokens=10),
        certain("glad", reasoning="r", forced=True, strict=None, tokens=20),
        certain("mad", reasoning="r", strict="sad", tokens=60),
        certain("sad", reasoning="r", strict="sad", tokens=30),
    ]
    scores = evaluate.score(TASK, evaluate.collect(lambda _: said, TEST[:4], TASK))
    assert scores["accuracy"] == 0.75
    assert scores["forced"] == 0.25
    assert scores["accuracy_unforced"] == 0.25
    assert scores["tokens_per_row"] == 30.0
    silent = evaluate.score(TASK, evaluate.collect(know_all, TEST, TASK))
    assert (silent["forced"], silent["accuracy_unforced"]) == (0.0, None)


def test_own_choices_have_no_tables_by_class() -> None:
    rows = [Row("a", "x", "no", ("yes", "no")), Row("b", "y", "1", ("1", "2", "NA")), Row("c", "z", "2", ("1", "2"))]
    said = [
        Prediction("yes", {"no": 0.4, "yes": 0.6}),
        Prediction("1", {"1": 0.5, "2": 0.3, "NA": 0.2}),
        Prediction("2", {"1": 0.0, "2": 1.0}),
    ]
    scores = evaluate.score(PICK, evaluate.collect(lambda _: said, rows, PICK))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert [scores[name] for name in ("macro_f1", "mean_recall", "per_class", "confusion")] == [None] * 4
    assert scores["recall_at_fpr"] is None
    assert [one["n"] for one in scores["reliability"]] == [1, 1, 1]
    assert scores["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert scores["nll"] == pytest.approx(-(math.log(0.4) + math.log(0.5)) / 3)
    assert scores["brier"] == pytest.approx((2 * 0.36 + 0.25 + 0.09 + 0.04) / 3)


def test_the_temperature_touches_probabilities_and_no_answer() -> None:
    answers = evaluate.collect(know_all, TEST, TASK)
    plain, scaled = evaluate.score(TASK, answers), evaluate.score(TASK, answers, 2.0)
    # The order of the rows by sureness stays, and with it the area and what each share of them gives.
    assert {name for name in plain if plain[name] != scaled[name]} == {"nll", "brier", "ece", "reliability"}
    p = 0.8**0.5 / (0.8**0.5 + 2 * 0.1**0.5)
    assert scaled["ece"] == pytest.approx(abs(5 / 6 - p))


def test_a_pruned_gold_label_costs_its_bound() -> None:
    said = Prediction("glad", {"sad": 0.0, "glad": 1.0, "mad": 0.0}, pruned=2e-4)
    scores = evaluate.score(TASK, evaluate.collect(lambda _: [said], TEST[:1], TASK))
    assert scores["nll"] == pytest.approx(-math.log(1e-4 / 1.0002))


def test_no_rows_make_nulls_and_no_errors() -> None:
    scores = evaluate.score(TASK, evaluate.collect(know_all, [], TASK))
    assert_plain(scores)
    assert scores["n"] == 0
    assert scores["accuracy"] is scores["accuracy_ci95"] is scores["nll"] is scores["tokens_per_row"] is None
    assert evaluate.score(PICK, evaluate.collect(lambda _: [], [], PICK))["accuracy"] is None


@given(st.lists(st.tuples(st.sampled_from("sgm"), st.sampled_from("sgm"), st.floats(0.34, 1)), max_size=25))
@settings(deadline=None, max_examples=60)
def test_scores_are_strict_json_of_plain_types(cases: list[tuple[str, str, float]]) -> None:
    by_letter = {label[0]: label for label in LABELS}
    rows = [Row(str(i), "", by_letter[gold]) for i, (gold, _, _) in enumerate(cases)]
    answers = evaluate.collect(lambda _: [certain(by_letter[x], p=p) for _, x, p in cases], rows, TASK)
    for scores in (evaluate.score(TASK, answers), evaluate.score(dataclasses.replace(TASK, ordinal=True), answers)):
        assert_plain(scores)
        assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def moods(n: int, seed: int, split: str, wrong: float = 0.0) -> list[Row]:
    """Rows that a linear model can learn: the first word says the mood, the second does not."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        word = list(TRUE_MOOD)[int(random.choice(3, p=[0.5, 0.3, 0.2]))]
        label = TRUE_MOOD[word] if random.random() >= wrong else LABELS[int(random.integers(3))]
        rows.append(Row(f"{split}{i}", f"{word} w{random.integers(30)}", label))
    return rows


def floor_answers(task: Task, train: list[Row], dev: list[Row], test: list[Row]) -> dict[str, Any]:
    systems = {"majority": evaluate.majority(task, train), "linear": evaluate.linear(task, train, dev)}
    splits = {"dev": dev, "test": test}
    return {
        name: None if asked is None else {split: evaluate.collect(asked, rows, task) for split, rows in splits.items()}
        for name, asked in systems.items()
    }


def test_the_floors_are_the_most_frequent_label_and_a_learned_one() -> None:
    train, dev, test = moods(120, 0, "a"), moods(40, 1, "d"), [*moods(40, 2, "t"), Row("t40", "rain w1", "mad")]
    answers = floor_answers(TASK, train, dev, test)
    scores = evaluate.floor_scores(TASK, answers)
    majority, linear = scores["majority"], scores["linear"]
    assert majority is not None
    assert linear is not None
    assert set(answers["majority"]["test"].labels) == {"sad"}
    assert majority["accuracy"] == sum(row.label == "sad" for row in test) / 41
    assert majority["mean_recall"] == pytest.approx(1 / 3)
    assert linear["accuracy"] == 40 / 41
    assert linear["tokens_per_row"] == 0.0
    assert_plain(scores)


def test_the_majority_is_that_of_train_and_not_of_test() -> None:
    train = [Row(str(i), "x", label) for i, label in enumerate(["glad", "glad", "sad"])]
    said = evaluate.majority(TASK, train)([Row("t", "y", "mad")])
    assert said == [Prediction("glad", {"sad": 2 / 6, "glad": 3 / 6, "mad": 1 / 6})]


def test_the_linear_floor_is_the_first_of_the_grid_that_is_best_on_dev() -> None:
    train, dev, test = moods(150, 5, "a", wrong=0.5), moods(60, 15, "d", wrong=0.3), moods(50, 6, "t")
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True).fit(row.text for row in train)
    on = {id(rows): words.transform([row.text for row in rows]) for rows in (train, dev, test)}
    grid = [
        LogisticRegression(C=strength, class_weight=weights, tol=1e-3, max_iter=1000).fit(
            on[id(train)], [row.label for row in train]
        )
        for weights in (None, "balanced")
        for strength in (0.1, 0.3, 1, 3, 10, 100)
    ]
    reached = [f1_score([row.label for row in dev], model.predict(on[id(dev)]), average="macro") for model in grid]
    assert int(np.argmax(reached)) > 0
    assert len({round(f1, 6) for f1 in reached}) > 3
    best = grid[int(np.argmax(reached))]
    predict = evaluate.linear(TASK, train, dev)
    assert predict is not None
    expected = best.predict_proba(on[id(test)])[:, [list(best.classes_).index(label) for label in LABELS]]
    said = np.array([list(one.probabilities.values()) for one in predict(test)])
    assert np.abs(said - expected).max() < 0.01


def test_balanced_weights_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    # Train knows sad ninety times in a hundred and nothing else to tell by; on dev both are equally many.
    train = [Row(f"a{i}", f"w{i % 7} same", "sad" if i % 10 else "glad") for i in range(100)]
    dev = [Row(f"d{i}", f"w{i % 7} same", "sad" if i % 2 else "glad") for i in range(40)]
    predict = evaluate.linear(TASK, train, dev)
    assert predict is not None
    assert "glad" in {said.label for said in predict(dev)}
    monkeypatch.setattr(evaluate.floors, "CLASS_WEIGHTS", (None,))
    predict = evaluate.linear(TASK, train, dev)
    assert predict is not None
    assert {said.label for said in predict(dev)} == {"sad"}


def test_the_linear_floor_says_nothing_for_a_label_that_train_lacks() -> None:
    train = [Row("a", "rain", "sad"), Row("b", "noise", "mad"), Row("c", "noise noise", "mad")]
    predict = evaluate.linear(TASK, train, [])
    assert predict is not None
    said = predict([Row("t", "noise", "mad")])[0]
    assert said.label == "mad"
    assert said.probabilities["glad"] == 0.0
    assert sum(said.probabilities.values()) == pytest.approx(1)
    assert predict([]) == []


@pytest.mark.parametrize("train", [[Row("a", "rain", "sad")] * 3, [Row("a", "!", "sad"), Row("b", "?", "glad")], []])
def test_there_is_no_linear_floor_without_two_labels_and_words(train: list[Row]) -> None:
    assert evaluate.linear(TASK, train, []) is None
    answers = floor_answers(TASK, train, TEST, TEST)
    assert answers["linear"] is None
    assert evaluate.floor_scores(TASK, answers)["linear"] is None


def test_own_choices_have_the_most_frequent_position_as_floor() -> None:
    train = [Row(str(i), "x", label, ("p", "q", "r")) for i, label in enumerate("rrrqqp")]
    test = [Row("a", "x", "k", ("i", "j", "k")), Row("b", "x", "j", ("i", "j"))]
    answers = floor_answers(PICK, train, [], test)
    assert answers["linear"] is None
    # The third position was the most frequent; where there are two, the second is.
    assert answers["majority"]["test"].labels == ("k", "j")
    scores = evaluate.floor_scores(PICK, answers)
    assert scores["linear"] is None
    assert (scores["majority"] or {})["accuracy"] == 1.0


# Each is right where its letters are those of the gold labels.
THREE = {
    "label_only/label": given_answers("ssssggggmmmm", "sssgggggmmmm", 10),  # 11 right
    "reason_then_label/reason": given_answers("ssssggggmmmm", "ggggggggmmms", 40),  # 7 right
    "label_then_reason/label": given_answers("ssssggggmmmm", "sssssgggmmgs", 10),  # 9 right
}


def test_three_systems_are_each_compared_with_the_right_one() -> None:
    rows = evaluate.comparisons(TASK, THREE, resamples=200)
    accuracy = {(row["a"], row["b"]): row for row in rows if row["metric"] == "accuracy"}
    found = {pair: (row["difference"] * 12, row["a_only"], row["b_only"], row["n"]) for pair, row in accuracy.items()}
    assert found == {
        ("reason_then_label/reason", "label_only/label"): (pytest.approx(-4), 0, 4, 12),
        ("label_then_reason/label", "label_only/label"): (pytest.approx(-2), 1, 3, 12),
        ("label_then_reason/label", "reason_then_label/reason"): (pytest.approx(2), 4, 2, 12),
    }
    raw = {pair: row["p_mcnemar"] for pair, row in accuracy.items()}
    assert list(raw.values()) == pytest.approx([2 / 16, 10 / 16, 44 / 64])
    assert [row["p_holm"] for row in accuracy.values()] == pytest.approx([3 * 2 / 16, 1.0, 1.0])


def test_differences_are_those_of_the_scores_and_lie_in_their_intervals() -> None:
    scores = {name: evaluate.score(TASK, answers) for name, answers in THREE.items()}
    rows = evaluate.comparisons(TASK, THREE, resamples=400)
    assert {row["metric"] for row in rows} == set(metrics.METRICS)
    assert len(rows) == 9
    for row in rows:
        name = row["metric"]
        assert row["difference"] == pytest.approx(scores[row["a"]][name] - scores[row["b"]][name])
        low, high = row["ci95"]
        assert low < row["difference"] < high
        # About 2.8 standard errors, of which the interval has about 3.9.
        assert row["mde"] == pytest.approx((high - low) * 2.8 / 3.92, rel=0.15)
        assert (row["p_mcnemar"] is None) == (row["p_holm"] is None) == (name != "accuracy")
    assert_plain(rows)


def test_the_linear_floor_is_compared_and_the_majority_is_not() -> None:
    floors = {"floors/majority": THREE["label_only/label"], "floors/linear": THREE["label_then_reason/label"]}
    rows = evaluate.comparisons(TASK, {"x/label": THREE["label_only/label"], **floors}, resamples=50)
    assert {(row["a"], row["b"]) for row in rows} == {("x/label", "floors/linear")}
    assert rows[0]["difference"] == pytest.approx(2 / 12)


def test_rows_are_matched_by_id_in_whatever_order() -> None:
    expected = evaluate.comparisons(TASK, THREE, resamples=100)
    again = {name: shuffled(answers, i) for i, (name, answers) in enumerate(THREE.items())}
    assert evaluate.comparisons(TASK, again, resamples=100) == expected


def test_one_comparison_is_the_same_as_among_all_but_has_no_family() -> None:
    a, b = "reason_then_label/reason", "label_only/label"
    for row in evaluate.comparisons(TASK, THREE, resamples=100, seed=4):
        if (row["a"], row["b"]) == (a, b):
            one = evaluate.compare(TASK, a, THREE[a], b, THREE[b], row["metric"], resamples=100, seed=4)
            assert one == {**row, "p_holm": None}
    turned = evaluate.compare(TASK, b, THREE[b], a, THREE[a], "accuracy", resamples=100, seed=4)
    assert (turned["difference"], turned["a_only"], turned["b_only"]) == (pytest.approx(4 / 12), 4, 0)


def test_own_choices_are_compared_by_accuracy_alone() -> None:
    rows = [Row(str(i), "x", label, ("p", "q")) for i, label in enumerate("pqpq")]

    def picks(said: str) -> Answers:
        return evaluate.collect(lambda _: [Prediction(x, {"p": 0.5, "q": 0.5}) for x in said], rows, PICK)

    systems = {"one/label": picks("pqpp"), "two/label": picks("pppp")}
    found = evaluate.comparisons(PICK, systems, resamples=50)
    assert [(row["metric"], row["difference"], row["b_only"]) for row in found] == [("accuracy", -0.25, 1)]
    assert evaluate.recommend(PICK, systems, "macro_f1", resamples=50)["metric"] == "accuracy"
    with pytest.raises(RequestError, match="use accuracy"):
        evaluate.compare(PICK, "a", systems["one/label"], "b", systems["two/label"], "macro_f1")


def test_systems_on_different_rows_are_not_compared() -> None:
    a = given_answers("sg", "sg", ids=["1", "2"])
    with pytest.raises(RequestError, match=r"x and y answered different rows: 2 ids .* such as '2'"):
        evaluate.compare(TASK, "x", a, "y", given_answers("sg", "sg", ids=["1", "3"]), "accuracy")
    with pytest.raises(RequestError, match="row '2' is 'glad' in one and 'mad' in the other"):
        evaluate.compare(TASK, "x", a, "y", given_answers("sm", "sg", ids=["1", "2"]), "accuracy")
    with pytest.raises(RequestError, match="x answered the id '1' twice"):
        evaluate.compare(TASK, "x", given_answers("sg", "sg", ids=["1", "1"]), "y", a, "accuracy")
    with pytest.raises(RequestError, match="did you mean 'macro_f1'"):
        evaluate.compare(TASK, "x", a, "y", a, "macro-f1")


def test_the_cheapest_within_one_paired_standard_error_is_recommended() -> None:
    dev = {
        "reason_then_label/reason": random_answers(200, 0.80, 1, tokens=90),
        "label_then_reason/label": random_answers(200, 0.80, 1, tokens=30),
        "reason_then_label/vote": random_answers(200, 0.80, 1, tokens=300),
        "both/label": random_answers(200, 0.3, 2, tokens=5),
    }
    found = evaluate.recommend(TASK, dev, resamples=200)
    assert (found["arm"], found["mode"], found["metric"]) == ("label_then_reason", "label", "macro_f1")
    assert "30.0 computed tokens a row" in found["why"]
    assert "reason_then_label/reason at 90.0" in found["why"]
    assert "both/label" not in found["why"]


def test_label_only_is_recommended_before_its_equals_of_the_same_cost() -> None:
    answers = random_answers(100, 0.8, 1)
    # The same cost, summed in another order: neither order of a plain sum may decide.
    answers = dataclasses.replace(answers, tokens=(*(0.1,) * 98, 1e16, 1.0))
    assert len({float(np.mean(shuffled(answers, seed).tokens)) for seed in range(9)}) > 1
    dev = {"label_then_reason/label": answers, "label_only/label": shuffled(answers, 0), "both/label": answers}
    assert evaluate.recommend(TASK, dev, resamples=50)["arm"] == "label_only"
    assert len({evaluate.score(TASK, shuffled(answers, seed))["tokens_per_row"] for seed in range(9)}) == 1
    own = {"label_then_reason/label": answers, "twin/label": answers}
    assert evaluate.recommend(TASK, own, resamples=50)["arm"] == "label_then_reason"
    assert evaluate.recommend(TASK, own, resamples=50, kinds={"twin": "label_only"})["arm"] == "twin"


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
@pytest.mark.parametrize(("cheap_only", "within"), [(0, False), (2, False), (4, False), (7, True), (9, True)])
def test_one_paired_standard_error_is_the_border(metric: str, cheap_only: int, within: bool) -> None:
    # Of 198 rows the dear system alone has 10 right: it is 10 - k rows ahead, at an error of sqrt(10 + k) rows. At
    # k = 4 that is 6 against 3.7, at k = 7 it is 3 against 4.1. Unpaired, both would be within the error.
    gold = "sgm" * 66
    wrong = str.maketrans("sgm", "gms")
    dear = (
        gold[:10]
        + gold[10 : 10 + cheap_only].translate(wrong)
        + gold[10 + cheap_only : 168]
        + gold[168:].translate(wrong)
    )
    cheap = gold[:10].translate(wrong) + gold[10:168] + gold[168:].translate(wrong)
    dev = {"label_only/label": given_answers(gold, cheap, 20), "both/reason": given_answers(gold, dear, 90)}
    found = evaluate.recommend(TASK, dev, metric, 2000, 7)
    assert found["arm"] == ("label_only" if within else "both")
    gap = evaluate.compare(TASK, "a", dev["both/reason"], "b", dev["label_only/label"], metric, 50)["difference"]
    assert f"{gap:.3f} below" in found["why"]
    error = float(
        found["why"].partition("it (")[2].partition(")")[0] if within else found["why"].split()[-1].rstrip(".")
    )
    assert error == pytest.approx(math.sqrt(10 + cheap_only) / 198, rel=0.1)


def test_the_best_is_recommended_alone_and_by_the_metric_asked_for() -> None:
    # Nine glad rows and one sad: the first answers glad always, the second gives up three glad rows for the sad one.
    dev = {
        "label_only/label": given_answers("g" * 90 + "s" * 10, "g" * 100),
        "both/label": given_answers("g" * 90 + "s" * 10, "s" * 30 + "g" * 60 + "s" * 10, 50),
    }
    by_accuracy = evaluate.recommend(TASK, dev, "accuracy", resamples=300)
    by_recall = evaluate.recommend(TASK, dev, "mean_recall", resamples=300)
    assert (by_accuracy["arm"], by_recall["arm"]) == ("label_only", "both")
    assert "the highest; the next, label_only/label, is 0.333 below" in by_recall["why"]
    assert evaluate.recommend(TASK, {"a/b": dev["both/label"]})["why"].endswith("there is no other.")


def test_a_recommendation_without_dev_rows_or_systems() -> None:
    nothing = evaluate.collect(know_all, [], TASK)
    found = evaluate.recommend(TASK, {"both/label": nothing, "label_only/label": nothing}, resamples=20)
    assert found["arm"] == "label_only"
    assert "nan" not in found["why"]
    with pytest.raises(RequestError, match="none has answered the dev split"):
        evaluate.recommend(TASK, {})


def overconfident(rows: int, right: float, seed: int, split: str) -> Answers:
    random = np.random.default_rng(seed)
    gold = "".join(random.choice(list("sgm"), size=rows))
    said = "".join(x if random.random() < right else "sgm"[("sgm".index(x) + 1) % 3] for x in gold)
    return given_answers(gold, said, 10.0, [f"{split}{i}" for i in range(rows)], p=0.98)


def document(dev: Mapping[str, Answers], test: Mapping[str, Answers], **more: Any) -> dict[str, Any]:
    train = {"label_only": {"steps": 3, "rows": 9, "curve": [(1, np.float32(0.5)), (2, math.nan)]}}
    settings: dict[str, Any] = {"floor": {}, "train": train, "audit": {"notes": ()}, "versions": {}, "seed": 5}
    return evaluate.metrics_json(task=TASK, dev=dev, test=test, resamples=50, **{**settings, **more})


def test_the_temperature_is_that_of_dev() -> None:
    # Sure of 98 in 100: right in 60 of 100 on dev, but in 90 of 100 on test.
    dev, test = overconfident(400, 0.6, 0, "d"), overconfident(400, 0.9, 1, "t")
    mode = document({"label_only/label": dev}, {"label_only/label": test})["arms"]["label_only"]["modes"]["label"]
    of_dev, of_test = evaluate.temperature_of(TASK, dev), evaluate.temperature_of(TASK, test)
    assert of_dev > 1.5 * of_test
    assert mode["temperature"] == of_dev
    assert mode["dev"] == evaluate.score(TASK, dev, of_dev)
    thresholds = [one["threshold"] for one in mode["dev"]["coverage"]]
    assert mode["test"] == evaluate.score(TASK, test, of_dev, thresholds)
    # Under dev's temperature the test figures are worse than they could be: nobody looked.
    assert mode["test"]["nll"] > evaluate.score(TASK, test, of_test)["nll"] + 0.01


def test_the_floors_temperature_is_that_of_dev_too() -> None:
    dev, test = overconfident(400, 0.6, 0, "d"), overconfident(400, 0.9, 1, "t")
    scores = evaluate.floor_scores(TASK, {"linear": {"dev": dev, "test": test}})
    temperature = evaluate.temperature_of(TASK, dev)
    thresholds = [one["threshold"] for one in evaluate.score(TASK, dev, temperature)["coverage"]]
    assert scores["linear"] == evaluate.score(TASK, test, temperature, thresholds)


def test_the_recommendation_does_not_see_test() -> None:
    good, bad = "s" * 40 + "g" * 40, "g" * 40 + "s" * 40
    dev = {"label_only/label": given_answers(good, bad, 1), "both/label": given_answers(good, good, 9)}
    test = {"label_only/label": given_answers(good, good, 1), "both/label": given_answers(good, bad, 9)}
    assert document(dev, test)["recommended"]["arm"] == "both"


def test_metrics_json_has_the_shape_of_the_contract(tmp_path: Path) -> None:
    modes = ("label_only/label", "label_then_reason/label", "label_then_reason/explain")
    dev = {name: random_answers(60, 0.7, i) for i, name in enumerate(modes)}
    # `explain` is asked about fewer rows and none of dev, and must not be in anyone's way.
    test = {**dev, modes[2]: random_answers(30, 0.9, 5)}
    del dev[modes[2]]
    floor = {name: {"dev": dev[modes[0]], "test": dev[modes[1]]} for name in ("majority", "linear")}
    found = document(
        dev, test, floor=floor, reasonings={"kept": np.int64(3)}, notes=["One."], kinds={"label_only": "label_only"}
    )
    assert set(found) == {
        *("task", "recommended", "arms", "floors", "comparisons", "audit", "versions", "seed", "reasonings", "notes")
    }
    assert found["task"] == {"name": "moods", "labels": list(LABELS), "ordinal": False}
    assert set(found["recommended"]) == {"arm", "mode", "metric", "why"}
    assert list(found["arms"]) == ["label_only", "label_then_reason"]
    assert found["arms"]["label_only"]["train"]["curve"] == [[1, 0.5], [2, None]]
    assert found["arms"]["label_only"]["arm"] == "label_only"
    both = found["arms"]["label_then_reason"]["modes"]
    assert (both["explain"]["dev"], both["explain"]["test"]["n"]) == (None, 30)
    assert both["explain"]["temperature"] == both["label"]["temperature"] != 1.0
    assert list(found["floors"]) == ["majority", "linear"]
    assert {(row["a"], row["b"]) for row in found["comparisons"]} == {
        (modes[0], "floors/linear"),
        (modes[1], "floors/linear"),
        (modes[1], modes[0]),
    }
    assert set(found["comparisons"][0]) == {
        *("a", "b", "metric", "difference", "ci95", "p_mcnemar", "p_holm", "a_only", "b_only", "mde", "n")
    }
    assert_plain(found)
    store.write_json(tmp_path / "metrics.json", found)
    assert store.read_json(tmp_path / "metrics.json") == found


def test_metrics_json_without_a_trained_arm_holds_the_floors() -> None:
    answers = random_answers(20, 0.5, 0)
    found = document({}, {}, floor={"majority": {"dev": answers, "test": answers}}, train={})
    assert found["recommended"] is None
    assert found["arms"] == {}
    assert found["comparisons"] == []
    assert found["floors"]["majority"]["n"] == 20
    assert found["floors"]["linear"] is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        ({1: (math.inf, "x", None, True)}, {"1": [None, "x", None, True]}),
    ],
)
def test_plain(value: object, expected: object) -> None:
    found = evaluate.plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert_plain(found)
