"""Which rows every step takes, at which rate, and what they weigh."""

from __future__ import annotations

import hashlib
import json
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
    """One row as branches, one a target, with its own counts of trained tokens; `id` names it in messages.

    `group` is its label, and `label_weight` what one token of the label weighs, summed over the targets.
    """

    branches: tuple[Branch, ...]
    target_tokens: int
    label_tokens: int
    id: str = ""
    group: str = ""
    label_weight: float = 0.0


def to_tensors(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Lay examples end to end: `ids` and `weights` of all tokens, tokens a branch, (n, 3) counts, and JSON as bytes."""
    branches = [branch for example in examples for branch in example.branches]
    counts = [[len(example.branches), example.target_tokens, example.label_tokens] for example in examples]
    named = json.dumps([[example.id, example.group, example.label_weight] for example in examples]).encode()
    return {
        "ids": torch.from_numpy(np.concatenate([branch.ids for branch in branches])),
        "weights": torch.from_numpy(np.concatenate([branch.weights for branch in branches])),
        "tokens": torch.tensor([len(branch.ids) for branch in branches]),
        "examples": torch.tensor(counts),
        "named": torch.from_numpy(np.frombuffer(named, dtype=np.uint8).copy()),
    }


def from_tensors(laid: Mapping[str, torch.Tensor]) -> list[Example]:
    """Give back the examples that `to_tensors` laid end to end."""
    ends = np.cumsum(laid["tokens"].numpy())[:-1]
    pieces = (np.split(laid[name].numpy(), ends) for name in ("ids", "weights"))
    branches = iter([Branch(ids, weights) for ids, weights in zip(*pieces, strict=True)])
    named = json.loads(laid["named"].numpy().tobytes())
    return [
        Example(tuple(islice(branches, count)), targets, labels, *told)
        for (count, targets, labels), told in zip(laid["examples"].tolist(), named, strict=True)
    ]


def plan_steps(examples: Sequence[Example], settings: Train, seed: int) -> list[list[int]]:
    """Choose the rows of every step: whole passes in an order of their own, cut into steps of equally many rows.

    With `tokens_per_step` a step takes rows until it has so many tokens (the papers' way). With the balanced sampler no
    label is ever drawn more than once oftener than another, and no row again before all others of its label were.
    """
    balanced = settings.sampler == "balanced"
    order = _in_turn([example.group for example in examples], seed) if balanced else _passes(len(examples), [seed])
    rows = math.ceil(len(examples) * settings.epochs)
    if settings.rows_per_step is not None:
        steps = settings.steps or math.ceil(rows / settings.rows_per_step)
        return [list(islice(order, settings.rows_per_step)) for _ in range(steps)]
    sizes = [sum(len(branch.ids) for branch in example.branches) for example in examples]
    taken = order if settings.steps else islice(order, rows)
    return list(islice(_by_tokens(taken, sizes, settings.tokens_per_step or 1), settings.steps))


def hash_of(examples: Sequence[Example], batches: Sequence[Sequence[int]]) -> str:
    """Give the sha256 (64 hex digits) of the rows of every step: a training goes on with these and no others."""
    found = hashlib.sha256(repr([list(batch) for batch in batches]).encode())
    for example in examples:
        for branch in example.branches:
            found.update(branch.ids.tobytes())
            found.update(branch.weights.tobytes())
        found.update(b"row")
    return found.hexdigest()


def _passes(rows: int, seed: Sequence[int]) -> Iterator[int]:
    """Go through the rows without end, every pass in an order of its own."""
    for number in count():
        yield from np.random.default_rng([*seed, number]).permutation(rows).tolist()


def _in_turn(groups: Sequence[str], seed: int) -> Iterator[int]:
    """Take a row of every group in turn without end, the turns in orders of their own, and passes within a group."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    within = [(members, _passes(len(members), [seed, 1 + at])) for at, members in enumerate(rows.values())]
    for turn in _passes(len(within), [seed, 0]):
        members, places = within[turn]
        yield members[next(places)]


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
    rise = math.ceil(settings.warmup * (steps if settings.warmup < 1 else 1))
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    share = (step - rise) / max(1, steps - rise)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}
    return settings.learning_rate * fall[settings.schedule]


def total_weight(rows: Sequence[Example]) -> float:
    """Sum the loss weights of a step's rows over all packs and processes: every process knows all rows."""
    return float(sum(branch.weights.sum() for row in rows for branch in row.branches))


def shares_of(examples: Sequence[Example], settings: Train) -> dict[str, float]:
    """Give each label's share of what a model is taught of labels: the prior that its answers learn.

    A row counts as much as one token of its label weighs: what a model answers is p(y)·w(y), normalised, at every
    token of a label alike. With the balanced sampler a label counts as much as its rows do on average.
    """
    weights: dict[str, list[float]] = {}
    for example in examples:
        weights.setdefault(example.group, []).append(example.label_weight)
    each = {group: sum(of) / (len(of) if settings.sampler == "balanced" else 1) for group, of in weights.items()}
    return {group: weight / sum(each.values()) for group, weight in each.items()}


def packs_tokens(packs: Sequence[Pack]) -> int:
    """Count the tokens computed for some packs."""
    return sum(pack.tokens for pack in packs)
