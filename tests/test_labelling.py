"""Texts without labels: what is read and what is not, how votes are counted, and files that survive a kill."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import toy
from saywhy import cli, config, journal, prompts
from saywhy.config import labelling as settings
from saywhy.labelling import label
from saywhy.labelling.reading import label_named, read_answer
from saywhy.labelling.scoring import load
from saywhy.labelling.voting import Answer, Tally, Vote, supporting, vote
from saywhy.lm.encode import make_encoder, part_ids, prompt_ids, render
from saywhy.predict import stream
from saywhy.records import RequestError, Row, Task, WorkError
from saywhy.teachers import Draft, Question, Teacher

ANIMALS = Task("animals", "Which?", toy.LABELS, {"dog": "barks, growls"})
STARS = Task("stars", "How good?", ("1", "2", "3", "4", "5"), {"5": "excellent"}, ordinal=True)
MOODS = Task("moods", "How good?", ("bad", "fair", "good"), ordinal=True)


# Reading.


@pytest.mark.parametrize(
    ("text", "named", "reasoning"),
    [
        ("Reasoning: it barks.\nLabel: dog", "dog", "it barks."),
        ("Label: dog\nReasoning: it barks.", "dog", "it barks."),
        ("Reasoning: it barks. Label: dog", "dog", "it barks."),
        ("Label: dog Reasoning: it barks.", "dog", "it barks."),
        ("**Reasoning:** it barks.\n\n**Label:** Dog.", "dog", "it barks."),
        ("## Label: *DOG*\n\n## Reasoning:\n'barks' is\nloud", "dog", "'barks' is loud"),
        ("reasoning: x\nfinal label : “dog”!", "dog", "x"),
        ("Reasoning: x\nLabel:\n  dog", "dog", "x"),
        ("Reasoning: x\nLabel: dog\nLet me know if you need more.", "dog", "x"),
        ("It barks.\nLabel: dog", "dog", "It barks."),
        ("Label: dog\nIt barks.", "dog", "It barks."),
        ("Reasoning: x\nLabel: dog: barks, growls", "dog", "x"),
        ("Reasoning: x\nLabel: dog (barks, growls)", "dog", "x"),
        ("Label：dog", "dog", ""),
        ("dog.", "dog", ""),
        ("Reasoning: x\nLabel: dog\nLabel: Dog", "dog", "x"),
        ("Reasoning: x\nLabel: dog\nLabel: cat", None, "x"),
        ("Reasoning: x\nLabel: dog or cat", None, "x"),
        ("Reasoning: x\nLabel: not dog", None, "x"),
        ("Reasoning: x\nLabel: dogs", None, "x"),
        ("Reasoning: x\nLabel: wolf", None, "x"),
        ("Reasoning: x\nLabel: dog (loud)", None, "x"),
        ("Reasoning: x\nLabel: one label of the list, word for word", None, "x"),
        ("Reasoning: it is a dog", None, ""),
        ("It is a dog.", None, ""),
        ("", None, ""),
        ("Label:", None, ""),
    ],
)
def test_a_label_is_read_in_any_dress_and_nothing_is_guessed(text: str, named: str | None, reasoning: str) -> None:
    found = read_answer(text, ANIMALS)
    assert found[0] == named
    assert named is None or found[1] == reasoning


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("4", "4"), ("4.0", "4"), ("4/5", "4"), ("**4 / 5**", "4"), ("4 out of 5.", "4"), ("5: excellent", "5"),
        ("5 (Excellent)", "5"), ("4/10", None), ("3.5", None), ("0", None), ("6", None), ("4 or 5", None),
        ("four", None), ("-4", None), ("excellent", None), ("4-5", None),
    ],
)  # fmt: skip
def test_ratings_are_read_as_numbers_of_their_own_scale(said: str, named: str | None) -> None:
    assert label_named(said, STARS) == named
    # Without an order a number is a name like any other.
    plain = Task("stars", "How good?", STARS.labels)
    assert label_named(said, plain) in (None, "4") and label_named("4/5", plain) is None


def test_a_number_says_nothing_where_the_scale_has_words() -> None:
    assert label_named("2", MOODS) is None
    assert label_named("2/3", MOODS) is None


def test_labels_that_differ_in_dress_alone_are_told_apart_or_not_at_all() -> None:
    languages = Task("t", "?", ("C", "C#", "us", "US", "yes!", "yes"))
    for name in languages.labels:
        assert label_named(name, languages) == name
        assert label_named(f" {name} ", languages) == name
    assert label_named("c#", languages) == "C#"
    assert label_named("c", languages) == "C"
    assert label_named("Us", languages) is None
    only = Task("t", "?", ("C#", "Java"))
    assert label_named("C", only) is None


NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8)


@given(st.lists(NAMES, min_size=2, max_size=5, unique=True), st.integers(0), st.text(max_size=40), st.booleans())
def test_what_is_asked_for_is_always_read_and_nothing_else_becomes_a_label(
    names: list[str], place: int, text: str, ordinal: bool
) -> None:
    task = Task("t", "?", tuple(names), ordinal=ordinal)
    chosen = names[place % len(names)]
    for arm in ("reason_then_label", "label_then_reason"):
        answer = "".join(part.text for part in prompts.target(arm, chosen, "so it is"))
        if "label" not in chosen.casefold() and "reasoning" not in chosen.casefold():
            assert read_answer(answer, task) == (chosen, "so it is")
    named, reasoning = read_answer(text, task)
    assert named is None or named in task.labels
    assert reasoning == " ".join(reasoning.split())


# Voting.


def said(*labels: str | None, teacher: str = "t", **more: Any) -> list[Answer]:
    return [Answer(teacher, f"p{at}", name, **more) for at, name in enumerate(labels)]


def test_most_votes_win_then_the_likeliest_then_the_first() -> None:
    assert vote(said("dog", "cat", "dog", None), ANIMALS) == Vote("dog", None, 2 / 3)
    assert vote(said("dog", "cat"), ANIMALS) == Vote("cat", None, 0.5), "cat stands first in the task"
    surer = [Answer("t", "p", "cat", 0.4), Answer("t", "q", "dog", 0.9), Answer("t", "r", "bird", None)]
    assert vote(surer, ANIMALS) == Vote("dog", None, 1 / 3)
    # A number of votes counts more than any probability.
    assert vote([*surer, Answer("u", "p", "bird", None)], ANIMALS) == Vote("bird", None, 0.5)
    assert vote(said(None, None), ANIMALS) is None
    assert vote([], ANIMALS) is None


def test_ratings_take_the_nearest_point_to_their_mean_and_of_two_the_higher() -> None:
    assert vote(said("4", "5", "5"), STARS) == Vote("5", pytest.approx(14 / 3), 2 / 3)  # type: ignore[arg-type]
    assert vote(said("2", "3"), STARS) == Vote("3", 2.5, 0.5)
    assert vote(said("1", "3", None), STARS) == Vote("2", 2.0, 0.0), "nobody said 2"


def test_words_of_a_scale_count_as_their_places() -> None:
    assert vote(said("bad", "good", "good"), MOODS) == Vote("fair", pytest.approx(7 / 3), 0.0)  # type: ignore[arg-type]
    uneven = Task("t", "?", ("1", "2", "10"), ordinal=True)
    # The mean of 1 and 10 is 5.5: 2 is 3.5 away, 10 is 4.5.
    assert vote(said("1", "10"), uneven) == Vote("2", 5.5, 0.0)
    tenths = Task("t", "?", ("1.1", "1.2", "1.3"), ordinal=True)
    found = vote(said("1.1", "1.2"), tenths)
    assert found is not None and found.label == "1.2", "rounding errors do not decide between equally near points"


@given(st.lists(st.sampled_from([*STARS.labels, None]), max_size=9))
def test_the_order_of_the_votes_does_not_matter(labels: list[str | None]) -> None:
    for task in (STARS, Task("t", "?", STARS.labels)):
        assert vote(said(*labels), task) == vote(said(*reversed(labels)), task)


def test_the_reasoning_is_whole_and_the_surest_of_those_that_lead_to_the_label() -> None:
    answers = [
        Answer("a", "p", "dog", 0.99, "cut short", cut=True),
        Answer("b", "p", "cat", 0.99, "a cat"),
        Answer("c", "p", "dog", 0.5, "first"),
        Answer("d", "p", "dog", None, "by a server"),
        Answer("e", "p", "dog", 0.7, "surest"),
        Answer("f", "p", "dog", 0.9, ""),
    ]
    assert [one.teacher for one in supporting(answers, "dog")] == ["e", "c", "d", "a"]
    assert supporting(answers, "bird") == []


def test_what_was_voted_is_added_up() -> None:
    tally = Tally(ANIMALS)
    first = [*said("dog", "dog", teacher="a"), Answer("b", "p0", "dog"), Answer("b", "p1", None, unreadable=3)]
    second = [*said("cat", "dog", teacher="a"), *said("cat", "bird", teacher="b")]
    tally.add([first], 0.6)
    tally.add([second, [], said(None)], 0.6)
    found = tally.summary()
    assert {key: found[key] for key in ("rows", "empty", "without", "disputed")} == {
        "rows": 4, "empty": 1, "without": 1, "disputed": 1,
    }  # fmt: skip
    assert found["labels"] == {"cat": 1, "dog": 1, "bird": 0}
    assert found["agreement"] == pytest.approx((1 + 2 / 4) / 2)
    of_b = {one["prompt"]: one for one in found["each"] if one["teacher"] == "b"}
    assert of_b["p1"] == {
        "teacher": "b", "prompt": "p1", "asked": 2, "unreadable": 3, "without": 1, "agreed": 0.0,
    }  # fmt: skip
    # The teachers' own votes: dog and dog; then cat (a tie of a's votes) and cat (likewise): full agreement.
    assert found["alpha_teachers"] == 1.0
    assert found["alpha"] is not None and found["alpha"] < 1


# The whole way.

TEXTS = [f"{at} by the {place} it {verb}" for at, (place, verb) in enumerate([
    ("door", "purrs"), ("wall", "barks"), ("tree", "sings"), ("lake", "purrs"), ("barn", "growls"), ("road", "flies"),
    ("roof", "meows"), ("gate", "barks"),
])]  # fmt: skip
LABEL_OF = {verb: name for name, verbs in toy.VERBS.items() for verb in verbs}


def write_texts(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    return toy.write_lines(folder / "texts.jsonl", [{"number": at, "text": text} for at, text in enumerate(texts)])


def told(folder: Path, model: Path, **changes: Any) -> config.Config:
    """The toy task's config with a section `label`."""
    plain = toy.settings(**toy.quick(data__train="labelled.jsonl", data__id=None))
    section = {"data": "texts.jsonl", "output": "labelled.jsonl", "sampling": {"max_tokens": 8}}
    plain |= {"base": str(model), "label": section}
    for key, value in changes.items():
        toy.put(plain, key.split("__"), value)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return config.load(path)


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Server:
    """A server that answers from the text alone; it keeps count of what it was asked and is told how to fail."""

    def __init__(self, says: Callable[[str, Question], str | Draft | None]) -> None:
        self.says = says
        self.asked: Counter[tuple[str, tuple[str, ...], int]] = Counter()
        self.instructions: list[str] = []
        self.dies_at = 0

    def open(self, api: Any, sampling: Any, seed: int, instruction: str, *more: Any) -> Teacher:
        if api.model is None:
            raise RequestError("reasonings.api.model is not set")
        self.instructions.append(instruction)

        def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
            for at, question in enumerate(questions):
                self.asked[f"{api.model}: {instruction}", question.pieces, question.index] += 1
                if self.dies_at and self.asked.total() == self.dies_at:
                    raise KeyboardInterrupt
                text = self.says(instruction, question)
                if isinstance(text, Draft):
                    yield at, text
                else:
                    yield at, Draft("", failed="hung up") if text is None else Draft(text, tokens=5)

        return write


def right(instruction: str, question: Question) -> str:
    """Read the verb; where reasonings are to be merged, say how many there are."""
    text = "".join(question.pieces)
    if instruction == prompts.MERGE_INSTRUCTION:
        return f"made of {text.count('Explanation ')}"
    verb = text.split()[-1]
    return f"Reasoning: {toy.WHY[verb]}\nLabel: {LABEL_OF[verb]}"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, Question], str | None]], Server]:
    def put(says: Callable[[str, Question], str | None]) -> Server:
        made = Server(says)
        # The package has a function of the module's name.
        monkeypatch.setattr(sys.modules["saywhy.pipeline.writers"], "open_api", made.open)
        return made

    return put


API = {"label__teachers": ["api"], "reasonings__api": {"model": "m"}}


def test_the_prompts_of_the_config_are_those_that_stand_in_prompts() -> None:
    assert tuple(prompts.LABELLING_PROMPTS) == settings.PROMPTS
    for prompt in settings.PROMPTS:
        example = (Row("1", "it barks", "dog"), "It is loud.")
        text = prompts.labelling_instruction(MOODS, prompt, [example])
        order = [text.index("Reasoning:"), text.index("Label:")]
        assert (order == sorted(order)) == prompt.startswith("reason")
        assert ("It is loud." in text) == prompt.endswith("_examples")
        assert "lowest first" in text
    assert "lowest" not in prompts.labelling_instruction(ANIMALS, "reason_then_label")
    assert "- dog: barks, growls" in prompts.labelling_instruction(ANIMALS, "reason_then_label")


def test_a_base_labels_texts_by_scores_and_a_killed_run_ends_with_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ROWS_PER_SLICE", 3)
    write_texts(tmp_path, [*TEXTS, TEXTS[0], "  "])
    changes = {"label__sampling": {"temperature": 0.7, "max_tokens": 6}}
    path, counted = label(told(tmp_path, base, **changes))
    rows = records_of(path)
    assert [row["number"] for row in rows] == list(range(9)), "the empty text is left out"
    for row in rows:
        assert row["label"] in toy.LABELS and row["score_mean"] is None
        assert [(one["teacher"], one["prompt"]) for one in row["scores"]] == [
            ("base", "reason_then_label"), ("base", "label_then_reason"),
        ]  # fmt: skip
        assert all(one["unreadable"] == 0 and 1 / 3 < one["probability"] <= 1 for one in row["scores"])
        share = Counter(one["label"] for one in row["scores"])[row["label"]] / 2
        assert row["agreement"] == share and row["disputed"] is (share < 0.5)
    same = [{key: value for key, value in rows[at].items() if key != "number"} for at in (0, 8)]
    assert same[0] == same[1], "a text has one answer"
    assert counted["rows"] == 10 and counted["empty"] == 1 and sum(counted["labels"].values()) == 9
    with journal.opened(tmp_path / "labelled.jsonl.answers.sqlite") as book:
        assert {one["answers"] for one in journal.spent(book).values()} == {8}
    whole = path.read_bytes()
    # Again from nothing, stopped in the middle of every stage.
    for name in ("labelled.jsonl", "labelled.jsonl.answers.sqlite"):
        (tmp_path / name).unlink()
    for room, function, at in (
        ("saywhy.journal", "keep", 2), ("saywhy.journal", "keep", 3), ("saywhy.predict.stream", "_stamp", 6),
        ("saywhy.store", "write_table", 2),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            stop_at(patch, room, function, at)
            with pytest.raises(KeyboardInterrupt):
                label(told(tmp_path, base, **changes))
        assert not path.exists()
    label(told(tmp_path, base, **changes))
    assert path.read_bytes() == whole
    assert not list(tmp_path.glob(".*")), "nothing hidden is left"


def test_texts_that_a_base_could_not_read_whole_are_counted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path, [*TEXTS[:2], "it purrs " * 3000])
    path, _ = label(told(tmp_path, base, label__prompts="label_then_reason"))
    answered = records_of(path)[2]["label"]
    line = f"label: base: 1 texts did not fit and were cut in the middle where it answered ({answered} 1)"
    assert line in capsys.readouterr().err


def test_the_probability_is_that_of_the_whole_label(base: Path, tmp_path: Path) -> None:
    """Against transformers' own forward, label by label."""
    write_texts(tmp_path, TEXTS[:1])
    path, _ = label(told(tmp_path, base, label__prompts="label_then_reason"))
    tokenizer, model = load(str(base), False)
    instruction = prompts.labelling_instruction(Task("t", "Which animal is it?", toy.LABELS), "label_then_reason")
    encoder = make_encoder(tokenizer, render(tokenizer, instruction))
    cue, name, onward, *_ = prompts.target("label_then_reason", "cat", "x")
    head = [*prompt_ids(encoder, ("", TEXTS[0], ""))[0], *part_ids(encoder, cue)]
    likely = {}
    for one in toy.LABELS:
        ids = part_ids(encoder, replace(name, text=f" {one}"))
        logits = model(torch.tensor([[*head, *ids]])).logits[0].detach().double().log_softmax(-1)
        of_label = sum(float(logits[len(head) - 1 + at, token]) for at, token in enumerate(ids))
        follows = logits[-1, [encoder.end, part_ids(encoder, onward)[0]]]
        likely[one] = float(np.exp(of_label) * follows.exp().sum())
    best = max(likely, key=lambda one: likely[one])
    (score,) = records_of(path)[0]["scores"]
    assert score["label"] == best
    assert score["probability"] == pytest.approx(likely[best] / sum(likely.values()), rel=1e-4)


def test_what_a_base_draws_depends_on_seed_and_text_alone(base: Path, tmp_path: Path) -> None:
    def written(texts: Sequence[str], seed: int) -> dict[str, str]:
        write_texts(tmp_path, texts)
        changes = {"label__prompts": "label_then_reason", "seed": seed}
        drawn = {"label__sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 12}}
        path, _ = label(told(tmp_path, base, **changes, **drawn), tmp_path / f"{seed}-{len(texts)}.jsonl")
        return {row["text"]: row["reasoning"] for row in records_of(path)}

    whole = written(TEXTS, 1)
    assert written(TEXTS[:3], 1).items() <= whole.items()
    assert not written(TEXTS[:3], 2).items() & whole.items()


def stop_at(patch: pytest.MonkeyPatch, room: str, name: str, at: int) -> None:
    module = sys.modules[room]
    original, calls = getattr(module, name), []

    def stopping(*given: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*given, **named)

    patch.setattr(module, name, stopping)


def test_what_a_server_answered_is_never_paid_twice(
    tmp_path: Path,
    base: Path,
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    monkeypatch.setattr(stream, "ROWS_PER_SLICE", 3)
    server = serve(right)
    write_texts(tmp_path)
    server.dies_at = 6
    with pytest.raises(KeyboardInterrupt):
        label(told(tmp_path, base, **API))
    assert f"{len(TEXTS)} requests, about" in said(), "what it will take is said before anything is asked"
    server.dies_at = 0
    path, _ = label(told(tmp_path, base, **API))
    assert [row["label"] for row in records_of(path)] == [LABEL_OF[text.split()[-1]] for text in TEXTS]
    # Only the one that was under way is asked again.
    assert server.asked.total() == 2 * len(TEXTS) + 1
    before = path.read_bytes()
    with pytest.raises(RequestError, match="already"):
        label(told(tmp_path, base, **API))
    label(told(tmp_path, base, **API), overwrite=True)
    assert path.read_bytes() == before
    label(told(tmp_path, base, label__prompts=["reason_then_label"], **API), overwrite=True)
    assert server.asked.total() == 2 * len(TEXTS) + 1, "another vote over known answers asks nobody"


def test_unreadable_answers_are_counted_asked_again_and_never_voted(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    def says(instruction: str, question: Question) -> str | None:
        number = int("".join(question.pieces).split()[0])
        if number == 0:
            return "Label: dog or cat"
        if number == 1 and question.index == 0:
            return "I think that it is hard to say."
        if number == 2:
            return None
        return right(instruction, question)

    server = serve(says)
    write_texts(tmp_path)
    path, counted = label(told(tmp_path, base, label__prompts="reason_then_label", **API))
    rows = {row["number"]: row for row in records_of(path)}
    assert set(rows) == set(range(8)) - {0, 2}
    assert rows[1]["label"] == "dog" and rows[1]["scores"][0]["unreadable"] == 1
    assert rows[3]["scores"] == [
        {"teacher": "api", "prompt": "reason_then_label", "label": "cat", "probability": None, "unreadable": 0}
    ]
    assert counted["without"] == 2
    assert counted["each"] == [
        {"teacher": "api", "prompt": "reason_then_label", "asked": 8, "unreadable": 4, "without": 2, "agreed": 1.0}
    ]
    tries = Counter("".join(pieces)[0] for _, pieces, _ in server.asked)
    assert (tries["0"], tries["1"], tries["3"]) == (3, 2, 1)


def test_texts_that_a_server_refuses_are_put_once_a_run_and_end_none(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    """More of them than a server that never answered would be asked, and in a later run they are all that is asked."""

    def says(instruction: str, question: Question) -> str | Draft:
        number = int("".join(question.pieces).split()[0])
        if number % 2 and number < 60:
            return Draft("", failed="refused the question (400)", final=True, doubtful=True)
        return right(instruction, question)

    server = serve(says)
    write_texts(tmp_path, [f"{number} it barks" for number in range(70)])
    for run in (1, 2):
        path, counted = label(told(tmp_path, base, label__prompts="reason_then_label", **API), overwrite=run == 2)
        assert {row["number"] for row in records_of(path)} == set(range(70)) - set(range(1, 60, 2))
        assert counted["without"] == 30
        tries = {int("".join(pieces).split()[0]): count for (_, pieces, _), count in server.asked.items()}
        assert tries == {number: run if number % 2 and number < 60 else 1 for number in range(70)}


def test_a_row_that_nobody_could_label_is_no_silent_vote(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    serve(lambda instruction, question: "no idea")
    write_texts(tmp_path)
    with pytest.raises(WorkError, match=r"could be read; what they said stands in labelled.jsonl.answers.sqlite"):
        label(told(tmp_path, base, **API))
    serve(lambda instruction, question: None)
    with pytest.raises(WorkError, match=r"is not written: .* mostly because: hung up"):
        label(told(tmp_path, base, **API), tmp_path / "other.csv")
    assert not (tmp_path / "labelled.jsonl").exists()
    # The same command goes on where the server works again, and finds what could not be read before.
    serve(right)
    path, _ = label(told(tmp_path, base, **API), tmp_path / "other.csv")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + len(TEXTS)


def test_teachers_of_all_kinds_vote_and_one_merges_what_they_say(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    server = serve(right)
    write_texts(tmp_path)
    named = {"small": {"local": str(base)}, "big": {"api": {"model": "big"}}}
    more = {"label__teachers": ["api", "small", "big"], "reasonings__named": named, "label__merge": "big"}
    path, counted = label(told(tmp_path, base, **{**API, **more}))
    for row, text in zip(records_of(path), TEXTS, strict=True):
        assert row["label"] == LABEL_OF[text.split()[-1]]
        assert len(row["scores"]) == 6
        with_it = sum(one["label"] == row["label"] for one in row["scores"])
        assert row["agreement"] == with_it / 6 >= 4 / 6
        # What the small model wrote may be empty.
        assert row["reasoning"] in [f"made of {count}" for count in range(4, 1 + with_it)]
    assert server.instructions.count(prompts.MERGE_INSTRUCTION) >= 1
    assert -1 <= counted["alpha"] < 1 and counted["alpha_teachers"] is not None
    plain, _ = label(told(tmp_path, base, **{**API, **more, "label__merge": None}), overwrite=True)
    assert all(not row["reasoning"].startswith("made of") for row in records_of(plain))


def test_two_reasonings_are_merged_and_one_stands_as_it_is(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    def says(instruction: str, question: Question) -> str:
        bare = "".join(question.pieces).startswith("1 ") and "First give the label" in instruction
        return "Label: dog" if bare else right(instruction, question)

    serve(says)
    write_texts(tmp_path, TEXTS[:2])
    path, _ = label(told(tmp_path, base, label__merge="api", **API))
    assert [row["reasoning"] for row in records_of(path)] == ["made of 2", toy.WHY["barks"]]


def test_a_merge_that_failed_is_asked_for_again(
    tmp_path: Path, base: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ROWS_PER_SLICE", 3)
    write_texts(tmp_path)

    def busy(instruction: str, question: Question) -> str | None:
        first = instruction == prompts.MERGE_INSTRUCTION and TEXTS[0] in "".join(question.pieces)
        return None if first else right(instruction, question)

    serve(busy).dies_at = 2 * len(TEXTS) + 5  # while the second slice is merged
    with pytest.raises(KeyboardInterrupt):
        label(told(tmp_path, base, label__merge="api", **API))
    serve(right)
    path, _ = label(told(tmp_path, base, label__merge="api", **API))
    assert {row["reasoning"] for row in records_of(path)} == {"made of 2"}


def test_a_teacher_that_cannot_begin_is_told_before_another_has_worked(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    serve(right)
    write_texts(tmp_path)
    with pytest.raises(RequestError, match=r"api.model is not set"):
        label(told(tmp_path, base, label__teachers=["base", "api"]))
    assert not list(tmp_path.glob("*.sqlite"))


def test_ratings_come_out_with_their_mean_and_disputed_rows_where_asked(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    def says(instruction: str, question: Question) -> str:
        number = int("".join(question.pieces).split()[0])
        first = instruction.index("Reasoning:") < instruction.index("Label:")
        low, high = [(4, 5), (1, 3), (2, 2)][number % 3]
        return f"Reasoning: so.\nLabel: {low if first else high}/5"

    serve(says)
    write_texts(tmp_path)
    scale = {"task__labels": list(STARS.labels), "task__ordinal": True, "task__name": "stars"}
    path, counted = label(told(tmp_path, base, **API, **scale))
    rows = records_of(path)
    assert [(row["label"], row["score_mean"], row["agreement"], row["disputed"]) for row in rows[:3]] == [
        ("5", 4.5, 0.5, False), ("2", 2.0, 0.0, True), ("2", 2.0, 1.0, False),
    ]  # fmt: skip
    assert [row["reasoning"] for row in rows[:3]] == ["so.", "", "so."], "nobody reasoned towards 2 in the second"
    assert counted["disputed"] == 3
    output = tmp_path / "certain.csv"
    label(told(tmp_path, base, **API, **scale, label__disputed="leave_out"), output)
    with output.open(encoding="utf-8", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [row["number"] for row in kept] == ["0", "2", "3", "5", "6"]
    assert json.loads(kept[0]["scores"])[0]["label"] == "4"
    assert list(kept[0]) == [
        "number", "text", "label", "score_mean", "scores", "agreement", "disputed", "reasoning",
    ]  # fmt: skip


def test_examples_are_shown_by_the_prompts_that_have_them(
    tmp_path: Path, base: Path, serve: Callable[..., Server]
) -> None:
    server = serve(right)
    write_texts(tmp_path)
    examples = [{"text": "the one that hums", "label": "cat", "reasoning": "humming\nis soft"}]
    toy.write_lines(tmp_path / "few.jsonl", examples)
    path, _ = label(told(tmp_path, base, label__examples="few.jsonl", **API))
    assert len(records_of(path)[0]["scores"]) == 4
    shown = [one for one in dict.fromkeys(server.instructions) if "the one that hums" in one]
    assert len(shown) == 2
    assert "An example:\nthe one that hums\nReasoning: humming is soft\nLabel: cat" in shown[0]
    assert "Label: cat\nReasoning: humming is soft" in shown[1]
    toy.write_lines(tmp_path / "few.jsonl", [{"text": "x", "label": "wolf"}])
    with pytest.raises(RequestError, match=r"few.jsonl, line 1: label 'wolf'"):
        label(told(tmp_path, base, label__examples="few.jsonl", **API), overwrite=True)
    toy.write_lines(tmp_path / "few.jsonl", [{"text": "x", "label": "cat"}] * 65)
    with pytest.raises(RequestError, match="more than 64 rows"):
        label(told(tmp_path, base, label__examples="few.jsonl", **API), overwrite=True)


def test_examples_that_leave_no_room_for_a_text_are_refused(tmp_path: Path, base: Path) -> None:
    write_texts(tmp_path)
    toy.write_lines(tmp_path / "few.jsonl", [{"text": "long " * 400, "label": "cat"}])
    with pytest.raises(RequestError, match="leave no room for a text in the 512 tokens"):
        label(told(tmp_path, base, label__examples="few.jsonl"))


def test_labelled_rows_are_what_a_run_trains_on(
    tmp_path: Path, base: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(right)
    texts = [row["text"] for row in toy.records()["train"]]
    write_texts(tmp_path, texts)
    scratch = {"scratch": {"width": 16, "layers": 1, "vocabulary": 300, "heads": 2}}
    more = {**API, "data__dev": 0.2, "data__test": 0.2, "reasonings__teacher": "column"}
    told(tmp_path, base, **more, classifier__base=scratch)
    file = str(tmp_path / "config.yaml")
    assert cli.main(["check", file]) == 0
    out = capsys.readouterr().out
    assert "label: reason_then_label" in out and "Give every text exactly one label" in out and texts[0] in out
    assert "2 answers a text, from api" in out and "run `saywhy label`" in out
    assert "api, label_then_reason: 60 requests, about " in " ".join(out.split())
    assert cli.main(["label", file]) == 0
    out = capsys.readouterr().out
    assert f"{len(texts)} of {len(texts)} texts have a label: cat 33.3%" in out
    assert "between answers 1.00" in out and f"labelled rows are in {tmp_path / 'labelled.jsonl'}" in out
    assert cli.main(["reason", file, "-o", str(tmp_path / "run")]) == 0
    parts = sorted((tmp_path / "run" / "reasonings").glob("part-*.parquet"))
    written = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert {row["teacher"] for row in written} == {"column"}
    assert {row["reasoning"] for row in written} <= set(toy.WHY.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label__teachers": "reasoner"}, "reasoner cannot label: the reasoner was trained to lead to a known answer"),
        ({"label__teachers": ["base", "column"]}, "column cannot label: it brings reasonings"),
        ({"label__merge": "file"}, "label.merge: file cannot label"),
        ({"label__teachers": "apy"}, "there is no teacher 'apy'; there are base, api; did you mean 'api'?"),
        ({"label__teachers": ["base", "base"]}, "teachers should name at least one, and each once"),
        ({"label__prompts": []}, "prompts should name at least one"),
        ({"label__prompts": "reason_then_lable"}, "did you mean 'reason_then_label'?"),
        ({"label__prompts": "label_then_reason_examples"}, "shows examples and there are none"),
        ({"label__examples": "a.csv", "label__prompts": "label_then_reason"}, "prompts has neither of them"),
        ({"label__output": "labelled.xlsx"}, "should end in .csv, .tsv, .jsonl or .parquet"),
        ({"label__data": None}, "label.data: should be text"),
        ({"task__labels": None}, "label: texts without labels do not tell which there are"),
        ({"label__output": "texts.jsonl"}, "is the input; name another file"),
        ({"label": None}, "label: the config has no such section"),
        ({"label__teachers": "api"}, "reasonings.api.model is not set"),
        ({"task__label": "number"}, "there is a column 'number' already"),
        ({"task__label": "scores"}, "the output has the columns scores, score_mean, scores"),
        ({"base": {"scratch": {}}}, "base is made from scratch and has learnt nothing"),
        ({"label__data": "texst.jsonl"}, "did you mean texts.jsonl"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anyone_is(
    tmp_path: Path, base: Path, serve: Callable[..., Server], changes: dict[str, Any], message: str
) -> None:
    server = serve(right)
    write_texts(tmp_path)
    with pytest.raises(RequestError) as refused:
        label(told(tmp_path, base, **changes))
    assert message in str(refused.value)
    assert not server.asked
    assert not (tmp_path / "labelled.jsonl").exists()
