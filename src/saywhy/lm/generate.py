"""Write texts: sampled or greedy, with the shared prompt computed once and finished rows leaving the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saywhy.lm.cache import Reading, Trunk, batches, read_trunk
from saywhy.lm.forward import head
from saywhy.trees import Floats, Ints

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
    trunk = read_trunk(model, [one.ids for one in prompts]) if padded and prompts else None
    part = 0.0 if trunk is None else len(trunk.ids) / len(prompts)
    # Without padding no budget is large enough for two rows.
    for batch in batches([len(one.ids) + len(one.draws) for one in prompts], budget if padded else 0):
        asked = [prompts[i] for i in batch]
        found = _Batch(model, asked, ends, forbidden, sampling, stop, trunk, part).run()
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
        trunk: Trunk | None,
        trunk_part: float,
    ) -> None:
        self.trunk_part = trunk_part
        self.model, self.asked, self.ends, self.sampling, self.stop = model, asked, ends, sampling, stop
        self.device = model.device
        self.forbidden = torch.tensor(sorted(forbidden - ends), dtype=torch.long, device=self.device)
        self.reading = None if trunk is None else Reading(model, trunk, [one.ids for one in asked])
        self.shared = 0 if trunk is None else len(trunk.ids)
        self.texts: list[list[int]] = [[] for _ in asked]
        self.ended = [False] * len(asked)
        self.rows = list(range(len(asked)))

    def run(self) -> list[Written]:
        logits = self._read_alone() if self.reading is None else head(self.model, self.reading.hidden).float()
        limit = max(len(asked.draws) for asked in self.asked)
        for step in range(limit):
            fresh = self._draw(logits, step)
            leaving = self._note(fresh)
            if len(leaving) == len(self.rows):
                break
            if step + 1 == limit:
                break
            staying = [at for at in range(len(self.rows)) if at not in leaving]
            if self.reading is not None and len(leaving) >= LEAVE_AT * len(self.rows):
                fresh = self._leave(self.reading, staying, fresh)
            logits = self._step(fresh)
        return [
            Written(tuple(text), ended, self.trunk_part + len(asked.ids) - self.shared + len(text))
            for text, ended, asked in zip(self.texts, self.ended, self.asked, strict=True)
        ]

    def _read_alone(self) -> Tensor:
        self.carried: dict[str, Any] = {}
        return self._forward_alone(torch.from_numpy(self.asked[0].ids)[None].to(self.device))

    def _forward_alone(self, ids: Tensor) -> Tensor:
        output = self.model(input_ids=ids, use_cache=True, **self.carried)
        self.carried = {name: output[name] for name in CARRIED if output.get(name) is not None}
        return output.logits[:, -1].float()

    def _step(self, fresh: Tensor) -> Tensor:
        if self.reading is None:
            return self._forward_alone(fresh[:, None])
        hidden = self.reading.on(fresh[:, None], self.reading.depth[:, -1:] + 1)
        return head(self.model, hidden[:, 0]).float()

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

    def _leave(self, reading: Reading, staying: list[int], fresh: Tensor) -> Tensor:
        reading.keep(staying)
        self.rows = [self.rows[at] for at in staying]
        return fresh[staying]
