"""The model as one module from a pack to its loss."""

from __future__ import annotations

from typing import Any

import torch

from saywhy.lm.forward import log_probs
from saywhy.trees import Pack


class Losses(torch.nn.Module):
    """The model as a function from a pack to its weighted loss, so that every device wraps one module."""

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, pack: Pack) -> torch.Tensor:
        """Give the weighted sum of the negative log-probabilities of a pack: a scalar, float32."""
        with autocast(self.model, self.precision):
            found = log_probs(self.model, pack)
        return -(torch.from_numpy(pack.weight).to(found) * found).sum()


def autocast(model: Any, precision: str) -> Any:
    """Compute in bf16 on float32 master weights, or change nothing."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
