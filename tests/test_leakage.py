"""Leakage: what a linear model reads from reasonings alone, for rows whose answer is known."""

from __future__ import annotations

import pytest

from saywhy import evaluate
from saywhy.evaluate import leaking
from saywhy.evaluate.folds import FOLDS, deal
from saywhy.records import Row, Task

TASK = Task("t", "Which one?", ("red", "blue", "green"))
WORDS = {"red": "warm fire", "blue": "cold sea", "green": "fresh grass"}
TURNED = {"red": "blue", "blue": "green", "green": "red"}


def rows(number: int = 60) -> list[Row]:
    return [Row(f"r{at}", f"text {at}", TASK.labels[at % 3]) for at in range(number)]


def telling(some: list[Row], turned: bool = False) -> dict[str, tuple[str, ...]]:
    """Reasonings with words of the row's label, or of the next one."""
    return {
        row.id: (f"it has {WORDS[TURNED[row.label or ''] if turned else row.label or '']} {at % 7}",)
        for at, row in enumerate(some)
    }


def test_words_of_the_class_are_read_and_words_of_nothing_are_not() -> None:
    some = rows()
    found = evaluate.leakage(TASK, some, telling(some), {row.id: ("it has so",) for row in some}, 0)
    assert found.written is not None and found.taught is not None
    assert (found.rows, found.reasonings, found.majority) == (60, 60, pytest.approx(1 / 3))
    assert (found.chance, found.chance_error) == (pytest.approx(1 / 3), pytest.approx((2 / 9 / 60) ** 0.5))
    assert found.written.accuracy == found.written.mean_recall == 1
    assert found.taught.accuracy < 0.5


def test_words_of_another_class_are_read_but_as_written_they_mislead() -> None:
    some = rows()
    found = evaluate.leakage(TASK, some, telling(some), telling(some, turned=True), 0)
    assert found.taught is not None
    assert found.taught.accuracy == 1
    assert found.crossed is not None
    assert found.crossed.mean_recall == 0


def test_only_the_reasoning_is_read_and_only_of_other_rows() -> None:
    """Each row's word is its own: nothing can be learnt from the others, whatever the texts say."""
    some = [Row(f"r{at}", WORDS[label], label) for at, label in enumerate(TASK.labels * 20)]
    some = [Row(row.id, f"{row.text} {at}", row.label) for at, row in enumerate(some)]
    found = evaluate.leakage(TASK, some, {row.id: (f"word{row.id}",) for row in some}, None, 0)
    assert found.written is not None and found.written.accuracy < 0.5
    assert found.taught is None and found.crossed is None


def test_rows_of_one_text_are_in_one_fold_and_classes_are_spread() -> None:
    some = [Row(f"r{at}", f"text {at // 2}", TASK.labels[at // 2 % 3]) for at in range(120)]
    folds = deal(some, 0)
    assert all(folds[at] == folds[at + 1] for at in range(0, 120, 2))
    assert {(row.label, fold) for row, fold in zip(some, folds, strict=True)} == {
        (label, fold) for label in TASK.labels for fold in range(FOLDS)
    }
    assert deal(some, 1) != folds


def test_named_labels_are_counted_as_whole_words() -> None:
    some = [Row("1", "a", "red"), Row("2", "b", "red"), Row("3", "c", "blue"), Row("4", "d", "blue")]
    kept = {"1": ("It is RED.",), "2": ("bored, not blue", "reddish"), "3": ("so blue and red",), "4": ("nothing",)}
    found = evaluate.leakage(TASK, some, kept, None, 0).written
    assert found is not None
    assert found.named == pytest.approx(2 / 5)
    assert found.other_named == pytest.approx(2 / 5)


def test_what_cannot_be_measured_is_none_with_its_reason() -> None:
    some = rows(30)
    own = Task("t", "Which one?", ())
    cases = [
        (TASK, some[::3], "fewer than two labels have reasonings"),
        (TASK, [*some[::3], *some[1:3]], "fewer than two rows of blue, green have reasonings"),
        (TASK, [], "fewer than two labels have reasonings"),
        (own, some, "rows have their own choices"),
    ]
    for task, few, why in cases:
        found = evaluate.leakage(task, few, {row.id: ("because",) for row in few}, None, 0)
        assert found.written is found.taught is found.majority is None
        assert found.missing == why


def test_rows_without_a_reasoning_are_left_aside_and_many_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    some = rows()
    kept = {name: texts * 2 for name, texts in telling(some).items() if name not in ("r0", "r1")}
    found = evaluate.leakage(TASK, some, kept, None, 0)
    assert (found.rows, found.reasonings) == (58, 116)
    monkeypatch.setattr(leaking, "MOST_ROWS", 30)
    drawn = evaluate.leakage(TASK, some, kept, None, 0)
    assert (drawn.rows, drawn.reasonings) == (30, 60)
    assert evaluate.leakage(TASK, some, kept, None, 0) == drawn


def test_reasonings_without_words_are_guessed_at() -> None:
    some = rows(30)
    found = evaluate.leakage(TASK, some, telling(some), {row.id: (". . .",) for row in some}, 0)
    assert found.taught is not None and found.taught.accuracy == pytest.approx(1 / 3)


def test_many_rows_that_share_no_word_have_no_linear_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    from saywhy.evaluate import floors

    monkeypatch.setattr(floors, "MANY_ROWS", 10)
    apart = [Row(row.id, f"word{row.id}", row.label) for row in rows(30)]
    assert evaluate.linear(TASK, apart, ()) is None
