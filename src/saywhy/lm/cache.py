"""Prompts read into a cache: what all of them share is computed once, and each can be read on from its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from saywhy.lm.forward import as_attention, by_layer
from saywhy.trees import Ints, common


@dataclass(frozen=True)
class Trunk:
    """The tokens that all prompts of a call begin with, `ids` (s,), and each layer's keys and values (1, h, s, d)."""

    ids: Ints
    layers: tuple[tuple[Tensor, Tensor], ...]


def read_trunk(model: Any, prompts: Sequence[Ints]) -> Trunk:
    """Compute what all prompts share, short of the last token of each: something has to be read behind it."""
    shared = min(min(common(prompts[0], other) for other in prompts), min(map(len, prompts)) - 1)
    ids = prompts[0][:shared]
    if not shared:
        return Trunk(ids, ())
    cache = DynamicCache()
    place = torch.arange(shared, device=model.device)
    seen = (place[None, :] <= place[:, None])[None]
    _read(model, cache, torch.from_numpy(ids)[None].to(model.device), place[None], place[None], seen)
    return Trunk(ids, tuple((layer.keys, layer.values) for layer in cache.layers))


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut rows into batches of at most `budget` tokens with their padding, sorted by length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    while order:
        size = max(1, budget // lengths[order[-1]])
        yield order[-size:]
        del order[-size:]


class Reading:
    """A batch of prompts behind their trunk, padded on the left, and what was read on behind each of them.

    `hidden` (b, d) is the state at the end of each prompt. `tokens` counts what was computed here, the trunk left out.
    """

    def __init__(self, model: Any, trunk: Trunk, prompts: Sequence[Ints]) -> None:
        self.model, self.device = model, model.device
        shared, count = len(trunk.ids), len(prompts)
        # A cache made from nothing keeps every key; one made from the config trims windowed layers.
        self.cache = DynamicCache(
            tuple((k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in trunk.layers)
        )
        width = max(map(len, prompts)) - shared
        ids = np.zeros((count, width), dtype=np.int64)
        depth = np.zeros((count, width), dtype=np.int64)
        valid = np.zeros((count, width), dtype=bool)
        for at, one in enumerate(prompts):
            own = len(one) - shared
            ids[at, width - own :] = one[shared:]
            depth[at, width - own :] = np.arange(shared, len(one))
            valid[at, width - own :] = True
        self.tokens = int(valid.sum())
        trunk_depth = np.broadcast_to(np.arange(shared), (count, shared))
        self.depth = torch.from_numpy(np.concatenate([trunk_depth, depth], 1)).to(self.device)
        whole = np.concatenate([np.ones_like(trunk_depth, dtype=bool), valid], 1)
        self.valid = torch.from_numpy(whole).to(self.device)
        query = torch.from_numpy(depth).to(self.device)
        seen = self.valid[:, None, :] & (self.depth[:, None, :] <= query[:, :, None])
        # A padded token must read something, or its softmax is not a number and spoils the rows that skip it.
        seen[:, :, shared:] |= torch.eye(width, dtype=torch.bool, device=self.device)
        self.hidden = _read(model, self.cache, torch.from_numpy(ids).to(self.device), query, self.depth, seen)[:, -1]

    def on(self, ids: Tensor, depth: Tensor, chain: NDArray[np.bool_] | None = None) -> Tensor:
        """Read tokens behind the prompts: `ids`, `depth` (b, q) to hidden states (b, q, d).

        `chain` (b, q, m + q) tells which of the m tokens read on before and of the q now each one reads beside the
        prompt; without it each reads all that stand at or before its own place.
        """
        before = self.depth.shape[1] - self.valid.shape[1]
        self.depth = torch.cat([self.depth, depth], 1)
        if chain is None:
            step = torch.ones((ids.shape[1], before + ids.shape[1]), dtype=torch.bool, device=self.device)
            behind = step.tril(before).expand(len(ids), -1, -1)
        else:
            behind = torch.from_numpy(chain).to(self.device)
        seen = torch.cat([self.valid[:, None, :].expand(-1, ids.shape[1], -1), behind], 2)
        return _read(self.model, self.cache, ids, depth, self.depth, seen)

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave the batch."""
        kept = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(kept)
        self.depth, self.valid = self.depth[kept], self.valid[kept]


def _read(model: Any, cache: DynamicCache, ids: Tensor, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
    """Run the decoder over `ids` (b, q) at depths `query`; `seen` (b, q, k): which keys, of depths `key`, are read."""

    def inside(window: int | None) -> Tensor:
        near = seen if window is None else seen & (query[:, :, None] - key[:, None, :] < window)
        return as_attention(model, near[:, None])

    output = model.get_decoder()(
        input_ids=ids,
        position_ids=query,
        attention_mask=by_layer(model, inside),
        past_key_values=cache,
        use_cache=True,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden
