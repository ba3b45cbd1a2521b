"""Memory that a process frees: kept for a while, and given back."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import tiny
from saywhy import machine
from saywhy.config import Train
from saywhy.train.loop import finetune
from saywhy.train.steps import Example
from saywhy.trees import Branch

BLOCK = 2**26
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")


def held_after_freeing(size: int = BLOCK) -> int:
    """Take a block and free it: the bytes that the process holds more than before."""
    before = psutil.Process().memory_info().rss
    block = torch.ones(size, dtype=torch.uint8)
    del block
    return int(psutil.Process().memory_info().rss) - before


@glibc
def test_what_is_freed_is_kept_until_the_block_ends() -> None:
    before = psutil.Process().memory_info().rss
    assert held_after_freeing() < BLOCK // 2
    with machine.keeping_freed():
        assert held_after_freeing() > BLOCK // 2
        assert held_after_freeing(BLOCK - 2**20) < BLOCK // 2
    assert psutil.Process().memory_info().rss < before + BLOCK // 2
    assert held_after_freeing() < BLOCK // 2


@glibc
def test_a_training_keeps_what_it_frees_until_it_ends(tmp_path: Path) -> None:
    example = Example((Branch(np.array([3, 4, 5, 2]), np.array([0.0, 0.0, 1.0, 1.0])),), 4, 1)
    chosen = Train(steps=2, rows_per_step=1, layout="tree", precision="float32", evaluations=2)
    kept: list[int] = []

    def dev_score() -> float:
        kept.append(held_after_freeing(BLOCK - 2**20 * len(kept)))
        return 0.5

    before = psutil.Process().memory_info().rss
    finetune(tiny.model("llama"), [example], chosen, 0, tmp_path, "arm", dev_score)
    assert kept[0] > BLOCK // 2 > kept[1]
    assert psutil.Process().memory_info().rss < before + BLOCK // 2


@glibc
def test_what_was_freed_below_something_in_use_is_given_back() -> None:
    """Blocks that glibc takes from its heap: the last of them keeps those below it."""
    blocks = [torch.ones(2**16, dtype=torch.uint8) for _ in range(BLOCK // 2**16)]
    held = psutil.Process().memory_info().rss
    del blocks[:-1]
    assert psutil.Process().memory_info().rss > held - BLOCK // 2, "it would not have been kept"
    machine.give_back_freed()
    assert psutil.Process().memory_info().rss < held - BLOCK // 2


@glibc
def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "win32")
    monkeypatch.setattr(machine.ctypes, "CDLL", None)
    with machine.keeping_freed():
        assert held_after_freeing() < BLOCK // 2
    machine.give_back_freed()


@pytest.mark.parametrize(("maker", "intel"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_the_maker_of_the_processor_is_read(tmp_path: Path, maker: str, intel: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\n", encoding="utf-8")
    assert machine.made_by_intel(tmp_path) is intel


def test_without_such_a_file_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for told, intel in (("Intel64 Family 6 Model 207 Stepping 8, GenuineIntel", True), ("arm", False)):
        monkeypatch.setattr(platform, "processor", lambda told=told: told)
        assert machine.made_by_intel(tmp_path) is intel
