"""From a pack to log-probabilities: the masks, the model's decoder, and its head over the sources alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from saywhy.lm.behind import Run, attend_behind
from saywhy.lm.last import states_at
from saywhy.lm.trunk import Parts, TwoParts, alike, along, parts_of, trunk_size
from saywhy.trees import Pack, allowed, padded, within_window

# Logits of one slice hold this many numbers, whatever the vocabulary: 64 MiB in float32.
SLICE_NUMBERS = 16 * 1024 * 1024
# The name under which transformers knows `attend_by_path`.
PATHS = "saywhy_paths"
# Path by path, no token is read more than this many times on average.
MOST_REPEATED = 8
FLEX = "flex_attention"
# FlexAttention works on blocks of this many tokens, and is compiled anew for lengths that it has not met.
FLEX_BLOCK = 128


def log_probs(model: Any, pack: Pack) -> Tensor:
    """Compute the log-probability of every target of a pack: (m,) float32, in the order of `pack.target`.

    Only sources go through the model's head, in float32, in slices whose logits are computed again in backward, so that
    memory does not grow with vocabulary times prompt length.
    """
    device = model.device
    sources, index = torch.unique(torch.from_numpy(pack.source).to(device), return_inverse=True)
    read = decode(model, pack, sources)
    target = torch.from_numpy(pack.target).to(device)
    rows = max(1, SLICE_NUMBERS // model.config.get_text_config().vocab_size)
    pieces = []
    for start in range(0, len(sources), rows):
        # Targets are sorted by source, so those of one slice are a range.
        inside = (index >= start) & (index < start + rows)
        arguments = (model, read[start : start + rows], index[inside] - start, target[inside])
        recompute = torch.is_grad_enabled() and len(sources) > rows
        pieces.append(checkpoint(_slice, *arguments, use_reentrant=False) if recompute else _slice(*arguments))
    return torch.cat(pieces)


def _slice(model: Any, hidden: Tensor, index: Tensor, target: Tensor) -> Tensor:
    return _LogProbs.apply(head(model, hidden).float(), index, target)


class _LogProbs(torch.autograd.Function):
    """Log-probabilities of some targets, with a gradient that is made in the place of all of them.

    Logits are the largest tensors of a small model's step: torch's own way keeps four of their size (LOG.md,
    2026-11-21).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, target: Tensor) -> Tensor:
        """Give `log_softmax(logits)[index, target]`: (m,) of (k, v)."""
        everything = torch.log_softmax(logits, -1)
        ctx.save_for_backward(everything, index, target)
        return everything[index, target]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Turn what was kept into the gradient of the logits; a second backward of the same graph is not possible."""
        everything, index, target = ctx.saved_tensors
        row = torch.zeros(len(everything), dtype=gradient.dtype, device=gradient.device)
        found = everything.exp_().mul_(row.index_add_(0, index, gradient).neg_()[:, None])
        return found.index_put_((index, target), gradient, accumulate=True), None, None


def decode(model: Any, pack: Pack, places: Tensor) -> Tensor:
    """Run the model's decoder over a pack, without its head: the states (k, d) of `places` (k,), counted through it."""
    if pack.subtree_end is not None and attention_of(model) == FLEX:
        pack = padded(pack, flex_length(pack.ids.shape[1]))
    return states_at(model, _asked(model, pack), places)


def _asked(model: Any, pack: Pack) -> dict[str, Any]:
    """Say what the decoder is called with."""
    asked = {"input_ids": torch.from_numpy(pack.ids).to(model.device), "use_cache": False}
    if pack.subtree_end is None:
        return asked
    depth = torch.from_numpy(pack.depth).to(model.device)
    asked |= {"position_ids": depth}
    if in_parts(model, pack):
        return {**asked, "attention_mask": unmasked(model), "parts": parts_of(pack, model.device)}
    if by_path(model, pack):
        return {**asked, **_along_paths(model, pack)}
    return {**asked, "attention_mask": tree_mask(model, torch.from_numpy(pack.subtree_end).to(model.device), depth[0])}


def flex_length(size: int) -> int:
    """Give the length that a tree of `size` tokens is padded to: a few in all, each a quarter above the one before."""
    length = FLEX_BLOCK
    while length < size:
        length = max(length + FLEX_BLOCK, length * 5 // 4 // FLEX_BLOCK * FLEX_BLOCK)
    return length


def attention_of(model: Any) -> str:
    """Name the attention that a model reads with."""
    return str(model.config.get_text_config()._attn_implementation)


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Let a model read with another attention for a while. Raises ValueError where it has none of that name."""
    before = attention_of(model)
    if name != before:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if name != before:
            model.set_attn_implementation(before)


def in_parts(model: Any, pack: Pack) -> bool:
    """Tell whether attention is cheapest in two parts: what all paths share apart from what each has alone.

    That is a matter of a CPU, whose kernels tell the log-sum-exp that joins them, and of layers that read everything.
    """
    if pack.paths is None or attention_of(model) != PATHS or model.device.type != "cpu":
        return False
    dropout = model.training and getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    if dropout or by_layer(model, lambda window: window) is not None:
        return False
    (rows, width), tokens, trunk = pack.paths.shape, pack.ids.size, trunk_size(pack)
    own = [(len(some), length) for some, length in alike(pack, trunk)]
    cost = trunk * trunk / 2 + (tokens - trunk) * trunk + sum(some * length**2 for some, length in own) / 2
    others = min(rows * width * width / 2, tokens * tokens)
    return cost <= others and sum(some * length for some, length in own) < MOST_REPEATED * tokens


def by_path(model: Any, pack: Pack) -> bool:
    """Tell whether attention is cheaper path by path than over the dense mask of the whole tree.

    Path by path a shared token is read once for each path, but no path pays for another: short branches gain, a label
    trie or a long trunk does not.
    """
    if pack.paths is None or attention_of(model) != PATHS:
        return False
    rows, width = pack.paths.shape
    return rows * width * width < pack.ids.size**2 / 2 and rows * width < MOST_REPEATED * pack.ids.size


def unmasked(model: Any) -> Tensor:
    """Any mask of four dimensions is handed on as it is; one number says that plain causal attention holds."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=model.device)


def _along_paths(model: Any, pack: Pack) -> dict[str, Any]:
    paths, home = (torch.from_numpy(part).to(model.device) for part in (pack.paths, pack.home))
    place = torch.arange(paths.shape[1], device=paths.device)

    def band(window: int | None) -> Tensor:
        if window is None or window >= len(place):
            return unmasked(model)
        return (allowed(torch.full_like(place, len(place)), place) & within_window(place, window))[None, None]

    return {"attention_mask": by_layer(model, band), "paths": paths, "home": home}


def attend_by_path(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    paths: Tensor | None = None,
    home: Tensor | None = None,
    trunk: Sequence[tuple[Tensor, Tensor]] = (),
    runs: Sequence[Run] = (),
    parts: Parts | None = None,
    heard: list[int] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls: sdpa, but path by path where a token tree brings its paths.

    `query` (1, h, n, d), `key`, `value` (1, h_kv, n, d), `paths` (r, l), `home` (n,). Every path is a row of plain
    causal attention; a token that several paths share is taken from the first. Gives (1, n, h, d). With a `trunk`, each
    layer's keys and values (1, h_kv, s, d), the tokens are those of many rows in turn, and every one reads all of it
    beside what the `runs` say of its row. `heard` notes which layer was told, -1 for one with a mask of its own.
    """
    if heard is not None:
        plain = attention_mask is not None and attention_mask.numel() == 1
        heard.append(getattr(module, "layer_idx", -1) if plain else -1)
    if trunk:
        keys, values = trunk[module.layer_idx]
        return attend_behind(query, key, value, keys[0], values[0], rest.get("scaling"), runs), None
    if parts is not None:
        return _in_parts(query, key, value, parts, rest.get("scaling")), None
    if paths is None or home is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    rows = [along(part, paths) for part in (query, key, value)]
    band = None if attention_mask is None or attention_mask.numel() == 1 else attention_mask
    kind = query.dtype
    if query.device.type == "cpu":
        # On a CPU the backward of bf16 attention takes 2.7 times as long as that of float32 (LOG.md, 2026-11-20).
        rows = [part.float() for part in rows]
    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(module, *rows, band, **{**rest, "is_causal": band is None})
    return found.flatten(0, 1).index_select(0, home)[None].to(kind), None


def _in_parts(query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float | None) -> Tensor:
    """Attention of `query` (1, h, n, d) over fewer heads of keys and values, which may be shorter: (1, n, h, d)."""
    times, size = query.shape[1] // key.shape[1], value.shape[-1]
    if times > 1:
        key, value = (part.repeat_interleave(times, 1) for part in (key, value))
    if size < query.shape[-1]:
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - size))
    # In bf16 these kernels are slower, and their log-sum-exp would be joined with less precision.
    kind = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        found = TwoParts.apply(query.to(kind), key.to(kind), value.to(kind), parts, scale)
    return found[..., :size].transpose(1, 2).to(query.dtype)


def head(model: Any, hidden: Tensor) -> Tensor:
    """Give the logits of hidden states (k, d) -> (k, v) by the model's own forward, soft-caps and scales included.

    The decoder is answered for: what a model does behind it is its head, whatever the architecture.
    """
    with _answered(model.get_decoder(), hidden[None]):
        return model(input_ids=torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)).logits[0]


class _Answer(BaseModelOutputWithPast):
    """A decoder's output whose extras, such as the router's logits of a mixture of experts, are all absent."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def _answered(decoder: Any, hidden: Tensor) -> Iterator[None]:
    def answer(*_: Any, **__: Any) -> BaseModelOutputWithPast:
        return _Answer(last_hidden_state=hidden)

    decoder.forward = answer
    try:
        yield
    finally:
        del decoder.forward


def tree_mask(model: Any, subtree_end: Tensor, depth: Tensor) -> Any:
    """Make the attention mask of a token tree in the form that the model's attention and layers ask for.

    `subtree_end`, `depth` (n,). Gives one mask (1, 1, n, n), or one per layer type where layers differ.
    """
    if attention_of(model) == FLEX:
        return by_layer(model, lambda window: _block_mask(subtree_end, depth, window))
    index = torch.arange(len(depth), device=depth.device)
    everything = allowed(subtree_end, index)
    return by_layer(
        model,
        lambda window: as_attention(
            model, everything if window is None else everything & within_window(depth, window)
        )[None, None],
    )


def by_layer(model: Any, make: Any) -> Any:
    """Call `make(window)` once for each layer type; `window` is None where a layer reads everything."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    types = sorted(set(getattr(config, "layer_types", None) or []))
    if len(types) > 1:
        return {kind: make(window if kind == "sliding_attention" else None) for kind in types}
    return make(window if types in ([], ["sliding_attention"]) else None)


def as_attention(model: Any, mask: Tensor) -> Tensor:
    """Turn a boolean mask into what the model's attention adds up: boolean for sdpa, additive for eager."""
    if attention_of(model) in ("sdpa", PATHS):
        return mask
    # A boolean mask would be added as 0 and 1 here, which is silently wrong.
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(model.dtype).min
    )


def _block_mask(subtree_end: Tensor, depth: Tensor, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        inside = (j <= i) & (i < subtree_end[j])
        return inside if window is None else inside & (depth[i] - depth[j] < window)

    n = len(depth)
    return create_block_mask(rule, None, None, n, n, device=str(depth.device))


def read_paths(model: Any) -> None:
    """Let a model with sdpa attention read token trees path by path; every other attention stays as it is.

    So does one whose layers do not hand on what they are told, which would read a tree as if it were one text, one that
    makes a mask of its own out of ours, and one that runs a layer several times, each time with other keys.
    """
    if attention_of(model) != "sdpa":
        return
    AttentionInterface.register(PATHS, attend_by_path)
    AttentionMaskInterface.register(PATHS, sdpa_mask)
    model.set_attn_implementation(PATHS)
    heard: list[int] = []
    asked = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    try:
        with torch.no_grad():
            model.get_decoder()(
                input_ids=asked, attention_mask=by_layer(model, lambda _: unmasked(model)), heard=heard
            )
    except (TypeError, RuntimeError):  # it takes no word that it does not know, or no such mask
        heard.clear()
    if sorted(heard) != list(range(model.config.get_text_config().num_hidden_layers)):
        model.set_attn_implementation("sdpa")


def reads_trunk(model: Any) -> bool:
    """Tell whether a model's attention can read a trunk that stands once: ours, without windows.

    Latent attention keeps something else in the cache than the keys that it attends to.
    """
    plain = getattr(model.config.get_text_config(), "kv_lora_rank", None) is None
    return attention_of(model) == PATHS and plain and by_layer(model, lambda window: window) is None
