"""Writing: greedy as transformers writes row by row, sampled as the distribution says, alike in every batch."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as each
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, LlamaConfig

import tiny
from saywhy.config import Sampling as SamplingConfig
from saywhy.lm import bind, generate
from saywhy.lm.cache import Reading, open_reading, read_trunk, shared_by
from saywhy.lm.encode import decode, make_encoder, prompt_ids, render, text_ids
from saywhy.lm.generate import Asked, Rules, Sampling, Written, draws
from saywhy.prompts import reasoner_pieces
from saywhy.teachers import Draft, Question, Teacher, given, local

LIMIT = 10
NOTHING: frozenset[int] = frozenset()
# One token in five ends a text, so that rows finish one after another.
ENDS = frozenset(range(2, tiny.VOCABULARY, 5))
GREEDY = Sampling()
WARM = Sampling(temperature=1.3, top_p=0.9)
ROOMY = 10**6


def prompts(shared: int, count: int = 7, seed: int = 3, limit: int = LIMIT) -> list[Asked]:
    draw = np.random.default_rng(seed)
    trunk = draw.integers(3, tiny.VOCABULARY, shared)
    own = [draw.integers(3, tiny.VOCABULARY, 1 + 3 * at % 17) for at in range(count)]
    return [Asked(np.concatenate([trunk, ids]), draws(limit, seed, at)) for at, ids in enumerate(own)]


def write(
    model: Any, asked: Sequence[Asked], sampling: Sampling = GREEDY, budget: int = ROOMY, padded: bool = True
) -> list[Written]:
    return generate.generate(model, asked, Rules(ENDS, frozenset([0, 1, 2, 4]), sampling), budget, padded)


def texts(written: Sequence[Written]) -> list[tuple[tuple[int, ...], bool]]:
    return [(one.ids, one.ended) for one in written]


def by_transformers(model: Any, asked: Sequence[Asked]) -> list[tuple[tuple[int, ...], bool]]:
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    found = []
    for one in asked:
        ids = plain.generate(
            torch.from_numpy(one.ids)[None],
            attention_mask=torch.ones((1, len(one.ids)), dtype=torch.long),
            max_new_tokens=len(one.draws),
            do_sample=False,
            eos_token_id=sorted(ENDS),
            pad_token_id=0,
            suppress_tokens=[0, 1, 4],
            use_cache=True,
        )[0, len(one.ids) :].tolist()
        ended = ids[-1] in ENDS
        found.append((tuple(ids[:-1] if ended else ids), ended))
    return found


@pytest.mark.parametrize("shared", [0, 1, 9])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_greedy_is_what_transformers_writes_row_by_row(name: str, shared: int) -> None:
    model, asked = tiny.model(name), prompts(shared)
    wanted = by_transformers(model, asked)
    assert texts(write(model, asked)) == wanted
    assert texts(write(model, asked[:1])) == wanted[:1]
    assert max(len(one.ids) for one in asked) > tiny.WINDOW, "the window is shorter than a prompt"
    assert len({len(ids) for ids, _ in wanted}) > 1, "rows finish one after another"


@pytest.mark.parametrize("name", tiny.STATEFUL)
def test_models_that_read_no_mask_of_ours_are_written_one_by_one(name: str) -> None:
    model, asked = tiny.model(name), prompts(0, 4)
    assert texts(write(model, asked, padded=False)) == by_transformers(model, asked)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "mistral"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_batch_order_and_budget_change_nothing(name: str, sampling: Sampling) -> None:
    model, asked = tiny.model(name), prompts(4, 9)
    one_by_one = [texts(write(model, [one], sampling))[0] for one in asked]
    assert texts(write(model, asked, sampling)) == one_by_one
    assert texts(write(model, asked[::-1], sampling)) == one_by_one[::-1]
    for budget in (1, 70):
        assert texts(write(model, asked, sampling, budget)) == one_by_one


@pytest.mark.parametrize("leave_at", [0.0, 2.0])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_that_leave_the_batch_change_nothing(name: str, leave_at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny.model(name), prompts(3, 8)
    wanted = texts(write(model, asked, WARM))
    sizes: list[int] = []
    step = Reading.step
    monkeypatch.setattr(Reading, "step", lambda self, ids: sizes.append(len(ids)) or step(self, ids))
    monkeypatch.setattr(generate, "LEAVE_AT", leave_at)
    assert texts(write(model, asked, WARM)) == wanted
    assert set(sizes) == {8} if leave_at == 2.0 else min(sizes) < 8


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_a_batch_that_outgrows_its_budget_goes_on_in_halves(
    name: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = tiny.model(name), prompts(4, 9)
    wanted = texts(write(model, asked, sampling))
    held: list[tuple[int, int]] = []
    step = Reading.step
    monkeypatch.setattr(Reading, "step", lambda self, ids: held.append((len(ids), self.held)) or step(self, ids))
    monkeypatch.setattr(generate, "EXPECTED", 0.0)
    for budget in (60, 120):
        assert texts(write(model, asked, sampling, budget)) == wanted
        assert all(rows == 1 or tokens <= budget for rows, tokens in held)
    # Without an end every row takes all its steps, once.
    held.clear()
    reading = open_reading(model, read_trunk(model, shared_by([one.ids for one in asked])), [one.ids for one in asked])
    gone: list[int] = []
    rules = Rules(NOTHING, NOTHING, sampling)
    generate.write(reading, [one.draws for one in asked], rules, lambda rows: gone.extend(rows.rows), 60)
    assert sorted(gone) == list(range(9))
    assert len(held) > LIMIT and sum(rows for rows, _ in held) == 9 * (LIMIT - 1)


def test_unequal_limits_are_each_kept() -> None:
    model = tiny.model("llama")
    asked = [replace(one, draws=one.draws[:n]) for one, n in zip(prompts(2), (0, 1, 2, 5, 9, 3, 10), strict=True)]
    found = generate.generate(model, asked, Rules(NOTHING, NOTHING), ROOMY)
    assert [len(one.ids) for one in found] == [0, 1, 2, 5, 9, 3, 10]
    assert not any(one.ended for one in found)
    longer = generate.generate(model, prompts(2), Rules(NOTHING, NOTHING), ROOMY)
    assert [one.ids for one in found] == [more.ids[: len(one.draws)] for one, more in zip(asked, longer, strict=True)]


def test_a_stop_ends_a_text_and_keeps_what_it_saw() -> None:
    model, asked = tiny.model("llama"), prompts(2)
    free = generate.generate(model, asked, Rules(NOTHING, NOTHING), ROOMY)
    found = generate.generate(model, asked, Rules(NOTHING, NOTHING, GREEDY, lambda ids: sum(ids) % 3 == 0), ROOMY)
    for one, more in zip(found, free, strict=True):
        stops = [n for n in range(1, LIMIT + 1) if sum(more.ids[:n]) % 3 == 0]
        assert (one.ids, one.ended) == (more.ids[: stops[0]] if stops else more.ids, bool(stops))
    assert len({len(one.ids) for one in found}) > 2


def test_tokens_count_the_shared_prompt_once() -> None:
    asked = prompts(9, 5)
    found = write(tiny.model("llama"), asked)
    own = sum(len(one.ids) - 9 for one in asked)
    # The last token of a text is read only where an end token was drawn behind it.
    read = sum(len(one.ids) - (len(one.ids) == LIMIT) for one in found)
    assert sum(one.tokens for one in found) == pytest.approx(9 + own + read)
    assert len({len(one.ids) for one in found}) > 1


def test_forbidden_tokens_are_never_written() -> None:
    model = tiny.model("llama")
    allowed = {7, 8, 9}
    forbidden = frozenset(range(tiny.VOCABULARY)) - allowed
    for sampling in (GREEDY, Sampling(2.0, 1.0), Sampling(0.7, 0.5)):
        for one in generate.generate(model, prompts(2), Rules(frozenset([8]), forbidden, sampling), ROOMY):
            assert set(one.ids) <= {7, 9}
    # The end is a control token too, and may yet be written.
    closing = generate.generate(model, prompts(2), Rules(frozenset([8]), forbidden | {8, 9}, Sampling(2.0)), ROOMY)
    assert any(one.ended for one in closing) and all(set(one.ids) <= {7} for one in closing)
    certain = [replace(one, draws=np.full(LIMIT, np.nextafter(1.0, 0.0))) for one in prompts(2)]
    for one in generate.generate(model, certain, Rules(NOTHING, forbidden, Sampling(1.0, 1.0)), ROOMY):
        assert set(one.ids) <= allowed, "the last draw before 1 must not fall off the end of the distribution"


def test_draws_depend_on_their_key_alone() -> None:
    assert draws(5, 0, "row", 1).tolist() == draws(5, 0, "row", 1).tolist()
    assert draws(3, 0, "row", 1).tolist() == draws(5, 0, "row", 1)[:3].tolist()
    keys = [(0, "row", 1), (0, "row", 2), (1, "row", 1), (0, "row1", ""), (0, "ro", "w1")]
    assert len({tuple(draws(3, *key)) for key in keys}) == len(keys)
    many = draws(4000, "uniform")
    assert many.min() >= 0 and many.max() < 1
    assert chisquare(np.histogram(many, 20, (0, 1))[0]).pvalue > 1e-3


def small_vocabulary() -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(**{**tiny.SMALL, "vocab_size": 12, "initializer_range": 0.2})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8), (2.0, 0.5), (1.0, 1e-9)])
def test_sampling_follows_the_distribution(temperature: float, top_p: float) -> None:
    model, ids, n = small_vocabulary(), np.array([3, 4, 5]), 3000
    asked = [Asked(ids, draws(1, "draw", at)) for at in range(n)]
    found = generate.generate(model, asked, Rules(NOTHING, NOTHING, Sampling(temperature, top_p)), ROOMY)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].double()
    chance = torch.softmax(logits / temperature, -1).tolist()
    kept, mass = [], 0.0
    for token in sorted(range(12), key=lambda token: -chance[token]):
        if mass < top_p:
            kept.append(token)
        mass += chance[token]
    counts = Counter(one.ids[0] for one in found)
    assert set(counts) <= set(kept)
    expected = np.array([chance[token] for token in kept])
    if len(kept) == 1:
        assert counts[kept[0]] == n
    else:
        assert chisquare([counts[t] for t in kept], n * expected / expected.sum()).pvalue > 1e-3
    assert (len(kept) == 1) == (top_p == 1e-9) and (len(kept) == 12) == (top_p == 1.0)


@each(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(1, 40),
    levels=st.sampled_from([2, 5, 1000]),
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    top_p=st.sampled_from([1e-9, 0.3, 0.5, 0.9, 0.95, 1.0]),
    few=st.sampled_from([(1,), (4,), (2, 8), (3, 5, 20)]),
)
def test_a_few_likely_tokens_give_the_draw_that_all_give(
    seed: int, vocabulary: int, levels: int, temperature: float, top_p: float, few: tuple[int, ...]
) -> None:
    draw = np.random.default_rng(seed)
    # Few levels make many tokens equally likely.
    logits = torch.from_numpy(draw.integers(0, levels, (6, vocabulary)) * (8.0 / levels)).float()
    none = torch.tensor([], dtype=torch.long)
    spots = [0.0, np.nextafter(1.0, 0.0), *draw.random(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "FEW", ())
        wanted = generate._draw(logits.clone(), none, Sampling(temperature, top_p), spots)
        patch.setattr(generate, "FEW", few)
        found = generate._draw(logits.clone(), none, Sampling(temperature, top_p), spots)
    assert found.tolist() == wanted.tolist()


def test_few_tokens_are_sorted_where_they_hold_the_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int]] = []
    among = generate._among
    monkeypatch.setattr(
        generate,
        "_among",
        lambda chance, count, *rest: counts.append((len(chance), count)) or among(chance, count, *rest),
    )
    monkeypatch.setattr(generate, "FEW", (3,))
    logits = torch.zeros((2, 50))
    logits[0, 7] = 20.0
    generate._draw(logits, torch.tensor([], dtype=torch.long), Sampling(1.0, 0.9), [0.5, 0.5])
    assert counts == [(2, 3), (1, 50)], "only the row that needs it is sorted whole"


def teacher_model() -> Any:
    tokenizer = tiny.byte_level(tiny.TURNS, tiny.CHATML, end="<|im_end|>")
    return bind(tiny.model("llama"), make_encoder(tokenizer, render(tokenizer, "Explain.")))


QUESTIONS = [
    Question(str(at), reasoner_pieces(text, "joy"), index)
    for at, text in enumerate(["so alone", "a lovely morning and the birds are singing", "7"])
    for index in range(2)
]
HOT = SamplingConfig(temperature=1.0, top_p=0.95, max_tokens=12)


def told(teacher: Teacher, questions: Sequence[Question]) -> list[Draft]:
    """All drafts in the order of their questions, without the time they took."""
    found = {at: replace(draft, seconds=0.0) for at, draft in teacher(questions)}
    return [found[at] for at in range(len(questions))]


def test_a_teacher_writes_the_same_whatever_it_is_asked_with_and_no_control_token() -> None:
    lm = teacher_model()
    together = told(local(lm, HOT, 0, ROOMY), QUESTIONS)
    assert [told(local(lm, HOT, 0, 1), [q])[0] for q in QUESTIONS] == together
    assert told(local(lm, HOT, 0, 60), QUESTIONS[::-1])[::-1] == together
    assert told(local(lm, HOT, 1, ROOMY), QUESTIONS) != together
    assert together[0] != together[1], "two candidates of one row are drawn apart"
    for draft in together:
        assert "<|im" not in draft.reasoning
        assert draft.tokens <= 12 and draft.cut == (draft.tokens == 12)
        assert draft.reasoning == " ".join(draft.reasoning.split())


def test_a_teacher_is_asked_with_question_answer_and_cue(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = teacher_model()
    seen: list[Any] = []

    def record(*arguments: Any) -> Iterator[list[tuple[int, Written]]]:
        seen.extend(arguments)
        yield [(0, Written(tuple(text_ids(lm.encoder, " it is\n so ")), False, 1.0))]

    monkeypatch.setattr("saywhy.teachers.models.generate_each", record)
    draft = told(local(lm, HOT, 0, 77), QUESTIONS[:1])[0]
    assert (draft.reasoning, draft.cut) == ("it is so", True)
    _, asked, rules, budget, padded = seen
    head, _ = prompt_ids(lm.encoder, ("", "Question: so alone\nAnswer: joy", ""))
    assert decode(lm.encoder, asked[0].ids.tolist()[len(head) :]) == "Reasoning:"
    assert asked[0].draws.tolist() == draws(12, 0, "0", 0).tolist()
    assert rules == Rules(frozenset([lm.encoder.end]), lm.encoder.controls, Sampling(1.0, 0.95))
    assert (budget, padded) == (77, True)


def test_given_reasonings_are_one_paragraph_each() -> None:
    found = told(given({"0": " why\n\nso ", "2": "x"}), [QUESTIONS[0], QUESTIONS[2]])
    assert [draft.reasoning for draft in found] == ["why so", ""]
    assert not math.isnan(found[0].tokens) and not found[0].cut


def test_rows_that_may_write_nothing_leave_at_once() -> None:
    model = tiny.model("llama")
    asked = [replace(one, draws=one.draws[:n]) for one, n in zip(prompts(2, 3), (0, 3, 4), strict=True)]
    assert [len(one.ids) for one in generate.generate(model, asked, Rules(NOTHING, NOTHING), ROOMY)] == [0, 3, 4]
