"""How a training computes: layout of its packs, attention and precision, measured where more than one will do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saywhy import store
from saywhy.config import Train
from saywhy.lm.forward import FLEX, attending, attention_of
from saywhy.lm.load import why_no_tree
from saywhy.progress import say
from saywhy.train import memory, ranks
from saywhy.train.deal import Lay
from saywhy.train.loss import Losses, autocast
from saywhy.train.selfcheck import check_packs
from saywhy.train.steps import Example
from saywhy.trees import Branch, laid, pack_alone, pack_rows, pack_trees

LAYOUTS: dict[str, Lay] = {"tree": pack_trees, "rows": pack_rows, "alone": pack_alone}
TIMED_STEPS = 2
# A layout that computes so many times the tokens of another is not timed, nor is a way timed twice that took so many
# times as long as another.
MOST_TOKENS = 4
MOST_TIME = 1.5


@dataclass(frozen=True)
class Way:
    """How packs are laid (a name of LAYOUTS) and how long, what the model reads them with, and in which precision."""

    layout: str
    attention: str
    precision: str
    pack_tokens: int

    def __str__(self) -> str:
        return f"{self.layout} {self.precision}" + (" with FlexAttention" if self.attention == FLEX else "")


def choose(
    model: Any,
    examples: Sequence[Example],
    batch: Sequence[int],
    settings: Train,
    folder: Path,
) -> Way:
    """Settle once a training how it computes: what the settings leave open is timed, and packs fit into memory.

    The choice is written down, since a training that goes on, and every process of one, must use the same arithmetic.
    """
    path = folder / "choice.json"

    def written() -> dict[str, Any]:
        if not path.exists():
            branches = [branch for row in batch for branch in examples[row].branches]
            longest = max((max(len(laid(b)) for b in one.branches), one.id) for one in examples)
            measure = partial(_measured, model, branches, longest[::-1], settings)
            found, _ = memory.halved(measure, settings.pack_tokens, model, "training")
            store.write_json(path, asdict(found))
        return dict(store.read_json(path))

    return Way(**ranks.told(written))


def _measured(
    model: Any, branches: Sequence[Branch], longest: tuple[str, int], settings: Train, pack_tokens: int
) -> Way:
    layout, precision = _layouts(model, settings)[0], _precisions(settings)[0]
    pack_tokens = memory.fitting(Losses(model, precision), LAYOUTS[layout], branches, pack_tokens, longest=longest)
    way = fastest(model, branches, settings, pack_tokens)
    if way.layout == "alone":
        say(f"this model cannot read token trees ({why_no_tree(model)}); it is trained row by row")
    if way.layout == "tree":
        with attending(model, way.attention):
            check_packs(model, branches, pack_tokens, lambda: autocast(model, way.precision), way.precision)
    return way


def fastest(model: Any, branches: Sequence[Branch], settings: Train, pack_tokens: int) -> Way:
    """Find the fastest way to train on some branches, among those that the settings leave open."""
    layouts, precisions = _layouts(model, settings), _precisions(settings)
    places = {name: sum(pack.ids.size for pack in LAYOUTS[name](branches, pack_tokens)) for name in layouts}
    few = [name for name in layouts if places[name] <= MOST_TOKENS * min(places.values())]
    way = Way(few[0], attention_of(model), precisions[0], pack_tokens)
    took: dict[Way, float] = {}
    way = _fastest(model, branches, [replace(way, layout=name) for name in few], took)
    way = _fastest(model, branches, [replace(way, precision=precision) for precision in precisions], took)
    if way.layout == "tree":
        way = _fastest(model, branches, [replace(way, attention=name) for name in _attentions(model)], took)
    if took:
        say("measured a step: " + ", ".join(f"{way} {seconds:.3f} s" for way, seconds in took.items()))
    return way


def _layouts(model: Any, settings: Train) -> list[str]:
    if why_no_tree(model):
        return ["alone"]
    return ["tree", "rows"] if settings.layout == "auto" else [settings.layout]


def _precisions(settings: Train) -> list[str]:
    return ["float32", "bf16"] if settings.precision == "auto" else [settings.precision]


def _attentions(model: Any) -> list[str]:
    """Give what a tree can be read with here: on a GPU FlexAttention too, where the model has it."""
    own = attention_of(model)
    # FlexAttention has no backward on a CPU, and refuses dropout. Where FSDP divides the weights, whole ones may be too
    # large to be timed.
    dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    if model.device.type != "cuda" or own == FLEX or dropout or ranks.sharding() is not None:
        return [own]
    try:
        with attending(model, FLEX):
            return [own, FLEX]
    except ValueError:
        return [own]


def _fastest(model: Any, branches: Sequence[Branch], ways: Sequence[Way], took: dict[Way, float]) -> Way:
    """Find the fastest of some ways; `took` holds the seconds of those timed before, and takes in the others."""
    if len(ways) == 1:
        return ways[0]
    for way in [way for way in ways if way not in took]:
        # Whoever comes first pays for memory that nobody had taken before, and a GPU's kernels are loaded or compiled.
        if not took or model.device.type == "cuda" or way.attention == FLEX:
            _seconds(model, branches, way)
        took[way] = _seconds(model, branches, way)
    left = [way for way in ways if took[way] <= MOST_TIME * min(took[one] for one in ways)]
    if len(left) > 1:
        # They take turns, so that a slow moment hits them all.
        rounds = [{way: _seconds(model, branches, way) for way in left} for _ in range(TIMED_STEPS)]
        took |= {way: min(one[way] for one in rounds) for way in left}
    model.zero_grad()
    return min(left, key=lambda way: took[way])


def _seconds(model: Any, branches: Sequence[Branch], way: Way) -> float:
    """Time one step's loss and gradient, as they are in training: layers that are computed again included."""
    state = torch.get_rng_state()
    began = time.monotonic()
    model.train()
    with attending(model, way.attention):
        losses = Losses(model, way.precision)
        for pack in LAYOUTS[way.layout](branches, way.pack_tokens):
            losses(pack).backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    took = time.monotonic() - began
    model.eval()
    torch.set_rng_state(state)
    return took
