"""Attention over a token tree in two parts: what all paths share, read once, and each path's own part beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saywhy.trees import Ints, Pack

# The kernels of torch's own attention on a CPU, which tell the log-sum-exp that joining two parts needs.
FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Paths:
    """Paths of about one length, without the trunk: their `places` (r, l) in the tree, `real` alike.

    `real` is false where a path that is shorter than the others is filled up.
    """

    places: Tensor
    real: Tensor


@dataclass(frozen=True)
class Parts:
    """A tree as a trunk of `size` tokens and the paths behind it, those of about one length together.

    `home` (n - size,): where each token behind the trunk stands first, counted through the places of all paths.
    """

    size: int
    paths: tuple[Paths, ...]
    home: Tensor


def trunk_size(pack: Pack) -> int:
    """Count the leading tokens that all paths of a tree share."""
    assert pack.paths is not None
    differ = np.flatnonzero((pack.paths != pack.paths[0]).any(0))
    return int(differ[0]) if len(differ) else pack.paths.shape[1]


def alike(pack: Pack, size: int) -> list[tuple[Ints, int]]:
    """Group the paths of a tree by their length behind its first `size` tokens: rows and greatest length of each group.

    Lengths are alike between two powers of two; what ends within the trunk is in no group.
    """
    assert pack.paths is not None
    lengths = (pack.paths[:, size:] >= size).sum(1)
    power = np.ceil(np.log2(np.maximum(lengths, 1)))
    groups = [np.flatnonzero((power == one) & (lengths > 0)) for one in np.unique(power)]
    return [(rows, int(lengths[rows].max())) for rows in groups if len(rows)]


def parts_of(pack: Pack, device: torch.device) -> Parts:
    """Take a tree apart."""
    assert pack.paths is not None
    size = trunk_size(pack)
    places = [pack.paths[rows, size : size + length] for rows, length in alike(pack, size)]
    flat = np.concatenate([part.ravel() for part in places]) if places else np.zeros(0, dtype=np.int64)
    # What fills a path up is token 0, which the trunk has.
    tokens, home = np.unique(flat, return_index=True)
    paths = (Paths(*(torch.from_numpy(array).to(device) for array in (part, part >= size))) for part in places)
    return Parts(size, tuple(paths), torch.from_numpy(home[tokens >= size]).to(device))


class TwoParts(torch.autograd.Function):
    """Attention (1, h, n, d) of a tree whose layers read everything: exact, no mask, no token of the trunk twice.

    Each part is attention of its own; their results are joined by their log-sum-exp. Backward, each part is given the
    joint result and the joint log-sum-exp: then its probabilities are those of the whole, and gradients add up (as in
    ring attention, 2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float | None) -> Tensor:
        """Give (1, h, n, d) for `query`, `key`, `value` of that shape, on a CPU."""
        size, told = parts.size, {"scale": scale}
        query, key, value = (_by_token(part).transpose(0, 1)[None] for part in (query, key, value))
        found, sums = FORWARD(query[:, :, :size], key[:, :, :size], value[:, :, :size], 0.0, True, **told)
        if parts.paths:
            far, far_sums = FORWARD(query[:, :, size:], key[:, :, :size], value[:, :, :size], 0.0, False, **told)
            own = [
                FORWARD(*(along(part, paths.places) for part in (query, key, value)), 0.0, True, **told)
                for paths in parts.paths
            ]
            near, near_sums = (_home(each, parts.home) for each in zip(*own, strict=True))
            joint = torch.logaddexp(far_sums, near_sums)
            far = far * (far_sums - joint).exp_()[..., None] + near * (near_sums - joint).exp_()[..., None]
            found, sums = _behind(found, far), torch.cat([sums, joint], 2)
        ctx.save_for_backward(query, key, value, found, sums)
        ctx.parts, ctx.scale = parts, scale
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Give the gradients of `query`, `key` and `value`."""
        query, key, value, found, sums = ctx.saved_tensors
        parts, told = ctx.parts, {"scale": ctx.scale}
        size = parts.size
        trunk = [part[:, :, :size] for part in (gradient, query, key, value, found, sums)]
        of_query, of_key, of_value = _BACKWARD(*trunk, 0.0, True, **told)
        if not parts.paths:
            return of_query, of_key, of_value, None, None
        asking = [part[:, :, size:] for part in (gradient, query, found, sums)]
        far = _BACKWARD(asking[0], asking[1], trunk[2], trunk[3], asking[2], asking[3], 0.0, False, **told)
        nothing = torch.zeros_like(far[0])
        whole = [_behind(of_query, far[0]), _behind(of_key + far[1], nothing), _behind(of_value + far[2], nothing)]
        # A token has its gradient where it stands first, and a filled place no probability at all.
        counts = [paths.places.numel() for paths in parts.paths]
        first = torch.zeros((sum(counts), *gradient.shape[1::2]), dtype=gradient.dtype)
        first = first.index_copy_(0, parts.home, _by_token(asking[0]))
        for paths, given in zip(parts.paths, first.split(counts), strict=True):
            rows = [along(part, paths.places) for part in (query, key, value, found)]
            joint = along(sums, paths.places).masked_fill(~paths.real[:, None], torch.inf)
            given = given.unflatten(0, paths.places.shape).transpose(1, 2)
            near = _BACKWARD(given, *rows, joint, 0.0, True, **told)
            for total, part in zip(whole, near, strict=True):
                total[0].transpose(0, 1).index_add_(0, paths.places.flatten(), part.transpose(1, 2).flatten(0, 1))
        return whole[0], whole[1], whole[2], None, None


def _by_token(part: Tensor) -> Tensor:
    """Lay (1, h, n, …) token by token, (n, h, …): so tokens are gathered as they lie."""
    return part[0].transpose(0, 1).contiguous()


def along(part: Tensor, places: Tensor) -> Tensor:
    """Gather (1, h, n, …) along paths (r, l): (r, h, l, …)."""
    return _by_token(part).index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def _home(parts: Sequence[Tensor], home: Tensor) -> Tensor:
    """Take every token's result from where it stands first: (1, h, n, …) of each group's (r, h, l, …)."""
    flat = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
    return flat.index_select(0, home).transpose(0, 1)[None]


def _behind(part: Tensor, more: Tensor) -> Tensor:
    """Lay tokens (1, h, n, d) behind others."""
    return torch.cat([_by_token(part), _by_token(more)]).transpose(0, 1)[None]
