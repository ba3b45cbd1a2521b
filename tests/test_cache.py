"""A reading ends each row in the state that transformers' own forward gives its path, whatever was read before."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DogeConfig, HrmTextConfig

import tiny
from saywhy.lm import forward
from saywhy.lm.cache import Alone, Reading, batches, open_reading, read_trunk, shared_by
from saywhy.trees import Ints

NAMES = ("llama", "llama-tied", "qwen3", "gemma2", "gemma3", "mixtral", "mistral", "stablelm", "deepseek")


# Two tokens looked at behind the first row, one behind the second, none behind the third.
CHAIN = np.array([[[True, False], [False, True]], [[True, False], [False, False]], [[False, False], [False, False]]])


@cache
def model(name: str) -> Any:
    return tiny.model(name)


@cache
def plain(name: str) -> Any:
    """The same model as transformers has it, without our attention."""
    made = copy.deepcopy(model(name))
    made.set_attn_implementation("eager")
    return made


def state(name: str, path: Ints) -> torch.Tensor:
    with torch.no_grad():
        return (
            plain(name).get_decoder()(input_ids=torch.from_numpy(path)[None], use_cache=False).last_hidden_state[0, -1]
        )


def assert_at_the_end(name: str, reading: Reading | Alone, paths: list[Ints]) -> None:
    wanted = torch.stack([state(name, path) for path in paths])
    torch.testing.assert_close(reading.hidden, wanted, rtol=1e-4, atol=1e-4)
    assert reading.ends.tolist() == [len(path) for path in paths]


def tokens(draw: st.DrawFn, least: int, most: int) -> Ints:
    # Few kinds of token, so that paths begin alike by chance.
    return np.array(draw(st.lists(st.integers(5, 8), min_size=least, max_size=most)), dtype=np.int64)


@st.composite
def work(draw: st.DrawFn) -> tuple[Ints, list[Ints], list[tuple[str, Any]]]:
    """A trunk, rows behind it, and what is done to them in turn."""
    trunk = tokens(draw, 0, 9)
    rows = [np.concatenate([trunk, tokens(draw, 1, 7)]) for _ in range(draw(st.integers(1, 4)))]
    count, done = len(rows), list[tuple[str, Any]]()
    for _ in range(draw(st.integers(1, 5))):
        what = draw(st.sampled_from(("read", "step", "look", "part")))
        if what == "read":
            done.append((what, [tokens(draw, 1, 8) for _ in range(count)]))
        elif what == "part":
            chosen = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4))
            done.append((what, chosen))
            count = len(chosen)
        else:
            done.append((what, [draw(st.integers(5, 9)) for _ in range(count)]))
    return trunk, rows, done


@pytest.mark.parametrize("name", [*NAMES, "mamba"])
@settings(max_examples=12)
@given(work=work())
def test_every_row_ends_where_its_path_does(name: str, work: tuple[Ints, list[Ints], list[tuple[str, Any]]]) -> None:
    ids, paths, done = work
    shared = None if name == "mamba" else read_trunk(model(name), ids)
    reading = open_reading(model(name), shared, paths)
    assert_at_the_end(name, reading, paths)
    for what, value in done:
        if what == "read":
            paths = [np.concatenate([ids, own]) for own in value]
            reading.read(paths)
        elif what == "step":
            paths = [np.append(path, token) for path, token in zip(paths, value, strict=True)]
            reading.step(np.array(value))
        elif what == "part":
            paths = [paths[row] for row in value]
            reading = reading.part(value)
        else:
            assert_looks(name, reading, paths, value)
        assert_at_the_end(name, reading, paths)


def assert_looks(name: str, reading: Reading | Alone, paths: list[Ints], first: list[int]) -> None:
    """Look at a token behind each row, then at two that follow it side by side, and see that none sees its brother."""
    rows = len(paths)
    own = np.ones((rows, 1, 1), dtype=bool)
    one = reading.look(np.array(first)[:, None], np.zeros((rows, 1), dtype=np.int64), own)
    chain = np.broadcast_to(np.array([[True, True, False], [True, False, True]]), (rows, 2, 3))
    two = reading.look(np.broadcast_to(np.array([6, 7]), (rows, 2)).copy(), np.ones((rows, 2), dtype=np.int64), chain)
    for row, path in enumerate(paths):
        begun = np.append(path, first[row])
        torch.testing.assert_close(one[row, 0], state(name, begun), rtol=1e-4, atol=1e-4)
        for at, token in enumerate((6, 7)):
            torch.testing.assert_close(two[row, at], state(name, np.append(begun, token)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_is_not_computed_again(name: str) -> None:
    trunk = np.array([5, 6, 7, 8, 5])
    rows = [np.append(trunk, own) for own in ([6, 7, 8], [7, 7, 7, 7, 7, 7])]
    reading = open_reading(model(name), read_trunk(model(name), trunk), rows)
    assert reading.spent.tolist() == [3, 6], "the trunk is not theirs"
    reading.read([np.append(row, 9) for row in rows])
    assert reading.spent.tolist() == [4, 7]
    # Another last token: what it stands behind stays.
    reading.read([np.append(row, [5, 5]) for row in rows])
    assert reading.spent.tolist() == [6, 9]
    reading.back(np.array([len(row) for row in rows]))
    reading.read([np.append(row, [6]) for row in rows])
    assert reading.spent.tolist() == [7, 10]
    twice = reading.part([1, 1, 0])
    twice.step(np.array([5, 6, 7]))
    assert twice.spent.tolist() == [11, 11, 8] and reading.spent.tolist() == [7, 10]
    assert_at_the_end(name, twice, [np.append(rows[1], [6, 5]), np.append(rows[1], [6, 6]), np.append(rows[0], [6, 7])])
    assert_at_the_end(name, reading, [np.append(row, [6]) for row in rows])


def test_a_trunk_stands_once_where_the_attention_can_read_it_so() -> None:
    trunk, own = np.arange(5, 205), np.array([5, 6])
    rows = [np.append(trunk, own)] * 64
    for name, copied in (("llama", False), ("mistral", True)):
        reading = open_reading(model(name), read_trunk(model(name), trunk), rows)
        assert isinstance(reading, Reading)
        assert (reading.layers[0].keys.shape[2] > 200) == copied, name


def test_what_prompts_share_leaves_a_token_of_each() -> None:
    rows = [np.array(ids) for ids in ([5, 6, 7], [5, 6], [5, 6, 8, 9])]
    assert shared_by(rows).tolist() == [5]
    assert shared_by(rows[::2]).tolist() == [5, 6]
    nothing = read_trunk(model("llama"), [])
    assert not len(nothing.ids) and nothing.layers == ()


@given(lengths=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(0, 200))
def test_batches_keep_to_the_budget_and_have_every_row_once(lengths: list[int], budget: int) -> None:
    cut = list(batches(lengths, budget))
    assert sorted(at for batch in cut for at in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[at] for at in batch) <= budget for batch in cut)


@pytest.mark.parametrize("name", NAMES)
def test_rows_read_in_several_passes_are_those_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = np.array([5, 6, 7])
    rows = [np.concatenate([trunk, np.arange(5, 6 + at)]) for at in range(7)]
    monkeypatch.setattr("saywhy.lm.cache.READ_AT_ONCE", 15)
    reading = open_reading(model(name), read_trunk(model(name), trunk), rows)
    assert_at_the_end(name, reading, rows)
    rows = [np.append(row, [9, 8, 7]) for row in rows]
    reading.read(rows)
    assert_at_the_end(name, reading, rows)
    rows = [np.append(row, 6) for row in rows]
    reading.step(np.full(7, 6))
    assert_at_the_end(name, reading, rows)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rows_whose_attention_is_computed_apart_are_those_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = np.array([5, 6, 7])
    rows = [np.concatenate([trunk, np.arange(5, 6 + 2 * at)]) for at in range(5)]
    monkeypatch.setattr("saywhy.lm.behind.ROWS_A_RUN", 2)
    reading = open_reading(model(name), read_trunk(model(name), trunk), rows)
    for token in (9, 8):
        rows = [np.append(row, token) for row in rows]
        reading.step(np.full(5, token))
        assert_at_the_end(name, reading, rows)
    assert_looks(name, reading, rows, [5, 6, 7, 8, 9])


def test_padding_is_neither_computed_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = np.array([5, 6, 7])
    rows = [np.concatenate([trunk, np.full(length, 5)]) for length in (2, 3, 12)]
    # All that is read, but not with its padding.
    monkeypatch.setattr("saywhy.lm.cache.READ_AT_ONCE", 17)
    monkeypatch.setattr("saywhy.lm.behind.ROWS_A_RUN", 2)
    asked: list[tuple[int, list[int]]] = []
    attend = forward.attend_behind

    def record(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append((query.shape[2], [key.shape[2] - run.low for run in rest[-1]]))
        return attend(query, key, *rest)

    shared = read_trunk(model("llama"), trunk)
    monkeypatch.setattr(forward, "attend_behind", record)
    reading = open_reading(model("llama"), shared, rows)
    reading.step(np.array([5, 5, 5]))
    reading.look(np.array([[6, 7], [6, 0], [0, 0]]), np.zeros((3, 2), dtype=int), CHAIN)
    layers = len(asked) // 3
    # The tokens of a pass, and how many own keys each run of its rows reads: those of its longest row.
    assert asked[::layers] == [(17, [3, 12]), (3, [4, 13]), (3, [6])]


@pytest.mark.parametrize("at_once", [1024, 0])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_a_row_may_look_at_nothing(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = np.array([5, 6, 7])
    rows = [np.concatenate([trunk, np.full(length, 5)]) for length in (2, 12, 3)]
    reading = open_reading(model(name), read_trunk(model(name), trunk), rows)
    spent = reading.spent
    monkeypatch.setattr("saywhy.lm.cache.READ_AT_ONCE", at_once)
    found = reading.look(np.array([[6, 7], [0, 0], [6, 0]]), np.zeros((3, 2), dtype=int), CHAIN[[0, 2, 1]])
    wanted = torch.stack([state(name, np.append(rows[row], token)) for row, token in ((0, 6), (0, 7), (2, 6))])
    torch.testing.assert_close(torch.cat([found[0], found[2, :1]]), wanted, rtol=1e-4, atol=1e-4)
    assert (reading.spent - spent).tolist() == [2, 0, 1]


def test_a_path_that_leaves_the_trunk_is_refused() -> None:
    reading = open_reading(model("llama"), read_trunk(model("llama"), [5, 6]), [np.array([5, 6, 7])])
    with pytest.raises(ValueError, match="leaves the trunk"):
        reading.read([np.array([5, 7, 7])])


SHAPE = {**tiny.SMALL, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "config", [DogeConfig(**SHAPE), HrmTextConfig(**SHAPE)], ids=["a mask of its own", "a layer that is run again"]
)
def test_attention_that_would_not_read_a_trunk_as_ours_does_stays(config: Any) -> None:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    before = forward.attention_of(made)
    forward.read_paths(made)
    assert forward.attention_of(made) == before
    trunk = np.array([5, 6, 7, 8])
    rows = [np.concatenate([trunk, np.full(length, 5)]) for length in (2, 3, 7)]
    reading = open_reading(made, read_trunk(made, trunk), rows)
    with torch.no_grad():
        read = [made.get_decoder()(torch.from_numpy(row)[None], use_cache=False).last_hidden_state for row in rows]
    wanted = [states[0, -1] for states in read]
    torch.testing.assert_close(reading.hidden, torch.stack(wanted), rtol=1e-4, atol=1e-4)
