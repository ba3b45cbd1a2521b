"""What takes a step from gradients to weights, and what of it a checkpoint has to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saywhy.config import Train
from saywhy.records import RequestError
from saywhy.train.shards import gathered, like


def make(model: Any, settings: Train) -> list[Any]:
    """Make the optimizers of a training, all at rate 0 until the schedule sets it.

    `adamw` takes every parameter. `muon` (Jordan 2024) turns the momentum of every matrix inside the layers into the
    nearest orthogonal one and scales it to the size of AdamW's steps (2502.16982, section 2.2), so that one rate serves
    both; embeddings, head and vectors stay with AdamW. Vectors do not decay. RequestError where torch has no Muon.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    inside = {id(p) for p in _matrices(model)} if settings.optimizer == "muon" else set()
    rest = [p for p in trained if id(p) not in inside]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = model.device.type in ("cpu", "cuda")
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=fused)
    if not inside:
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise RequestError(f"optimizer: muon needs torch 2.9 or later, and this is {torch.__version__}; set adamw")
    matrices = [p for p in trained if id(p) in inside]
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def _matrices(model: Any) -> list[Tensor]:
    """Give the weights that turn one hidden state into another: neither looked up by token nor read as logits."""
    tables = {id(table.weight) for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in tables]


def moments(model: Any, optimizers: Sequence[Any]) -> dict[str, Tensor]:
    """Give all that optimizers remember as named tensors, `parameter.moment`: whole ones to the first process.

    No two optimizers have one parameter. Where weights are divided among processes, all take part.
    """
    names = _names(model)
    return {
        f"{names[id(parameter)]}.{moment}": gathered(value) if isinstance(value, Tensor) else torch.tensor(float(value))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore(model: Any, optimizers: Sequence[Any], saved: Mapping[str, Tensor]) -> None:
    """Give optimizers back what `moments` took from them."""
    names = _names(model)
    weights = dict(model.named_parameters())
    of: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(saved.items()):
        parameter, moment = key.rsplit(".", 1)
        of.setdefault(parameter, {})[moment] = like(tensor, weights[parameter])
    for optimizer in optimizers:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {index: of[names[id(one)]] for index, one in enumerate(held) if names[id(one)] in of}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _names(model: Any) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}
