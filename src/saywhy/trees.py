"""Token trees: rows that share tokens, laid out so that each shared token is computed once. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of a budget this part may stand behind the longest branch of a tree, whatever that takes itself.
ROOM_BEHIND = 4
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Branch:
    """One path from the root to a leaf: a whole prompt with one target.

    `ids` (n,) int64. `weights` (n,) float64: the loss weight of each token, 0 for tokens that are only read. The first
    token has no parent whose output could predict it, so its weight must be 0.
    """

    ids: Ints
    weights: Floats

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.weights):
            raise ValueError(f"a branch has {len(self.ids)} ids and {len(self.weights)} weights; they must be as many")
        if len(self.weights) and self.weights[0] != 0:
            raise ValueError("the first token of a branch is trained, but nothing stands before it to predict it")


@dataclass(frozen=True)
class Pack:
    """What one forward pass sees.

    `ids`, `depth` (b, n) int64: tokens and their position ids. `subtree_end` (n,) int64 for a token tree (b = 1): the
    position where the subtree of each token ends; None for rows side by side, where plain causal attention holds.
    The loss has arrays of its own, all (m,): `source` is the flat position whose output is read, `target` the id to
    predict there, `weight` its loss weight, `branch` the branch it belongs to, as given to the packer. They are sorted
    by `source`. `tokens` counts real tokens, padding left out.

    A tree also has `paths` (r, l) int64, the positions of each root-to-leaf path padded with 0, and `home` (n,) int64,
    the flat place in `paths` where each token stands first: with them attention can be computed path by path.
    """

    ids: Ints
    depth: Ints
    subtree_end: Ints | None
    source: Ints
    target: Ints
    weight: Floats
    branch: Ints
    tokens: int
    paths: Ints | None = None
    home: Ints | None = None


def allowed(subtree_end: Any, index: Any) -> Any:
    """Tell which token attends to which: (n, n) bool, true where j <= i < subtree_end[j].

    `index` is 0 … n-1; numpy arrays and torch tensors both work, so that the rule stands here alone.
    """
    return (index[None, :] <= index[:, None]) & (index[:, None] < subtree_end[None, :])


def within_window(depth: Any, window: int) -> Any:
    """Tell which tokens lie inside a sliding window: (n, n) bool, true where depth(i) - depth(j) < window."""
    return depth[:, None] - depth[None, :] < window


def laid(branch: Branch) -> Ints:
    """Give the ids that must be computed: what stands before the last target. Nothing reads the output behind it."""
    targets = np.flatnonzero(branch.weights)
    return branch.ids[: targets[-1]] if len(targets) else branch.ids


def common(a: Ints, b: Ints) -> int:
    """Count the leading tokens that two paths share."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def in_order(branches: Sequence[Branch]) -> list[int]:
    """Order branches so that those that share most stand together: lexicographic by what is laid of them."""
    return sorted(range(len(branches)), key=lambda i: (laid(branches[i]).astype(">i8").tobytes(), i))


def tree(branches: Sequence[Branch], members: Sequence[int]) -> Pack:
    """Lay the given members of `branches`, which must be in lexicographic order, as one token tree."""
    ids: list[Ints] = []
    depth: list[Ints] = []
    size = 0
    ends = np.zeros(sum(len(branches[m].ids) for m in members), dtype=np.int64)
    losses: list[tuple[Ints, Ints, Floats, Ints]] = []
    paths: list[Ints] = []
    before = np.zeros(0, dtype=np.int64)
    path = np.zeros(0, dtype=np.int64)
    for member in members:
        branch = branches[member]
        now = laid(branch)
        shared = common(before, now)
        if shared == len(before) and paths:
            # The path before ends inside this one, or is the same: it needs no place of its own.
            paths.pop()
        ends[path[shared:]] = size
        fresh = np.arange(size, size + len(now) - shared)
        ids.append(now[shared:])
        depth.append(np.arange(shared, len(now)))
        path = np.concatenate([path[:shared], fresh])
        paths.append(path)
        before = now
        size += len(fresh)
        at = np.flatnonzero(branch.weights)
        losses.append((path[at - 1], branch.ids[at], branch.weights[at], np.full(len(at), member)))
    ends[path] = size
    pack = _pack(np.concatenate(ids)[None], np.concatenate(depth)[None], ends[:size], losses, size)
    table, home = _by_path(paths, size)
    return replace(pack, paths=table, home=home)


def _by_path(paths: Sequence[Ints], size: int) -> tuple[Ints, Ints]:
    """Lay the positions of every path side by side, and find where each token stands first."""
    width = max(map(len, paths))
    table = np.zeros((len(paths), width), dtype=np.int64)
    home = np.zeros(size, dtype=np.int64)
    for row in reversed(range(len(paths))):
        path = paths[row]
        table[row, : len(path)] = path
        home[path] = row * width + np.arange(len(path))
    return table, home


def padded(pack: Pack, length: int) -> Pack:
    """Lengthen a token tree to `length` tokens by roots that nothing reads and that read nothing but themselves."""
    if pack.subtree_end is None or pack.ids.shape[1] >= length:
        return pack
    size = pack.ids.shape[1]
    fill = np.zeros((1, length - size), dtype=np.int64)
    ends = np.concatenate([pack.subtree_end, np.arange(size + 1, length + 1)])
    ids, depth = (np.concatenate([part, fill], axis=1) for part in (pack.ids, pack.depth))
    return replace(pack, ids=ids, depth=depth, subtree_end=ends, paths=None, home=None)


def side_by_side(branches: Sequence[Branch], members: Sequence[int]) -> Pack:
    """Lay the given members of `branches` as rows of one right-padded batch."""
    rows = [laid(branches[m]) for m in members]
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    losses: list[tuple[Ints, Ints, Floats, Ints]] = []
    for at, (member, row) in enumerate(zip(members, rows, strict=True)):
        ids[at, : len(row)] = row
        targets = np.flatnonzero(branches[member].weights)
        branch = branches[member]
        losses.append(
            (at * width + targets - 1, branch.ids[targets], branch.weights[targets], np.full(len(targets), member))
        )
    depth = np.broadcast_to(np.arange(width), ids.shape).copy()
    return _pack(ids, depth, None, losses, sum(len(row) for row in rows))


def _pack(
    ids: Ints, depth: Ints, ends: Ints | None, losses: list[tuple[Ints, Ints, Floats, Ints]], tokens: int
) -> Pack:
    source, target, weight, branch = (np.concatenate(part) for part in zip(*losses, strict=True))
    order = np.argsort(source, kind="stable")
    return Pack(ids, depth, ends, source[order], target[order], weight[order], branch[order], tokens)


def pack_trees(branches: Sequence[Branch], budget: int) -> list[Pack]:
    """Lay branches as token trees of at most `budget` tokens each.

    A tree may grow by a quarter of the budget beyond its longest branch all the same: behind a long trunk every tree
    would else hold few rows, or one, and the trunk be computed for each.
    """
    groups: list[list[int]] = []
    size = longest = 0
    before = np.zeros(0, dtype=np.int64)
    for member in in_order(branches):
        now = laid(branches[member])
        grown = size + len(now) - common(before, now)
        longest = max(longest, len(now))
        if groups and grown <= max(budget, longest + budget // ROOM_BEHIND):
            groups[-1].append(member)
            size = grown
        else:
            groups.append([member])
            size = longest = len(now)
        before = now
    return [tree(branches, group) for group in groups]


def pack_rows(branches: Sequence[Branch], budget: int) -> list[Pack]:
    """Lay branches side by side, sorted by length, in batches of at most `budget` tokens with their padding."""
    order = sorted(range(len(branches)), key=lambda i: (len(laid(branches[i])), i))
    groups: list[list[int]] = []
    for member in order:
        width = len(laid(branches[member]))
        if groups and width * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(member)
        else:
            groups.append([member])
    return [side_by_side(branches, group) for group in groups]


def pack_alone(branches: Sequence[Branch], budget: int) -> list[Pack]:
    """Lay every branch by itself, for models that can read neither trees nor padding; `budget` has no effect."""
    return [side_by_side(branches, [member]) for member in range(len(branches))]
