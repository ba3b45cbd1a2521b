"""Score answers, the probability of each behind a prompt read off the trie of their tokens, and texts as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saywhy.lm.cache import Alone, Reading
from saywhy.lm.forward import SLICE_NUMBERS, head, log_probs
from saywhy.trees import Branch, Floats, Ints, pack_alone, pack_trees

Bools = NDArray[np.bool_]
# Of so few tokens a pass takes hardly longer than of one: they are read together, wanted or not.
FEW_TOKENS = 32
# Of rows read behind a trunk those that are done leave when less than this share stays.
STAYING = 0.25
NOTHING: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Trie:
    """Answers as a tree of tokens, parents before their children; node 0 is the root, before the first token.

    `token`, `parent`, `depth` (n,) int64. `ends` holds for each answer the nodes that complete it. `under` (n, n) bool:
    `under[i, j]` where j is i or one of its ancestors, the root left out. `column` (n,) int64 is each token's place in
    `tokens`, the sorted tokens that occur. `onward` (n,) int64 is a node's only child where that goes on too, else 0.
    """

    token: Ints
    parent: Ints
    depth: Ints
    ends: tuple[Ints, ...]
    under: Bools
    tokens: Ints
    column: Ints
    onward: Ints


@dataclass(frozen=True)
class Scores:
    """`log_probs`, for every row one (answers,) float64, -inf where an answer was left out.

    `pruned` (rows,) float64 bounds the share of a row's probability that the answers left out may have.
    """

    log_probs: tuple[Floats, ...]
    pruned: Floats


def trie_of(answers: Sequence[Sequence[Sequence[int]]]) -> Trie:
    """Build the trie of answers, each of which has one or more sequences of tokens that complete it."""
    places: dict[tuple[int, ...], int] = {(): 0}
    for sequence in (sequence for answer in answers for sequence in answer):
        for n in range(1, len(sequence) + 1):
            places.setdefault(tuple(sequence[:n]), len(places))
    under = np.zeros((len(places), len(places)), dtype=bool)
    for path, at in places.items():
        under[at, [places[path[:n]] for n in range(1, len(path) + 1)]] = True
    token = np.array([path[-1] if path else 0 for path in places], dtype=np.int64)
    tokens, column = np.unique(token, return_inverse=True)
    parent = np.array([places[path[:-1]] for path in places], dtype=np.int64)
    children = np.bincount(parent[1:], minlength=len(places))
    onward = np.zeros(len(places), dtype=np.int64)
    alone = [at for at in range(1, len(places)) if children[at] and children[parent[at]] == 1]
    onward[parent[alone]] = alone
    return Trie(
        token,
        parent,
        np.array([len(path) for path in places], dtype=np.int64),
        tuple(np.array([places[tuple(sequence)] for sequence in answer]) for answer in answers),
        under,
        tokens,
        column,
        onward,
    )


@torch.inference_mode()
def score(reading: Reading | Alone, tries: Sequence[Trie], prune: float) -> Scores:
    """Score the answers of every row of a reading behind its end; rows may share a trie.

    A trie is read level by level, the likeliest nodes first. A node is left when its path is less likely than `prune`
    times the best complete answer: no answer is likelier than its beginning, so the best one is found whatever `prune`
    is, and 0 leaves out nothing. Where all rows' nodes are few they are read at once, and looked at in the same order.
    The reading ends where it did, with what this spent added.
    """
    searches = [_Search(trie, prune) for trie in tries]
    for search, line in zip(searches, _log_probs(reading.model, reading.hidden, tries), strict=True):
        search.note(np.zeros(1, dtype=np.int64), line[None])
    # Which node of its trie each row read at each place behind its end, -1 where it read nothing.
    behind = [NOTHING for _ in tries]
    staying, width, parted = list(range(len(tries))), 0, reading
    few = isinstance(reading, Reading) and sum(int(search.unread.sum()) for search in searches) <= FEW_TOKENS
    while wanted := {row: nodes for row in staying if len(nodes := searches[row].wanted(few))}:
        # Where nothing is computed for rows that read nothing, to copy the others costs more than to let them stay.
        if len(wanted) < len(staying) * (STAYING if parted.apart else 1):
            parted = parted.part([at for at, row in enumerate(staying) if row in wanted])
            staying = list(wanted)
        most = max(map(len, wanted.values()))
        ids = np.zeros((len(staying), most), dtype=np.int64)
        # What pads reads the row alone where it is computed at all, and nothing reads it.
        offset = np.zeros((len(staying), most), dtype=np.int64)
        chain = np.zeros((len(staying), most, width + most), dtype=bool)
        for at, row in enumerate(staying):
            nodes = wanted.get(row, NOTHING)
            trie, count = searches[row].trie, len(nodes)
            behind[row] = np.concatenate([behind[row], nodes, np.full(most - count, -1)])
            ids[at, :count] = trie.token[nodes]
            offset[at, :count] = trie.depth[nodes] - 1
            chain[at, :count] = trie.under[nodes[:, None], behind[row][None]] & (behind[row] >= 0)
        hidden = parted.look(ids, offset, chain)
        reading.spent[staying] = parted.spent
        width += most
        counts = [len(wanted.get(row, NOTHING)) for row in staying]
        read = torch.cat([states[:count] for states, count in zip(hidden, counts, strict=True)])
        owners = [searches[row].trie for row, nodes in wanted.items() for _ in nodes]
        lines = iter(_log_probs(reading.model, read, owners))
        for row, nodes in wanted.items():
            (searches[row].take if few else searches[row].note)(nodes, np.stack([next(lines) for _ in nodes]))
    return Scores(tuple(search.answers() for search in searches), np.array([search.pruned() for search in searches]))


class _Search:
    """What is known of one row: the log-probability of the path to each node, -inf where its parent was not read."""

    def __init__(self, trie: Trie, prune: float) -> None:
        self.trie = trie
        self.least = np.log(prune) if prune else -np.inf
        self.known = np.full(len(trie.token), -np.inf)
        self.known[0] = 0.0
        self.unread = np.zeros(len(trie.token), dtype=bool)
        self.unread[trie.parent[1:]] = True
        self.complete = np.zeros(len(trie.token), dtype=bool)
        self.complete[np.concatenate(trie.ends)] = True

    def take(self, nodes: Ints, log_probs: Floats) -> None:
        """Note what follows those of some nodes that would have been read level by level."""
        read = dict(zip(nodes.tolist(), log_probs, strict=True))
        while len(looked := np.array([node for node in self.wanted().tolist() if node in read], dtype=np.int64)):
            self.note(looked, np.stack([read[node] for node in looked.tolist()]))

    def note(self, nodes: Ints, log_probs: Floats) -> None:
        """Take down what follows some nodes: `log_probs` (k, tokens of the trie)."""
        for node, line in zip(nodes.tolist(), log_probs, strict=True):
            children = np.flatnonzero(self.trie.parent[1:] == node) + 1
            self.known[children] = self.known[node] + line[self.trie.column[children]]
        self.unread[nodes] = False

    def wanted(self, few: bool = False) -> Ints:
        """Choose the nodes to read next, parents first; none where all that is left is too unlikely.

        Where nothing branches off what follows is read at once, though it might turn out too unlikely: a pass costs
        more than a token. Where all are `few`, so are all.
        """
        best = self.known[self.complete | self.unread].max()
        nodes = np.flatnonzero(self.unread & (self.known > -np.inf) & (self.known >= best + self.least))
        if few and len(nodes):
            return np.flatnonzero(self.unread)
        wanted = [nodes]
        while len(nodes := self.trie.onward[nodes][self.trie.onward[nodes] > 0]):
            wanted.append(nodes)
        return np.sort(np.concatenate(wanted))

    def answers(self) -> Floats:
        return np.array([np.logaddexp.reduce(self.known[nodes]) for nodes in self.trie.ends])

    def pruned(self) -> float:
        # Relative to the likeliest: an answer of hundreds of tokens may be less likely than the smallest float.
        answers = self.answers()
        left = float(np.exp(self.known[self.unread] - answers.max()).sum())
        return left / (left + float(np.exp(answers - answers.max()).sum()))


def _log_probs(model: Any, hidden: Tensor, tries: Sequence[Trie]) -> list[Floats]:
    """Give for every state (k, d) the log-probabilities of its trie's tokens, without holding all logits at once."""
    rows = max(1, SLICE_NUMBERS // model.config.get_text_config().vocab_size)
    found: list[Floats] = []
    for start in range(0, len(hidden), rows):
        logits = head(model, hidden[start : start + rows]).float()
        total = torch.logsumexp(logits, -1).double().cpu().numpy()
        for line, sum_, trie in zip(logits, total, tries[start : start + rows], strict=True):
            found.append(line[torch.from_numpy(trie.tokens).to(line.device)].double().cpu().numpy() - sum_)
    return found


@torch.inference_mode()
def likelihood(model: Any, paths: Sequence[Ints], starts: Sequence[int], budget: int, padded: bool = True) -> Floats:
    """Give the mean log-probability (paths,) of each path's tokens from its start on, natural; nan where there is none.

    What paths share is read once for each `budget` tokens. `padded` is False for models that can read no mask of ours:
    their paths are read one by one.
    """
    counts = np.array([len(path) for path in paths], dtype=np.int64) - starts
    told = np.flatnonzero(counts > 0).tolist()
    branches = [Branch(paths[at], (np.arange(len(paths[at])) >= starts[at]) / counts[at]) for at in told]
    found = np.zeros(len(told))
    for pack in (pack_trees if padded else pack_alone)(branches, budget):
        each = log_probs(model, pack).double().cpu().numpy()
        found += np.bincount(pack.branch, pack.weight * each, len(told))
    means = np.full(len(paths), np.nan)
    means[told] = found
    return means
