"""The last layer leaves out what nobody reads: states are those of the whole model, and the work is really saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, Phi3Config

import tiny
from saywhy.lm.cache import Reading, Trunk
from saywhy.lm.forward import log_probs
from saywhy.lm.last import layers_of, spare_last, states_at
from saywhy.trees import Branch, pack_rows, pack_trees

IDS = torch.arange(12).reshape(2, 6) + 3
PLACES = torch.tensor([11, 2, 5])
# The others have norms behind their sub-layers, too.
SPARING = {"llama", "llama-tied", "qwen3", "mixtral", "mistral", "stablelm", "deepseek"}
SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def fed(model: Any) -> list[int]:
    """Note how many tokens each pass through the last layer's feed-forward part has."""
    found: list[int] = []
    layers = layers_of(model)
    assert layers is not None
    layers[-1].mlp.register_forward_pre_hook(lambda _, given: found.append(given[0].numel() // given[0].shape[-1]))
    return found


@pytest.mark.parametrize("name", tiny.CONFIGS)
@torch.no_grad()
def test_states_are_those_of_the_whole_model(name: str) -> None:
    model = tiny.model(name)
    asked = {"input_ids": IDS, "use_cache": False}
    whole = model.get_decoder()(**asked).last_hidden_state.flatten(0, 1)
    tokens = fed(model) if name in SPARING else []
    torch.testing.assert_close(states_at(model, asked, PLACES), whole[PLACES], rtol=1e-5, atol=1e-5)
    assert tokens == ([len(PLACES)] if name in SPARING else [])
    assert torch.equal(states_at(model, asked, None), whole)


@pytest.mark.parametrize("lay", [pack_trees, pack_rows])
def test_a_training_feeds_sources_alone(lay: Any) -> None:
    model = tiny.model("llama")
    tokens = fed(model)
    branches = [Branch(np.array([3, 4, 5, 6 + row, 2]), np.array([0.0, 0.0, 0.0, 1.0, 1.0])) for row in range(3)]
    packs = lay(branches, 64)
    for pack in packs:
        log_probs(model, pack).sum().backward()
    assert tokens == [len(np.unique(pack.source)) for pack in packs]
    assert sum(tokens) < sum(pack.ids.size for pack in packs)


def test_a_reading_feeds_the_ends_of_its_rows_alone() -> None:
    model = tiny.model("llama")
    tokens = fed(model)
    rows = [np.array([3, 4, 5, 6]), np.array([3, 7])]
    reading = Reading(model, Trunk(np.array([], dtype=np.int64), ()), rows)
    assert tokens == [2]
    reading.look(np.array([[8, 9], [8, 9]]), np.array([0, 0]), np.ones((2, 2, 2), dtype=bool).cumsum(1) > 0)
    assert tokens == [2, 4]


def test_a_layer_that_weighs_its_halves_stays_as_it_is() -> None:
    config = GraniteConfig(**SIZES, residual_multiplier=0.5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    before = type(model.get_decoder().layers[-1])
    spare_last(model)
    assert type(model.get_decoder().layers[-1]) is before


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_layer_with_dropout_stays_as_it_is(dropout: float) -> None:
    config = Phi3Config(**SIZES, resid_pdrop=dropout, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    before = type(model.get_decoder().layers[-1])
    spare_last(model)
    assert (type(model.get_decoder().layers[-1]) is before) == (dropout > 0)
