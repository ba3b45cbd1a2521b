"""Killed in the middle of every stage, a run goes on and ends with the same figures; finished stages stand."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import toy
from saywhy import store
from saywhy.reasonings import writing

pytest_plugins = ("runs",)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")

# Does `saywhy run` and stops itself with a signal at the n-th call of one function, before or after the call's work.
DRIVER = """
import importlib, os, signal, sys
import torch
from saywhy import cli
from saywhy.reasonings import writing

# A test run that was started in the background inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
writing.ROWS_PER_PART = 16
room, name, at, when, number, config, run = sys.argv[1:]
module = importlib.import_module(room)
original, calls = getattr(module, name), []

def stopping(*given, **named):
    calls.append(None)
    if len(calls) == int(at) and when == "before":
        os.kill(os.getpid(), int(number))
    found = original(*given, **named)
    if len(calls) == int(at) and when == "after":
        os.kill(os.getpid(), int(number))
    return found

setattr(module, name, stopping)
sys.exit(cli.main(["run", config, "-o", run]))
"""
# Where each stop falls, in this order, every one in the run that the one before left behind.
STOPS = [
    ("base", "saywhy.pipeline.stage", "make_scratch", 1, "after", signal.SIGKILL),
    ("reasoner", "saywhy.train.loop", "_step", 5, "before", signal.SIGKILL),
    ("reasonings", "saywhy.store", "write_table", 3, "before", signal.SIGKILL),
    ("label_only", "saywhy.train.loop", "_step", 5, "after", signal.SIGINT),
    ("reason_then_label", "saywhy.train.checkpoints", "keep", 3, "before", signal.SIGKILL),
    ("predictions", "saywhy.evaluate.answers", "save_answers", 3, "before", signal.SIGKILL),
]
TIMES = {"seconds", "rows_per_second"}


def settings() -> dict[str, Any]:
    changes = toy.with_reasoner()
    # A checkpoint every second step, so that a stopped training has something to go on from.
    for stage in ("reasoner", "classifier"):
        changes[f"{stage}__train"] |= {"steps": 9, "checkpoint_every": 2, "evaluations": 3}
    return changes


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def journalled(run: Path, event: str) -> Counter[str]:
    return Counter(one["stage"] for one in store.read_journal(run / "journal.jsonl") if one["event"] == event)


def stopped(stop: tuple[Any, ...], config: Path, run: Path) -> subprocess.CompletedProcess[str]:
    _, room, name, at, when, number = stop
    script = [sys.executable, "-c", DRIVER, room, name, str(at), when, str(int(number)), str(config), str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(script, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_stopped_in_every_stage_a_run_ends_with_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_PART", 16)
    data = toy.write_data(tmp_path / "data")
    config = toy.write_config(data, **settings())
    never = toy.run(data, tmp_path / "never", **settings())
    run = tmp_path / "stopped"
    for stop in STOPS:
        ended = stopped(stop, config, run)
        if stop[-1] == signal.SIGINT:
            assert ended.returncode == 130, ended.stderr
            assert "Traceback" not in ended.stderr
            said = "stopped; the same command goes on: checkpoints and answers are kept"
            assert ended.stderr.strip().splitlines()[-1] == said
            assert not (run / ".lock").exists()
        else:
            assert ended.returncode == -signal.SIGKILL, (stop, ended.stderr)
            assert (run / ".lock").exists(), "the process that was killed held the lock"
        told = "the training before was killed after its checkpoint of step 4; if that was for want of memory"
        assert (f"reasoner: {told}" in ended.stderr) == (stop[0] == "reasonings"), "said once, where it goes on"
        assert f"label_only: {told}" not in ended.stderr, "who stopped it knows that"
        assert not (run / "report.html").exists()
        if stop[0] != "predictions":
            assert (run / f".{stop[0]}.partial").exists(), f"the kill did not fall into the stage {stop[0]}"
            assert not (run / stop[0]).exists()
    capsys.readouterr()
    done = toy.run(data, run, **settings())
    assert without_times(done.metrics) == without_times(never.metrics)
    assert journalled(run, "done") == journalled(never.folder, "done")
    assert set(journalled(run, "done").values()) == {1}, "a finished stage was done again"
    assert journalled(run, "begun") == {
        "base": 2, "reasoner": 2, "reasonings": 2, "label_only": 2, "reason_then_label": 2,
    }  # fmt: skip
    assert (run / "report.html").exists()
    assert not [path.name for path in run.iterdir() if path.name.endswith((".partial", ".old")) or path.name == ".lock"]
    for arm in ("label_only", "reason_then_label"):
        same = [(folder / arm / "model.safetensors").read_bytes() for folder in (run, never.folder)]
        assert same[0] == same[1], f"the weights of {arm} are not those of the run that was never stopped"
    parts = [sorted(path.name for path in (folder / "reasonings").iterdir()) for folder in (run, never.folder)]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 5
    for name in parts[0]:
        same = [(folder / "reasonings" / name).read_bytes() for folder in (run, never.folder)]
        assert same[0] == same[1], f"{name} differs from that of the run that was never stopped"


def stop_once(monkeypatch: pytest.MonkeyPatch, room: str, name: str, at: int, after: bool) -> None:
    """Let one call of a function end in Ctrl-C, as an exception in this process."""
    module = importlib.import_module(room)
    original, calls = getattr(module, name), []

    def stopping(*given: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == at and not after:
            raise KeyboardInterrupt
        found = original(*given, **named)
        if len(calls) == at:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.parametrize(
    ("room", "name", "at", "after"),
    [
        ("saywhy.train.folder", "save", 2, False),
        ("saywhy.train.folder", "save", 2, True),
        ("shutil", "rmtree", 1, True),
        ("saywhy.store", "_finish", 3, True),
        ("saywhy.evaluate", "metrics_json", 1, True),
        ("saywhy.report", "write", 1, False),
    ],
    ids=["before-save", "after-save", "rmtree", "stamped", "metrics", "report"],
)
def test_stopped_between_two_steps_a_run_ends_with_the_same_figures(
    quick_run: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, name: str, at: int, after: bool
) -> None:
    """Where a kill is hard to place: between a model's last step and its stamp, and behind the last stage."""
    with monkeypatch.context() as patch:
        stop_once(patch, room, name, at, after)
        with pytest.raises(KeyboardInterrupt):
            toy.run(quick_run.data, tmp_path / "run", **toy.with_reasoner())
    done = toy.run(quick_run.data, tmp_path / "run", **toy.with_reasoner())
    assert without_times(done.metrics) == without_times(quick_run.metrics)
    assert journalled(done.folder, "done").keys() == journalled(quick_run.folder, "done").keys()


def test_a_training_that_was_whole_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the model's last file and its stamp."""
    from saywhy.train import loop

    data = toy.write_data(tmp_path / "data")
    changes = settings() | {"reasonings__teacher": [], "classifier__arms": ["label_only"]}
    step, taken = loop._step, []

    def counting(*given: Any) -> float:
        taken.append(None)
        return step(*given)

    monkeypatch.setattr(loop, "_step", counting)
    with monkeypatch.context() as patch:
        stop_once(patch, "saywhy.store", "_finish", 2, False)
        with pytest.raises(KeyboardInterrupt):
            toy.run(data, tmp_path / "run", **changes)
    assert len(taken) == 9 and (tmp_path / "run" / ".label_only.partial" / "trained_on.parquet").exists()
    done = toy.run(data, tmp_path / "run", **changes)
    assert len(taken) == 9 and done.metrics["arms"]["label_only"]["train"]["steps"] == 9


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps before the checkpoint are not taken again."""
    from saywhy.train import loop

    data = toy.write_data(tmp_path / "data")
    changes = settings() | {"reasonings__teacher": [], "classifier__arms": ["label_only"]}
    step, taken = loop._step, []

    def stopping(*given: Any) -> float:
        taken.append(None)
        if len(taken) == 8:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        toy.run(data, tmp_path / "run", **changes)
    done = toy.run(data, tmp_path / "run", **changes)
    # Seven were whole, the checkpoint has six of nine: three more are taken, after the one that was stopped.
    assert len(taken) == 8 + 3
    assert done.metrics["arms"]["label_only"]["train"]["steps"] == 9
