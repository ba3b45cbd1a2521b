"""Score labels: the log-probability of what might follow a prompt, read off a trie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saywhy.lm.forward import log_probs
from saywhy.trees import Branch, Floats, Pack

Lay = Callable[[Sequence[Branch], int], list[Pack]]


@dataclass(frozen=True)
class Scores:
    """`log_probs` (n,) float64, one a branch; `tokens` computed for all of them together, shared ones once."""

    log_probs: Floats
    tokens: int


@torch.inference_mode()
def score(model: Any, branches: Sequence[Branch], budget: int, lay: Lay) -> Scores:
    """Sum each branch's log-probabilities over the tokens whose weight is above 0.

    `budget` bounds the tokens of a forward pass; `lay` is how branches become packs.
    """
    total = np.zeros(len(branches))
    tokens = 0
    for pack in lay(branches, budget):
        found = log_probs(model, pack).double().cpu().numpy()
        np.add.at(total, pack.branch, found)
        tokens += pack.tokens
    return Scores(total, tokens)
