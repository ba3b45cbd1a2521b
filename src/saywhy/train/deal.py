"""Several processes share a step: packs of about equal cost, as many for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from saywhy.trees import Branch, Pack

Lay = Callable[[Sequence[Branch], int], list[Pack]]

_nought = np.zeros(1, dtype=np.int64)
# One token that weighs nothing: its forward and backward pass meet every weight and add zeros to their gradients.
EMPTY = Pack(_nought[None], _nought[None], None, _nought, _nought, np.zeros(1), _nought, 0)
# Packs that turn out too many, since each lays what its rows share again, are laid again so much larger.
LARGER = 1.1


def cost(pack: Pack, width: int) -> int:
    """Estimate what a pack takes, in no unit: a token costs 6 · width in the layers' matrices and n in attention.

    `width` is the size of a hidden state and n the length of the pack's rows. A layer takes about 12 · width²
    multiplications a token by its weights and 2 · width · n for attention.
    """
    rows, length = pack.ids.shape
    return rows * length * (6 * width + length)


def deal(branches: Sequence[Branch], lay: Lay, budget: int, ranks: int, width: int) -> list[list[Pack]]:
    """Lay branches in packs of at most `budget` tokens and give every rank equally many: (ranks, passes) packs.

    The dearest pack goes first, to whom has least (Graham 1969, longest processing time first). Packs are made smaller
    where that lets all ranks work; who has none left gets the empty pack. The same on every rank.
    """
    packs = lay(branches, budget)
    if ranks == 1:
        return [packs]
    passes = math.ceil(len(packs) / ranks)
    packs = _even(packs, branches, lay, budget, passes * ranks)
    hands: list[list[Pack]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for pack in sorted(packs, key=lambda pack: -cost(pack, width)):
        rank = min((rank for rank in range(ranks) if len(hands[rank]) < passes), key=lambda rank: held[rank])
        hands[rank].append(pack)
        held[rank] += cost(pack, width)
    return [hand + [EMPTY] * (passes - len(hand)) for hand in hands]


def _even(packs: list[Pack], branches: Sequence[Branch], lay: Lay, budget: int, most: int) -> list[Pack]:
    """Lay the branches again in at most so many packs, as small as that allows."""
    small = math.ceil(sum(pack.ids.size for pack in packs) / most)
    while small < budget:
        found = lay(branches, small)
        if len(found) <= most:
            return found
        small = math.ceil(small * LARGER)
    return packs
