"""Attention behind a trunk that stands once is plain attention over trunk and row, whatever is computed together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saywhy.lm import behind
from saywhy.lm.behind import attend_behind, cut_runs

D = 8


@st.composite
def shape(draw: st.DrawFn) -> tuple[int, int, int, NDArray[np.bool_], NDArray[np.bool_]]:
    """Groups, heads a group, trunk length, which tokens are read (b, q), and which own keys each reads (b, q, m)."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    before = draw(st.integers(0, 3))
    count = np.array([draw(st.integers(0, width)) for _ in range(rows)])
    real = np.arange(width)[None] >= width - count[:, None]
    left = np.arange(width)[None] < count[:, None]
    real = left if draw(st.booleans()) else real
    if not real.any():
        real[0, -1] = True
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    seen = rng.random((rows, width, before + width)) < 0.5
    # Every token reads itself.
    seen[:, np.arange(width), before + np.arange(width)] = True
    return draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4)), real, seen


def wanted(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    real: NDArray[np.bool_], seen: NDArray[np.bool_],
) -> torch.Tensor:  # fmt: skip
    """Token by token: (1, n, h, d)."""
    times = query.shape[1] // len(keys)
    found = []
    for n, (row, column) in enumerate(np.argwhere(real)):
        own = torch.from_numpy(seen[row, column])
        of_heads = []
        for h in range(query.shape[1]):
            g = h // times
            read = torch.cat([keys[g], key[row, g][own]]), torch.cat([values[g], value[row, g][own]])
            of_heads.append(torch.softmax(query[0, h, n] @ read[0].T * D**-0.5, -1) @ read[1])
        found.append(torch.stack(of_heads))
    return torch.stack(found)[None]


@pytest.mark.parametrize("way", ["fused", "plain", "narrow"])
@pytest.mark.parametrize(("most", "together"), [(512, 32), (4, 32), (512, 1)])
@settings(max_examples=30)
@given(shape=shape())
def test_it_is_attention_over_the_trunk_and_the_row(
    shape: tuple[int, int, int, NDArray[np.bool_], NDArray[np.bool_]], most: int, together: int, way: str
) -> None:
    groups, times, shared, real, seen = shape
    torch.manual_seed(0)
    rows, own, tokens = len(real), seen.shape[2], int(real.sum())
    size = D - 3 if way == "narrow" else D
    query = torch.randn(1, groups * times, tokens, D)
    key, keys = torch.randn(rows, groups, own, D), torch.randn(groups, shared, D)
    value, values = torch.randn(rows, groups, own, size), torch.randn(groups, shared, size)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(behind, "TOKENS_A_RUN", most)
        patch.setattr(behind, "ROWS_A_RUN", together)
        if way == "plain":
            patch.setattr(behind, "_fused", behind._plain)
        if way == "fused":
            patch.setattr(behind, "_plain", None)
        runs = cut_runs(real, seen, torch.device("cpu"), torch.float32)
        assert [run.tokens.start for run in runs] == [0, *(run.tokens.stop for run in runs[:-1])]
        found = attend_behind(query, key, value, keys, values, None, runs)
        torch.testing.assert_close(found, wanted(query, key, value, keys, values, real, seen), rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_too() -> None:
    torch.manual_seed(0)
    real, seen = np.array([[True] * 3, [False, True, True]]), np.tril(np.ones((2, 3, 3), dtype=bool))
    parts = [torch.randn(1, 4, 5, D), *torch.randn(2, 2, 2, 3, D), *torch.randn(2, 2, 5, D)]
    runs, half = (cut_runs(real, seen, torch.device("cpu"), kind) for kind in (torch.float32, torch.bfloat16))
    with torch.inference_mode():
        exact = attend_behind(*parts, None, runs)
        found = attend_behind(*(part.bfloat16() for part in parts), None, half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


def test_rows_of_like_length_lie_together_at_whichever_end_they_are_read() -> None:
    count = np.array([100, *[1] * 255])
    left = np.arange(100)[None] < count[:, None]
    runs = [
        [run.rows for run in cut_runs(real, real[:, :, None] & real[:, None], torch.device("cpu"), torch.float32)]
        for real in (left, left[:, ::-1])
    ]
    # As few as 32 rows a run allow, but for the long one.
    assert runs[0] == runs[1] and len(runs[0]) == 9
