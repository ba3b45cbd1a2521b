"""Before a run trusts its packs: no branch may see another, and a tree must give what the rows give one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from saywhy.lm.forward import log_probs
from saywhy.records import WorkError
from saywhy.trees import Branch, Pack, pack_trees

LEAK = 1e-4
SAME_LOSS = {"float32": 1e-4, "bf16": 2e-2}
# bf16 has eight bits: the logits behind a loss of ten are rounded to a thirtieth themselves.
ROUNDED = {"float32": 0.0, "bf16": 2.0**-7}


@torch.no_grad()
def check_packs(
    model: Any,
    branches: Sequence[Branch],
    budget: int,
    context: Callable[[], AbstractContextManager[Any]],
    precision: str,
) -> None:
    """Check the first pack of a run twice; raise WorkError with the reason where it is not exact.

    The tokens of one branch are exchanged and no other branch's outputs may change: this catches leaks, which a
    comparison of losses in bf16 does not. Two rows' losses are compared with the model's own forward, row by row: this
    catches wrong positions and lost context.
    """
    pack = pack_trees(branches, budget)[0]
    with context():
        before = log_probs(model, pack).double().cpu().numpy()
        leak = _leak(model, pack, before)
        if leak > LEAK:
            raise WorkError(f"packs leak: one branch's tokens change another's outputs by {leak:.2g}; set layout: rows")
        # Sources are sorted: the row that is laid last is the farthest from where it would stand alone.
        laid = list(dict.fromkeys(pack.branch.tolist()))
        for member in {laid[0], laid[-1]}:
            inside = pack.branch == member
            weights = pack.weight[inside]
            packed = float(-(weights * before[inside]).sum() / weights.sum())
            alone = row_loss(model, branches[member])
            if abs(packed - alone) > max(SAME_LOSS[precision], ROUNDED[precision] * alone):
                raise WorkError(
                    f"packs are not exact: a row's loss is {packed:.5f} in a token tree and {alone:.5f} by itself; "
                    "set layout: rows"
                )


def _leak(model: Any, pack: Pack, before: np.ndarray[Any, Any]) -> float:
    """Exchange the tokens that one early branch has alone; give the largest change of any other branch's output.

    The branch must be an early one: causality by itself hides later tokens from earlier ones.
    """
    for member in dict.fromkeys(pack.branch.tolist()):
        own = _own(pack, member)
        apart = pack.branch != member
        if own.any() and apart.any():
            changed = pack.ids.copy()
            vocabulary = model.config.get_text_config().vocab_size
            changed[0, own] = (changed[0, own] + 1 + np.arange(own.sum())) % vocabulary
            after = log_probs(model, replace(pack, ids=changed)).double().cpu().numpy()
            return float(np.abs(after[apart] - before[apart]).max())
    return 0.0


def _own(pack: Pack, member: int) -> np.ndarray[Any, Any]:
    """Tell which tokens no other branch reads through: (n,) bool."""
    places = np.arange(pack.ids.shape[1])
    ends = pack.subtree_end if pack.subtree_end is not None else places + 1
    own, others = pack.source[pack.branch == member], pack.source[pack.branch != member]
    read_by_own = np.searchsorted(own, ends) > np.searchsorted(own, places)
    read_by_others = np.searchsorted(others, ends) > np.searchsorted(others, places)
    return read_by_own & ~read_by_others


def row_loss(model: Any, branch: Branch) -> float:
    """Compute the mean weighted loss of one row by the model's own whole forward."""
    ids = torch.from_numpy(branch.ids)[None].to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    found = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0].double().cpu().numpy()
    return float(-(branch.weights[1:] * found).sum() / branch.weights.sum())
