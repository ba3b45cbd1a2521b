"""From a pack to log-probabilities: the masks, the model's decoder, and its head over the sources alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from saywhy.trees import Pack, allowed, within_window

# Logits of one slice hold this many numbers, whatever the vocabulary: 64 MiB in float32.
SLICE_NUMBERS = 16 * 1024 * 1024


def log_probs(model: Any, pack: Pack) -> Tensor:
    """Compute the log-probability of every target of a pack: (m,) float32, in the order of `pack.target`.

    Only sources go through the model's head, in float32, in slices whose logits are computed again in backward, so that
    memory does not grow with vocabulary times prompt length.
    """
    device = model.device
    hidden = decode(model, pack)
    sources, index = torch.unique(torch.from_numpy(pack.source).to(device), return_inverse=True)
    read = hidden.reshape(-1, hidden.shape[-1])[sources]
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
    logits = head(model, hidden).float()
    return logits[index, target] - torch.logsumexp(logits, -1)[index]


def decode(model: Any, pack: Pack) -> Tensor:
    """Run the model's decoder over a pack: (b, n, d), without its head."""
    ids = torch.from_numpy(pack.ids).to(model.device)
    if pack.subtree_end is None:
        return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    depth = torch.from_numpy(pack.depth).to(model.device)
    mask = tree_mask(model, torch.from_numpy(pack.subtree_end).to(model.device), depth[0])
    output = model.get_decoder()(input_ids=ids, position_ids=depth, attention_mask=mask, use_cache=False)
    return output.last_hidden_state


def head(model: Any, hidden: Tensor) -> Tensor:
    """Give the logits of hidden states (k, d) -> (k, v) by the model's own forward, soft-caps and scales included.

    The decoder is answered for: what a model does behind it is its head, whatever the architecture.
    """
    with _answered(model.get_decoder(), hidden[None]):
        return model(input_ids=torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)).logits[0]


@contextmanager
def _answered(decoder: Any, hidden: Tensor) -> Iterator[None]:
    def answer(*_: Any, **__: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    decoder.forward = answer
    try:
        yield
    finally:
        del decoder.forward


def tree_mask(model: Any, subtree_end: Tensor, depth: Tensor) -> Any:
    """Make the attention mask of a token tree in the form that the model's attention and layers ask for.

    `subtree_end`, `depth` (n,). Gives one mask (1, 1, n, n), or one per layer type where layers differ.
    """
    if model.config.get_text_config()._attn_implementation == "flex_attention":
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
    if model.config.get_text_config()._attn_implementation == "sdpa":
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
