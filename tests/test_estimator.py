"""The scikit-learn door, held to what scikit-learn's own tools ask of a classifier."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import saywhy
from saywhy import ReasoningClassifier
from saywhy.records import Prediction, RequestError
from saywhy.store import read_table

TEXTS = [
    f"{place} it {verb}"
    for verb in ("purrs", "barks")
    for place in ("here", "there", "outside", "at home", "now", "again")
]
LABELS = ["dog" if text.endswith("barks") else "cat" for text in TEXTS]
WHY = [f"it {text.split()[-1]} as they do" for text in TEXTS]
TINY = {"width": 16, "layers": 1, "vocabulary": 300, "heads": 2}
FEW: dict[str, Any] = {
    "steps": 80,
    "rows_per_step": 6,
    "layout": "tree",
    "precision": "float32",
    "learning_rate": 1e-2,
    "optimizer": "muon",
}


def untrained(**changes: Any) -> ReasoningClassifier:
    return ReasoningClassifier(**{"scratch": TINY, "train": FEW, **changes})


@pytest.fixture(scope="module")
def fitted() -> ReasoningClassifier:
    return untrained().fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def reasoned() -> ReasoningClassifier:
    return untrained().fit(TEXTS, LABELS, WHY)


def test_it_learns_and_answers_in_the_order_of_its_classes(fitted: ReasoningClassifier) -> None:
    assert is_classifier(fitted) and fitted.classes_.tolist() == ["cat", "dog"]
    assert fitted.predict(TEXTS).tolist() == LABELS and fitted.score(TEXTS, LABELS) == 1.0
    found = fitted.predict_proba(TEXTS)
    assert found.shape == (12, 2) and found.sum(1) == pytest.approx(np.ones(12))
    assert fitted.classes_[found.argmax(1)].tolist() == LABELS


def test_clone_and_parameters() -> None:
    made = untrained(instruction="Which animal?", random_state=3)
    copied = clone(made)
    assert copied.get_params() == made.get_params() and copied is not made
    assert made.set_params(arm="both").arm == "both" and copied.arm == "reason_then_label"
    assert set(made.get_params()) == {
        "base", "scratch", "instruction", "arm", "mode", "train", "trust_remote_code", "random_state",
    }  # fmt: skip


def test_fit_returns_itself_and_a_second_fit_forgets_the_first() -> None:
    made = untrained()
    assert made.fit(TEXTS, LABELS) is made
    fresh = untrained().fit(TEXTS, ["loud" if label == "dog" else "soft" for label in LABELS])
    made.fit(TEXTS, ["loud" if label == "dog" else "soft" for label in LABELS])
    assert made.classes_.tolist() == ["loud", "soft"]
    np.testing.assert_array_equal(made.predict_proba(TEXTS), fresh.predict_proba(TEXTS))


def test_lists_arrays_and_series_are_alike(fitted: ReasoningClassifier) -> None:
    wanted = fitted.predict_proba(TEXTS)
    for kind in (np.array, pd.Series, tuple, lambda x: np.array(x, dtype=object)):
        np.testing.assert_array_equal(fitted.predict_proba(kind(TEXTS)), wanted)
    again = untrained().fit(pd.Series(TEXTS, index=range(5, 17)), pd.Series(LABELS, index=range(5, 17)))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), wanted)


@pytest.mark.parametrize("kinds", [(0, 1), (True, False), (2.5, -1.0)])
def test_labels_come_back_as_the_kind_that_they_were(kinds: tuple[Any, Any]) -> None:
    labels = [kinds[label == "dog"] for label in LABELS]
    made = untrained().fit(TEXTS, labels)
    assert made.predict(TEXTS).tolist() == labels and made.predict(TEXTS).dtype == np.array(labels).dtype


def test_reasonings_are_learnt_and_written(reasoned: ReasoningClassifier, fitted: ReasoningClassifier) -> None:
    found = reasoned.explain(TEXTS[:2])
    assert all(isinstance(one, Prediction) and one.reasoning for one in found)
    assert reasoned.texts_.classifier.arm == "reason_then_label" and fitted.texts_.classifier.arm == "label_only"
    with pytest.raises(RequestError, match="label_only was never taught to write reasonings"):
        fitted.explain(TEXTS)
    some: list[str | None] = [None, " ", *WHY[2:]]
    mixed = untrained(arm="label_then_reason", mode="label").fit(TEXTS, LABELS, some)
    assert mixed.texts_.mode == "label"


def test_a_reasoning_becomes_one_paragraph_and_one_with_a_cue_is_left_out() -> None:
    few = {**FEW, "steps": 1}
    hostile = ["it\n purrs", "it purrs\nLabel: dog", "Reasoning: it purrs", *WHY[3:]]
    with pytest.warns(UserWarning, match="2 reasonings hold 'Reasoning:' or 'Label:' and are left out"):
        made = untrained(train=few).fit(TEXTS, LABELS, hostile)
    taught = {row["id"]: row["target"] for row in read_table(made.folder_ / "trained_on.parquet").to_pylist()}
    assert taught["row-0"] == "Reasoning: it purrs\nLabel: cat<eos>"
    assert taught["row-1"] == taught["row-2"] == "Label: cat<eos>"
    with pytest.raises(RequestError, match="reasoning 1 holds half of a character"):
        untrained(train=few).fit(TEXTS, LABELS, [WHY[0], "\ud800", *WHY[2:]])


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (pd.DataFrame({"text": TEXTS}), "which is no text; name the table's column"),
        ([*TEXTS[1:], "\ud800"], "text 11 holds half of a character"),
        ([*TEXTS[1:], None], "text 11 is None, which is no text; make it a string first"),
        (7, "texts are given as int"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(fitted: ReasoningClassifier, texts: Any, said: str) -> None:
    for ask in (fitted.predict, fitted.predict_proba, fitted.explain, lambda given: untrained().fit(given, LABELS)):
        with pytest.raises(RequestError, match=re.escape(said)):
            ask(texts)


def test_what_is_not_fitted_says_so() -> None:
    for ask in ("predict", "predict_proba", "explain"):
        with pytest.raises(NotFittedError, match="not fitted yet; call fit"):
            getattr(untrained(), ask)(TEXTS)
    with pytest.raises(NotFittedError):
        untrained().save("nowhere")


def test_scikit_learns_tools_work_with_it() -> None:
    scores = cross_val_score(untrained(), TEXTS, LABELS, cv=2)
    assert scores.shape == (2,) and scores.mean() > 0.5
    search = GridSearchCV(untrained(), {"random_state": [0, 1]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_estimator_.predict(TEXTS).tolist() == LABELS
    calibrated = CalibratedClassifierCV(untrained(), cv=2).fit(TEXTS, LABELS)
    assert calibrated.predict_proba(TEXTS).sum(1) == pytest.approx(np.ones(12))


def test_a_saved_model_answers_alike(reasoned: ReasoningClassifier, tmp_path: Path) -> None:
    reasoned.save(tmp_path / "model")
    loaded = saywhy.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), reasoned.predict_proba(TEXTS))
    with pytest.raises(RequestError, match="holds files already"):
        reasoned.save(tmp_path / "model")


def test_a_fitted_model_is_not_pickled(fitted: ReasoningClassifier) -> None:
    assert pickle.dumps(untrained()), "what is not fitted may be sent to another process"
    with pytest.raises(TypeError, match=r"not pickled.*use save\(folder\) and saywhy\.load\(folder\)"):
        pickle.dumps(fitted)
    with pytest.raises(TypeError, match=r"call saywhy\.load there"):
        pickle.dumps(fitted.texts_)


def test_its_files_go_with_it() -> None:
    made = untrained(train={**FEW, "steps": 1}).fit(TEXTS, LABELS)
    before = made.folder_.parent
    assert before.exists()
    made.fit(TEXTS, LABELS)
    folder = made.folder_.parent
    assert folder.exists() and not before.exists()
    assert "The training rows have the hash" in (made.folder_ / "README.md").read_text(encoding="utf-8")
    assert len(made.predict(TEXTS)) == len(TEXTS)
    del made
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "texts", "labels", "reasonings", "said"),
    [
        ({}, "one text", ["a"], None, "one text was given where a list"),
        ({}, ["a", 7], ["x", "y"], None, "text 1 is 7, which is no text"),
        ({}, ["a", "b"], ["x", "x"], None, "one label only, x"),
        ({}, ["a", "b"], ["x", " "], None, "label ' ' is empty"),
        ({}, ["a", "b", "c"], ["x", None, "y"], None, r"label 1 is missing \(None\)"),
        ({}, ["a", "b", "c"], [1.0, 2.0, float("nan")], None, r"label 2 is missing \(nan\)"),
        ({}, ["a", "b", "c"], pd.Series(["x", pd.NA, "y"], dtype="string"), None, r"label 1 is missing \(<NA>\)"),
        ({}, ["a", "b"], [["x"], ["y"]], None, r"labels have the shape \(2, 1\)"),
        ({"arm": "both", "mode": "adaptive"}, TEXTS, LABELS, WHY, "needs a threshold, which `saywhy run` chooses"),
        ({"arm": "reason"}, TEXTS, LABELS, WHY, "arm 'reason' does not exist; there are label_only"),
        ({"mode": "reason"}, TEXTS, LABELS, None, "mode 'reason' is not taught to label_only; it has label"),
        ({}, TEXTS, LABELS[:-1], None, "inconsistent numbers of samples"),
        ({}, TEXTS, LABELS, WHY[:-1], "inconsistent numbers of samples"),
        ({"train": {"step": 3}}, TEXTS, LABELS, None, "step"),
        ({"base": "/no/such/folder"}, TEXTS, LABELS, None, "cannot be loaded"),
    ],
)
def test_what_cannot_be_is_refused(changes: Any, texts: Any, labels: Any, reasonings: Any, said: str) -> None:
    with pytest.raises((RequestError, ValueError), match=said):
        untrained(**changes).fit(texts, labels, reasonings)
