"""Controls are as long as what they replace, drawn by the seed alone, and keep what they say they keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import toy
from saywhy import controls, evaluate, store
from saywhy.controls import KINDS, Tokens
from saywhy.lm.encode import make_encoder, plain_tokens, reasoning_tokens, render
from saywhy.records import RequestError, Row, Task

TASK = Task("animals", "Which animal is it?", toy.LABELS)
WORDS = Tokens(lambda text: [1] * len(text.split()), lambda ids: "x" * len(ids))
EVERY = (*KINDS, "corrupt(0.5)")


def told(seed: int = 0, number: int = 1) -> tuple[tuple[Row, ...], dict[str, tuple[str, ...]]]:
    """Rows of the toy task and their reasonings, `number` for each, longer and shorter ones."""
    rows, kept = [], {}
    for at, one in enumerate(toy.records()["train"]):
        rows.append(Row(one["id"], one["text"], one["label"]))
        texts = [f"{one['text']} so {one['reasoning']} " * (1 + (at + k + seed) % 3) for k in range(number)]
        kept[one["id"]] = tuple(" ".join(text.split()) for text in texts)
    return tuple(rows), kept


def tokens_of(tokenizer: Any) -> Tokens:
    return reasoning_tokens(make_encoder(tokenizer, render(tokenizer, "Which animal is it?")))


STUDENTS = {
    "byte-level": tiny.byte_level(),
    "prepend": tiny.sentence_piece("prepend"),
    "metaspace": tiny.sentence_piece("metaspace"),
    "bare": tiny.sentence_piece("bare"),
    "chat": tiny.byte_level(tiny.TURNS, tiny.QWEN3, end="<|im_end|>", plain_added=("<think>", "</think>")),
}


@cache
def student_of(name: str) -> Tokens:
    return tokens_of(STUDENTS[name])


@pytest.fixture(scope="module", params=STUDENTS)
def student(request: pytest.FixtureRequest) -> Tokens:
    return student_of(request.param)


def byte_level() -> Tokens:
    """Its tokens never span two words."""
    return student_of("byte-level")


def off(tokens: Tokens, kept: Mapping[str, Sequence[str]], replaced: Mapping[str, Sequence[str]]) -> list[int]:
    """How far every replacement's length, encoded again, is from the length of what it replaces."""
    return [
        abs(len(tokens.encode(new)) - len(tokens.encode(old)))
        for name in kept
        for new, old in zip(replaced[name], kept[name], strict=True)
    ]


@pytest.mark.parametrize("kind", EVERY)
def test_a_control_is_as_long_as_what_it_replaces(student: Tokens, kind: str) -> None:
    rows, kept = told(number=2)
    kept = {row.id: kept[row.id] for row in rows[:30]}
    replaced = controls.replace(kind, rows, kept, student, 0)
    assert replaced.keys() == kept.keys()
    away = off(student, kept, replaced)
    # The small vocabularies have a token a letter or two, so that a word is many; those with a word-start mark have
    # tokens across words, too, so that the order of words changes their number.
    assert sum(one <= 1 for one in away) >= 0.9 * len(away), Counter(away)
    assert max(away) <= 3
    if kind in ("random_vocab", "filler") or (student is byte_level() and not kind.startswith(("swap", "corrupt"))):
        assert max(away) == 0


@pytest.mark.parametrize("kind", EVERY)
def test_a_control_is_one_paragraph_that_can_be_read_back(student: Tokens, kind: str) -> None:
    rows, kept = told()
    loud = ("Label: cat", "<|im_start|> REASONING : two", "label: :", "Reasoning:")
    kept |= {row.id: (f"{kept[row.id][0]} {loud[at % 4]}",) for at, row in enumerate(rows[:20])}
    kept |= {rows[20].id: ("Label:",), rows[21].id: ("purrs",)}
    for texts in controls.replace(kind, rows[:40], kept, student, 0).values():
        for text in texts if kind != "corrupt(0.5)" else ():
            assert text and text == " ".join(text.split())
            assert "label:" not in text.casefold() and "reasoning:" not in text.casefold()
            assert not any(spelt in text for spelt in student.controls)


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=8)
@given(seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_order_changes_nothing_and_the_seed_everything(kind: str, seed: int, order: Any) -> None:
    rows, kept = told(number=2)
    rows = rows[:12]
    turned = list(rows)
    order.shuffle(turned)
    tokens = byte_level() if kind == "random_vocab" else WORDS
    replaced = controls.replace(kind, rows, kept, tokens, seed)
    assert controls.replace(kind, turned, kept, tokens, seed) == replaced
    assert (controls.replace(kind, rows, kept, tokens, seed + 1) == replaced) is (kind == "filler")


@pytest.mark.parametrize("kind", ["shuffle", "random_vocab", "filler"])
def test_what_needs_no_other_row_is_the_same_without_it(kind: str) -> None:
    rows, kept = told(number=2)
    tokens = byte_level()
    together = controls.replace(kind, rows[:6], kept, tokens, 3)
    alone = [controls.replace(kind, [row], kept, tokens, 3) for row in rows[:6]]
    assert together == {name: texts for one in alone for name, texts in one.items()}


@given(
    texts=st.lists(st.lists(st.sampled_from(["a", "bb", "d.", "'e'", "ff"]), min_size=1).map(" ".join), min_size=1),
    seed=st.integers(0, 99),
)
def test_shuffle_keeps_every_word(texts: list[str], seed: int) -> None:
    rows = [Row(str(at), "t", "a") for at in range(len(texts))]
    kept = {row.id: (text,) for row, text in zip(rows, texts, strict=True)}
    replaced = controls.replace("shuffle", rows, kept, WORDS, seed)
    assert {name: Counter(new.split()) for name, (new,) in replaced.items()} == {
        name: Counter(old.split()) for name, (old,) in kept.items()
    }


def test_shuffle_moves_words() -> None:
    rows, kept = told()
    replaced = controls.replace("shuffle", rows, kept, WORDS, 0)
    assert sum(replaced[name] != kept[name] for name in kept) > 0.9 * len(kept)


def shares(texts: Sequence[str]) -> dict[str, float]:
    counts = Counter(word for text in texts for word in text.split())
    return {word: count / counts.total() for word, count in counts.items()}


@pytest.mark.parametrize("kind", ["bag_corpus", "bag_class"])
def test_bags_draw_words_as_often_as_they_occur(kind: str) -> None:
    """Words of one token, so that none is left out for its length; many rows, so that shares are settled."""
    rows = [Row(str(at), "t", "ab"[at % 2]) for at in range(400)]
    kept = {row.id: ("x x x y z " + ("p q q" if row.label == "a" else "r r r"),) for row in rows}
    replaced = controls.replace(kind, rows, kept, WORDS, 0)
    for label in "ab":
        own = [row.id for row in rows if row.label == label]
        source = own if kind == "bag_class" else list(kept)
        wanted = shares([kept[name][0] for name in source])
        found = shares([replaced[name][0] for name in own])
        assert set(found) == set(wanted)
        assert all(found[word] == pytest.approx(share, abs=0.03) for word, share in wanted.items())


def test_a_bag_fills_what_is_left_with_a_word_of_that_length() -> None:
    """Words of four tokens and few of one: a length of five needs one of each."""
    tokens = Tokens(lambda text: [1] * len(text.replace(" ", "")), lambda ids: "")
    rows = [Row(str(at), "t", "a") for at in range(30)]
    kept = {row.id: ("word a",) for row in rows}
    replaced = controls.replace("bag_corpus", rows, kept, tokens, 0)
    assert off(tokens, kept, replaced) == [0] * 30
    assert {tuple(sorted(text.split())) for (text,) in replaced.values()} == {("a", "word"), ("a",) * 5}


@pytest.mark.parametrize("kind", ["swap_same", "swap_other"])
def test_a_swap_takes_the_reasoning_of_another_text_and_label(kind: str) -> None:
    """Every reasoning has one length and says where it is from, so that nothing is cut."""
    rows = [Row(str(at), f"text {at // 2}", "abc"[at // 2 % 3]) for at in range(30)]
    kept = {row.id: (f"from {row.id} first", f"from {row.id} second") for row in rows}
    known = {row.id: row for row in rows}
    replaced = controls.replace(kind, rows, kept, WORDS, 0)
    for name, texts in replaced.items():
        for text in texts:
            other = known[text.split()[1]]
            assert text in kept[other.id]
            assert (other.label == known[name].label) is (kind == "swap_same")
            assert other.text != known[name].text
    assert len({text for texts in replaced.values() for text in texts}) > 15


def test_a_swap_is_cut_or_extended_at_a_words_end() -> None:
    rows = [Row("1", "one", "a"), Row("2", "two", "b"), Row("3", "three", "b")]
    kept = {"1": ("u v",), "2": ("p q r s",), "3": ("p q r s t x y z i j",)}
    replaced = controls.replace("swap_other", rows, kept, WORDS, 0)
    assert replaced == {"1": ("p q",), "2": ("u v u v",), "3": ("u v u v u v u v u v",)}


def test_a_swap_prefers_near_lengths() -> None:
    rows = [Row(str(at), f"text {at}", "ab"[at % 2]) for at in range(40)]
    kept = {row.id: (" ".join([f"w{row.id}"] * (at // 2 + 1)),) for at, row in enumerate(rows)}
    replaced = controls.replace("swap_other", rows, kept, WORDS, 0)
    lengths = {name: int(text.split()[0][1:]) // 2 + 1 for name, (text,) in replaced.items()}
    assert all(abs(lengths[row.id] - (at // 2 + 1)) <= controls.NEAR for at, row in enumerate(rows))


@pytest.mark.parametrize(
    ("kind", "said"),
    [("swap_same", "of the same label"), ("swap_other", "of another label"), ("corrupt(1)", "another")],
)
def test_nobody_to_swap_with_is_an_error_that_names_the_row(kind: str, said: str) -> None:
    rows = [Row("r1", "one", "a"), Row("r2", "one", "a"), Row("r3", "one", "b")]
    kept = {"r1": ("because",), "r2": ("so",), "r3": ("while",)}
    with pytest.raises(RequestError, match=rf"reasonings\.replace: row r1 \(a\) has nobody to swap with: .*{said}"):
        controls.replace(kind, rows, kept, WORDS, 0)


def test_corruption_is_nested_and_is_swap_other_where_it_is() -> None:
    rows, kept = told(number=2)
    swapped = controls.replace("swap_other", rows, kept, WORDS, 1)
    before: set[str] = set()
    for share in ("0", "0.2", "0.4", "0.9", "1.0"):
        replaced = controls.replace(f"corrupt({share})", rows, kept, WORDS, 1)
        corrupted = {name for name in kept if replaced[name] != kept[name]}
        assert all(replaced[name] == swapped[name] for name in corrupted)
        assert before <= corrupted
        assert len(corrupted) / len(rows) == pytest.approx(float(share), abs=0.15)
        before = corrupted


def test_random_vocab_draws_plain_tokens_evenly_and_they_are_read_back() -> None:
    tokens = byte_level()
    rows = [Row(str(at), "t", "a") for at in range(60)]
    kept = {row.id: ("lovely and singing are words of pleasure, and so are the birds.",) for row in rows}
    replaced = controls.replace("random_vocab", rows, kept, tokens, 0)
    ids = [token for (text,) in replaced.values() for token in tokens.encode(text)]
    assert set(ids) <= set(tokens.plain)
    assert len(set(ids)) > 0.9 * len(tokens.plain)
    assert max(Counter(ids).values()) < 0.03 * len(ids)


def test_plain_tokens_are_no_controls_and_no_halves_of_characters() -> None:
    for tokenizer in STUDENTS.values():
        encoder = make_encoder(tokenizer, render(tokenizer, "Which?"))
        found = plain_tokens(encoder)
        assert len(found) > 90
        assert not set(found) & (encoder.controls | set(tokenizer.added_tokens_decoder))
        texts = [tokenizer.decode([one]) for one in found]
        assert all("\ufffd" not in text and "\n" not in text for text in texts)


def test_filler_repeats_one_mark() -> None:
    rows, kept = told()
    for tokenizer in STUDENTS.values():
        replaced = controls.replace("filler", rows, kept, tokens_of(tokenizer), 0)
        assert len({frozenset(text) - {" "} for (text,) in replaced.values()}) == 1


def test_none_and_empty_reasonings_stay_and_an_unknown_control_is_refused() -> None:
    rows, kept = told()
    assert controls.replace("none", rows, kept, WORDS, 0) == kept
    assert controls.replace("shuffle", rows[:1], {rows[0].id: ("",)}, WORDS, 0) == {rows[0].id: ("",)}
    with pytest.raises(RequestError, match=r"no control 'shufle'; there are shuffle, .*corrupt\(p\)"):
        controls.replace("shufle", rows, kept, WORDS, 0)
    assert controls.meaning("corrupt(0.2)").endswith("in 20% of the rows")


def leak(kind: str) -> evaluate.Leakage:
    rows, kept = told()
    return evaluate.leakage(TASK, rows, kept, controls.replace(kind, rows, kept, WORDS, 0), 0)


def test_a_bag_of_the_class_tells_the_label_and_one_of_the_corpus_does_not() -> None:
    of_class, of_corpus = leak("bag_class"), leak("bag_corpus")
    assert of_class.taught and of_corpus.taught and of_class.majority
    assert of_class.taught.accuracy > 0.8
    assert of_corpus.taught.accuracy < of_class.majority + 0.2
    assert of_class.taught.accuracy > of_corpus.taught.accuracy + 0.3
    assert of_class.written == of_corpus.written


def test_swap_other_tells_the_wrong_label_and_swap_same_the_right_one() -> None:
    other, same = leak("swap_other"), leak("swap_same")
    assert other.crossed and same.crossed and other.chance and other.chance_error
    assert other.crossed.mean_recall < other.chance - 2 * other.chance_error
    assert same.crossed.mean_recall > 0.8


@pytest.fixture(scope="module")
def swapped_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str], toy.Done]:
    """The stamps of a run's arms, those of the same run after replace=shuffle, and what that left."""
    where = tmp_path_factory.mktemp("controls")
    data = toy.write_data(where / "data")
    toy.run(data, where / "run", **toy.quick())
    before = stamps(where / "run")
    done = toy.run(data, where / "run", **toy.quick(reasonings__replace="shuffle"))
    return before, stamps(where / "run"), done


def stamps(run: Path) -> dict[str, str]:
    return {name: (run / name / "stamp.json").read_text() for name in ("reasonings", "label_only", "reason_then_label")}


def targets(folder: Path) -> dict[str, str]:
    return {row["id"]: row["target"] for row in store.read_table(folder / "trained_on.parquet").to_pylist()}


def test_a_control_is_what_the_arms_are_taught_and_the_parts_stay(swapped_run: Any) -> None:
    before, after, done = swapped_run
    assert {name: before[name] == after[name] for name in before} == {
        "reasonings": True,
        "label_only": True,
        "reason_then_label": False,
    }
    written = {row["id"]: row["reasoning"] for row in toy.records()["train"]}
    taught = targets(done.folder / "reason_then_label")
    said = {name: text.removeprefix("Reasoning: ").partition("\nLabel:")[0] for name, text in taught.items()}
    assert all(sorted(said[name].split()) == sorted(written[name].split()) for name in written)
    assert sum(said[name] != written[name] for name in written) > 0.8 * len(written)
    assert all("Reasoning" not in text for text in targets(done.folder / "label_only").values())


def test_a_run_says_what_stood_in_for_the_reasonings(swapped_run: Any) -> None:
    _, _, done = swapped_run
    found = done.metrics["reasonings"]
    assert found["replace"] == "shuffle"
    assert 0.8 * found["kept"] < found["replaced"] <= found["kept"]
    assert found["leakage"]["taught"]["accuracy"] > found["leakage"]["majority"] + 0.2
    page = (done.folder / "report.html").read_text("utf-8")
    assert "was taught a control in the place of reasonings: shuffle, the words of the row" in page
    assert "taught (shuffle)" in page
    cards = {
        name: (done.folder / name / "README.md").read_text("utf-8") for name in ("label_only", "reason_then_label")
    }
    assert "Trained on a control, not on reasonings:** `shuffle`" in cards["reason_then_label"]
    assert "control" not in cards["label_only"]


def test_the_dry_run_shows_the_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from saywhy import dryrun

    toy.write_data(tmp_path)
    dryrun.show(toy.load(tmp_path, **toy.quick(reasonings__replace="filler")))
    shown = capsys.readouterr().out
    assert "replaced by filler, one mark again and again" in " ".join(shown.split())
    assert toy.records()["train"][0]["reasoning"] not in shown
