"""One model divided among processes (FSDP2): each keeps and steps its part of every weight.

torch's `fully_shard` is called here and not by accelerate's `prepare`, which knows it on GPUs alone and not with tied
embeddings; what the launcher was told of it (resharding, the layers' classes) is read from accelerate's plugin.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from saywhy.train.ranks import is_first


def twin(model: Any) -> Any:
    """Give the model that is to be divided: in the first process a copy, since it keeps the model itself whole."""
    return deepcopy(model) if is_first() else model


def divide(losses: Any, plugin: FullyShardedDataParallelPlugin) -> None:
    """Divide the weights of a `Losses` and of each layer of its model; they become DTensors."""
    for layer in _layers(losses.model, plugin):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward)
    # What is left, embeddings and head, is read at both ends of a pass.
    fully_shard(losses, reshard_after_forward=False)


def _layers(model: Any, plugin: FullyShardedDataParallelPlugin) -> list[nn.Module]:
    names = set(plugin.transformer_cls_names_to_wrap or getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


@torch.no_grad()
def collect(divided: Any, whole: Any | None) -> None:
    """Bring trained weights together in the whole model, which the first process has; all take part."""
    if divided is whole:
        return
    places = {} if whole is None else dict(whole.named_parameters())
    for name, weight in _trained(divided):
        found = weight.full_tensor()
        if places:
            places[name].copy_(found)


@torch.no_grad()
def hand_out(divided: Any, whole: Any | None) -> None:
    """Give the divided model the trained weights of the whole one, which the first process has; all take part."""
    if divided is whole:
        return
    given = {} if whole is None else dict(whole.named_parameters())
    for name, weight in _trained(divided):
        tensor = given[name].detach() if given else torch.empty(weight.shape, dtype=weight.dtype)
        weight.copy_(like(tensor, weight))


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def gathered(tensor: Tensor) -> Tensor:
    """Give the first process a divided tensor whole, in the CPU's memory, and the others nothing; all take part."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if is_first() else torch.empty(0)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Divide the first process' tensor as another of its shape is divided; all take part."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
