"""Attention of rows that stand behind a trunk: the trunk's keys stand once for all, and no padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saywhy.lm.trunk import FORWARD

# A run reads at most so many tokens, padding included, unless it is one row: what it computes stays in a CPU's caches.
TOKENS_A_RUN = 512
ROWS_A_RUN = 32


@dataclass(frozen=True)
class Run:
    """Rows of like length that lie together, whose attention is computed together.

    `rows` of the cache, `low` the first key that any of them reads, `tokens` what is read of them among all that is
    read. `home` (n,) gives each token's place in the rectangle (rows * width), None where it is full. `mask`
    (rows, 1, width, m - low) is -inf where a place of it does not read a key, else 0.
    """

    rows: slice
    low: int
    tokens: slice
    home: Tensor | None
    mask: Tensor


def cut_runs(real: NDArray[np.bool_], seen: NDArray[np.bool_], device: torch.device, kind: torch.dtype) -> list[Run]:
    """Cut rows that read the tokens `real` (b, q) into runs; `seen` (b, q, m) tells which own keys each token reads.

    What a row reads lies together at its begin or its end. `kind` is the type of the masks. A GPU reads all rows in one
    run.
    """
    runs, start = [], 0
    for rows in _alike(real) if device.type == "cpu" else [slice(0, len(real))]:
        some = real[rows]
        columns = np.flatnonzero(some.any(0))
        wide = slice(columns[0], columns[-1] + 1) if len(columns) else slice(0, 0)
        some, reads = some[:, wide], seen[rows, wide]
        low = int(np.argmax(reads.any((0, 1))))
        count = int(some.sum())
        home = None if some.all() else torch.from_numpy(np.flatnonzero(some)).to(device)
        mask = torch.from_numpy(np.where(reads[:, None, :, low:], np.float32(0), np.float32("-inf"))).to(device, kind)
        runs.append(Run(rows, low, slice(start, start + count), home, mask))
        start += count
    return [run for run in runs if run.tokens.stop > run.tokens.start]


def _alike(real: NDArray[np.bool_]) -> Iterator[slice]:
    width = np.maximum(real.sum(1), 1).tolist()
    start, widest = 0, 0
    for row, one in enumerate(width):
        widest = max(widest, one)
        if row > start and (row - start == ROWS_A_RUN or widest * (row + 1 - start) > TOKENS_A_RUN):
            yield slice(start, row)
            start, widest = row, one
    yield slice(start, len(width))


def attend_behind(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, scale: float | None, runs: Sequence[Run]
) -> Tensor:
    """Attention over a trunk that stands once, `keys`, `values` (g, s, d), and over each row's own `key`, `value`.

    `query` (1, h, n, d) are the tokens of all rows in turn, `key`, `value` (b, g, m, d): (1, n, h, d); values may be of
    another size than keys. Each group of heads has one product of a run's tokens with the trunk, so that no row carries
    a copy of it. On a CPU reading keys is what takes the time, so each of the `runs` leaves out what all its rows leave
    out.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # Only this kernel tells the log-sum-exp that joins two parts, and it wants float32 to be exact.
    fused = query.device.type == "cpu" and query.dtype == torch.float32 and value.shape[-1] == query.shape[-1]
    parts = (_fused if fused else _plain)(query[0], key, value, keys, values, scale, runs)
    return torch.cat([part.transpose(0, 1) for part in parts])[None]


def _fused(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, scale: float, runs: Sequence[Run]
) -> Iterator[Tensor]:
    """Give each run's attention (h, n, d): what the trunk and what the rows give, joined by their log-sum-exp."""
    groups, times = len(keys), len(query) // len(keys)
    far, far_sums = FORWARD(_grouped(query, groups)[None], keys[None], values[None], scale=scale)
    far, far_sums = far.reshape(query.shape), far_sums.reshape(query.shape[:2])
    for run in runs:
        own = (part[run.rows, :, run.low :] for part in (key, value))
        mask = run.mask.repeat(1, 1, times, 1) if times > 1 else run.mask
        asked = _in_rows(query[:, run.tokens], run, groups).unflatten(0, (-1, groups))
        near, sums = FORWARD(asked, *own, attn_mask=mask, scale=scale)
        share = torch.sigmoid(_in_turn(sums[..., None], run) - far_sums[:, run.tokens, None])
        yield torch.lerp(far[:, run.tokens], _in_turn(near, run), share)


def _plain(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, scale: float, runs: Sequence[Run]
) -> Iterator[Tensor]:
    """Give each run's attention (h, n, d) by one softmax over the trunk and the rows."""
    groups, heads, shared = len(keys), len(query), keys.shape[1]
    for run in runs:
        own_keys, own_values = (part[run.rows, :, run.low :].flatten(0, 1) for part in (key, value))
        some = query[:, run.tokens] * scale
        near = (_in_rows(some, run, groups) @ own_keys.transpose(1, 2)).unflatten(0, (-1, groups))
        near.unflatten(2, (-1, run.mask.shape[2])).add_(run.mask[:, :, None])
        near = _in_turn(near, run)
        logits = some.new_empty((*some.shape[:2], shared + near.shape[-1]))
        torch.bmm(_grouped(some, groups), keys.transpose(1, 2), out=_grouped(logits[..., :shared], groups))
        logits[..., shared:] = near
        del near
        weights = torch.softmax(logits, -1)
        del logits
        far = (_grouped(weights[..., :shared], groups) @ values).view(heads, -1, values.shape[-1])
        own = (_in_rows(weights[..., shared:], run, groups) @ own_values).unflatten(0, (-1, groups))
        yield far + _in_turn(own, run)


def _grouped(part: Tensor, groups: int) -> Tensor:
    """Give (h, n, d) as (g, h/g * n, d): heads of a group read the same keys."""
    return part.unflatten(0, (groups, -1)).flatten(1, 2)


def _in_rows(part: Tensor, run: Run, groups: int) -> Tensor:
    """Put the tokens of a run (h, n, d) into their rows: (rows * g, h/g * width, d), zeros where nothing is read."""
    rows, _, width, _ = run.mask.shape
    if run.home is not None:
        part = part.new_zeros((len(part), rows * width, part.shape[2])).index_copy_(1, run.home, part)
    apart = part.unflatten(1, (rows, width)).unflatten(0, (groups, -1))
    return apart.permute(2, 0, 1, 3, 4).flatten(0, 1).flatten(1, 2)


def _in_turn(part: Tensor, run: Run) -> Tensor:
    """Take the tokens of a run out of their rows again: (rows, g, h/g * width, d) to (h, n, d)."""
    apart = part.unflatten(2, (-1, run.mask.shape[2])).flatten(1, 2).transpose(0, 1).flatten(1, 2)
    return apart if run.home is None else apart.index_select(1, run.home)
