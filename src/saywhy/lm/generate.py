"""Write texts: sampled or greedy, with the shared prompt computed once and finished rows leaving the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saywhy.lm.cache import Alone, Reading, Trunk, batches, open_reading, read_trunk, shared_by
from saywhy.lm.forward import head, reads_trunk
from saywhy.trees import Floats, Ints

# A batch is made smaller when this share of its rows has finished.
LEAVE_AT = 0.25
# Most texts end long before their limit: a batch is made for this share of it, and halved where that was too little.
EXPECTED = 0.25
# How many of the likeliest tokens are sorted at first, and then where these do not hold `top_p` of the probability: to
# sort a whole vocabulary takes longer than the model itself (LOG.md, 2026-11-21).
FEW = (256, 4096)
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


def generate(model: Any, prompts: Sequence[Asked], rules: Rules, budget: int, padded: bool = True) -> list[Written]:
    """Continue every prompt until it ends, or to the end of its draws; answers keep the order of prompts.

    `budget` and `padded` as in `generate_each`.
    """
    written = dict(pair for batch in generate_each(model, prompts, rules, budget, padded) for pair in batch)
    return [written[at] for at in range(len(prompts))]


def generate_each(
    model: Any, prompts: Sequence[Asked], rules: Rules, budget: int, padded: bool = True
) -> Iterator[list[tuple[int, Written]]]:
    """Continue every prompt as `generate` does, and give each batch when it is done, with the places of its prompts.

    `budget` bounds prompt and written tokens of a batch together. `padded` is False for models that can read no mask of
    ours: their rows are written one by one.
    """
    trunk = read_trunk(model, shared_by([one.ids for one in prompts])) if padded and prompts else None
    shared = 0 if trunk is None else len(trunk.ids)
    # What stands once for all takes no room in a batch.
    apart = shared if reads_trunk(model) else 0
    lengths = [len(one.ids) - apart + ceil(EXPECTED * len(one.draws)) for one in prompts]
    # Without padding no budget is large enough for two rows.
    for batch in batches(lengths, budget if padded else 0):
        yield _written(model, trunk, [prompts[at] for at in batch], batch, rules, budget, shared / len(prompts))


@torch.inference_mode()
def _written(
    model: Any,
    trunk: Trunk | None,
    prompts: Sequence[Asked],
    places: Sequence[int],
    rules: Rules,
    budget: int,
    part: float,
) -> list[tuple[int, Written]]:
    """Write one batch; `part` is what each prompt has of the trunk's tokens."""
    done: list[tuple[int, Written]] = []

    def leave(rows: Leaving) -> None:
        for row, ids, ended, tokens in zip(rows.rows, rows.ids, rows.ended, rows.spent, strict=True):
            done.append((places[row], Written(ids, ended, part + int(tokens))))

    draws_of = [one.draws for one in prompts]
    # The reading has no name here, so that it goes when it is halved.
    write(open_reading(model, trunk, [one.ids for one in prompts]), draws_of, rules, leave, budget)
    return sorted(done, key=lambda pair: pair[0])


@dataclass(frozen=True)
class Leaving:
    """Rows that have finished their texts: their places among those that were asked, what they wrote, their cost.

    `spent` (r,) counts the tokens computed for each, as a reading does. `part` gives these rows a reading of their own,
    as long as they are being handed over; it ends within the text of each row, and is to `read` next.
    """

    rows: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    spent: Ints
    part: Callable[[], Reading | Alone]


@torch.inference_mode()
def write(
    reading: Reading | Alone,
    drawn: Sequence[Floats],
    rules: Rules,
    leave: Callable[[Leaving], None],
    budget: int | None = None,
    watch: Watch | None = None,
) -> None:
    """Write a text behind every row of a reading, at most one token for each of its draws.

    Rows that have finished are handed to `leave` together, as soon as they are a quarter of those that are left. Rows
    that come to hold more than `budget` tokens go on in two halves, one after the other. `watch` is called between two
    tokens, the reading at rest; the rows it names end where they are.
    """
    starts = zip(drawn, reading.ends, reading.spent, strict=True)
    texts = [_Text(len(some), int(end), int(spent)) for some, end, spent in starts]
    forbidden = torch.tensor(sorted(rules.forbidden - rules.ends), dtype=torch.long, device=reading.hidden.device)
    rows = list(range(len(drawn)))
    waiting: list[tuple[Reading | Alone, list[int], list[int]]] = []
    unread: list[int] = []

    def part(places: Sequence[int]) -> tuple[Reading | Alone, list[int], list[int]]:
        return reading.part(places), [rows[at] for at in places], [unread[at] for at in places] if unread else []

    while True:
        done = [at for at, row in enumerate(rows) if texts[row].done]
        if len(done) == len(rows) or len(done) > LEAVE_AT * len(rows):
            leave(_leaving(reading, done, [rows[at] for at in done], texts))
            staying = [at for at, row in enumerate(rows) if not texts[row].done]
            if not staying and not waiting:
                return
            reading, rows, unread = part(staying) if staying else waiting.pop()
        if budget is not None and len(rows) > 1 and reading.held > budget:
            middle = len(rows) // 2
            waiting.append(part(range(middle, len(rows))))
            reading, rows, unread = part(range(middle))
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


def _leaving(reading: Reading | Alone, places: Sequence[int], rows: Sequence[int], texts: Sequence[_Text]) -> Leaving:
    """Hand over finished rows, without what was read of them while they waited for others to finish."""
    gone = [texts[row] for row in rows]
    spent = np.array([text.spent + text.read for text in gone])

    def part() -> Reading | Alone:
        own = reading.part(places)
        own.back(np.array([text.end + text.read for text in gone]))
        own.spent = spent
        return own

    ids = tuple(tuple(text.ids) for text in gone)
    return Leaving(tuple(rows), ids, tuple(text.ended for text in gone), spent, part)


def _draw(logits: Tensor, forbidden: Tensor, sampling: Sampling, spots: Sequence[float]) -> Tensor:
    """Draw a token for each row of logits (b, v), decided by one number in [0, 1) a row."""
    if len(forbidden):
        logits[:, forbidden] = -torch.inf
    if sampling.temperature == 0:
        # Thirteen times as fast on a CPU as torch's (LOG.md, 2026-11-21); both give the first of equals.
        return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)
    chance = torch.softmax(logits / sampling.temperature, -1)
    drawn = torch.tensor(spots, dtype=torch.float64, device=logits.device)
    token = torch.empty(len(chance), dtype=torch.long, device=logits.device)
    left = torch.arange(len(chance), device=logits.device)
    for count in (*(few for few in FEW if few < chance.shape[1]), chance.shape[1]):
        found, certain = _among(chance[left], count, sampling.top_p, drawn[left])
        token[left] = found
        left = left[~certain]
        if not len(left):
            break
    return token


def _among(chance: Tensor, count: int, top_p: float, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Draw among the `count` likeliest tokens of `chance` (b, v), and tell where that is surely what all would give."""
    if count == chance.shape[1]:
        likely, order = chance.sort(dim=-1, descending=True, stable=True)
    else:
        # Of equals the first in the vocabulary comes first here too.
        some = chance.topk(count, sorted=False).indices.sort(dim=-1).values
        likely, place = chance.gather(1, some).sort(dim=-1, descending=True, stable=True)
        order = some.gather(1, place)
    total = likely.cumsum(-1)
    kept = likely.masked_fill(total - likely >= top_p, 0.0)
    # All that is in the set is likelier than the last one here, so nothing that was left out belongs to it.
    certain = ~((kept > 0) & (likely == likely[:, -1:])).any(-1)
    total = kept.cumsum(-1)
    pick = (total <= (drawn * total[:, -1].double())[:, None].to(total.dtype)).sum(-1, keepdim=True)
    # A draw next to 1 is rounded up to 1, where only tokens without any probability are left.
    last = (kept > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(pick, last))[:, 0], certain
