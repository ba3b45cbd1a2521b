"""Attention over a token tree in two parts: what all paths share, read once, and each path's own part beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saywhy.trees import Pack

# The kernels of torch's own attention on a CPU, which tell the log-sum-exp that joining two parts needs.
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Parts:
    """A tree as a trunk of `size` tokens and, behind it, the positions of each path: `paths` (r, l), `real` alike.

    `real` is false where a short path is filled up. `home` (n - size,): the flat place in `paths` where each token
    behind the trunk stands first.
    """

    size: int
    paths: Tensor
    real: Tensor
    home: Tensor


def trunk_size(pack: Pack) -> int:
    """Count the leading tokens that all paths of a tree share."""
    assert pack.paths is not None
    differ = np.flatnonzero((pack.paths != pack.paths[0]).any(0))
    return int(differ[0]) if len(differ) else pack.paths.shape[1]


def parts_of(pack: Pack, device: torch.device) -> Parts:
    """Take a tree apart."""
    assert pack.paths is not None and pack.home is not None
    size, width = trunk_size(pack), pack.paths.shape[1]
    rows, places = np.divmod(pack.home[size:], width)
    behind = pack.paths[:, size:]
    arrays = (behind, behind >= size, rows * (width - size) + places - size)
    return Parts(size, *(torch.from_numpy(array).to(device) for array in arrays))


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
        found, sums = _FORWARD(query[:, :, :size], key[:, :, :size], value[:, :, :size], 0.0, True, **told)
        if parts.paths.numel():
            far, far_sums = _FORWARD(query[:, :, size:], key[:, :, :size], value[:, :, :size], 0.0, False, **told)
            rows = [_along(part, parts.paths) for part in (query, key, value)]
            near, near_sums = (_home(part, parts.home) for part in _FORWARD(*rows, 0.0, True, **told))
            joint = torch.logaddexp(far_sums, near_sums)
            far = far * (far_sums - joint).exp_()[..., None] + near * (near_sums - joint).exp_()[..., None]
            found, sums = torch.cat([found, far], 2), torch.cat([sums, joint], 2)
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
        if not parts.paths.numel():
            return of_query, of_key, of_value, None, None
        asking = [part[:, :, size:] for part in (gradient, query, found, sums)]
        far = _BACKWARD(asking[0], asking[1], trunk[2], trunk[3], asking[2], asking[3], 0.0, False, **told)
        # A token has its gradient where it stands first, and a filled place no probability at all.
        first = torch.zeros((parts.paths.numel(), *gradient.shape[1::2]), dtype=gradient.dtype)
        first = first.index_copy_(0, parts.home, asking[0][0].transpose(0, 1)).unflatten(0, parts.paths.shape)
        rows = [_along(part, parts.paths) for part in (query, key, value, found)]
        joint = _along(sums[..., None], parts.paths)[..., 0].masked_fill(~parts.real[:, None], torch.inf)
        near = _BACKWARD(first.transpose(1, 2), *rows, joint, 0.0, True, **told)
        whole = [torch.cat([of_query, far[0]], 2), _longer(of_key + far[1], query), _longer(of_value + far[2], query)]
        places = parts.paths.flatten()
        for total, part in zip(whole, near, strict=True):
            total[0].index_add_(1, places, part.transpose(0, 1).flatten(1, 2))
        return whole[0], whole[1], whole[2], None, None


def _along(part: Tensor, paths: Tensor) -> Tensor:
    """Gather (1, h, n, d) along paths (r, l): (r, h, l, d)."""
    return part[0].index_select(1, paths.flatten()).unflatten(1, paths.shape).transpose(0, 1)


def _home(part: Tensor, home: Tensor) -> Tensor:
    """Take every token's result, (r, h, l, …), from where it stands first: (1, h, n, …)."""
    return part.transpose(0, 1).flatten(1, 2).index_select(1, home)[None]


def _longer(part: Tensor, like: Tensor) -> Tensor:
    """Fill (1, h, t, d) up to the length of `like` with zeros."""
    return torch.nn.functional.pad(part, (0, 0, 0, like.shape[2] - part.shape[2]))
