"""Matrix products of a model that is asked, by the library that is fastest at them on this processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# For fewer rows than this the two libraries take about as long.
FEWEST_ROWS = 4


class _Product(nn.Linear):
    """A linear layer whose float32 products go to oneDNN while nothing is trained."""

    def forward(self, input: Tensor) -> Tensor:
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        few = input.numel() < FEWEST_ROWS * self.in_features
        if few or not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return functional.linear(input, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return product


def quick_products(model: Any) -> None:
    """Let the linear layers of a model use oneDNN in float32 where the processor has AVX-512.

    MKL, which torch takes for float32, keeps to AVX2 on processors that are not Intel's: on AMD's Zen 5 oneDNN is twice
    as fast (LOG.md, 2026-11-21). Training stays as it is.
    """
    has_product = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not has_product or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Product
