"""Write texts: sampled or greedy, with the shared prompt computed once and finished rows leaving the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from saywhy.lm.forward import as_attention, by_layer
from saywhy.trees import Floats, Ints, common

# A batch is made smaller when this share of its rows has finished.
LEAVE_AT = 0.25
# What models of different kinds call that which they hand on from token to token.
CARRIED = ("past_key_values", "cache_params", "state")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: temperature 0 takes the likeliest; `top_p` keeps the smallest set with that probability."""

    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Written:
    """What a model wrote: `ids` without the end token; `ended` says that it closed its text, by end token or by stop.

    `tokens` is what was computed for it, its part of the shared prompt included.
    """

    ids: tuple[int, ...]
    ended: bool
    tokens: float


@dataclass(frozen=True)
class Asked:
    """A prompt to be continued: its ids and, for each token it may write, a number in [0, 1) that decides the draw."""

    ids: Ints
    draws: Floats


def draws(limit: int, *key: object) -> Floats:
    """Give `limit` uniform numbers that depend on the key alone, so that batch, order and restart change no text."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(limit)


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Asked],
    ends: frozenset[int],
    forbidden: frozenset[int],
    sampling: Sampling,
    budget: int,
    stop: Callable[[Sequence[int]], bool] | None = None,
    padded: bool = True,
) -> list[Written]:
    """Continue every prompt until an end token, `stop(ids)` or the end of its draws; answers keep the order of prompts.

    `ends` close a text; `forbidden` are never written. `budget` bounds prompt and written tokens of a batch together.
    `padded` is False for models that can read no mask of ours: their rows are written one by one.
    """
    written: list[Written | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
    while order:
        longest = len(prompts[order[-1]].ids) + len(prompts[order[-1]].draws)
        size = max(1, budget // longest) if padded else 1
        batch, order = order[-size:], order[:-size]
        asked = [prompts[i] for i in batch]
        found = _Batch(model, asked, ends, forbidden, sampling, stop, padded).run()
        for i, one in zip(batch, found, strict=True):
            written[i] = one
    return [one for one in written if one is not None]


class _Batch:
    """The state of one batch while it is written: cache, mask and what each row has so far."""

    def __init__(
        self,
        model: Any,
        asked: Sequence[Asked],
        ends: frozenset[int],
        forbidden: frozenset[int],
        sampling: Sampling,
        stop: Callable[[Sequence[int]], bool] | None,
        padded: bool,
    ) -> None:
        self.model, self.asked, self.ends, self.sampling, self.stop = model, asked, ends, sampling, stop
        self.device = model.device
        self.forbidden = torch.tensor(sorted(forbidden - ends), dtype=torch.long, device=self.device)
        self.padded = padded
        self.texts: list[list[int]] = [[] for _ in asked]
        self.ended = [False] * len(asked)
        self.rows = list(range(len(asked)))

    def run(self) -> list[Written]:
        logits = self._read_prompts() if self.padded else self._read_alone()
        limit = max(len(asked.draws) for asked in self.asked)
        for step in range(limit):
            fresh = self._draw(logits, step)
            leaving = self._note(fresh)
            if len(leaving) == len(self.rows):
                break
            if step + 1 == limit:
                break
            staying = [at for at in range(len(self.rows)) if at not in leaving]
            if self.padded and len(leaving) >= LEAVE_AT * len(self.rows):
                fresh = self._leave(staying, fresh)
            logits = self._step(fresh)
        return [
            Written(tuple(text), ended, self.shared / len(self.asked) + len(asked.ids) - self.shared + len(text))
            for text, ended, asked in zip(self.texts, self.ended, self.asked, strict=True)
        ]

    def _read_prompts(self) -> Tensor:
        """Compute what all prompts share once, then the rest of each, padded on the left."""
        ids = [asked.ids for asked in self.asked]
        self.shared = min(min(common(ids[0], other) for other in ids), min(map(len, ids)) - 1)
        self.cache = DynamicCache()
        if self.shared:
            trunk = torch.from_numpy(ids[0][: self.shared])[None].to(self.device)
            places = torch.arange(self.shared, device=self.device)
            mask = self._mask(places[None], places[None], torch.ones_like(places, dtype=torch.bool)[None])
            self._forward(trunk, places[None], mask)
            self.cache.batch_repeat_interleave(len(ids))
        width = max(map(len, ids)) - self.shared
        rest = np.zeros((len(ids), width), dtype=np.int64)
        depth = np.zeros((len(ids), width), dtype=np.int64)
        valid = np.zeros((len(ids), width), dtype=bool)
        for at, one in enumerate(ids):
            own = len(one) - self.shared
            rest[at, width - own :] = one[self.shared :]
            depth[at, width - own :] = np.arange(self.shared, len(one))
            valid[at, width - own :] = True
        query = torch.from_numpy(depth).to(self.device)
        trunk_depth = torch.arange(self.shared, device=self.device).expand(len(ids), -1)
        self.depth = torch.cat([trunk_depth, query], 1)
        self.valid = torch.cat(
            [torch.ones_like(trunk_depth, dtype=torch.bool), torch.from_numpy(valid).to(self.device)], 1
        )
        mask = self._mask(query, self.depth, self.valid, diagonal=True)
        return self._forward(torch.from_numpy(rest).to(self.device), query, mask)

    def _read_alone(self) -> Tensor:
        self.shared = 0
        self.carried: dict[str, Any] = {}
        return self._forward_alone(torch.from_numpy(self.asked[0].ids)[None].to(self.device))

    def _forward_alone(self, ids: Tensor) -> Tensor:
        output = self.model(input_ids=ids, use_cache=True, **self.carried)
        self.carried = {name: output[name] for name in CARRIED if output.get(name) is not None}
        return output.logits[:, -1].float()

    def _step(self, fresh: Tensor) -> Tensor:
        if not self.padded:
            return self._forward_alone(fresh[:, None])
        depth = self.depth[:, -1:] + 1
        self.depth = torch.cat([self.depth, depth], 1)
        self.valid = torch.cat([self.valid, torch.ones_like(depth, dtype=torch.bool)], 1)
        return self._forward(fresh[:, None], depth, self._mask(depth, self.depth, self.valid))

    def _forward(self, ids: Tensor, depth: Tensor, mask: Any) -> Tensor:
        output = self.model(
            input_ids=ids,
            position_ids=depth,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _mask(self, query: Tensor, key: Tensor, valid: Tensor, diagonal: bool = False) -> Any:
        """Mask (b, 1, q, k): a token reads the valid ones at or before its depth, inside its layer's window."""
        seen = valid[:, None, :] & (key[:, None, :] <= query[:, :, None])
        if diagonal:
            # A padded token must read something, or its softmax is not a number and spoils the rows that skip it.
            seen[:, :, key.shape[1] - query.shape[1] :] |= torch.eye(
                query.shape[1], dtype=torch.bool, device=seen.device
            )

        def inside(window: int | None) -> Tensor:
            near = seen if window is None else seen & (query[:, :, None] - key[:, None, :] < window)
            return as_attention(self.model, near[:, None])

        return by_layer(self.model, inside)

    def _draw(self, logits: Tensor, step: int) -> Tensor:
        if len(self.forbidden):
            logits[:, self.forbidden] = -torch.inf
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        chance = torch.softmax(logits / self.sampling.temperature, -1)
        likely, order = chance.sort(dim=-1, descending=True, stable=True)
        total = likely.cumsum(-1)
        likely = likely.masked_fill(total - likely >= self.sampling.top_p, 0.0)
        total = likely.cumsum(-1)
        spots = [self.asked[row].draws for row in self.rows]
        drawn = torch.tensor([spot[min(step, len(spot) - 1)] for spot in spots], device=self.device)
        pick = (total <= (drawn * total[:, -1].double())[:, None].to(total.dtype)).sum(-1, keepdim=True)
        # A draw next to 1 is rounded up to 1, where only tokens without any probability are left.
        last = (likely > 0).sum(-1, keepdim=True) - 1
        return order.gather(1, torch.minimum(pick, last))[:, 0]

    def _note(self, fresh: Tensor) -> set[int]:
        """Write down the new tokens; give the places of the rows that have finished, now or before."""
        leaving = set()
        for at, (row, token) in enumerate(zip(self.rows, fresh.tolist(), strict=True)):
            text = self.texts[row]
            if self.ended[row] or len(text) >= len(self.asked[row].draws):
                leaving.add(at)
                continue
            if token in self.ends:
                self.ended[row] = True
            else:
                text.append(token)
                self.ended[row] = self.stop is not None and self.stop(text)
            if self.ended[row] or len(text) >= len(self.asked[row].draws):
                leaving.add(at)
        return leaving

    def _leave(self, staying: list[int], fresh: Tensor) -> Tensor:
        keep = torch.tensor(staying, device=self.device)
        self.cache.batch_select_indices(keep)
        self.depth, self.valid = self.depth[keep], self.valid[keep]
        self.rows = [self.rows[at] for at in staying]
        return fresh[keep]
