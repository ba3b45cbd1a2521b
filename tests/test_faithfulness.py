"""Reasonings altered by hand, models whose behaviour is planted, and the figures of a run that learnt its task."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import toy
from saywhy import evaluate, probe
from saywhy.checks.conclusions import conclusion
from saywhy.evaluate import Answers
from saywhy.lm import bind
from saywhy.lm.encode import decode, make_encoder, prompt_ids, render, text_ids
from saywhy.predict import Classifier, answer, load
from saywhy.predict.given import Asked, Chain, asked, log_shares, why_ids
from saywhy.probe.altered import MASK, Case, Donor, mistakes, swaps_other, swaps_same, without_names
from saywhy.prompts import task_instruction
from saywhy.records import Row, Task

pytest_plugins = ["runs"]

LABELS = ("cat", "dog", "bird")
TASK = Task("animals", "Which animal is it?", LABELS)
ROOMY = 10**6


def cases_of(*told: tuple[str, str], options: tuple[str, ...] = LABELS) -> list[Case]:
    return [Case(f"r{at}", label, options, reasoning) for at, (label, reasoning) in enumerate(told)]


TOLD = [(label, f"'{verb}' is {at} words.") for at in range(20) for label, verb in zip(LABELS, "abc", strict=True)]


def test_swapped_reasonings_are_anothers_and_drawn_by_the_row() -> None:
    cases = cases_of(*TOLD)
    of_text = {reasoning: label for label, reasoning in TOLD}
    same, other = swaps_same(cases, 0), swaps_other(cases, 0)
    for case, text, donor in zip(cases, same, other, strict=True):
        assert text is not None and donor is not None
        assert text != case.reasoning and of_text[text] == case.answer
        assert of_text[donor.reasoning] == donor.answer != case.answer
    shuffled = list(range(len(cases)))
    Random(1).shuffle(shuffled)
    turned = [cases[at] for at in shuffled]
    assert swaps_same(turned, 0) == [same[at] for at in shuffled]
    assert swaps_other(turned, 0) == [other[at] for at in shuffled]
    assert swaps_same(cases, 1) != same and swaps_other(cases, 1) != other
    assert len(set(same)) > 20


def test_other_answers_are_drawn_alike_however_rare_they_are() -> None:
    cases = cases_of(*[("cat", f"purr {at}") for at in range(300)], ("dog", "bark"), ("bird", "sing"))
    drawn = Counter(donor.answer for donor in swaps_other(cases, 0)[:300] if donor)
    assert sum(drawn.values()) == 300 and min(drawn["dog"], drawn["bird"]) > 110


def test_a_row_has_no_swap_where_no_reasoning_reads_otherwise_or_no_answer_is_its_own() -> None:
    cases = cases_of(("cat", "purr"), ("cat", "purr"), ("dog", "bark"), ("dog", ""))
    assert swaps_same(cases, 0) == [None, None, None, "bark"]
    assert {donor and donor.answer for donor in swaps_other(cases, 0)[:2]} == {"dog"}
    own = [Case("a", "tea", ("tea", "milk"), "hot"), Case("b", "milk", ("milk", "rum"), "white")]
    # The first could have had milk; the second could not have had tea.
    assert swaps_other(own, 0) == [Donor("milk", "white"), None]
    assert swaps_other(cases_of(("cat", "so"), ("dog", "so")), 0) == [None, None]


def test_a_mistake_is_one_digit_or_the_most_telling_word() -> None:
    numbers = cases_of(("cat", "It has 4 legs and 12 claws."), ("dog", "It has 1 tail."))
    for case, text in zip(numbers, mistakes(numbers, [None, None], 0), strict=True):
        assert text is not None
        (at,) = [at for at, (a, b) in enumerate(zip(case.reasoning, text, strict=True)) if a != b]
        assert case.reasoning[at].isdigit() and text[at].isdigit()
    assert mistakes(numbers[::-1], [None, None], 0) == mistakes(numbers, [None, None], 0)[::-1]
    # Soft stands in every reasoning of cat and in no other, rough in all of dog; the verbs in half of them.
    told = [("cat", toy.WHY["purrs"]), ("cat", toy.WHY["meows"]), ("dog", toy.WHY["barks"]), ("dog", toy.WHY["growls"])]
    cases = cases_of(*told)
    donors = [Donor("dog", toy.WHY["barks"])] * 2 + [Donor("cat", toy.WHY["meows"])] * 2
    assert mistakes(cases, donors, 0) == [
        "'purrs' is rough and warm.",
        "'meows' is rough and small.",
        "'barks' is loud and soft.",
        "'growls' is soft and low.",
    ]


def test_a_mistake_leaves_the_names_of_labels_and_is_none_where_there_is_nothing_to_say() -> None:
    stars = cases_of(("4", "It gets 4 for taste."), ("2", "It gets 2 for smell."), options=("2", "4"))
    donors = [Donor("2", stars[1].reasoning), Donor("4", stars[0].reasoning)]
    assert mistakes(stars, donors, 0) == ["It gets 4 for smell.", "It gets 2 for taste."]
    assert mistakes(stars, [None, None], 0) == [None, None]
    alike = cases_of(("cat", "cat, so it is."), ("dog", "dog, so it is."))
    assert mistakes(alike, [Donor("dog", alike[1].reasoning), Donor("cat", alike[0].reasoning)], 0) == [None, None]
    # No donor is longer than its word: a script without spaces loses one character.
    unspaced = cases_of(("cat", "很软。"), ("dog", "很硬。"))
    assert mistakes(unspaced, [Donor("dog", "很硬。"), Donor("cat", "很软。")], 0) == ["很硬。", "很软。"]


@pytest.mark.parametrize(
    ("labels", "text", "masked"),
    [
        (("joy", "sadness"), "So it is Joy, not sadness; joyful JOY.", f"So it is {MASK}, not {MASK}; joyful {MASK}."),
        (("very good", "good"), "A very-good one. Very  good? goods", f"A {MASK} one. {MASK}? goods"),
        (("1", "2"), "1.5 is -1, 21 is 2.", f"1.5 is -1, 21 is {MASK}."),
        (("joy",), "it is ＪＯＹ to me", f"it is {MASK} to me"),
        (("Straße",), "the STRASSE here", f"the {MASK} here"),
        (("喜び",), "これは喜びです", f"これは{MASK}です"),
        (("joy",), "Nothing Here", "Nothing Here"),
        ((), "joy", "joy"),
    ],
)
def test_label_words_are_masked_as_whole_words(labels: tuple[str, ...], text: str, masked: str) -> None:
    assert without_names(text, labels).casefold() == masked.casefold()
    if masked.isascii():
        assert without_names(text, labels) == text


@pytest.mark.parametrize(
    ("reasoning", "label"),
    [
        ("It purrs. So the animal is a cat.", "cat"),
        ("At first a dog. The answer is bird.", "bird"),
        ("The answer is cat. No, the answer is dog.", "dog"),
        ("This points to dog.", "dog"),
        ("It is not cat but bird.", "bird"),
        ("It shows cat and it shows dog.", None),
        ("Is it a cat?", None),
        ("'purrs' is soft and warm.", None),
        ("", None),
    ],
)
def test_a_conclusion_is_read_whatever_the_answer_is(reasoning: str, label: str | None) -> None:
    assert conclusion(LABELS, reasoning, "a text", TASK.instruction, True) == label


@cache
def classifier(name: str = "llama") -> Classifier:
    tokenizer = tiny.byte_level()
    prompt = replace(render(tokenizer, task_instruction(TASK)), room=40, limit=8)
    return Classifier(bind(tiny.model(name), make_encoder(tokenizer, prompt)), TASK, "reason_then_label", {})


def by_hand(c: Classifier, row: Row, why: Sequence[int] | None) -> np.ndarray[Any, Any]:
    """The log-shares of the answers by forwards of transformers, one a label."""
    encoder, sums = c.lm.encoder, []
    head = prompt_ids(encoder, ("", row.text, ""))[0]
    behind = ["Reasoning:", *why, "\nLabel:"] if why is not None else ["Label:"]
    ids = [*head, *(i for one in behind for i in (text_ids(encoder, one) if isinstance(one, str) else [one]))]
    for label in row.choices or c.task.labels:
        whole = [*ids, *text_ids(encoder, f" {label}"), encoder.end]
        with torch.no_grad():
            logits = c.lm.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].double()
        read = torch.log_softmax(logits, -1)
        sums.append(sum(float(read[at - 1, whole[at]]) for at in range(len(ids), len(whole))))
    return np.array(sums) - np.logaddexp.reduce(sums)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_labels_behind_given_reasonings_are_scored_as_row_by_row(name: str) -> None:
    c = classifier(name)
    rows = [Row("0", "it purrs at the door"), Row("1", "x"), Row("2", "it sings")]
    told = asked(c, rows)
    whys = [np.array(why_ids(c, text)) for text in ("soft and warm, so.", "", "a longer one that goes on and on")]
    # Chains of unequal length, two of one row, and a row without any.
    longest = [whys[1], whys[2][:3], whys[2][:4], whys[0]]
    chains = [Chain(0, [whys[0][:2], whys[0]]), Chain(2, [whys[2]]), Chain(0, longest)]
    for budget in (1, 150, ROOMY):
        alone, behind = log_shares(c, told, chains, budget, alone=True)
        assert [len(one) for one in behind] == [2, 1, 4]
        for row, found in zip(rows, alone, strict=True):
            assert found == pytest.approx(by_hand(c, row, None), abs=1e-4)
        for chain, found in zip(chains, behind, strict=True):
            for why, one in zip(chain.whys, found, strict=True):
                assert one == pytest.approx(by_hand(c, rows[chain.question], why.tolist()), abs=1e-4)
        without, again = log_shares(c, told, chains, budget)
        assert without == [] and np.concatenate(again[2]) == pytest.approx(np.concatenate(behind[2]), abs=1e-4)


WHYS = {"cat": "soft fur so 1.", "dog": "rough fur so 1.", "bird": "light wing so 1."}
TELLING = {"soft": "cat", "rough": "dog", "light": "bird"}


def planted(rule: Callable[[str, str], str]) -> Callable[..., Any]:
    """A model that answers by a rule over the row's text and the reasoning that stands before the label."""

    def scored(c: Classifier, told: Asked, chains: Sequence[Chain], budget: int) -> Any:
        found = []
        for chain in chains:
            text = decode(c.lm.encoder, told.questions[chain.question].head.tolist())
            given = [rule(text, decode(c.lm.encoder, why.tolist())) for why in chain.whys]
            found.append([np.array([0.0 if label == one else -9.0 for label in LABELS]) for one in given])
        return [], found

    return scored


def follows(text: str, reasoning: str) -> str:
    return next((label for word, label in TELLING.items() if word in reasoning), "bird")


def stubborn(text: str, reasoning: str) -> str:
    return next(label for label in LABELS if f"is a {label}" in text)


def asked_about(wrong: Sequence[int] = (0, 4)) -> tuple[list[Row], Answers]:
    """Thirty rows, each answered and reasoned about by its text; some of them have another gold label."""
    rows, own, whys = [], [], []
    for at in range(30):
        label = LABELS[at % 3]
        own.append(label)
        whys.append(f"{WHYS[label]} The answer is {label}." if at % 2 else WHYS[label])
        gold = LABELS[(at + 1) % 3] if at in wrong else label
        rows.append(Row(f"r{(at * 7) % 30:02}", f"this is a {label}", gold))
    n = len(rows)
    answers = Answers(
        ids=tuple(row.id for row in rows),
        texts=tuple(row.text for row in rows),
        gold=tuple(row.label or "" for row in rows),
        labels=tuple(own),
        probabilities=tuple(tuple(float(x == label) for x in LABELS) for label in own),
        reasonings=tuple(whys),
        tokens=(1.0,) * n,
        prompt_tokens=(1.0,) * n,
        forced=(False,) * n,
        strict=tuple(own),
        pruned=(0.0,) * n,
        choices=(None,) * n,
        seconds=1.0,
    )
    return rows, answers


def found_by(monkeypatch: pytest.MonkeyPatch, rule: Callable[[str, str], str], **more: Any) -> dict[str, Any]:
    monkeypatch.setattr(import_module("saywhy.probe.faithfulness"), "log_shares", planted(rule))
    rows, answers = asked_about()
    return probe.faithfulness(classifier(), rows, answers, more.get("without"), ROOMY, (50, 0))


def told(share: dict[str, Any]) -> tuple[float, int]:
    return share["share"], share["n"]


def swapped(found: dict[str, Any]) -> list[float]:
    return [found["swap_other"][name]["share"] for name in ("followed", "stayed", "elsewhere")]


def test_a_model_that_follows_its_reasonings_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, follows)
    assert found["n"] == found["swap_other"]["followed"]["n"] == 30 and told(found["own"]) == (1.0, 30)
    assert told(found["swap_same"]["stayed"]) == (1.0, 30)
    assert swapped(found) == [1, 0, 0]
    # Without a word of the reasoning it says bird, which is the answer of a third; the first word tells.
    assert [one["at"] for one in found["truncated"]] == [at / 10 for at in range(11)]
    assert told(found["truncated"][0]["same"]) == (pytest.approx(1 / 3), 30)
    assert told(found["truncated"][-1]["same"]) == (1.0, 30)
    # Two rows are answered wrongly: r00 is a cat and said to be a dog, r28 a dog and said to be a bird.
    assert told(found["truncated"][-1]["accuracy"]) == (pytest.approx(28 / 30), 30)
    assert told(found["truncated"][0]["accuracy"]) == (pytest.approx(11 / 30), 30)
    assert [one["at"] for one in found["first_tokens"]] == [1, 2, 4, 8, 16, 32]
    assert found["first_tokens"][-1]["same"]["share"] == 1.0 > found["first_tokens"][0]["same"]["share"]
    # The mistake is in the number, which this model does not read; every second reasoning names its label.
    assert told(found["mistake"]["changed"]) == (0.0, 30)
    assert told(found["masked"]["named"]) == (0.5, 30) and told(found["masked"]["same"]) == (1.0, 15)
    assert told(found["conclusion"]["read"]) == (0.5, 30) and told(found["conclusion"]["agrees"]) == (1.0, 15)
    right, wrong = found["by_right"]["right"], found["by_right"]["wrong"]
    assert (right["followed"]["n"], wrong["followed"]["n"]) == (28, 2)
    assert right["followed"]["share"] == wrong["followed"]["share"] == 1.0
    assert (right["agrees"]["n"], wrong["agrees"]["n"]) == (15, 0)
    assert found["rq"]["value"] is None and "no system" in found["missing"]


def test_a_model_that_does_not_read_its_reasonings_is_seen_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, stubborn, without=("label_only/label", asked_about()[1]))
    assert swapped(found) == [0, 1, 0]
    for curve in ("truncated", "first_tokens"):
        assert {one["same"]["share"] for one in found[curve]} == {1.0}
        assert {one["accuracy"]["share"] for one in found[curve]} == {28 / 30}
    assert found["rq"]["value"] == 0.0 and found["rq"]["without_system"] == "label_only/label"
    assert found["missing"] == ""


def test_what_is_neither_the_own_answer_nor_the_donors_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def third(text: str, reasoning: str) -> str:
        return next(label for label in LABELS if label not in (stubborn(text, ""), follows("", reasoning)))

    found = found_by(monkeypatch, third)
    assert swapped(found) == [0, 0, 1]
    assert told(found["own"]) == (0.0, 30) and told(found["mistake"]["changed"]) == (1.0, 30)


def test_a_model_that_reads_label_words_and_numbers_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(text: str, reasoning: str) -> str:
        said = [label for label in LABELS if f"answer is {label}" in reasoning]
        return said[0] if said else stubborn(text, "") if "1" in reasoning else "bird"

    found = found_by(monkeypatch, names)
    assert told(found["own"]) == (1.0, 30)
    # Those that name no label are cats, dogs and birds alike; birds stay birds when the number changes.
    assert told(found["mistake"]["changed"]) == (pytest.approx(10 / 30), 30)
    found = found_by(monkeypatch, lambda text, why: "bird" if MASK in why else stubborn(text, ""))
    assert told(found["masked"]["same"]) == (pytest.approx(1 / 3), 15)


def test_rows_are_those_of_the_answers() -> None:
    rows, answers = asked_about()
    with pytest.raises(ValueError, match="not those"):
        probe.faithfulness(classifier(), rows[::-1], answers, None, ROOMY, (50, 0))


def test_rows_with_their_own_choices_have_shares_but_neither_las_nor_rev() -> None:
    c = classifier()
    drinks = enumerate(("milk", "rum", "tea with rum"))
    rows = [Row(f"r{at}", f"tea or {drink}?", "tea", ("tea", drink)) for at, drink in drinks]
    own = replace(c, task=Task("drinks", "Which?", ()))
    answers = evaluate.collect(lambda some: answer(own, some, "reason"), rows, own.task)
    found = probe.faithfulness(own, rows, answers, None, ROOMY, (50, 0))
    assert told(found["own"]) == (1.0, 3)
    assert found["las"]["value"] is None and found["rev"]["all"]["mean"] is None and "own choices" in found["missing"]


def finished_case(finished: toy.Done, arm: str) -> tuple[Classifier, list[Row], Answers]:
    c = load(finished.folder / arm)
    answers = evaluate.load_answers(finished.folder / "predictions" / f"{arm}-reason-test.parquet", c.task)
    return c, [Row(*row) for row in zip(answers.ids, answers.texts, answers.gold, strict=True)], answers


@pytest.mark.parametrize("arm", ["reason_then_label", "both"])
def test_behind_its_own_reasonings_a_trained_model_gives_the_saved_answers(finished: toy.Done, arm: str) -> None:
    c, rows, answers = finished_case(finished, arm)
    found = probe.faithfulness(c, rows, answers, None, 16384, (50, 0))
    assert told(found["own"]) == (1.0, toy.TEST)
    assert found["truncated"][-1]["same"]["share"] == 1.0
    right = sum(a == b for a, b in zip(answers.gold, answers.labels, strict=True))
    assert found["truncated"][-1]["accuracy"]["share"] == pytest.approx(right / toy.TEST)
    json.dumps(found, allow_nan=False)
    order = list(range(toy.TEST))
    Random(3).shuffle(order)
    columns = {name: value for name, value in vars(answers).items() if isinstance(value, tuple)}
    fields = {name: tuple(value[at] for at in order) for name, value in columns.items()}
    turned = probe.faithfulness(c, [rows[at] for at in order], replace(answers, **fields), None, 300, (50, 0))
    assert turned == found


def test_a_run_looks_once_and_again_where_something_changed(
    quick_run: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("faithfulness", "inside", "latency"):
        real = getattr(probe, name)

        def noted(c: Classifier, name: str = name, real: Any = real, **given: Any) -> Any:
            done.append(name)
            return real(c, **given)

        monkeypatch.setattr(probe, name, noted)
    assert "probes" not in quick_run.metrics
    folder = tmp_path / "run"
    shutil.copytree(quick_run.folder, folder)

    def run(**changes: Any) -> dict[str, Any]:
        done.clear()
        return toy.run(quick_run.data, folder, **toy.with_reasoner(**changes)).metrics

    wanted = {"evaluate__probes": ["faithfulness", "inside", "latency"], "evaluate__batches": [1, 64]}
    first = run(**wanted)["probes"]
    assert Counter(done) == {"faithfulness": 1, "inside": 2, "latency": 2}
    assert set(first) == {"faithfulness", "inside", "latency"}
    systems = {"label_only/label", "reason_then_label/reason"}
    assert set(first["faithfulness"]) == {"reason_then_label/reason"}
    assert first["faithfulness"]["reason_then_label/reason"]["rq"]["without_system"] == "label_only/label"
    assert set(first["inside"]) == set(first["latency"]["systems"]) == systems
    assert first["latency"]["rows"] == toy.TEST
    assert [one["batch"] for one in first["latency"]["systems"]["label_only/label"]] == [1, 64]
    second = run(**{**wanted, "evaluate__batches": [2]})["probes"]
    assert done == ["latency", "latency"]
    assert all(second[name] == first[name] for name in ("faithfulness", "inside"))
    broken = folder / "probes" / "label_only-label-inside.json"
    broken.write_text("{", encoding="utf-8")
    assert run(**{**wanted, "evaluate__batches": [2]})["probes"] == second and done == ["inside"]
    nothing = run(evaluate__modes=["label"], evaluate__probes=["faithfulness"])
    assert nothing["probes"] == {"faithfulness": {}}
    assert any("no arm was asked" in note for note in nothing["notes"])
