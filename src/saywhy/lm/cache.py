"""Rows read into a cache: what they share is computed once, and each can be read on, taken back and parted."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from saywhy.lm.behind import cut_runs
from saywhy.lm.forward import as_attention, by_layer, reads_trunk, unmasked
from saywhy.lm.last import states_at
from saywhy.trees import Ints, common

# Places that a cache is given beyond those it needs, so that most written tokens find one.
ROOM = 32
# Tokens that one pass reads of many rows: of more, what a layer hands to the next no longer fits into a CPU's caches
# (LOG.md, 2026-11-21).
READ_AT_ONCE = 1024
MOST_AT_ONCE = 2**30
PASSES_A_BATCH = 4
# What models of different kinds call that which they hand on from token to token.
CARRIED = ("cache", "state")


@dataclass(frozen=True)
class Trunk:
    """The tokens that all prompts of a call begin with, `ids` (s,), and each layer's keys and values (1, h, s, d)."""

    ids: Ints
    layers: tuple[tuple[Tensor, Tensor], ...]


def read_trunk(model: Any, ids: Sequence[int] | Ints) -> Trunk:
    """Compute the tokens (s,) that prompts begin with; there may be none."""
    trunk = np.array(ids, dtype=np.int64)
    if not len(trunk):
        return Trunk(trunk, ())
    reading = Reading(model, Trunk(trunk[:0], ()), [trunk])
    return Trunk(trunk, tuple(layer.held() for layer in reading.layers))


def shared_by(prompts: Sequence[Ints]) -> Ints:
    """Give the tokens that all prompts begin with, short of the last of each: something has to be read behind them."""
    return prompts[0][: min(min(common(prompts[0], other) for other in prompts), min(map(len, prompts)) - 1)]


def tokens_per_pass(model: Any) -> int:
    """Give how many tokens of many rows one pass should read at most."""
    return READ_AT_ONCE if model.device.type == "cpu" else MOST_AT_ONCE


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut rows into batches of at most `budget` tokens with their padding, sorted by length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    while order:
        size = max(1, budget // lengths[order[-1]])
        yield order[-size:]
        del order[-size:]


def reckoned(model: Any, held: Sequence[int], read: Sequence[int], budget: int) -> list[int]:
    """Give what to cut rows into batches by that hold so many tokens each, and read so many of them together.

    A batch of `budget` such tokens then reads no more than a few passes should: what comes behind the prompts is read
    for all its rows together, and those of unequal length share few passes.
    """
    most = PASSES_A_BATCH * tokens_per_pass(model)
    return [max(one, -(-length * budget // most)) for one, length in zip(held, read, strict=True)]


class _Layer(DynamicLayer):
    """One layer's keys and values with room behind them: a token that is read copies none of those before it.

    Every key is kept, also where the model has a window: that is in the mask.
    """

    used = 0

    def put(self, keys: Tensor, values: Tensor, span: _Span) -> tuple[Tensor, Tensor]:
        """Write what was read of some rows at the end of their places, and give all that they may read."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = (
                part.new_empty((span.of, part.shape[1], 0, part.shape[3])) for part in (keys, values)
            )
        if self.keys.shape[2] < span.end:
            self.keys, self.values = (self._longer(part, span.end) for part in self.held())
        for part, new in ((self.keys, keys), (self.values, values)):
            span.put(part, new)
        self.used = span.end
        return self.keys[span.rows, :, span.low : span.end], self.values[span.rows, :, span.low : span.end]

    def get_seq_length(self) -> int:
        return self.used

    def _longer(self, part: Tensor, end: int) -> Tensor:
        longer = part.new_empty((*part.shape[:2], end + max(ROOM, end // 4), part.shape[3]))
        longer[:, :, : self.used] = part
        return longer

    def held(self) -> tuple[Tensor, Tensor]:
        """Give the keys and values (b, h, used, d)."""
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def part(self, rows: Tensor) -> _Layer:
        """Copy some rows, with room as large as theirs."""
        return _behind(self._some(self.keys, rows), self._some(self.values, rows), self.used)

    def _some(self, part: Tensor, rows: Tensor) -> Tensor:
        # What is not used yet need not be copied.
        found = part.new_empty((len(rows), *part.shape[1:]))
        torch.index_select(part[:, :, : self.used], 0, rows, out=found[:, :, : self.used])
        return found


def _behind(keys: Tensor, values: Tensor, used: int) -> _Layer:
    """Make a layer whose first `used` places hold these keys and values (b, h, s, d)."""
    layer = _Layer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values, layer.used = keys, values, used
    return layer


@dataclass(frozen=True)
class _Span:
    """Where one pass stands in a cache: `rows` of its `of`, new places from `begin` to `end`, `low` the first read.

    `width` is how many of the new places each row reads, the last ones. `taken` says at which rows and places stands
    what is read where that is not a rectangle but the tokens of one row after the other.
    """

    rows: slice
    of: int
    begin: int
    end: int
    low: int
    width: int
    taken: tuple[Tensor, Tensor] | None

    def put(self, part: Tensor, new: Tensor) -> None:
        """Write the keys or values of what was read, (rows, h, width, d) or (1, h, n, d), into `part` (b, h, s, d)."""
        if self.taken is not None:
            # Nothing reads what pads, but it is multiplied with.
            part[self.rows, :, self.begin : self.end] = 0.0
            rows, places = self.taken
            part[rows, :, places] = new[0].transpose(0, 1)
            return
        if len(new) == 1:
            new = new[0].unflatten(1, (-1, self.width)).transpose(0, 1)
        part[self.rows, :, self.begin : self.end - self.width] = 0.0
        part[self.rows, :, self.end - self.width : self.end] = new


class _Passing(Cache):
    """A cache as one pass of the model over some of its rows is to see it."""

    def __init__(self, whole: list[_Layer], span: _Span) -> None:
        super().__init__(layers=whole)
        self.span = span

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(_Layer())
        return self.layers[layer_idx].put(key_states, value_states, self.span)


class Reading:
    """Rows behind a trunk: what was read of each, with its keys and values.

    `hidden` (b, d) is the state at the end of each row, `ends` (b,) its number of tokens. `spent` (b,) counts the
    tokens that were computed for it, the trunk left out. Each place of the cache has an id and a depth, and is `valid`
    where it stands on its row's path; all three are (b, w), the trunk's places first.
    """

    def __init__(self, model: Any, trunk: Trunk, paths: Sequence[Ints]) -> None:
        self.model = model
        shape = (len(paths), len(trunk.ids))
        # Read by all rows at once the trunk needs no copy for each; a window that ends within it needs a mask on it.
        self.trunk = trunk.layers if reads_trunk(model) else ()
        self.trunk_length = len(trunk.ids)
        self.apart = self.trunk_length if self.trunk else 0
        copied = trunk.layers if not self.trunk else ()
        self.layers = [
            _behind(keys.expand(len(paths), -1, -1, -1), values.expand(len(paths), -1, -1, -1), len(trunk.ids))
            for keys, values in copied
        ]
        self.ids = np.broadcast_to(trunk.ids, shape)
        self.depth = np.broadcast_to(np.arange(len(trunk.ids)), shape)
        self.valid = np.ones(shape, dtype=bool)
        self.looked = np.zeros((len(paths), 0), dtype=np.int64)
        self.ends = np.full(len(paths), len(trunk.ids), dtype=np.int64)
        self.spent = np.zeros(len(paths), dtype=np.int64)
        self.read(paths)

    def read(self, paths: Sequence[Ints]) -> None:
        """Let each row be its path, a whole one from the first token: what it begins with and was read stays."""
        kept = np.array([min(common(self.path(row), path), len(path) - 1) for row, path in enumerate(paths)])
        if kept.min() < self.trunk_length:
            raise ValueError("a path leaves the trunk, which all rows of a reading share")
        self.back(kept)
        self.ends = np.array([len(path) for path in paths])
        count = self.ends - kept
        ids = np.zeros((len(paths), count.max()), dtype=np.int64)
        for row, path in enumerate(paths):
            ids[row, ids.shape[1] - count[row] :] = path[kept[row] :]
        self.hidden = self._append(ids, count)
        self.spent = self.spent + count

    def path(self, row: int) -> Ints:
        """Give the tokens of a row (n,), from the first."""
        return self.ids[row][self.valid[row]]

    def step(self, ids: Ints) -> None:
        """Read one token, `ids` (b,), behind each row."""
        self._settle()
        self.ends, self.spent = self.ends + 1, self.spent + 1
        self.hidden = self._append(ids[:, None], np.ones(len(ids), dtype=np.int64))

    @property
    def held(self) -> int:
        """How many tokens are kept for the rows, with their padding and without a trunk that stands once."""
        return len(self.valid) * (self.valid.shape[1] - self.apart)

    def look(self, ids: Ints, offset: Ints, chain: NDArray[np.bool_]) -> Tensor:
        """Read tokens that branch behind the rows and are forgotten with the next `read` or `step`.

        `ids` (b, q), `offset` tokens behind the end of their rows, to hidden states (b, q, d). `chain` (b, q, m + q)
        tells which of the m tokens looked at before and of the q now each one reads beside its row; what pads reads
        none, not even itself. Where m is 0 those looked at before are forgotten too.
        """
        if chain.shape[2] == ids.shape[1]:
            self._settle()
        depth = self.ends[:, None] + offset
        real = np.logical_or.reduce(chain, 2)
        self.spent = self.spent + real.sum(1)
        self.looked = np.concatenate([self.looked, depth], 1)
        row = np.broadcast_to(self.valid[:, None, :], (*ids.shape, self.valid.shape[1]))
        seen = np.concatenate([row, chain], 2)
        key = np.concatenate([self.depth, self.looked], 1)
        begin = key.shape[1] - ids.shape[1]
        found = [
            self._pass(rows, begin, ids[rows], depth[rows], key[rows], seen[rows], real[rows], ends=False)
            for rows in self._passes(real.sum(1) if self.trunk else np.full(len(ids), ids.shape[1]))
        ]
        return torch.cat(found).unflatten(0, ids.shape)

    def part(self, rows: Sequence[int]) -> Reading:
        """Give these rows, in this order and any of them more than once, as a reading of their own."""
        other = copy.copy(self)
        taken = np.array(rows, dtype=np.int64)
        places = torch.from_numpy(taken).to(self.hidden.device)
        other.layers = [layer.part(places) for layer in self.layers]
        other.hidden = self.hidden[places]
        other.ids, other.depth, other.valid = self.ids[taken], self.depth[taken], self.valid[taken]
        other.looked, other.ends, other.spent = self.looked[taken], self.ends[taken], self.spent[taken]
        return other

    def back(self, ends: Ints) -> None:
        """Forget what stands behind the first `ends` (b,) tokens of each row; `read` then says what `hidden` is."""
        self._settle()
        self.ends = np.minimum(self.ends, ends)
        self.valid = self.valid & (self.depth < self.ends[:, None])
        used = np.flatnonzero(self.valid.any(0))
        width = int(used[-1]) + 1 if len(used) else 0
        self.ids, self.depth, self.valid = self.ids[:, :width], self.depth[:, :width], self.valid[:, :width]
        self._shorten(width)

    def _settle(self) -> None:
        if self.looked.shape[1]:
            self.looked = self.looked[:, :0]
            self._shorten(self.valid.shape[1])

    def _shorten(self, width: int) -> None:
        for layer in self.layers:
            layer.used = min(layer.used, width - self.apart)

    def _append(self, ids: Ints, count: Ints) -> Tensor:
        """Read the last `count` (b,) of `ids` (b, q) behind the rows, what stands before them pads: states (b, d)."""
        width = ids.shape[1]
        place = np.arange(width) - width
        depth = np.maximum(self.ends[:, None] + place, 0)
        real = place >= -count[:, None]
        before = np.broadcast_to(self.valid[:, None, :], (*ids.shape, self.valid.shape[1]))
        # What pads reads itself, so that no softmax is without a key.
        among = np.tril(real[:, None, :] | np.eye(width, dtype=bool))
        self.ids = np.concatenate([self.ids, ids], 1)
        self.depth = np.concatenate([self.depth, depth], 1)
        self.valid = np.concatenate([self.valid, real], 1)
        seen = np.concatenate([before, among], 2)
        hidden = []
        for rows in self._passes(count):
            new = slice(width - count[rows].max(), width)
            asked = (ids[rows, new], depth[rows, new], self.depth[rows], seen[rows, new], real[rows, new])
            hidden.append(self._pass(rows, before.shape[2], *asked, ends=True))
        return torch.cat(hidden)

    def _passes(self, count: Ints) -> Iterator[slice]:
        """Cut rows that read `count` (b,) tokens each into passes of no more tokens than one should read.

        Padding counts where it is computed. A token a row is one product with every weight, and the more rows share it
        the better.
        """
        most = tokens_per_pass(self.model) if count.max() > 1 else len(count)
        start, longest, total = 0, 0, 0
        for row, length in enumerate(count.tolist()):
            longest, total = max(longest, length), total + length
            # A row that reads nothing begins no pass.
            if row > start and length and (total if self.trunk else longest * (row + 1 - start)) > most:
                yield slice(start, row)
                start, longest, total = row, length, length
        yield slice(start, len(count))

    @torch.inference_mode()
    def _pass(
        self,
        rows: slice,
        begin: int,
        ids: Ints,
        query: Ints,
        key: Ints,
        seen: NDArray[np.bool_],
        real: NDArray[np.bool_],
        ends: bool,
    ) -> Tensor:
        """Run the decoder over the `real` of `ids` (b, q) of some rows, at depths `query`, into places from `begin` on.

        `seen` (b, q, k) tells which keys, of depths `key` (b, k), each token reads. Gives the states (b, d) of the
        last tokens where those `ends` are all that is read, (b * q, d) of all tokens otherwise. Behind a trunk that
        stands once nothing is computed of what pads.
        """
        device = self.model.device
        # What stands before the first key that one of these rows reads is their padding.
        low = int(np.argmax(seen[:, :, self.apart :].any((0, 1))))
        end = key.shape[1] - self.apart
        key, seen = key[:, self.apart + low :], seen[:, :, self.apart + low :]
        asked: dict[str, Any] = {"use_cache": True}
        taken = None
        if self.trunk:
            row, column = np.nonzero(real)
            ids, at, last = ids[row, column][None], query[row, column][None], np.cumsum(real.sum(1)) - 1
            if not real.all():
                first = end - real.shape[1]
                taken = (torch.from_numpy(row + rows.start).to(device), torch.from_numpy(column + first).to(device))
            runs = cut_runs(real, seen, device, self.model.dtype)
            asked |= {"trunk": self.trunk, "runs": runs, "attention_mask": unmasked(self.model)}
        else:

            def inside(window: int | None) -> Tensor:
                near = seen if window is None else seen & (query[:, :, None] - key[:, None, :] < window)
                return as_attention(self.model, torch.from_numpy(near[:, None]).to(device))

            at, last = query, np.arange(1, len(ids) + 1) * ids.shape[1] - 1
            asked |= {"attention_mask": by_layer(self.model, inside)}
        span = _Span(rows, len(self.valid), begin - self.apart, end, low, real.shape[1], taken)
        asked |= {
            "input_ids": torch.from_numpy(ids).to(device),
            "position_ids": torch.from_numpy(at).to(device),
            "cache": _Passing(self.layers, span),
        }
        states = states_at(self.model, asked, torch.from_numpy(last).to(device) if ends else None)
        if ends or taken is None:
            return states
        apart = states.new_zeros((real.size, states.shape[1]))
        apart[torch.from_numpy(np.flatnonzero(real)).to(device)] = states
        return apart


class Alone:
    """The same for models that can read no mask of ours: row by row, with what the model hands on to itself."""

    apart = 0

    def __init__(self, model: Any, paths: Sequence[Ints]) -> None:
        self.model = model
        self.spent = np.zeros(len(paths), dtype=np.int64)
        self.looked = np.zeros((len(paths), 0), dtype=np.int64)
        self.read(paths)

    def read(self, paths: Sequence[Ints]) -> None:
        """Let each row be its path."""
        self.paths = list(paths)
        self.carried: list[dict[str, Any]] = [{} for _ in paths]
        self.hidden = torch.cat([self._onward(row, path) for row, path in enumerate(paths)])
        self.spent = self.spent + np.array([len(path) for path in paths])

    def step(self, ids: Ints) -> None:
        """Read one token, `ids` (b,), behind each row."""
        self.paths = [np.append(path, token) for path, token in zip(self.paths, ids, strict=True)]
        unread = [path[-1:] if self.carried[row] else path for row, path in enumerate(self.paths)]
        self.hidden = torch.cat([self._onward(row, path) for row, path in enumerate(unread)])
        self.spent = self.spent + np.array([len(path) for path in unread])

    def look(self, ids: Ints, offset: Ints, chain: NDArray[np.bool_]) -> Tensor:
        """Read tokens that branch behind the rows, each with all that stands before it (see `Reading.look`)."""
        before = chain.shape[2] - ids.shape[1]
        self.looked = np.concatenate([self.looked[:, :before], ids], 1)
        paths = [
            [np.concatenate([path, looked[way]]) for way in ways]
            for path, looked, ways in zip(self.paths, self.looked, chain, strict=True)
        ]
        self.spent = self.spent + np.array([sum(map(len, row)) for row in paths])
        return torch.stack([torch.cat([self._whole(path) for path in row]) for row in paths])

    def part(self, rows: Sequence[int]) -> Alone:
        """Give these rows, in this order and any of them more than once, as a reading of their own."""
        other = copy.copy(self)
        taken = list(rows)
        other.paths = [self.paths[row] for row in taken]
        # What is carried is changed in place, so it belongs to one reading only: here the rows are read again.
        other.carried = [{} for _ in taken]
        other.hidden, other.looked, other.spent = self.hidden[taken], self.looked[taken], self.spent[taken]
        return other

    def back(self, ends: Ints) -> None:
        """Forget what stands behind the first `ends` (b,) tokens of each row."""
        self.paths = [path[:end] for path, end in zip(self.paths, ends, strict=True)]
        self.carried = [{} for _ in self.paths]

    @property
    def ends(self) -> Ints:
        """Give the number of tokens of each row (b,)."""
        return np.array([len(path) for path in self.paths])

    @property
    def held(self) -> int:
        """How many tokens the rows have together."""
        return sum(map(len, self.paths))

    @torch.inference_mode()
    def _onward(self, row: int, ids: Ints) -> Tensor:
        asked = torch.from_numpy(ids)[None].to(self.model.device)
        output = self.model.get_decoder()(input_ids=asked, use_cache=True, **self.carried[row])
        self.carried[row] = {name: output[name] for name in CARRIED if output.get(name) is not None}
        return output.last_hidden_state[:, -1]

    @torch.inference_mode()
    def _whole(self, ids: Ints) -> Tensor:
        asked = torch.from_numpy(ids)[None].to(self.model.device)
        return self.model.get_decoder()(input_ids=asked, use_cache=False).last_hidden_state[:, -1]


def open_reading(model: Any, trunk: Trunk | None, paths: Sequence[Ints]) -> Reading | Alone:
    """Read rows, each given from its first token: behind their trunk, or alone where there is none for their model."""
    return Alone(model, paths) if trunk is None else Reading(model, trunk, paths)
