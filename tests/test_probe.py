"""What `saywhy check` predicts: the arithmetic of its probe, with a clock that ticks by the layers of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig

import tiny
from saywhy.config import Lora
from saywhy.lm.load import random_of
from saywhy.train import probe as room
from saywhy.train import ways
from saywhy.train.probe import probe
from saywhy.train.steps import packs_tokens
from saywhy.trees import pack_rows, pack_trees
from test_train import EXAMPLES, settings

LAYERS = 5
CONFIG = LlamaConfig(**{**tiny.SMALL, "num_hidden_layers": LAYERS})
BRANCHES = [branch for example in EXAMPLES for branch in example.branches]
PLENTY = 1 << 40


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], float]]:
    """Make a clock on which whatever is timed takes so many seconds for each layer of the model made last."""
    made = []

    def noted(config: Any, layers: int, device: str) -> Any:
        made.append(layers)
        return random_of(config, layers, device)

    def clock(seconds: float) -> Callable[[], float]:
        now = [0.0]

        def told() -> float:
            now[0] += seconds * made[-1]
            return now[0]

        return told

    monkeypatch.setattr(room, "random_of", noted)
    return clock


def test_a_quick_base_is_timed_whole(ticking: Any) -> None:
    found = probe(CONFIG, BRANCHES, settings(pack_tokens=4096), ticking(0.01), PLENTY)
    assert found.measured == "two steps, tree float32"
    assert found.per_step == pytest.approx(LAYERS * 0.01)
    assert found.per_token * packs_tokens(pack_trees(BRANCHES, 4096)) == pytest.approx(LAYERS * 0.01)
    model = tiny.AutoModelForCausalLM.from_config(CONFIG)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("seconds", "free"), [(3.0, PLENTY), (0.01, 1)])
def test_of_a_slow_or_a_large_base_the_layers_left_out_are_added(ticking: Any, seconds: float, free: int) -> None:
    chosen = settings(pack_tokens=60)
    packs = pack_trees(BRANCHES, 60)
    found = probe(CONFIG, BRANCHES, chosen, ticking(seconds), free)
    assert found.measured == f"1 and 2 of 5 layers, 1 of {len(packs)} packs, tree float32"
    assert found.per_step == pytest.approx(LAYERS * seconds)
    assert found.per_token == pytest.approx(LAYERS * seconds / packs[0].tokens)


def test_memory_is_the_same_from_two_layers_as_from_all(ticking: Any) -> None:
    # Of a fixed base, since this process grows.
    def peak(free: int) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, "_resident", lambda device: 0)
            return probe(CONFIG, BRANCHES, settings(pack_tokens=200), ticking(0.01), free).peak_bytes

    whole, layered = peak(PLENTY), peak(1)
    assert layered == pytest.approx(whole, rel=0.05)
    assert whole > 16 * sum(p.numel() for p in random_of(CONFIG, LAYERS, "cpu").parameters())


def test_layout_and_precision_are_those_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {("tree", "float32"): 0.3, ("rows", "float32"): 0.2, ("rows", "bf16"): 0.1}

    def backward(losses: Any, packs: Any, clock: Any) -> float:
        kind = "tree" if packs[0].subtree_end is not None else "rows"
        return seconds[kind, losses.precision]

    monkeypatch.setattr(room, "_backward", backward)
    monkeypatch.setattr(ways, "_seconds", lambda _model, _branches, way: seconds[way.layout, way.precision])
    found = probe(CONFIG, BRANCHES, settings(layout="auto", precision="auto"), room=PLENTY)
    assert found.measured == "two steps, rows bf16"
    tokens = packs_tokens(pack_trees(BRANCHES, 2048))
    assert found.per_token == pytest.approx(0.1 / tokens) and packs_tokens(pack_rows(BRANCHES, 2048)) > tokens


def test_an_adapter_of_a_later_layer_is_probed_too() -> None:
    lora = Lora(rank=2, targets=("q_proj", "3.mlp.up_proj"))
    found = probe(CONFIG, BRANCHES, settings(lora=lora), room=PLENTY)
    assert found.measured == "two steps, tree float32"


def test_a_model_that_reads_no_trees_is_probed_row_by_row() -> None:
    found = probe(tiny.STATEFUL["bloom"], BRANCHES, settings(), room=PLENTY)
    assert found.measured == "two steps, alone float32"


def test_windows_are_kept_where_layers_are_left_out() -> None:
    config = Gemma3TextConfig(**tiny.SMALL, sliding_window=tiny.WINDOW, layer_types=tiny.MIXED)
    before = torch.random.get_rng_state()
    model = random_of(config, 1, "cpu")
    assert model.config.layer_types == tiny.MIXED[:1] and config.layer_types == tiny.MIXED
    assert torch.equal(torch.random.get_rng_state(), before)
