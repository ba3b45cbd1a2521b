"""Near-duplicates: compared with a count over all pairs, in any order, in and out of the index."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saywhy import checks
from saywhy.checks import names, twins

SAYINGS = st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join)
SAID = st.lists(st.tuples(st.sampled_from(["t", "u", "v", "w"]), SAYINGS), max_size=12)


def runs(reasoning: str) -> set[tuple[str, ...]]:
    words = names.words(reasoning)
    words += [""] * (3 - len(words))
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def alike(one: str, other: str) -> float:
    first, second = runs(one), runs(other)
    return len(first & second) / len(first | second)


def by_pairs(said: list[tuple[str, str]], text: str, reasoning: str, least: float) -> int:
    return len({row for row, other in said if row != text and alike(other, reasoning) >= least})


def count(said: list[tuple[str, str]], text: str, reasoning: str) -> int:
    return int(checks.count_twins(checks.index(said), [text], [reasoning])[0])


# Signatures are estimates, with a standard error of 0.05 at a likeness of 0.8: what is far from it is counted right.
@given(said=SAID, asked=SAID)
def test_counts_are_those_over_all_pairs(said: list[tuple[str, str]], asked: list[tuple[str, str]]) -> None:
    asked = asked + said
    index = checks.index(iter(said))
    found = checks.count_twins(index, [text for text, _ in asked], [reasoning for _, reasoning in asked])
    for (text, reasoning), counted in zip(asked, found.tolist(), strict=True):
        assert by_pairs(said, text, reasoning, 0.97) <= counted <= by_pairs(said, text, reasoning, 0.5)


@pytest.mark.parametrize(
    ("one", "other", "twin"),
    [
        ("The writer expresses joy.", "the writer expresses JOY", True),
        ("joy", "Joy!", True),
        ("joy", "joy joy", False),
        ("so it is", "it is so", False),
        ("", "...", True),
        ("作者很高兴", "作者很高兴。", True),
        ("The writer expresses joy.", "The writer expresses joy about a cat that came home.", False),
    ],
)
def test_short_reasonings_are_twins_when_their_words_are_the_same(one: str, other: str, twin: bool) -> None:
    assert count([("t", one)], "u", other) == twin
    assert count([("t", other)], "u", one) == twin


LONG = [f"word{number}" for number in range(60)]


def test_a_word_more_or_less_is_nearly_the_same_and_a_third_of_the_words_is_not() -> None:
    whole = " ".join(LONG)
    assert count([("t", " ".join(LONG[1:]))], "u", whole) == 1
    assert count([("t", " ".join([*LONG[:30], "other", *LONG[31:]]))], "u", whole) == 1
    assert count([("t", " ".join(LONG[:40]))], "u", whole) == 0
    assert count([("t", " ".join(reversed(LONG)))], "u", whole) == 0


def test_a_row_counts_once_and_equal_texts_are_one_row() -> None:
    said = [("t", "it is so"), ("t", "it is so"), ("t", "it is so"), ("u", "it is so"), ("v", "it is not so")]
    index = checks.index(said)
    assert checks.count_twins(index, ["t", "u", "v", "w"], ["it is so"] * 4).tolist() == [1, 1, 2, 2]


def test_the_order_of_rows_and_the_size_of_questions_change_nothing() -> None:
    said = [(f"text {number}", f"saying {number % 37} of the same kind {number % 7}") for number in range(700)]
    texts, reasonings = [list(part) for part in zip(*said, strict=True)]
    whole = checks.count_twins(checks.index(said), texts, reasonings)
    assert whole.min() >= 1
    backwards = checks.index(reversed(said))
    np.testing.assert_array_equal(checks.count_twins(backwards, texts, reasonings), whole)
    single = [int(checks.count_twins(backwards, [text], [reasoning])[0]) for text, reasoning in said[:20]]
    assert single == whole[:20].tolist()


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [(f"text {number % 50}", f"saying {number % 9}" * (number % 4)) for number in range(90)]
    texts, reasonings = [list(part) for part in zip(*said, strict=True)]
    whole = checks.count_twins(checks.index(said), texts, reasonings)
    monkeypatch.setattr(twins, "BATCH", 7)
    np.testing.assert_array_equal(checks.count_twins(checks.index(said), texts, reasonings), whole)


def test_beyond_what_is_read_the_count_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [(f"text {number}", "the writer is glad") for number in range(3000)]
    index = checks.index([*said, *((f"other {number}", f"number {number} of others") for number in range(500))])
    assert checks.count_twins(index, ["text 0", "new"], ["the writer is glad"] * 2) == pytest.approx(
        [2999, 3000], rel=0.15
    )
    monkeypatch.setattr(twins, "MOST_READ", 5000)
    assert checks.count_twins(index, ["text 0", "new"], ["the writer is glad"] * 2).tolist() == [2999, 3000]


@pytest.mark.parametrize("place", range(5, 50, 5))
def test_an_estimate_reads_the_same_rows_in_every_band(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    whole, changed = " ".join(LONG), " ".join([*LONG[:place], "other", *LONG[place + 1 :]])
    said = [(f"text {number}", whole if number % 2 else changed) for number in range(2000)]
    index = checks.index(said)
    assert checks.count_twins(index, ["new"] * 2, [whole, changed]).tolist() == pytest.approx([2000, 2000], rel=0.1)
    monkeypatch.setattr(twins, "MOST_READ", 200)
    assert checks.count_twins(index, ["new"] * 2, [whole, changed]).tolist() == pytest.approx([2000, 2000], rel=0.15)


def test_signatures_are_the_same_on_every_machine() -> None:
    made = checks.signatures(["The writer expresses joy.", "", "a b c d e f g h i j", "好 \ud800 é"])
    assert (made.shape, made.dtype) == ((4, 16), np.uint32)
    assert hashlib.sha256(made.astype("<u4").tobytes()).hexdigest()[:16] == "4770befd2abb4f3d"
    assert checks.signatures([]).shape == (0, 16)


def test_an_empty_index_answers() -> None:
    assert checks.count_twins(checks.index([]), ["t"], ["it is so"]).tolist() == [0]
    assert checks.count_twins(checks.index([("t", "x")]), [], []).tolist() == []


def test_the_index_takes_a_hundred_bytes_a_reasoning() -> None:
    index = checks.index((f"text {number}", f"saying {number}") for number in range(100))
    assert sum(array.nbytes for array in (index.keys, index.bands, index.orders)) == 100 * 100


@settings(max_examples=30)
@given(
    said=st.lists(st.tuples(st.text(st.characters(), max_size=9), st.text(st.characters(), max_size=30)), max_size=6)
)
def test_any_text_can_be_said_and_asked(said: list[tuple[str, str]]) -> None:
    texts, reasonings = [text for text, _ in said], [reasoning for _, reasoning in said]
    assert (checks.count_twins(checks.index(said), texts, reasonings) < max(1, len(set(texts)))).all()
