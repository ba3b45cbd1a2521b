"""Which rows every step takes, at which rate, and what they weigh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch

from saywhy.config import Train
from saywhy.trees import Branch, Pack


@dataclass(frozen=True)
class Example:
    """One row as branches, one a target, with its own counts of trained tokens."""

    branches: tuple[Branch, ...]
    target_tokens: int
    label_tokens: int


def to_tensors(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Lay examples end to end: `ids` and `weights` of all tokens, tokens a branch, and a row (n, 3) of each example."""
    branches = [branch for example in examples for branch in example.branches]
    told = [[len(example.branches), example.target_tokens, example.label_tokens] for example in examples]
    return {
        "ids": torch.from_numpy(np.concatenate([branch.ids for branch in branches])),
        "weights": torch.from_numpy(np.concatenate([branch.weights for branch in branches])),
        "tokens": torch.tensor([len(branch.ids) for branch in branches]),
        "examples": torch.tensor(told),
    }


def from_tensors(laid: Mapping[str, torch.Tensor]) -> list[Example]:
    """Give back the examples that `to_tensors` laid end to end."""
    ends = np.cumsum(laid["tokens"].numpy())[:-1]
    pieces = (np.split(laid[name].numpy(), ends) for name in ("ids", "weights"))
    branches = iter([Branch(ids, weights) for ids, weights in zip(*pieces, strict=True)])
    return [
        Example(tuple(islice(branches, count)), targets, labels) for count, targets, labels in laid["examples"].tolist()
    ]


def plan_steps(examples: Sequence[Example], settings: Train, seed: int) -> list[list[int]]:
    """Choose the rows of every step: whole passes in an order of their own, cut into steps of equally many rows.

    With `tokens_per_step` a step takes rows until it has so many tokens (the papers' way).
    """
    order = _passes(len(examples), seed)
    rows = math.ceil(len(examples) * settings.epochs)
    if settings.rows_per_step is not None:
        steps = settings.steps or math.ceil(rows / settings.rows_per_step)
        return [list(islice(order, settings.rows_per_step)) for _ in range(steps)]
    sizes = [sum(len(branch.ids) for branch in example.branches) for example in examples]
    taken = order if settings.steps else islice(order, rows)
    return list(islice(_by_tokens(taken, sizes, settings.tokens_per_step or 1), settings.steps))


def _passes(rows: int, seed: int) -> Iterator[int]:
    """Go through the rows without end, every pass in an order of its own."""
    for number in count():
        yield from np.random.default_rng([seed, number]).permutation(rows).tolist()


def _by_tokens(order: Iterable[int], sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    held = 0
    for row in order:
        if batch and held + sizes[row] > budget:
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += sizes[row]
    yield batch


def rate_at(step: int, steps: int, settings: Train) -> float:
    """Give the learning rate of a step: a linear rise, then the schedule's fall."""
    rise = math.ceil(settings.warmup * steps)
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    share = (step - rise) / max(1, steps - rise)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}
    return settings.learning_rate * fall[settings.schedule]


def total_weight(rows: Sequence[Example]) -> float:
    """Sum the loss weights of a step's rows over all packs and processes: every process knows all rows."""
    return float(sum(branch.weights.sum() for row in rows for branch in row.branches))


def packs_tokens(packs: Sequence[Pack]) -> int:
    """Count the tokens computed for some packs."""
    return sum(pack.tokens for pack in packs)
