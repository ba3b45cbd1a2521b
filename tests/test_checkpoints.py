"""Checkpoints: a training killed at any touch of the disk ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from saywhy.records import WorkError
from saywhy.train import checkpoints, failures
from test_train import EXAMPLES, run, settings, with_dropout

# Two checkpoints between three evaluations, of which the first is the best.
CHOSEN = settings(steps=6, rows_per_step=2, checkpoint_every=4, evaluations=3)
SCORES = {2: 0.9, 4: 0.3, 6: 0.2}


class Gone(BaseException):
    """Stands for kill -9: nothing that the process would still do is done."""


class Disk:
    """Counts what is done to the disk, and is gone from the n-th time on."""

    def __init__(self, dies_at: int) -> None:
        self.dies_at, self.done = dies_at, 0

    def touched(self) -> bool:
        """Whether this is the touch in which the process dies; raises Gone after it."""
        self.done += 1
        if self.dies_at and self.done > self.dies_at:
            raise Gone
        return self.done == self.dies_at

    def watched(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def touching(*given: Any, **named: Any) -> Any:
            if self.touched():
                raise Gone
            return work(*given, **named)

        return touching

    def half(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def saving(tensors: dict[str, torch.Tensor], path: Path) -> None:
            dying = self.touched()
            save(tensors, path)
            if dying:
                os.truncate(path, path.stat().st_size // 2)
                raise Gone

        return saving


@contextmanager
def disk(dies_at: int) -> Iterator[Disk]:
    """Watch every way in which a training writes, renames and removes."""
    watched = Disk(dies_at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save_file", watched.half(checkpoints.save_file))
        places: list[tuple[Any, tuple[str, ...]]] = [
            (pathlib.Path, ("mkdir", "rename", "replace", "unlink", "open")),
            (os, ("fsync", "unlink", "rmdir")),
        ]
        for place, names in places:
            for name in names:
                patch.setattr(place, name, watched.watched(getattr(place, name)))
        yield watched


def taken(folder: Path, name: str = "adamw") -> tuple[Any, dict[str, torch.Tensor]]:
    """Train as a stage does; the dev score is that of the step, whoever asks."""
    model, steps = with_dropout(), iter(sorted(SCORES))
    folder.mkdir(exist_ok=True)
    kept = sorted(folder.glob("step-*"))
    if kept:
        done = json.loads((kept[-1] / "state.json").read_text())["steps"]
        steps = iter(step for step in sorted(SCORES) if step > done)
    chosen = CHOSEN.model_copy(update={"optimizer": name})
    with failures.marked(folder, "arm", 64):
        return run(folder, chosen, dev_score=lambda _: SCORES[next(steps)], model=model)


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found[name], weight) for name, weight in wanted.items())


def test_killed_at_any_touch_of_the_disk_a_training_ends_as_if_it_never_was(tmp_path: Path) -> None:
    with disk(0) as whole:
        trained, weights = taken(tmp_path / "never")
    assert trained.best_step == 2 and whole.done > 60
    for at in range(1, whole.done + 1):
        folder = tmp_path / str(at)
        with pytest.raises(Gone), disk(at):
            taken(folder)
        again, found = taken(folder)
        assert replace(again, seconds=0) == replace(trained, seconds=0), at
        assert equal(found, weights), f"killed at touch {at}"
        shutil.rmtree(folder)


def test_killed_twice_in_a_checkpoint(tmp_path: Path) -> None:
    trained, weights = taken(tmp_path / "never")
    for at in (20, 26, 32):
        with pytest.raises(Gone), disk(at):
            taken(tmp_path / "killed")
    again, found = taken(tmp_path / "killed")
    assert replace(again, seconds=0) == replace(trained, seconds=0)
    assert equal(found, weights)


def test_the_best_weights_are_those_that_the_checkpoint_speaks_of(tmp_path: Path) -> None:
    """Killed behind a later best one and asked again, the dev rows may not say the same: another thread count."""
    folder, scores = tmp_path / "killed", iter([0.5, 0.9])
    folder.mkdir()
    with pytest.raises(StopIteration):
        run(folder, settings(evaluations=4), dev_score=lambda _: next(scores))
    assert [path.name for path in folder.glob("best-*")] == ["best-00000004.safetensors"]
    shutil.copy(folder / "best-00000004.safetensors", folder / "best-00000006.safetensors")
    again = iter([0.1, 0.1])
    trained, weights = run(folder, settings(evaluations=4), dev_score=lambda _: next(again))
    assert trained.best_step == 4
    assert equal(weights, load_file(folder / "best-00000004.safetensors"))
    assert [path.name for path in folder.glob("best-*")] == ["best-00000004.safetensors"], "others are removed"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_what_an_optimizer_remembers_is_kept_by_parameter_name(optimizer: str, name: str, tmp_path: Path) -> None:
    run(tmp_path, settings(steps=3, checkpoint_every=2, optimizer=optimizer), name)
    with safe_open(tmp_path / "step-00000002" / "optimizer.safetensors", "pt") as file:
        kept = [key.rsplit(".", 1) for key in file.keys()]  # noqa: SIM118
    parameters = dict(tiny.model(name).named_parameters())
    assert {parameter for parameter, _ in kept} == parameters.keys()
    inside = {key for key, value in parameters.items() if ".layers." in key and value.ndim == 2}
    by_muon = {parameter for parameter, moment in kept if moment == "momentum_buffer"}
    assert by_muon == (inside if optimizer == "muon" else set())
    assert {moment for parameter, moment in kept if parameter not in by_muon} == {"step", "exp_avg", "exp_avg_sq"}


def test_a_checkpoint_is_readable_by_anything(tmp_path: Path) -> None:
    trained, _ = run(tmp_path, settings(steps=5, checkpoint_every=4))
    (kept,) = tmp_path.glob("step-*")
    assert sorted(path.name for path in kept.iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    state = json.loads((kept / "state.json").read_text())
    assert (state["steps"], state["rows"], state["plan"]) == (4, 16, trained.plan)
    assert len(trained.plan) == 64


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json", "best"])
@pytest.mark.parametrize("size", [0, 3, -1, None])
def test_a_damaged_checkpoint_is_passed_over(file: str, size: int | None, tmp_path: Path, said: Any) -> None:
    trained, weights = taken(tmp_path / "never")
    folder = tmp_path / "killed"
    shutil.copytree(tmp_path / "never", folder)
    (kept,) = folder.glob("step-*")
    path = folder / "best-00000002.safetensors" if file == "best" else kept / file
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size if size >= 0 else path.stat().st_size - 3)
    steps = iter(sorted(SCORES))
    again, found = run(folder, CHOSEN, dev_score=lambda _: SCORES[next(steps)], model=with_dropout())
    assert "step-00000004 is damaged and passed over" in said()
    assert replace(again, seconds=0) == replace(trained, seconds=0)
    assert equal(found, weights)
    assert [path.name for path in folder.glob("step-*")] == ["step-00000004"], "it is written again"


def test_of_two_checkpoints_the_whole_one_is_taken(tmp_path: Path, said: Any) -> None:
    run(tmp_path, settings(checkpoint_every=3))
    shutil.copytree(tmp_path / "step-00000006", tmp_path / "step-00000007")
    os.truncate(tmp_path / "step-00000007" / "weights.safetensors", 100)
    run(tmp_path, settings(checkpoint_every=3))
    assert "step-00000007 is damaged and passed over" in said()
    run(tmp_path, settings(checkpoint_every=3))
    assert "going on from step 6" in said()


def test_a_checkpoint_of_other_rows_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path, settings(checkpoint_every=3))
    with pytest.raises(WorkError, match=r"step-00000006 was made from other rows, .*; remove .* to start anew"):
        run(tmp_path, settings(checkpoint_every=3), examples=EXAMPLES[1:])
    with pytest.raises(WorkError, match="other rows"):
        run(tmp_path, settings(checkpoint_every=3, rows_per_step=3))
    changed = replace(EXAMPLES[0].branches[0], weights=EXAMPLES[0].branches[0].weights * 2)
    other = replace(EXAMPLES[0], branches=(changed, *EXAMPLES[0].branches[1:]))
    with pytest.raises(WorkError, match="other rows"):
        run(tmp_path, settings(checkpoint_every=3), examples=[other, *EXAMPLES[1:]])
    assert (tmp_path / "step-00000006" / "weights.safetensors").exists()


def test_a_disk_that_refuses_to_hold_more_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The system itself refuses, in the middle of a file."""
    resource = pytest.importorskip("resource")
    _, weights = run(tmp_path / "whole", settings(checkpoint_every=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    keep = checkpoints.keep

    def filling(model: Any, steppers: Any, state: Any, *rest: Any) -> None:
        if state.steps == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        keep(model, steppers, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "keep", filling)
        try:
            with pytest.raises(WorkError, match=r"weights\.safetensors cannot be written .*make room"):
                run(tmp_path / "full", settings(checkpoint_every=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = sorted(path.name for path in (tmp_path / "full").iterdir())
    assert left == ["choice.json", "step-00000002"], "nothing that fills the disk further"
    _, found = run(tmp_path / "full", settings(checkpoint_every=2))
    assert equal(found, weights)


def test_what_others_draw_between_two_steps_changes_nothing(tmp_path: Path) -> None:
    """No random state needs keeping: every step seeds the generator that dropout draws from."""
    _, wanted = run(tmp_path / "quiet", settings(), model=with_dropout(), dev_score=lambda _: 0.5)
    _, found = run(tmp_path / "drawing", settings(), model=with_dropout(), dev_score=lambda _: 0.5 + 0 * drawn())
    assert equal(found, wanted)


def drawn() -> float:
    return float(torch.rand(7).sum())
