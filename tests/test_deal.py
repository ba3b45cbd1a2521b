"""A step is dealt to several processes: nothing is lost, all have as many packs, and of about the same cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from saywhy.train.deal import EMPTY, cost, deal
from saywhy.train.loss import Losses
from saywhy.train.steps import Example, from_tensors, to_tensors
from saywhy.train.ways import LAYOUTS
from saywhy.trees import Branch, Pack, pack_trees

WIDTH = 32


def branches(sizes: Sequence[int]) -> list[Branch]:
    """Rows behind four shared tokens, each with so many tokens of its own; the last one is trained."""
    draw = np.random.default_rng(len(sizes))
    return [
        Branch(np.array([1, 2, 3, 4, *draw.integers(5, 400, size)]), np.array([0.0] * (3 + size) + [1.0]))
        for size in sizes
    ]


rows = st.lists(st.integers(1, 60), min_size=1, max_size=24)


@given(rows, st.integers(2, 6), st.integers(16, 300), st.sampled_from(sorted(LAYOUTS)))
def test_every_rank_has_as_many_packs_and_every_row_is_in_one(
    sizes: list[int], ranks: int, budget: int, layout: str
) -> None:
    laid = branches(sizes)
    hands = deal(laid, LAYOUTS[layout], budget, ranks, WIDTH)
    assert len(hands) == ranks and len({len(hand) for hand in hands}) == 1
    packs = [pack for hand in hands for pack in hand if pack is not EMPTY]
    assert sum(len(pack.weight) for pack in packs) == len(laid)
    targets = Counter(int(target) for pack in packs for target in pack.target)
    assert targets == Counter(int(branch.ids[-1]) for branch in laid)
    longest = max(len(branch.ids) for branch in laid)
    assert all(pack.ids.size <= max(budget, longest) for pack in packs)
    # No more passes than one process' packs, shared out.
    assert len(hands[0]) == -(-len(LAYOUTS[layout](laid, budget)) // ranks)


@given(rows, st.integers(2, 6))
def test_where_there_is_work_for_all_all_work(sizes: list[int], ranks: int) -> None:
    """One pack would hold these rows, and one process would do all of it."""
    same = branches([20] * max(len(sizes), ranks))
    hands = deal(same, LAYOUTS["rows"], 10_000, ranks, WIDTH)
    loads = [sum(cost(pack, WIDTH) for pack in hand) for hand in hands]
    least = len(same) // ranks if len(same) % ranks == 0 else 0
    assert max(loads) <= -(-len(same) // ranks) * 23 * (6 * WIDTH + 23)
    assert min(loads) >= least * 23 * (6 * WIDTH + 23)


def test_the_dearest_pack_goes_to_whom_has_least() -> None:
    sizes = [100, 60, 50, 40, 30, 20]
    hands = deal(branches(sizes), LAYOUTS["alone"], 16, 2, WIDTH)
    assert [[pack.tokens - 3 for pack in hand] for hand in hands] == [[100, 30, 20], [60, 50, 40]]
    hands = deal(branches([100, 10, 10]), LAYOUTS["alone"], 16, 2, WIDTH)
    assert [pack.tokens for pack in hands[0]] == [103, 0] and hands[0][1] is EMPTY
    assert [pack.tokens - 3 for pack in hands[1]] == [10, 10]


def test_one_process_lays_what_it_always_laid() -> None:
    laid = branches([9, 3, 40, 7])
    (hand,) = deal(laid, pack_trees, 48, 1, WIDTH)
    assert [pack.ids.tolist() for pack in hand] == [pack.ids.tolist() for pack in pack_trees(laid, 48)]


def test_attention_makes_long_packs_dearer_than_short_ones() -> None:
    def pack(rows: int, length: int) -> Pack:
        return Pack(np.zeros((rows, length), np.int64), *[EMPTY.source] * 6, rows * length)  # type: ignore[arg-type]

    assert cost(pack(1, 64), WIDTH) > cost(pack(4, 16), WIDTH) > cost(pack(3, 16), WIDTH)
    assert cost(pack(1, 6 * WIDTH), WIDTH) == 2 * 6 * WIDTH * 6 * WIDTH


@pytest.mark.parametrize("name", [*tiny.CONFIGS, "bloom", "mamba"])
def test_the_empty_pack_gives_every_weight_a_gradient_of_zeros(name: str) -> None:
    """DDP and FSDP wait for the gradient of every weight."""
    model = tiny.model(name)
    loss = Losses(model, "float32")(EMPTY)
    loss.backward()
    assert loss.item() == 0
    for key, weight in model.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), key


def test_examples_laid_end_to_end_come_back() -> None:
    made = [
        Example(tuple(branches([3, 5])), 4, 2),
        Example(tuple(branches([7])), 1, 1),
        Example(tuple(branches([2, 2, 9])), 6, 3),
    ]
    back = from_tensors(to_tensors(made))
    assert [(len(one.branches), one.target_tokens, one.label_tokens) for one in back] == [
        (2, 4, 2),
        (1, 1, 1),
        (3, 6, 3),
    ]
    pairs = zip((b for one in made for b in one.branches), (b for one in back for b in one.branches), strict=True)
    for wanted, found in pairs:
        assert found.ids.tolist() == wanted.ids.tolist() and found.weights.tolist() == wanted.weights.tolist()
        assert (
            found.ids.dtype == np.int64
            and found.weights.dtype == np.float64
            and torch.is_tensor(to_tensors(made)["ids"])
        )
