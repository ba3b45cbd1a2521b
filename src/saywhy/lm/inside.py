"""What the layers of a model hold where a token is decided, as entropies of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saywhy.lm import LM
from saywhy.lm.cache import batches, tokens_per_pass
from saywhy.lm.forward import SLICE_NUMBERS, head
from saywhy.lm.last import layers_of
from saywhy.records import RequestError
from saywhy.trees import Floats, Ints


@dataclass(frozen=True)
class Entropies:
    """Entropies of the states at the end of some texts, in nats, each (texts, layers + 1): the embeddings come first.

    `logit_lens` is that of the next token if the layer were the last one, softmax(W_U norm(h)), by the model's own norm
    and head (nostalgebraist 2020, "interpreting GPT: the logit lens"); at the last layer it is the model's answer.
    `magnitude` is that of |h| / Σ|h| over the width, `softmax` that of softmax(h).
    """

    logit_lens: Floats
    magnitude: Floats
    softmax: Floats


@torch.inference_mode()
def entropies(lm: LM, paths: Sequence[Ints], budget: int) -> Entropies:
    """Read texts, each given from its first token, whole: nothing that they share is read once.

    `budget` bounds the tokens of one pass. Raises RequestError for an architecture whose layers or norm are not found.
    """
    model = lm.model
    layers = _layers(model)
    norm = _final_norm(model, layers)
    most = min(budget, tokens_per_pass(model)) if lm.reads_trees else 0
    found: dict[int, Floats] = {}
    for places in batches([len(path) for path in paths], most):
        states = _states(model, layers, [paths[at] for at in places])
        mass = states.float().abs()
        each = torch.stack(
            [
                _of_next_token(model, norm(states)),
                _entropy(mass / mass.sum(-1, keepdim=True)),
                _entropy(torch.softmax(states.float(), -1)),
            ],
            -1,
        )
        found.update(zip(places, each.double().cpu().numpy(), strict=True))
    whole = np.stack([found[at] for at in range(len(paths))]) if paths else np.zeros((0, len(layers) + 1, 3))
    return Entropies(whole[:, :, 0], whole[:, :, 1], whole[:, :, 2])


def _entropy(shares: Tensor) -> Tensor:
    return torch.special.entr(shares.float()).sum(-1)


def _of_next_token(model: Any, states: Tensor) -> Tensor:
    """Give the entropy (b, l) of the next token behind states (b, l, d), without holding all logits at once."""
    flat = states.flatten(0, 1)
    rows = max(1, SLICE_NUMBERS // model.config.get_text_config().vocab_size)
    slices = (flat[start : start + rows] for start in range(0, len(flat), rows))
    return torch.cat([_entropy(torch.softmax(head(model, some).float(), -1)) for some in slices]).view(states.shape[:2])


def _states(model: Any, layers: nn.ModuleList, paths: Sequence[Ints]) -> Tensor:
    """Read texts side by side and give what each layer holds at their ends (b, layers + 1, d)."""
    ends = torch.tensor([len(path) - 1 for path in paths], device=model.device)
    rows = torch.arange(len(paths), device=model.device)
    # What pads stands behind the end, where nothing before reads it: no mask is needed.
    ids = np.zeros((len(paths), max(map(len, paths))), dtype=np.int64)
    for row, path in enumerate(paths):
        ids[row, : len(path)] = path
    held: list[Tensor] = []

    def note(states: Tensor) -> None:
        held.append(states[rows, ends])

    with _listening(layers, note):
        model.get_decoder()(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False)
    return torch.stack(held, 1)


@contextmanager
def _listening(layers: nn.ModuleList, note: Any) -> Iterator[None]:
    """Hand on what goes into the first layer and what comes out of each.

    Of the states that transformers can give itself the last is normed already, some models leave out the first, and all
    tokens' are kept.
    """

    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        note(given[0] if given else named["hidden_states"])

    def behind(_: nn.Module, __: Any, output: Any) -> None:
        note(output[0] if isinstance(output, tuple) else output)

    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(behind) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: Any) -> nn.ModuleList:
    layers = layers_of(model)
    if layers is None:
        raise RequestError(f"evaluate.probes: inside: {_name(model)} does not list its layers; leave inside out")
    return layers


def _final_norm(model: Any, layers: nn.ModuleList) -> nn.Module:
    """Find what stands between the last layer and the head: the decoder's part whose output is the decoder's."""
    heard: list[tuple[nn.Module, Any]] = []

    def behind(part: nn.Module, _: Any, output: Any) -> None:
        heard.append((part, output[0] if isinstance(output, tuple) else output))

    decoder = model.get_decoder()
    parts = [layers[-1], *(part for part in decoder.children() if not isinstance(part, nn.ModuleList))]
    hooks = [part.register_forward_hook(behind) for part in parts]
    try:
        last = decoder(input_ids=torch.ones((1, 2), dtype=torch.long, device=model.device), use_cache=False)[0]
    finally:
        for hook in hooks:
            hook.remove()
    given = [part for part, output in heard if isinstance(output, Tensor) and torch.equal(output, last)]
    if not given:
        raise RequestError(f"evaluate.probes: inside: {_name(model)} has no norm that can be found; leave inside out")
    return nn.Identity() if given[-1] is layers[-1] else given[-1]


def _name(model: Any) -> str:
    return str(model.config.get_text_config().model_type)
