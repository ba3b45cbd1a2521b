"""Write texts: sampled or greedy, with the shared prompt computed once and finished rows leaving the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saywhy.lm.cache import Alone, Reading, batches, open_reading, read_trunk, shared_by
from saywhy.lm.forward import head
from saywhy.trees import Floats, Ints

# A batch is made smaller when this share of its rows has finished.
LEAVE_AT = 0.25
# Told between two tokens which rows still write and what each has so far; names those that nobody waits for any more.
Watch = Callable[[Sequence[tuple[int, Sequence[int]]]], Collection[int]]


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


@dataclass(frozen=True)
class Rules:
    """How a text is written: `ends` close it, `forbidden` tokens are never in it, `stop(ids)` says that it is whole."""

    ends: frozenset[int]
    forbidden: frozenset[int]
    sampling: Sampling = Sampling()
    stop: Callable[[Sequence[int]], bool] | None = None


def draws(limit: int, *key: object) -> Floats:
    """Give `limit` uniform numbers that depend on the key alone, so that batch, order and restart change no text."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(limit)


@torch.inference_mode()
def generate(model: Any, prompts: Sequence[Asked], rules: Rules, budget: int, padded: bool = True) -> list[Written]:
    """Continue every prompt until it ends, or to the end of its draws; answers keep the order of prompts.

    `budget` bounds prompt and written tokens of a batch together. `padded` is False for models that can read no mask of
    ours: their rows are written one by one.
    """
    written: list[Written | None] = [None] * len(prompts)
    trunk = read_trunk(model, shared_by([one.ids for one in prompts])) if padded and prompts else None
    part = 0.0 if trunk is None else len(trunk.ids) / len(prompts)

    def note(batch: Sequence[int]) -> Callable[[Leaving], None]:
        def leave(rows: Leaving) -> None:
            for row, ids, ended, tokens in zip(rows.rows, rows.ids, rows.ended, rows.reading.spent, strict=True):
                written[batch[row]] = Written(ids, ended, part + int(tokens))

        return leave

    # Without padding no budget is large enough for two rows.
    for batch in batches([len(one.ids) + len(one.draws) for one in prompts], budget if padded else 0):
        reading = open_reading(model, trunk, [prompts[at].ids for at in batch])
        write(reading, [prompts[at].draws for at in batch], rules, note(batch))
    return [one for one in written if one is not None]


@dataclass(frozen=True)
class Leaving:
    """Rows that have finished their texts: their places among those that were asked, what they wrote, their reading.

    The reading ends within the text of each row; what is asked of it next is a `read`.
    """

    rows: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    reading: Reading | Alone


@torch.inference_mode()
def write(
    reading: Reading | Alone,
    drawn: Sequence[Floats],
    rules: Rules,
    leave: Callable[[Leaving], None],
    watch: Watch | None = None,
) -> None:
    """Write a text behind every row of a reading, at most one token for each of its draws.

    Rows that have finished are handed to `leave` together, as soon as they are a quarter of those that are left.
    `watch` is called between two tokens, the reading at rest; the rows it names end where they are.
    """
    starts = zip(drawn, reading.ends, reading.spent, strict=True)
    texts = [_Text(len(some), int(end), int(spent)) for some, end, spent in starts]
    forbidden = torch.tensor(sorted(rules.forbidden - rules.ends), dtype=torch.long, device=reading.hidden.device)
    rows = list(range(len(drawn)))
    unread: list[int] = []
    while True:
        done = [at for at, row in enumerate(rows) if texts[row].done]
        if len(done) == len(rows) or len(done) > LEAVE_AT * len(rows):
            leave(_leaving(reading.part(done), [rows[at] for at in done], texts))
            staying = [at for at, row in enumerate(rows) if not texts[row].done]
            if not staying:
                return
            reading, rows = reading.part(staying), [rows[at] for at in staying]
            unread = [unread[at] for at in staying] if unread else []
        if unread:
            reading.step(np.array(unread, dtype=np.int64))
        spots = [drawn[row][min(len(texts[row].ids), len(drawn[row]) - 1)] if len(drawn[row]) else 0.0 for row in rows]
        unread = _draw(head(reading.model, reading.hidden).float(), forbidden, rules.sampling, spots).tolist()
        for row, token in zip(rows, unread, strict=True):
            texts[row].take(token, rules)
        if watch is not None:
            for row in watch([(row, texts[row].ids) for row in rows if not texts[row].done]):
                texts[row].limit = len(texts[row].ids)


class _Text:
    """What a row has of its text, and where its prompt ended at which cost."""

    def __init__(self, limit: int, end: int, spent: int) -> None:
        self.limit, self.end, self.spent = limit, end, spent
        self.ids: list[int] = []
        self.ended = self.closed = False

    @property
    def done(self) -> bool:
        return self.ended or len(self.ids) >= self.limit

    @property
    def read(self) -> int:
        """How many of its tokens had to be read: the last one only where an end token was drawn behind it."""
        return len(self.ids) if self.closed else max(0, len(self.ids) - 1)

    def take(self, token: int, rules: Rules) -> None:
        if self.done:
            return
        self.closed = token in rules.ends
        if not self.closed:
            self.ids.append(token)
        self.ended = self.closed or (rules.stop is not None and rules.stop(self.ids))


def _leaving(reading: Reading | Alone, rows: Sequence[int], texts: Sequence[_Text]) -> Leaving:
    """Hand over finished rows, without what was read of them while they waited for others to finish."""
    gone = [texts[row] for row in rows]
    reading.back(np.array([text.end + text.read for text in gone]))
    reading.spent = np.array([text.spent + text.read for text in gone])
    return Leaving(tuple(rows), tuple(tuple(text.ids) for text in gone), tuple(text.ended for text in gone), reading)


def _draw(logits: Tensor, forbidden: Tensor, sampling: Sampling, spots: Sequence[float]) -> Tensor:
    """Draw a token for each row of logits (b, v), decided by one number in [0, 1) a row."""
    if len(forbidden):
        logits[:, forbidden] = -torch.inf
    if sampling.temperature == 0:
        return logits.argmax(-1)
    chance = torch.softmax(logits / sampling.temperature, -1)
    likely, order = chance.sort(dim=-1, descending=True, stable=True)
    total = likely.cumsum(-1)
    likely = likely.masked_fill(total - likely >= sampling.top_p, 0.0)
    total = likely.cumsum(-1)
    drawn = torch.tensor(spots, dtype=torch.float64, device=logits.device)
    pick = (total <= (drawn * total[:, -1].double())[:, None].to(total.dtype)).sum(-1, keepdim=True)
    # A draw next to 1 is rounded up to 1, where only tokens without any probability are left.
    last = (likely > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(pick, last))[:, 0]
