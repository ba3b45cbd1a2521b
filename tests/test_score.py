"""Label scores against products of token probabilities, each from a forward pass of its own by transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import tiny
from saywhy import predict
from saywhy.config import label_fault
from saywhy.lm import bind, score
from saywhy.lm.cache import Reading, open_reading, read_trunk
from saywhy.lm.encode import decode, make_encoder, prompt_ids, render, text_ids
from saywhy.lm.generate import Leaving
from saywhy.predict import PRUNE, Classifier
from saywhy.prompts import task_instruction
from saywhy.records import Prediction, RequestError, Row, Task
from saywhy.trees import common

AWKWARD = ("yes", "yes and no", "no", "1", "12", "NA", "null", "да", "喜び", "☺ smile", "- ", "Label: x")
TEXTS = ("i feel so alone", "a lovely morning, the birds are singing and so am i", "7", "ünï <eos> <|x|>", "")
ROWS = [Row(str(at), text) for at, text in enumerate(TEXTS)]
# Nothing is left out, except where a test says so.
answer = partial(predict.answer, prune=0.0)


def classifier(
    arm: str, labels: Sequence[str] = AWKWARD, name: str = "llama", limit: int = 6, template: str | None = None
) -> Classifier:
    task = Task("t", "Which?", tuple(labels))
    tokenizer = tiny.byte_level(tiny.TURNS, template, end="<|im_end|>" if template else "<eos>")
    prompt = render(tokenizer, task_instruction(task) if len(labels) < 20 else "Which?")
    encoder = make_encoder(tokenizer, replace(prompt, limit=limit))
    return Classifier(bind(tiny.model(name), encoder), task, arm, {})


def token_by_token(model: Any, head: Sequence[int], tail: Sequence[int]) -> float:
    """Multiply the probabilities of `tail` behind `head`, each from a forward pass of its own."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    total, ids = 0.0, list(head)
    with torch.no_grad():
        for token in tail:
            logits = plain(input_ids=torch.tensor([ids])).logits[0, -1].double()
            total += float(torch.log_softmax(logits, -1)[token])
            ids.append(token)
    return math.exp(total)


def by_hand(c: Classifier, text: str, answered: str, follows: Sequence[str]) -> dict[str, float]:
    """Probabilities of the labels behind a prompt and `answered`, normalised over the labels."""
    encoder = c.lm.encoder
    head = [
        *prompt_ids(encoder, ("", text, ""))[0],
        *(i for part in answered.split("|") for i in text_ids(encoder, part)),
    ]
    found = {}
    for label in c.task.labels:
        tails = [[*text_ids(encoder, f" {label}"), text_ids(encoder, f)[0] if f else encoder.end] for f in follows]
        found[label] = sum(token_by_token(c.lm.model, head, tail) for tail in tails)
    return {label: p / sum(found.values()) for label, p in found.items()}


def assert_close(found: Prediction, wanted: dict[str, float]) -> None:
    assert found.probabilities == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert list(found.probabilities) == list(wanted)
    assert found.label == max(wanted, key=lambda label: wanted[label])
    assert sum(found.probabilities.values()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "mistral", "bloom", "mamba"])
def test_scores_are_products_of_token_probabilities(name: str) -> None:
    c = classifier("label_only", name=name)
    for row, found in zip(ROWS[:2], answer(c, ROWS[:2], "label"), strict=True):
        assert_close(found, by_hand(c, row.text, "Label:", [""]))


@pytest.mark.parametrize("template", [None, tiny.QWEN3])
def test_every_text_and_template(template: str | None) -> None:
    c = classifier("label_only", template=template)
    for row, found in zip(ROWS, answer(c, ROWS, "label"), strict=True):
        assert_close(found, by_hand(c, row.text, "Label:", [""]))


def test_a_label_before_its_reasoning_may_be_followed_by_the_end_or_by_the_reasonings_cue() -> None:
    c = classifier("label_then_reason")
    found = answer(c, ROWS, "label")
    for row, one in zip(ROWS, found, strict=True):
        assert_close(one, by_hand(c, row.text, "Label:", ["", "\nReasoning:"]))
    only_end = by_hand(c, TEXTS[0], "Label:", [""])
    assert found[0].probabilities != pytest.approx(only_end, rel=1e-3)


def test_a_label_that_begins_another_is_scored_with_what_ends_it() -> None:
    c = classifier("label_only", ("yes", "yes and no"))
    for found in answer(c, ROWS, "label"):
        assert 0 < found.probabilities["yes"] < 1, "without its end `yes` would always be the likelier one"


def test_a_hundred_and_fifty_labels() -> None:
    labels = [f"intent {at // 10} of kind {at % 10}" for at in range(150)]
    c = classifier("label_only", labels)
    found = answer(c, ROWS[:1], "label")[0]
    some = replace(c, task=replace(c.task, labels=tuple(labels[::40])))
    wanted = by_hand(some, TEXTS[0], "Label:", [""])
    shares = {label: found.probabilities[label] for label in wanted}
    assert {label: p / sum(shares.values()) for label, p in shares.items()} == pytest.approx(wanted, rel=1e-4)
    assert len(found.probabilities) == 150 and sum(found.probabilities.values()) == pytest.approx(1.0)
    # The labels share a trie: no label's tokens and no prompt are computed twice.
    heads = len(prompt_ids(c.lm.encoder, ("", TEXTS[0], ""))[0]) + len(text_ids(c.lm.encoder, "Label:"))
    tokens = [tuple(text_ids(c.lm.encoder, f" {label}")) for label in labels]
    assert found.tokens == heads + len({t[:n] for t in tokens for n in range(1, len(t) + 1)})


# What a label may be, and what trips whoever tokenizes, parses or strips: prefixes, digits, marks, other scripts.
word = st.sampled_from([*AWKWARD, "n", "nu", "no one", "yes and", "<e", "Reasoning", "e\u0301", "🙂🙂", "مرحبا"])
a_label = (word | st.text(max_size=6) | st.tuples(word, word).map(" ".join)).filter(lambda text: not label_fault(text))


def row_by_row(c: Classifier, text: str) -> dict[str, float]:
    """Probabilities of the labels from one forward pass of transformers a label, without a tree, a trie or a cache."""
    encoder, plain = c.lm.encoder, copy.deepcopy(c.lm.model)
    plain.set_attn_implementation("eager")
    head = [*prompt_ids(encoder, ("", text, ""))[0], *text_ids(encoder, "Label:")]
    sums = []
    for label in c.task.labels:
        tail = [*text_ids(encoder, f" {label}"), encoder.end]
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([head + tail])).logits[0].double()
        read = torch.log_softmax(logits[len(head) - 1 : -1], -1)
        sums.append(read.gather(1, torch.tensor(tail)[:, None]).sum())
    shares = torch.softmax(torch.stack(sums), 0).tolist()
    return dict(zip(c.task.labels, shares, strict=True))


@settings(deadline=None, max_examples=30)
@drawn(
    st.lists(a_label, min_size=2, max_size=7, unique=True), st.sampled_from(TEXTS), st.sampled_from(["llama", "gemma3"])
)
def test_any_set_of_labels_is_scored_as_transformers_would(labels: list[str], text: str, name: str) -> None:
    c = classifier("label_only", labels, name)
    found, pruned = (answer(c, [Row("r", text)], "label", prune=prune)[0] for prune in (0.0, PRUNE))
    wanted = row_by_row(c, text)
    assert found.probabilities == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert list(found.probabilities) == labels
    assert wanted[pruned.label] == pytest.approx(max(wanted.values()), rel=1e-4)


def test_a_hundred_and_fifty_labels_are_scored_as_transformers_would() -> None:
    scripts = ("intent {}", "意図 {}", "намерение {}", "{}", "no {}")
    labels = [scripts[at % 5].format(at // 5) for at in range(150)]
    c = classifier("label_only", labels)
    assert answer(c, ROWS[:1], "label")[0].probabilities == pytest.approx(row_by_row(c, TEXTS[0]), rel=1e-4, abs=1e-12)


def confident(name: str) -> Classifier:
    """A model whose labels differ by orders of magnitude, so that there is something to leave out."""
    c = classifier("label_only", (*AWKWARD, "yes and maybe", "yes and no and both"), name)
    with torch.no_grad():
        c.lm.model.get_output_embeddings().weight.mul_(4.0)
    return c


@pytest.mark.parametrize("prune", [1.0, 0.3, 1e-2, PRUNE, 1e-9])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "mamba"])
def test_pruning_finds_the_best_label_and_bounds_what_it_leaves_out(name: str, prune: float) -> None:
    c = confident(name)
    whole, found = answer(c, ROWS, "label"), answer(c, ROWS, "label", prune=prune)
    for exact, one in zip(whole, found, strict=True):
        assert one.label == exact.label and exact.pruned == 0.0
        left = [label for label, p in one.probabilities.items() if p == 0]
        assert sum(exact.probabilities[label] for label in left) <= one.pruned * (1 + 1e-4)
        assert one.pruned <= prune * len(c.task.labels)
        kept = {label: p for label, p in exact.probabilities.items() if label not in left}
        assert {label: one.probabilities[label] for label in kept} == pytest.approx(
            {label: p / sum(kept.values()) for label, p in kept.items()}, rel=1e-3
        )
    spared = sum(p.tokens for p in whole) - sum(p.tokens for p in found)
    assert spared > 0 if prune >= PRUNE else spared >= 0
    assert any(0 in one.probabilities.values() for one in found) or prune < PRUNE


def test_pruning_is_alike_in_every_batch() -> None:
    c = confident("llama")
    together = answer(c, ROWS, "label", prune=1e-2)
    for row, one in zip(ROWS, together, strict=True):
        alone = answer(c, [row], "label", prune=1e-2)[0]
        assert one.probabilities == pytest.approx(alone.probabilities, rel=1e-4)
        assert one.pruned == pytest.approx(alone.pruned, rel=1e-3, abs=1e-12)


def test_choices_of_a_row_take_the_place_of_the_labels() -> None:
    c = classifier("label_only", ())
    rows = [Row("a", TEXTS[0], choices=("yes", "no", "NA")), Row("b", TEXTS[1], choices=("12", "1"))]
    found = answer(c, rows, "label")
    for row, one in zip(rows, found, strict=True):
        asked = replace(c, task=replace(c.task, labels=row.choices or ()))
        seen = row.text + "\n" + "\n".join(f"- {choice}" for choice in row.choices or ())
        assert_close(one, by_hand(asked, seen, "Label:", [""]))


@pytest.mark.parametrize(
    ("arm", "mode"), [("label_only", "label"), ("reason_then_label", "reason"), ("both", "reason")]
)
@pytest.mark.parametrize("budget", [1, 90, 4096])
def test_a_batch_of_unequal_prompts_equals_one_by_one(arm: str, mode: str, budget: int) -> None:
    c = classifier(arm, ("yes", "yes and no", "no"))
    together = answer(c, ROWS, mode, budget)
    for row, found in zip(ROWS, together, strict=True):
        alone = answer(c, [row], mode)[0]
        assert found.probabilities == pytest.approx(alone.probabilities, rel=1e-4)
        assert (found.label, found.reasoning, found.forced) == (alone.label, alone.reasoning, alone.forced)


def given(monkeypatch: pytest.MonkeyPatch, c: Classifier, *texts: str, ended: bool = True) -> None:
    """Let the model have written these texts."""
    ids = tuple(tuple(text_ids(c.lm.encoder, text)) for text in texts)
    rows = tuple(range(len(texts)))

    def write(reading: Any, _drawn: Any, _rules: Any, leave: Callable[[Leaving], None]) -> None:
        leave(Leaving(rows, ids, (ended,) * len(rows), reading.spent, lambda: reading.part(rows)))

    monkeypatch.setattr(predict.modes, "write", write)


def test_the_label_is_scored_behind_the_rows_own_reasoning(monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier("reason_then_label", ("yes", "no", "NA"))
    rows = [ROWS[0], replace(ROWS[0], id="twin")]
    first, second = " nobody calls.", " the birds\nsing "
    given(monkeypatch, c, f"{first}\nLabel: yes", f"{second}\nLabel:")
    found = answer(c, rows, "reason")
    given(monkeypatch, c, f"{second}\nLabel:", f"{first}\nLabel:")
    swapped = answer(c, rows, "reason")
    assert [p.reasoning for p in found] == ["nobody calls.", "the birds sing"]
    assert found[0].probabilities != pytest.approx(found[1].probabilities, rel=1e-2)
    assert swapped[0].probabilities == pytest.approx(found[1].probabilities, rel=1e-4)
    assert swapped[1].probabilities == pytest.approx(found[0].probabilities, rel=1e-4)
    for prediction, reasoning in zip(found, ("nobody calls.", "the birds sing"), strict=True):
        assert_close(prediction, by_hand(c, TEXTS[0], f"Reasoning:| {reasoning}|\nLabel:", [""]))
        assert (prediction.forced, prediction.strict) == (False, prediction.label)


def test_a_reasoning_that_met_its_limit_is_forced_and_has_no_strict_label(monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier("reason_then_label", ("yes", "no"))
    given(monkeypatch, c, " on and on", ended=False)
    found = answer(c, ROWS[:1], "reason")[0]
    assert (found.forced, found.strict, found.reasoning) == (True, None, "on and on")
    assert_close(found, by_hand(c, TEXTS[0], "Reasoning:| on and on|\nLabel:", [""]))


def test_writing_stops_at_the_cue(monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier("reason_then_label", ("yes", "no"))
    seen: list[Any] = []
    write = predict.modes.write
    monkeypatch.setattr(predict.modes, "write", lambda *a: seen.extend([a[0].path(0), *a[1:3]]) or write(*a))
    answer(c, ROWS[:1], "reason")
    path, drawn, rules = seen
    assert len(drawn[0]) == 6 and rules.ends == {c.lm.encoder.end} and rules.forbidden == c.lm.encoder.controls
    for text, wanted in ((" so.\nLabel:", True), (" so.\nLabel", False), ("so: ", False), (" the Label: is", False)):
        assert rules.stop(text_ids(c.lm.encoder, text)) is wanted, text
    assert path.tolist() == [
        *prompt_ids(c.lm.encoder, ("", TEXTS[0], ""))[0],
        *text_ids(c.lm.encoder, "Reasoning:"),
    ]


def test_an_explanation_is_written_behind_the_predicted_label(monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier("label_then_reason", ("yes", "no", "NA"))
    asked: dict[str, list[int]] = {}

    def write(reading: Any, drawn: Any, _rules: Any, leave: Callable[[Leaving], None]) -> None:
        because = tuple(text_ids(c.lm.encoder, " because\nof it "))
        for at in range(len(drawn)):
            path = reading.path(at).tolist()
            asked[decode(c.lm.encoder, path)] = path
            ended = (TEXTS[0] in decode(c.lm.encoder, path),)
            leave(Leaving((at,), (because,), ended, reading.spent[[at]], partial(reading.part, [at])))

    monkeypatch.setattr(predict.modes, "write", write)
    found = answer(c, ROWS[:2], "explain")
    scored = answer(c, ROWS[:2], "label")
    for row, one, label in zip(ROWS, found, scored, strict=False):
        parts = ("Label:", f" {one.label}", "\nReasoning:")
        written = [i for part in parts for i in text_ids(c.lm.encoder, part)]
        path = [*prompt_ids(c.lm.encoder, ("", row.text, ""))[0], *written]
        assert asked[decode(c.lm.encoder, path)] == path
        assert one.probabilities == label.probabilities and one.reasoning == "because of it"
        behind = len(written) - len(text_ids(c.lm.encoder, "Label:"))
        assert one.tokens == pytest.approx(label.tokens + behind), "the prompt is not read again"
    assert [one.forced for one in found] == [False, True]


@pytest.mark.parametrize("arm", ["reason_then_label", "both"])
def test_a_vote_is_the_mean_over_sampled_reasonings(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier(arm, ("yes", "no", "NA"))
    wrote: dict[str, list[str]] = {}
    write = predict.modes.write

    def seen(reading: Any, drawn: Any, rules: Any, leave: Callable[[Leaving], None]) -> None:
        assert rules.sampling.temperature > 0
        begins = [decode(c.lm.encoder, reading.path(at).tolist()) for at in range(len(drawn))]
        texts = [""] * len(drawn)

        def note(gone: Leaving) -> None:
            for row, ids in zip(gone.rows, gone.ids, strict=True):
                texts[row] = decode(c.lm.encoder, ids).partition("Label:")[0]
            leave(gone)

        write(reading, drawn, rules, note)
        for begin, text in zip(begins, texts, strict=True):
            wrote.setdefault(begin, []).append(text)

    with monkeypatch.context() as patch:
        patch.setattr(predict.modes, "write", seen)
        found = answer(c, ROWS[:2], "vote")
    assert all(len(texts) == predict.modes.VOTES for texts in wrote.values()) and len(wrote) == 2
    assert len({text for texts in wrote.values() for text in texts}) > 2
    for at, one in enumerate(found):
        texts = next(texts for begin, texts in wrote.items() if ROWS[at].text in begin)
        own = [" ".join(text.split()) for text in texts]
        each = [by_hand(c, ROWS[at].text, f"Reasoning:| {text}|\nLabel:", [""]) for text in own]
        assert_close(one, {label: sum(p[label] for p in each) / len(each) for label in each[0]})
        support = [p[one.label] for p in each]
        assert one.reasoning == own[support.index(max(support))]
    again = answer(c, [replace(row, id="another") for row in ROWS[1::-1]], "vote", 1)
    assert [one.reasoning for one in again] == [one.reasoning for one in found[::-1]], "the text decides what is drawn"
    once = answer(c, ROWS[:1], "reason")[0].tokens
    prompt = len(prompt_ids(c.lm.encoder, ("", TEXTS[0], ""))[0])
    assert once < found[0].tokens < predict.modes.VOTES * (once - prompt) + prompt + predict.modes.VOTES * 8


def test_an_ensemble_is_the_mean_of_label_and_reason() -> None:
    c = classifier("both", ("yes", "no", "NA"))
    label, reason, found = (answer(c, ROWS, mode) for mode in ("label", "reason", "ensemble"))
    for one, two, both in zip(label, reason, found, strict=True):
        assert_close(
            both, {name: (one.probabilities[name] + two.probabilities[name]) / 2 for name in one.probabilities}
        )
        assert (both.reasoning, both.forced, both.strict) == (two.reasoning, two.forced, two.strict)
    twice = sum(p.tokens for p in (*label, *reason)) - sum(p.tokens for p in found)
    heads = [prompt_ids(c.lm.encoder, ("", row.text, ""))[0] for row in ROWS]
    # What all rows share is a little shorter where the cue behind it differs.
    shared = min(common(np.array(heads[0]), np.array(head)) for head in heads)
    assert twice == pytest.approx(shared + sum(len(head) - shared for head in heads), abs=1), "prompts are read once"


def test_adaptive_reasons_about_the_rows_whose_calibrated_label_is_unsure() -> None:
    c = replace(classifier("both", ("yes", "no", "NA")), temperatures={"label": 0.4})
    label, reason = answer(c, ROWS, "label"), answer(c, ROWS, "reason")
    sure = predict.confidence(predict.calibrated(c, label, "label"))
    raw = predict.confidence(label)
    assert np.abs(sure - raw).min() > 1e-4
    threshold = float(np.sort(sure)[1:3].mean())
    assert not np.array_equal(sure < threshold, raw < threshold), "the temperature decides who is sure"
    for asked, unsure in ((threshold, sure < threshold), (0.0, sure < 0), (2.0, sure < 2)):
        found = answer(replace(c, threshold=asked), ROWS, "adaptive")
        for at, one in enumerate(found):
            chosen = reason[at] if unsure[at] else label[at]
            assert one.probabilities == pytest.approx(chosen.probabilities, rel=1e-4)
            assert (one.label, one.reasoning) == (chosen.label, chosen.reasoning)
            assert (one.tokens > label[at].tokens) == unsure[at]
    with pytest.raises(RequestError, match="'adaptive' needs a threshold, which `saywhy run` chooses on dev rows"):
        answer(c, ROWS, "adaptive")


def test_the_mean_of_answers_reads_strictly_what_most_of_them_say() -> None:
    def said(label: str, strict: str | None, p: float, reasoning: str | None) -> Prediction:
        return Prediction(label, {"a": p, "b": 1 - p}, reasoning, 2.0, strict is None, strict)

    found = predict.mean([said("a", None, 0.9, "one"), said("b", "b", 0.4, "two"), said("b", "b", 0.45, "three")])
    assert found == Prediction("a", found.probabilities, "one", 6.0, False, "b")
    assert found.probabilities["a"] == pytest.approx((0.9 + 0.4 + 0.45) / 3)
    left_out = [replace(said("a", "a", 0.9, None), pruned=share) for share in (0.01, 0.03)]
    assert predict.mean(left_out).pruned == pytest.approx(0.02)
    assert (
        predict.mean([said("a", None, 0.9, None)]).forced
        and predict.mean([said("a", "a", 0.9, None)]).reasoning is None
    )


def test_a_rating_is_expected_after_the_temperature() -> None:
    c = classifier("label_only", ("1", "2", "12"))
    told = Prediction("2", {"1": 0.2, "2": 0.5, "12": 0.3})
    plain, scale = replace(c, temperatures={"label": 2.0}), replace(c.task, ordinal=True)
    assert next(predict.calibrated(plain, [told], "label")).expected is None
    found = next(predict.calibrated(replace(plain, task=scale), [told], "label"))
    powers = np.array([0.2, 0.5, 0.3]) ** 0.5
    assert found.expected == pytest.approx(powers @ [1, 2, 12] / powers.sum())
    words = replace(scale, labels=("bad", "fair", "good"))
    named = Prediction("fair", {"bad": 0.2, "fair": 0.5, "good": 0.3})
    assert next(predict.calibrated(replace(c, task=words), [named], "label")).expected == pytest.approx(2.1)


def test_an_answer_abstains_where_its_calibrated_label_is_less_likely_than_asked() -> None:
    c = replace(classifier("both", ("yes", "no")), temperatures={"label": 2.0}, abstain_below={"label": 0.7})
    told = Prediction("yes", {"yes": 0.8, "no": 0.2})
    # At a temperature of 2 it is two thirds likely, in the mode reason four fifths.
    cases = (("label", None, True), ("explain", None, True), ("reason", None, False), ("label", 0.6, False),
             ("label", 0.0, False), ("label", 0.667, True), ("reason", 0.8, False), ("reason", 0.81, True))  # fmt: skip
    for mode, below, abstained in cases:
        found = next(predict.calibrated(c, [told], mode, below))
        assert (found.abstained, found.label) == (abstained, "yes"), (mode, below)


def test_a_mode_that_was_not_taught_is_refused_with_those_that_were() -> None:
    with pytest.raises(RequestError, match="mode 'reason' was not taught to label_then_reason; it has label, explain"):
        answer(classifier("label_then_reason"), ROWS, "reason")


def test_rows_are_answered_in_order_however_many_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier("label_only", ("yes", "no"))
    wanted = answer(c, ROWS, "label")
    monkeypatch.setattr(predict.modes, "ROWS_AT_ONCE", 2)
    found = answer(c, ROWS, "label")
    np.testing.assert_allclose(
        [[p.probabilities[label] for label in ("yes", "no")] for p in found],
        [[p.probabilities[label] for label in ("yes", "no")] for p in wanted],
        rtol=1e-4,
    )


def test_what_nothing_branches_off_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    c = classifier("label_only", ("so many words in one label that they take a dozen tokens", "no"))
    passes: list[int] = []
    look = Reading.look
    monkeypatch.setattr(Reading, "look", lambda self, ids, *rest: passes.append(ids.shape[1]) or look(self, ids, *rest))
    answer(c, ROWS[:1], "label")
    longest = max(len(text_ids(c.lm.encoder, f" {label}")) for label in c.task.labels)
    assert longest > 10 and len(passes) == 1 and passes[0] >= longest


@pytest.mark.parametrize("prune", [0.0, 1e-2])
def test_few_nodes_are_read_in_one_pass_and_looked_at_as_ever(prune: float, monkeypatch: pytest.MonkeyPatch) -> None:
    c = confident("llama")
    monkeypatch.setattr(score, "FEW_TOKENS", 1000)
    passes: list[int] = []
    look = Reading.look
    monkeypatch.setattr(Reading, "look", lambda self, ids, *rest: passes.append(ids.shape[1]) or look(self, ids, *rest))
    together = answer(c, ROWS[:1], "label", prune=prune)[0]
    assert len(passes) == 1
    monkeypatch.setattr(score, "FEW_TOKENS", 0)
    level_by_level = answer(c, ROWS[:1], "label", prune=prune)[0]
    assert len(passes) > 2 and passes[0] > max(passes[1:])
    assert together.probabilities == pytest.approx(level_by_level.probabilities, rel=1e-4)
    assert together.pruned == pytest.approx(level_by_level.pruned, rel=1e-3, abs=1e-12)
    assert (together.pruned > 0) == (prune > 0) and together.tokens >= level_by_level.tokens


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba"])
def test_a_row_whose_answers_are_read_costs_nothing_more(name: str) -> None:
    model = tiny.model(name)
    paths = [np.array([5, 6, 7]), np.array([5, 6, 8, 9])]
    deep = score.trie_of([[[5, 6, 7]], [[5, 8, 9]], [[6, 5, 5]]])
    trunk = read_trunk(model, [5]) if name != "mamba" else None
    both = open_reading(model, trunk, paths)
    found = score.score(both, [score.trie_of([[[5]], [[6]]]), deep], 0)
    for row, trie in ((0, score.trie_of([[[5]], [[6]]])), (1, deep)):
        alone = open_reading(model, trunk, [paths[row]])
        np.testing.assert_allclose(found.log_probs[row], score.score(alone, [trie], 0).log_probs[0], atol=1e-5)
        assert both.spent[row] == alone.spent[0]
