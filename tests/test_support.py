"""Support, its beginning and likelihood against forwards of transformers row by row, and scorers that learn a task."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config

import tiny
import toy
from saywhy import classifier, support
from saywhy.config import Reasonings, Scratch, Train
from saywhy.data.split import text_key
from saywhy.lm import bind
from saywhy.lm.cache import Reading
from saywhy.lm.encode import make_encoder, prompt_ids, render, text_ids
from saywhy.lm.load import make_scratch
from saywhy.predict import Classifier, answer, load
from saywhy.prompts import task_instruction
from saywhy.records import Figures, RequestError, Row, Task
from saywhy.train.folder import Course, Lesson

LABELS = ("yes", "yes and no", "joy", "да")
ROOM = 30
ROWS = (
    Row("0", "i feel so alone", "joy"),
    Row("1", "a lovely morning, the birds are singing and so am i", "yes"),
    Row("2", "7", "yes and no"),
    Row("3", "ünï <eos> <|x|>", "да"),
    Row("4", "", "joy"),
    Row("5", "tea or coffee?", "coffee", ("tea", "coffee", "tea and coffee")),
    Row("6", "it goes on and on, " * 20 + "to its end", "yes", None),
)
REASONINGS = (
    "the writer says that nobody calls, which is a loss.",
    "the writer says that birds sing.",
    "so.",
    "",
    "Label: joy and Reasoning: <eos> 喜び",
)
PAIRS = [(row, reasoning) for row in ROWS for reasoning in REASONINGS]
EARLY = 5
SETTINGS = Reasonings(early_tokens=EARLY)
ROOMY = 10**6
MODELS = ("llama", "qwen3", "gemma2", "mistral", "deepseek", "bloom", "mamba")


@cache
def scorer(name: str = "llama", seed: int = 0, arm: str = "both") -> Classifier:
    task = Task("t", "Which?", LABELS)
    tokenizer = tiny.byte_level()
    prompt = replace(render(tokenizer, task_instruction(task)), room=ROOM)
    return Classifier(bind(tiny.model(name, seed=seed), make_encoder(tokenizer, prompt)), task, arm, {})


@cache
def plain(model: Any) -> Any:
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    return copied


def told(model: Any, ids: Sequence[int], start: int) -> list[float]:
    """The log-probabilities of the tokens from `start` on, by one forward of transformers without any mask of ours."""
    with torch.no_grad():
        read = torch.log_softmax(plain(model)(input_ids=torch.tensor([list(ids)])).logits[0].double(), -1)
    return [float(read[at - 1, ids[at]]) for at in range(start, len(ids))]


def log_shares(c: Classifier, row: Row, ids: Sequence[int]) -> dict[str, float]:
    encoder, sums = c.lm.encoder, {}
    for label in row.choices or c.task.labels:
        sums[label] = sum(told(c.lm.model, [*ids, *text_ids(encoder, f" {label}"), encoder.end], len(ids)))
    total = math.log(sum(map(math.exp, sums.values())))
    return {label: one - total for label, one in sums.items()}


def by_hand(c: Classifier, base: Any, row: Row, reasoning: str, early: int = EARLY) -> Figures:
    encoder = c.lm.encoder
    choices = "" if row.choices is None else "\n" + "\n".join(f"- {choice}" for choice in row.choices)
    head = prompt_ids(encoder, ("", row.text, choices))[0]
    why, closing = text_ids(encoder, f" {reasoning}"), text_ids(encoder, "\nLabel:")
    opened = [*head, *text_ids(encoder, "Reasoning:")]
    alone = log_shares(c, row, [*head, *text_ids(encoder, "Label:")])
    begun = log_shares(c, row, [*opened, *why[:early], *closing])
    whole = log_shares(c, row, [*opened, *why, *closing])
    gold = row.label or ""
    return Figures(
        length=len(why),
        support=whole[gold] - alone[gold],
        wins=max(whole, key=lambda label: whole[label]),
        early=begun[gold] - alone[gold],
        likelihood=float(np.mean(told(base, [*opened, *why], len(opened)))),
    )


def assert_close(found: Figures, wanted: Figures, within: float = 1e-4) -> None:
    assert (found.length, found.wins) == (wanted.length, wanted.wins)
    for name in ("support", "early", "likelihood"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=within), name
    assert found.label_share is None and found.label_at is None and found.twins is None


@pytest.mark.parametrize("name", MODELS)
def test_figures_are_those_of_plain_forwards_row_by_row(name: str) -> None:
    scorers, base = [scorer(name, seed) for seed in (0, 1)], scorer(name, 2).lm
    pairs = PAIRS[:: 2 if name == "llama" else 6]
    for given_base in (base, None):
        found = support.measure(scorers, given_base, SETTINGS, ROOMY)(pairs)
        for one, (row, reasoning) in zip(found, pairs, strict=True):
            own = scorers[support.fold_of(row.text)]
            assert_close(one, by_hand(own, (given_base or own.lm).model, row, reasoning))


def test_a_row_is_asked_of_the_scorer_that_left_its_fold_out() -> None:
    assert {support.fold_of(row.text) for row in ROWS} == {0, 1}
    scorers = [scorer("llama", seed) for seed in (0, 1)]
    for row in ROWS:
        own = scorers[support.fold_of(row.text)]
        (found,) = support.measure(scorers, None, SETTINGS, ROOMY)([(row, "so.")])
        (alone,) = support.measure([own], None, SETTINGS, ROOMY)([(row, "so.")])
        assert_close(found, alone, 1e-6)


@drawn(
    st.lists(st.tuples(st.sampled_from(ROWS), st.sampled_from(REASONINGS)), max_size=9),
    st.sampled_from([1, 60, 200, ROOMY]),
    st.sampled_from(["llama", "gemma2", "mixtral"]),
)
@example_settings(max_examples=25)
def test_no_reasoning_changes_anothers_figures(pairs: list[tuple[Row, str]], budget: int, name: str) -> None:
    scorers = [scorer(name, 0), scorer(name, 1)]
    together = support.measure(scorers, None, SETTINGS, budget)(pairs)
    assert len(together) == len(pairs)
    for pair, one in zip(pairs, together, strict=True):
        assert_close(one, one_alone(name, pair))


@cache
def one_alone(name: str, pair: tuple[Row, str]) -> Figures:
    return support.measure([scorer(name, 0), scorer(name, 1)], None, SETTINGS, ROOMY)([pair])[0]


def test_a_reasoning_no_longer_than_its_beginning_has_the_same_support() -> None:
    found = support.measure([scorer()], None, replace_early(100), ROOMY)(PAIRS)
    for one in found:
        assert one.support == pytest.approx(one.early, abs=1e-5)
    short = support.measure([scorer()], None, replace_early(1), ROOMY)(PAIRS[:1])[0]
    assert abs((short.support or 0) - (short.early or 0)) > 1e-3


def replace_early(tokens: int) -> Reasonings:
    return Reasonings(early_tokens=tokens)


def test_a_prompt_is_read_once_for_all_its_reasonings_and_the_trunk_once_a_scorer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    c = replace(scorer(), temperatures={})
    read: list[int] = []
    one_pass = Reading._pass

    def count(self: Reading, rows: Any, begin: int, ids: Any, *rest: Any, ends: bool) -> Any:
        read.append(ids.size)
        return one_pass(self, rows, begin, ids, *rest, ends=ends)

    monkeypatch.setattr(Reading, "_pass", count)
    monkeypatch.setattr(support, "likelihood", lambda _, paths, *__: np.zeros(len(paths)))
    measured = support.measure([c], None, SETTINGS, ROOMY)
    row = ROWS[1]
    encoder = c.lm.encoder
    head = len(prompt_ids(encoder, ("", row.text, ""))[0])
    cues = [len(text_ids(encoder, cue)) for cue in ("Label:", "Reasoning:", "\nLabel:")]
    answers = {tuple(text_ids(encoder, f" {label}"))[:n] for label in LABELS for n in range(1, 99)}
    trie = len(answers)
    asked = [(row, REASONINGS[0])] * 3
    why = len(text_ids(encoder, f" {REASONINGS[0]}"))
    measured(asked)
    # The beginning with its cue and labels, then only what the whole reasoning has beyond it.
    each = EARLY + cues[2] + trie + (why - EARLY) + cues[2] + trie
    assert sum(read) == head + cues[0] + trie + cues[1] + 3 * each
    read.clear()
    measured(asked)
    assert sum(read) == head - len(encoder.before) + cues[0] + trie + cues[1] + 3 * each


def learned_positions(context: int, room: int) -> Classifier:
    """A model that cannot read a token more than its context."""
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=context, **size)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    c = scorer()
    encoder = replace(c.lm.encoder, prompt=replace(c.lm.encoder.prompt, room=room))
    return replace(c, lm=bind(model, encoder))


@pytest.mark.parametrize("room", [8, 20])
def test_what_does_not_fit_is_cut_from_the_text_and_then_from_the_end_of_the_reasoning(room: int) -> None:
    context = 120
    c = learned_positions(context, room)
    row, reasoning = ROWS[-1], "it goes on and on. " * 30
    (found,) = support.measure([c], None, SETTINGS, ROOMY)([(row, reasoning)])
    encoder = c.lm.encoder
    head, was_cut = prompt_ids(encoder, ("", row.text, ""))
    longest = 1 + max(len(text_ids(encoder, f" {label}")) for label in LABELS)
    around = len(head) + sum(len(text_ids(encoder, cue)) for cue in ("Reasoning:", "\nLabel:")) + longest
    why = text_ids(encoder, f" {reasoning}")
    assert was_cut and context - around < len(why)
    opened = [*head, *text_ids(encoder, "Reasoning:")]
    kept = why[: context - around]
    assert found.length == len(why)
    assert found.likelihood == pytest.approx(np.mean(told(c.lm.model, [*opened, *kept], len(opened))), abs=1e-4)
    whole = log_shares(c, row, [*opened, *kept, *text_ids(encoder, "\nLabel:")])
    alone = log_shares(c, row, [*head, *text_ids(encoder, "Label:")])
    assert found.support == pytest.approx(whole["yes"] - alone["yes"], abs=1e-4)


def test_a_text_that_leaves_no_room_for_any_reasoning_is_measured_without() -> None:
    encoder, row, room = scorer().lm.encoder, ROWS[-1], 8
    cut = replace(encoder, prompt=replace(encoder.prompt, room=room))
    head = len(prompt_ids(cut, ("", row.text, ""))[0])
    cues = sum(len(text_ids(encoder, cue)) for cue in ("Reasoning:", "\nLabel:"))
    # Nobody reads what ends a label.
    crowded = learned_positions(head + cues + max(len(text_ids(encoder, f" {label}")) for label in LABELS), room)
    (found,) = support.measure([crowded], None, SETTINGS, ROOMY)([(row, "so. " * 50)])
    assert found.length and found.length > 40 and found.likelihood is None
    assert found.support == pytest.approx(found.early, abs=1e-4)


@pytest.mark.parametrize("row", [Row("9", "x"), Row("9", "x", "tea"), Row("9", "x", "joy", ("tea", "coffee"))])
def test_a_row_without_a_label_among_its_answers_is_refused(row: Row) -> None:
    with pytest.raises(RequestError, match=r"row 9: .* reasonings\.support to never"):
        support.measure([scorer()], None, SETTINGS, ROOMY)([(row, "so.")])


def test_a_scorer_was_taught_both() -> None:
    with pytest.raises(ValueError, match="reason_then_label"):
        support.measure([scorer(arm="reason_then_label")], None, SETTINGS, ROOMY)


def test_nothing_asked_is_nothing_measured() -> None:
    assert support.measure([scorer()], None, SETTINGS, ROOMY)([]) == []


def test_logits_are_taken_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = support.measure([scorer()], None, SETTINGS, ROOMY)(PAIRS)
    monkeypatch.setattr("saywhy.lm.forward.SLICE_NUMBERS", 3 * tiny.VOCABULARY)
    monkeypatch.setattr("saywhy.lm.score.SLICE_NUMBERS", 3 * tiny.VOCABULARY)
    rows: list[int] = []
    from saywhy.lm import forward, score

    head = forward.head

    def count(model: Any, hidden: Any) -> Any:
        rows.append(len(hidden))
        return head(model, hidden)

    monkeypatch.setattr(forward, "head", count)
    monkeypatch.setattr(score, "head", count)
    for one, other in zip(support.measure([scorer()], None, SETTINGS, ROOMY)(PAIRS), whole, strict=True):
        assert_close(one, other, 1e-5)
    assert max(rows) == 3


@drawn(st.text(), st.integers(1, 5))
def test_duplicates_share_a_fold(text: str, folds: int) -> None:
    fold = support.fold_of(text, folds)
    assert 0 <= fold < folds
    for other in (f"  {text}\n", text.replace(" ", "\t "), text.upper(), text.casefold()):
        if text_key(Row("", other)) == text_key(Row("", text)):
            assert support.fold_of(other, folds) == fold


def test_folds_are_about_equal_and_stay_what_they_are() -> None:
    counts = np.bincount([support.fold_of(f"text {n}", 3) for n in range(3000)])
    assert len(counts) == 3 and counts.min() > 900
    assert support.fold_of("A  lovely\nmorning") == support.fold_of("a lovely morning") == 1
    assert [support.fold_of(f"text {n}") for n in range(8)] == [0, 0, 1, 1, 0, 1, 1, 1]


def taught(path: Path) -> tuple[Task, list[Row], dict[str, str], Course]:
    """The toy task, where half of the texts leave open what their reasonings tell, and a quick course of `both`."""
    rows, why = [], {}
    for at, (label, place, time, second) in enumerate(product(toy.LABELS, toy.PLACES, toy.TIMES, (0, 1))):
        verb = toy.VERBS[label][second]
        rows.append(Row(str(at), f"{time} by the {place} it {'sits' if at % 4 < 2 else verb}", label))
        why[str(at)] = toy.WHY[verb]
    task = Task("animals", "Which animal is it?", toy.LABELS)
    texts = [*classifier.shown(task, rows), *why.values()]
    make_scratch(path, texts, Scratch(width=64, layers=1, vocabulary=400, heads=2), 0)
    train = Train(rows_per_step=16, steps=480, learning_rate=1e-2, layout="tree", precision="float32")
    return task, rows, why, classifier.course(task, "both", str(path), train, rows, 1, "cut", False)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], dict[str, str], list[Classifier]]:
    folder = tmp_path_factory.mktemp("scorers")
    task, rows, why, plan = taught(folder / "base")
    # With 120 steps it is chance, down to rounding, whether they have learnt it.
    plan = support.course(plan, [100, 480], 0.5)
    assert plan.settings.steps == 240
    scorers = []
    for fold in (0, 1):
        others = [row for row in rows if support.fold_of(row.text) != fold]
        lessons = classifier.lessons("both", others, {row.id: (why[row.id],) for row in others})
        out = folder / str(fold)
        out.mkdir()
        support.train(out, task, plan, lessons, f"scorer {fold}")
        scorers.append(load(out))
    return rows, why, scorers


def test_true_reasonings_support_their_label_and_those_of_another_label_let_that_win(
    learnt: tuple[list[Row], dict[str, str], list[Classifier]],
) -> None:
    every, why, scorers = learnt
    rows = [row for row in every if row.text.endswith("sits")]
    other = {label: toy.LABELS[(at + 1) % 3] for at, label in enumerate(toy.LABELS)}
    measured = support.measure(scorers, None, SETTINGS, ROOMY)
    true = measured([(row, why[row.id]) for row in rows])
    swapped = measured([(row, toy.WHY[toy.VERBS[other[row.label or ""]][0]]) for row in rows])
    assert np.mean([one.wins == row.label for one, row in zip(true, rows, strict=True)]) > 0.95
    assert np.mean([one.wins == other[row.label or ""] for one, row in zip(swapped, rows, strict=True)]) > 0.9
    gains = [(a.support or 0) - (b.support or 0) for a, b in zip(true, swapped, strict=True)]
    assert min(gains) > 0 and np.mean(gains) > 2
    assert np.mean([one.support for one in true]) > 0.5
    nonsense = measured([(row, "7 door up up alone") for row in rows])
    assert np.mean([one.likelihood for one in true]) > np.mean([one.likelihood for one in nonsense]) + 1


def test_a_scorers_folder_is_one_of_both(learnt: tuple[list[Row], dict[str, str], list[Classifier]]) -> None:
    rows, _, scorers = learnt
    assert {scorer.arm for scorer in scorers} == {"both"}
    assert len(answer(scorers[0], rows[:2], "reason")) == 2


def test_a_scorer_has_its_share_of_the_steps_of_the_longest_arm(tmp_path: Path) -> None:
    _, rows, why, plan = taught(tmp_path / "base")
    lessons: list[Lesson] = classifier.lessons("both", rows, {row.id: (why[row.id],) for row in rows})
    assert support.steps_of(plan, lessons) == 480
    by_rows = replace(plan, settings=plan.settings.model_copy(update={"steps": None, "epochs": 3.0}))
    assert support.steps_of(by_rows, lessons) == math.ceil(len(rows) * 3 / 16)
    shares = [support.course(plan, [400, 90], share).settings.steps for share in (1.0, 0.25, 1e-9)]
    assert shares == [400, 100, 1]
    assert support.course(plan, [8], 0.5) == replace(plan, settings=plan.settings.model_copy(update={"steps": 4}))
    with pytest.raises(ValueError, match="label_only"):
        support.course(replace(plan, arm="label_only"), [400], 0.25)
