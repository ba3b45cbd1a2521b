"""Matrix products of a model that is asked, by the library that is fastest at them on this processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from saywhy.machine import made_by_intel

# For fewer rows than this the two libraries take about as long.
FEWEST_ROWS = 4
# The numbers of rows that are multiplied have so many leading bits.
LEADING_BITS = 4
# What oneDNN calls the activations of gated layers.
ACTIVATIONS = (("swish", ""), ("gelu", "tanh"), ("gelu", "none"))


class _Product(nn.Linear):
    """A linear layer whose float32 products go to oneDNN while nothing is trained."""

    def forward(self, input: Tensor) -> Tensor:
        if not _quick(self, input):
            return functional.linear(input, self.weight, self.bias)
        return _cut(_product(self, _rounded(input)), input)


class _Gated(nn.Module):
    """A gated feed-forward layer whose activation and gate are computed within its products, which oneDNN makes.

    `plain` is the class it had, whose forward it keeps for everything else.
    """

    plain: type[nn.Module]
    activation: tuple[str, str]

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = _projections(self)
        # An adapter may have taken the place of any of them since.
        if not (all(type(part) is _Product for part in (gate, up, down)) and _quick(gate, x)):
            given: Tensor = self.plain.forward(self, x)
            return given
        return _cut(_gated(gate, up, down, self.activation, _rounded(x)), x)


def _quick(layer: nn.Linear, input: Tensor) -> bool:
    """Tell whether oneDNN is to multiply: float32 on a CPU, rows enough, nothing trained."""
    plain = input.dtype == layer.weight.dtype == torch.float32 and input.device.type == "cpu"
    few = input.numel() < FEWEST_ROWS * layer.in_features
    return plain and not (few or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))


def _rounded(input: Tensor) -> Tensor:
    """Give the rows (m, k) of `input` (..., k) with others behind them, which mean nothing, up to a rounder number.

    For every number of rows oneDNN compiles each of its products anew, and keeps a thousand of them: a server
    that had seen all lengths held 1.2 GB of code (LOG.md, 2026-11-30).
    """
    rows = input.flatten(0, -2)
    more = -len(rows) % (1 << max(0, len(rows).bit_length() - LEADING_BITS))
    # To pad with nothing would copy.
    return functional.pad(rows, (0, 0, 0, more)) if more else rows


def _product(layer: nn.Linear, input: Tensor, then: str = "none", how: str = "") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, layer.weight, layer.bias, then, [], how)
    return product


def _gated(gate: nn.Linear, up: nn.Linear, down: nn.Linear, activation: tuple[str, str], x: Tensor) -> Tensor:
    open_ = _product(gate, x, *activation)
    return _product(down, torch.ops.mkldnn._linear_pointwise.binary(x, open_, up.weight, up.bias, "mul"))


def _cut(product: Tensor, input: Tensor) -> Tensor:
    """Give the product of rounded rows the form of `input`."""
    return product[: input.shape[:-1].numel()].unflatten(0, input.shape[:-1])


def _projections(module: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return module.gate_proj, module.up_proj, module.down_proj  # type: ignore[return-value]


def quick_products(model: Any) -> None:
    """Let the linear and the gated layers of a model use oneDNN in float32 where that is faster than what torch takes.

    MKL, which torch takes for float32, keeps to AVX2 on processors that are not Intel's: on AMD's Zen 5 oneDNN is twice
    as fast (LOG.md, 2026-11-21), on a Xeon a seventh slower (2026-11-30). Training stays as it is.
    """
    has_product = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    better = torch.backends.mkl.is_available() and made_by_intel()
    if not has_product or torch.backends.cpu.get_cpu_capability() != "AVX512" or better:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Product
    for module in model.modules():
        if (activation := _activation(module)) is not None:
            module.plain, module.activation, module.__class__ = type(module), activation, _Gated


@torch.no_grad()
def _activation(module: nn.Module) -> tuple[str, str] | None:
    """Find with which activation a layer's own forward is that of a gated layer, None where it is with none.

    What other layers with such parts do besides, only a trial tells.
    """
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is _Product and part.weight.dtype == torch.float32 for part in parts):
        return None
    gate, up, down = _projections(module)
    if gate.weight.device.type != "cpu":
        return None
    # Large enough to tell activations apart where the weights are small.
    x = torch.linspace(-1, 1, 4 * gate.in_features).sin_().reshape(4, -1)
    x = x / (gate(x).std() + 1e-20)
    wanted = module(x)
    for one in ACTIVATIONS:
        if torch.allclose(_gated(gate, up, down, one, x), wanted, rtol=1e-3, atol=1e-4 * float(wanted.std())):
            return one
    return None
