"""Products by oneDNN are those of torch, and nothing that is trained goes through them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from saywhy.lm import products
from saywhy.lm.products import quick_products

if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or torch.backends.cpu.get_cpu_capability() != "AVX512":
    pytest.skip("needs oneDNN on a processor with AVX-512", allow_module_level=True)


@pytest.fixture(autouse=True)
def _not_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """There MKL is faster, and layers stay; what oneDNN computes is the same."""
    monkeypatch.setattr(products, "made_by_intel", lambda: False)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that went to oneDNN."""
    shapes: list[tuple[int, ...]] = []
    quick = torch.ops.mkldnn._linear_pointwise

    def record(given: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(tuple(given.shape))
        return quick(given, *rest)

    record.binary = quick.binary  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", record)
    return shapes


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(33, 47, bias=bias)
    quick = nn.Sequential(copy.deepcopy(plain))
    quick_products(quick)
    return plain, quick[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 33), (1, 1, 33), (0, 33)])
def test_products_are_those_of_torch(bias: bool, shape: tuple[int, ...], seen: list[tuple[int, ...]]) -> None:
    plain, quick = pair(bias)
    given = torch.randn(shape)
    # Steps of a reading and transposed states are not laid out row by row.
    strided = torch.randn((*shape[:-1], 66))[..., ::2]
    with torch.inference_mode():
        for one in (given, strided):
            torch.testing.assert_close(quick(one), plain(one))
    rows = given.numel() // 33
    assert seen == ([(rows, 33)] * 2 if rows >= products.FEWEST_ROWS else [])


def test_few_numbers_of_rows_are_multiplied(seen: list[tuple[int, ...]]) -> None:
    """Each of them is compiled, and kept."""
    plain, quick = pair()
    with torch.inference_mode():
        for rows in range(products.FEWEST_ROWS, 600):
            given = torch.randn(rows, 33)
            torch.testing.assert_close(quick(given), plain(given))
    counts = [shape[0] for shape in seen]
    assert len(set(counts)) < 60
    assert all(rows <= count <= rows * 1.125 for rows, count in enumerate(counts, products.FEWEST_ROWS))


def test_training_other_types_and_autocast_stay_with_torch(seen: list[tuple[int, ...]]) -> None:
    plain, quick = pair()
    given = torch.randn(8, 33)
    quick(given).sum().backward()
    plain(given).sum().backward()
    assert torch.equal(quick.weight.grad, plain.weight.grad)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert quick(given).dtype == torch.bfloat16
        assert torch.equal(quick.bfloat16()(given.bfloat16()), plain.bfloat16()(given.bfloat16()))
    assert seen == []


def test_weights_that_change_are_seen() -> None:
    plain, quick = pair()
    given = torch.randn(8, 33)
    with torch.no_grad():
        quick(given)
        for layer in (plain, quick):
            layer.weight.mul_(2.0)
        torch.testing.assert_close(quick(given), plain(given))


def test_only_plain_linear_layers_are_changed_and_a_copy_has_weights_of_its_own() -> None:
    class Other(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 4), Other(4, 4), nn.Embedding(4, 4)])
    quick_products(model)
    assert [type(module).__name__ for module in model] == ["_Product", "Other", "Embedding"]
    assert isinstance(model[0], nn.Linear) and set(model[0].state_dict()) == {"weight", "bias"}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.zero_()
        assert not torch.equal(model[0](torch.ones(8, 4)), other[0](torch.ones(8, 4)))


class Gated(nn.Module):
    """A gated layer as models have it, with or without something of its own."""

    def __init__(self, activation: nn.Module, more: float = 1.0) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.act_fn, self.more = activation, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * self.more)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.GELU("tanh")])
def test_gated_layers_are_those_of_torch(activation: nn.Module, seen: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    plain = Gated(activation)
    model = nn.Sequential(copy.deepcopy(plain))
    quick_products(model)
    quick = model[0]
    assert type(quick) is products._Gated and set(quick.state_dict()) == set(plain.state_dict())
    given = torch.randn(2, 3, 16)
    with torch.inference_mode():
        for some in (given, given[:1]):
            seen.clear()
            torch.testing.assert_close(quick(some), plain(some))
            assert len(seen) == (2 if some is given else 0), "the third product has the gate in it"
    for layer in (plain, quick):
        layer(given).sum().backward()
    assert torch.equal(quick.gate_proj.weight.grad, plain.gate_proj.weight.grad)


@pytest.mark.parametrize("other", [Gated(nn.Tanh()), Gated(nn.SiLU(), more=1.1)])
def test_layers_that_do_something_else_with_such_parts_stay(other: nn.Module) -> None:
    quick_products(nn.Sequential(other))
    assert type(other) is Gated and type(other.gate_proj).__name__ == "_Product"


def test_where_there_is_nothing_better_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, told in ((torch.backends.cpu, "get_cpu_capability", "AVX2"), (products, "made_by_intel", True)):
        model = nn.Sequential(nn.Linear(4, 4))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda told=told: told)
            quick_products(model)
        assert type(model[0]) is nn.Linear
    quick_products(model)
    assert type(model[0]) is not nn.Linear


def test_a_model_that_is_asked_multiplies_so(seen: list[tuple[int, ...]]) -> None:
    model = tiny.model("llama")
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    assert len(seen) > 10
