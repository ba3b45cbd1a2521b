"""Entropies inside the model against plain forwards of transformers and arithmetic by hand, and what a run leaves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import toy
from saywhy import evaluate, probe
from saywhy.evaluate import Answers
from saywhy.evaluate.answers import arrays_of
from saywhy.lm import LM, bind
from saywhy.lm.encode import make_encoder, prompt_ids, render, text_ids
from saywhy.lm.inside import Entropies, entropies
from saywhy.predict import Classifier, load
from saywhy.records import RequestError, Row

pytest_plugins = ["runs"]

MODELS = [*tiny.CONFIGS, *tiny.STATEFUL]
ROOMY = 10**6
PATHS = [np.array(ids) for ids in ([5, 9, 17, 33, 2, 60, 8, 9], [7], list(range(40, 53)))]


def lm_of(name: str) -> LM:
    tokenizer = tiny.byte_level()
    return bind(tiny.model(name), make_encoder(tokenizer, render(tokenizer, "Which?")))


def entropy(shares: Any) -> Any:
    shares = np.asarray(shares, dtype=np.float64)
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)


def softmax(values: Any) -> Any:
    values = np.asarray(values, dtype=np.float64)
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layers_lens_is_the_models_own_output(name: str) -> None:
    lm = lm_of(name)
    layers = lm.model.config.get_text_config().num_hidden_layers
    found = entropies(lm, PATHS, ROOMY)
    assert found.logit_lens.shape == found.magnitude.shape == found.softmax.shape == (3, layers + 1)
    for row, path in enumerate(PATHS):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor(path)[None], use_cache=False).logits[0, -1]
        assert found.logit_lens[row, -1] == pytest.approx(entropy(softmax(logits)), abs=1e-4)
        # The layers before know less: they are other distributions.
        assert np.abs(found.logit_lens[row, :-1] - found.logit_lens[row, -1]).min() > 5e-6


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_layers_are_those_of_transformers_and_only_the_lens_norms_them(name: str) -> None:
    lm = lm_of(name)
    found = entropies(lm, PATHS, ROOMY)
    norm, head = lm.model.model.norm, lm.model
    for row, path in enumerate(PATHS):
        with torch.no_grad():
            states = lm.model(input_ids=torch.tensor(path)[None], output_hidden_states=True).hidden_states
            for layer, state in enumerate(states[:-1]):
                held = state[0, -1]
                assert found.magnitude[row, layer] == pytest.approx(entropy(held.abs() / held.abs().sum()), abs=1e-4)
                assert found.softmax[row, layer] == pytest.approx(entropy(softmax(held)), abs=1e-4)
                logits = head.lm_head(norm(held))
                cap = getattr(lm.model.config, "final_logit_softcapping", None)
                capped = cap * torch.tanh(logits / cap) if cap else logits
                assert found.logit_lens[row, layer] == pytest.approx(entropy(softmax(capped)), abs=1e-4)
            # What transformers gives as the last state is normed already; ours is not, as those of the other layers.
            last = states[-1][0, -1]
            assert abs(found.softmax[row, -1] - entropy(softmax(last))) > 1e-4


def test_entropies_of_a_state_worked_by_hand() -> None:
    lm = lm_of("llama")
    state = torch.zeros(32)
    state[:4] = torch.tensor([1.0, -1.0, 1.0, 1.0])
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[7] = state
    found = entropies(lm, [np.array([7])], ROOMY)
    assert found.magnitude[0, 0] == pytest.approx(np.log(4), abs=1e-6)
    total = 3 * np.e + 1 / np.e + 28
    shares = [np.e / total] * 3 + [1 / np.e / total] + [1 / total] * 28
    assert found.softmax[0, 0] == pytest.approx(-sum(p * np.log(p) for p in shares), abs=1e-6)
    # An even head decides nothing.
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(0.0)
    even = entropies(lm, PATHS, ROOMY).logit_lens
    assert even == pytest.approx(np.full(even.shape, np.log(tiny.VOCABULARY)), abs=1e-4)


def close(one: Entropies, other: Entropies) -> None:
    for name in ("logit_lens", "magnitude", "softmax"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4), name


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "bloom", "mamba"])
def test_texts_side_by_side_are_as_each_alone(name: str) -> None:
    lm = lm_of(name)
    alone = [entropies(lm, [path], ROOMY) for path in PATHS]
    each = Entropies(*(np.concatenate([getattr(one, of) for one in alone]) for of in vars(alone[0])))
    for budget in (1, 16, ROOMY):
        close(entropies(lm, PATHS, budget), each)
        turned = entropies(lm, PATHS[::-1], budget)
        close(Entropies(*(getattr(turned, of)[::-1] for of in vars(turned))), each)


def test_logits_are_taken_in_slices_and_nothing_is_left_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of("llama")
    whole = entropies(lm, PATHS, ROOMY)
    monkeypatch.setattr("saywhy.lm.inside.SLICE_NUMBERS", 2 * tiny.VOCABULARY)
    close(entropies(lm, PATHS, ROOMY), whole)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in lm.model.modules())
    assert entropies(lm, [], ROOMY).logit_lens.shape == (0, 3)


def test_a_model_whose_layers_or_norm_are_not_found_is_refused() -> None:
    lm = lm_of("llama")
    other = copy.deepcopy(lm.model)
    other.config.num_hidden_layers = 7
    with pytest.raises(RequestError, match=r"evaluate\.probes: inside: llama does not list its layers"):
        entropies(replace(lm, model=other), PATHS, ROOMY)
    other = copy.deepcopy(lm.model)
    forward = other.model.forward

    def scaled(*given: Any, **named: Any) -> Any:
        output = forward(*given, **named)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    other.model.forward = scaled
    with pytest.raises(RequestError, match="no norm that can be found"):
        entropies(replace(lm, model=other), PATHS, ROOMY)


def test_a_model_without_a_final_norm_is_read_as_it_is() -> None:
    lm = lm_of("llama")
    lm.model.model.norm = torch.nn.Identity()
    found = entropies(lm, PATHS, ROOMY)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor(PATHS[0])[None]).logits[0, -1]
    assert found.logit_lens[0, -1] == pytest.approx(entropy(softmax(logits)), abs=1e-4)


def asked(finished: toy.Done, arm: str, mode: str) -> tuple[Classifier, list[Row], Answers]:
    classifier = load(finished.folder / arm)
    path = finished.folder / "predictions" / f"{arm}-{mode}-test.parquet"
    answers = evaluate.load_answers(path, classifier.task)
    rows = [Row(*row) for row in zip(answers.ids, answers.texts, answers.gold, strict=True)]
    return classifier, rows, answers


def looked(classifier: Classifier, rows: Sequence[Row], answers: Answers, mode: str) -> dict[str, Any]:
    return probe.inside(classifier, rows, answers, mode, 16384, (50, 0))


@pytest.mark.parametrize(("arm", "mode"), [("both", "label"), ("both", "reason"), ("label_then_reason", "label")])
def test_the_deciding_position_is_the_end_of_the_labels_cue(finished: toy.Done, arm: str, mode: str) -> None:
    classifier, rows, answers = asked(finished, arm, mode)
    found = looked(classifier, rows, answers, mode)
    assert found["n"] == len(rows) == toy.TEST
    assert found["position"] == ("after the text" if mode == "label" else "after the reasoning")
    assert [one["layer"] for one in found["layers"]] == [0, 1]
    encoder, own = classifier.lm.encoder, []
    for row, reasoning in zip(rows, answers.reasonings, strict=True):
        text = "Label:" if mode == "label" else "\nLabel:"
        why = [] if mode == "label" else [*text_ids(encoder, "Reasoning:"), *text_ids(encoder, f" {reasoning}")]
        ids = [*prompt_ids(encoder, ("", row.text, ""))[0], *why, *text_ids(encoder, text)]
        with torch.no_grad():
            logits = classifier.lm.model(input_ids=torch.tensor([ids], device=classifier.lm.model.device)).logits
        own.append(entropy(softmax(logits[0, -1].cpu())))
    assert found["vocabulary_entropy"]["mean"] == pytest.approx(np.mean(own), abs=1e-4)
    assert found["layers"][-1]["logit_lens"] == found["vocabulary_entropy"]
    shares = arrays_of(classifier.task, answers).probabilities
    ranked = np.sort(shares, axis=1)
    assert found["label_entropy"]["mean"] == pytest.approx(entropy(shares).mean())
    assert found["top"]["mean"] == pytest.approx(ranked[:, -1].mean())
    assert found["margin"]["mean"] == pytest.approx((ranked[:, -1] - ranked[:, -2]).mean())
    low, high = found["margin"]["ci95"]
    assert low < found["margin"]["mean"] < high


def test_the_order_of_the_rows_changes_nothing_and_more_rows_than_are_looked_at_are_drawn(
    finished: toy.Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, rows, answers = asked(finished, "both", "label")
    fields = {name: value[::-1] for name, value in vars(answers).items() if isinstance(value, tuple)}
    turned = replace(answers, **fields)
    there, back = looked(classifier, rows, answers, "label"), looked(classifier, rows[::-1], turned, "label")
    assert there["margin"] == back["margin"] and there["top"] == back["top"]
    for one, other in zip(there["layers"], back["layers"], strict=True):
        assert one["logit_lens"]["mean"] == pytest.approx(other["logit_lens"]["mean"], abs=1e-5)
        assert one["logit_lens"]["ci95"] == pytest.approx(other["logit_lens"]["ci95"], abs=1e-5)
    monkeypatch.setattr(import_module("saywhy.probe.inside"), "MOST_ROWS", 5)
    few, again = looked(classifier, rows, answers, "label"), looked(classifier, rows[::-1], turned, "label")
    assert few["n"] == 5 and few["margin"] == again["margin"] != there["margin"]
    with pytest.raises(ValueError, match="not those"):
        looked(classifier, rows[1:], answers, "label")
    with pytest.raises(ValueError, match="vote"):
        looked(classifier, rows, answers, "vote")
