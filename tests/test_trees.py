"""Token trees against an oracle of parent pointers: what is laid, who attends to whom, what is predicted from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saywhy.trees import (
    Branch,
    Pack,
    allowed,
    in_order,
    laid,
    pack_alone,
    pack_rows,
    pack_trees,
    side_by_side,
    tree,
    within_window,
)

PACKERS = (pack_trees, pack_rows, pack_alone)


def branch(ids: Sequence[int], weights: Sequence[float]) -> Branch:
    return Branch(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float64))


@st.composite
def some_branches(draw: st.DrawFn) -> list[Branch]:
    """Few token ids, so that branches share much, are prefixes of one another, and repeat."""
    found = []
    for ids in draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=7), min_size=1, max_size=9)):
        weights = draw(
            st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=len(ids), max_size=len(ids)).filter(
                lambda w: any(w[1:])
            )
        )
        found.append(branch(ids, [0.0, *weights[1:]]))
    return found


def parents(pack: Pack) -> list[int]:
    """Find the parent of each token from depths alone: the last token before it that is one less deep; -1 at a root."""
    depth = pack.depth[0].tolist()
    return [max((j for j in range(i) if depth[j] == depth[i] - 1), default=-1) for i in range(len(depth))]


def path_to(position: int, parent: Sequence[int]) -> list[int]:
    path = [position]
    while parent[path[-1]] >= 0:
        path.append(parent[path[-1]])
    return path[::-1]


def whole(branches: Sequence[Branch]) -> Pack:
    return tree(branches, in_order(branches))


def context(pack: Pack, source: int) -> tuple[int, ...]:
    """Give the tokens up to and with a source."""
    if pack.subtree_end is None:
        row, column = divmod(source, pack.ids.shape[1])
        return tuple(pack.ids[row, : column + 1].tolist())
    return tuple(pack.ids[0, path_to(source, parents(pack))].tolist())


def predictions(packs: Sequence[Pack]) -> Counter[tuple[int, tuple[int, ...], int, float]]:
    """Count (branch, tokens read, target, weight) over packs."""
    return Counter(
        (int(b), context(pack, int(s)), int(t), float(w))
        for pack in packs
        for b, s, t, w in zip(pack.branch, pack.source, pack.target, pack.weight, strict=True)
    )


def expected(branches: Sequence[Branch]) -> Counter[tuple[int, tuple[int, ...], int, float]]:
    return Counter(
        (number, tuple(one.ids[:at].tolist()), int(one.ids[at]), float(one.weights[at]))
        for number, one in enumerate(branches)
        for at in np.flatnonzero(one.weights)
    )


@given(some_branches())
def test_a_token_attends_to_its_ancestors_and_to_nothing_else(branches: list[Branch]) -> None:
    pack = whole(branches)
    assert pack.subtree_end is not None
    parent = parents(pack)
    ancestors = np.zeros((len(parent), len(parent)), dtype=bool)
    for position in range(len(parent)):
        ancestors[position, path_to(position, parent)] = True
    np.testing.assert_array_equal(allowed(pack.subtree_end, np.arange(len(parent))), ancestors)


@given(some_branches())
def test_subtree_end_is_one_past_the_last_descendant(branches: list[Branch]) -> None:
    pack = whole(branches)
    assert pack.subtree_end is not None
    parent = parents(pack)
    for position, end in enumerate(pack.subtree_end.tolist()):
        below = [i for i in range(len(parent)) if position in path_to(i, parent)]
        assert below == list(range(position, end))


@given(some_branches())
def test_depth_is_the_number_of_tokens_before_it_in_its_row(branches: list[Branch]) -> None:
    pack = whole(branches)
    parent = parents(pack)
    assert pack.depth[0].tolist() == [len(path_to(i, parent)) - 1 for i in range(len(parent))]


@given(some_branches())
def test_every_token_is_laid_once(branches: list[Branch]) -> None:
    pack = whole(branches)
    prefixes = {tuple(laid(b).tolist()[: n + 1]) for b in branches for n in range(len(laid(b)))}
    parent = parents(pack)
    found = [tuple(pack.ids[0, path_to(i, parent)].tolist()) for i in range(len(parent))]
    assert len(found) == len(prefixes) == pack.tokens == pack.ids.size
    assert set(found) == prefixes


@given(some_branches(), st.integers(1, 30))
def test_every_target_is_predicted_once_from_its_own_row_whatever_the_packing(
    branches: list[Branch], budget: int
) -> None:
    for lay in PACKERS:
        assert predictions(lay(branches, budget)) == expected(branches), lay.__name__


@given(some_branches(), st.integers(1, 30))
def test_packs_keep_to_the_budget_unless_one_branch_alone_breaks_it(branches: list[Branch], budget: int) -> None:
    for pack in pack_rows(branches, budget):
        assert pack.ids.size <= budget or len(set(pack.branch.tolist())) == 1
    for pack in pack_trees(branches, budget):
        longest = max(len(laid(branches[b])) for b in pack.branch.tolist())
        assert pack.ids.size <= max(budget, longest + budget // 4)
    for pack in pack_rows(branches, budget):
        lengths = {len(laid(branches[b])) for b in set(pack.branch.tolist())}
        assert pack.ids.shape[1] == max(lengths)


@given(some_branches(), st.integers(1, 30))
def test_a_tree_pack_takes_branches_as_long_as_they_fit(branches: list[Branch], budget: int) -> None:
    packs = pack_trees(branches, budget)
    order = [sorted(set(pack.branch.tolist()), key=in_order(branches).index) for pack in packs]
    assert [b for group in order for b in group] == in_order(branches)
    for now, then in pairwise(order):
        longest = max(len(laid(branches[b])) for b in [*now, then[0]])
        assert tree(branches, [*now, then[0]]).tokens > max(budget, longest + budget // 4)


def test_rows_behind_a_trunk_longer_than_a_pack_still_share_it() -> None:
    weights = np.zeros(105)
    weights[-1] = 1.0
    branches = [Branch(np.array([*range(1, 101), 200 + row, 3, 4, 5, 6]), weights) for row in range(40)]
    packs = pack_trees(branches, 80)
    # Of each row four tokens are laid behind the trunk's hundred: five rows in a quarter of a pack and a branch's own.
    assert [len(set(pack.branch.tolist())) for pack in packs] == [6] * 6 + [4]
    assert sum(pack.tokens for pack in packs) == 7 * 100 + 40 * 4


@given(some_branches())
def test_sources_are_sorted_and_hold_the_token_before_the_target(branches: list[Branch]) -> None:
    for lay in PACKERS:
        for pack in lay(branches, 12):
            assert (np.diff(pack.source) >= 0).all()
            for number, source, target in zip(pack.branch, pack.source, pack.target, strict=True):
                ids = branches[number].ids
                pairs = set(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
                assert (int(pack.ids.reshape(-1)[source]), int(target)) in pairs


@given(some_branches())
def test_paths_lead_from_the_root_to_every_leaf_and_home_finds_each_token_in_them(branches: list[Branch]) -> None:
    pack = whole(branches)
    assert pack.paths is not None and pack.home is not None
    parent = parents(pack)
    leaves = [i for i in range(len(parent)) if i not in parent]
    wanted = [path_to(leaf, parent) for leaf in leaves]
    width = max(map(len, wanted))
    assert pack.paths.tolist() == [path + [0] * (width - len(path)) for path in wanted]
    flat = pack.paths.reshape(-1).tolist()
    assert pack.home.tolist() == [flat.index(position) for position in range(pack.ids.size)]
    np.testing.assert_array_equal(pack.home % width, pack.depth[0])


@given(some_branches(), st.integers(1, 5))
def test_a_window_counts_depth_not_place(branches: list[Branch], window: int) -> None:
    pack = whole(branches)
    assert pack.subtree_end is not None
    parent = parents(pack)
    seen = allowed(pack.subtree_end, np.arange(len(parent))) & within_window(pack.depth[0], window)
    for position in range(len(parent)):
        assert np.flatnonzero(seen[position]).tolist() == sorted(path_to(position, parent)[-window:])


def test_rows_side_by_side_are_padded_on_the_right() -> None:
    branches = [branch([5, 6, 7], [0, 0, 1]), branch([8, 9, 1, 2], [0, 1, 0, 0.5])]
    pack = side_by_side(branches, [0, 1])
    assert pack.ids.tolist() == [[5, 6, 0], [8, 9, 1]]
    assert pack.depth.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert pack.source.tolist() == [1, 3, 5]
    assert pack.target.tolist() == [7, 9, 2]
    assert pack.weight.tolist() == [1.0, 1.0, 0.5]
    assert pack.tokens == 5 and pack.subtree_end is None


def test_a_tree_by_hand() -> None:
    shared = [1, 2]
    branches = [branch([*shared, 3, 9], [0, 0, 1, 1]), branch([*shared, 4, 5, 9], [0, 0, 0.5, 0.5, 0.5])]
    pack = whole(branches)
    assert pack.ids.tolist() == [[1, 2, 3, 4, 5]]
    assert pack.depth.tolist() == [[0, 1, 2, 2, 3]]
    assert pack.subtree_end is not None and pack.subtree_end.tolist() == [5, 5, 3, 5, 5]
    # The first words of both answers are read from one output.
    assert pack.source.tolist() == [1, 1, 2, 3, 4]
    assert pack.target.tolist() == [3, 4, 9, 5, 9]
    assert pack.branch.tolist() == [0, 1, 0, 1, 1]


def test_what_stands_behind_the_last_target_is_not_computed() -> None:
    assert laid(branch([1, 2, 3, 4], [0, 1, 0, 0])).tolist() == [1]
    assert laid(branch([1, 2, 3, 4], [0, 0, 0, 1])).tolist() == [1, 2, 3]
    assert laid(branch([1, 2, 3], [0, 0, 0])).tolist() == [1, 2, 3]


def test_a_branch_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="the first token of a branch is trained, but nothing stands before it"):
        branch([1, 2], [1, 1])
    with pytest.raises(ValueError, match="a branch has 2 ids and 3 weights"):
        branch([1, 2], [0, 1, 1])
