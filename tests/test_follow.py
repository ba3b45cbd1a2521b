"""Trackers are told every step of a training, and change nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import tiny
import toy
from saywhy import pipeline, store
from saywhy.config import Lora, Train
from saywhy.records import RequestError
from saywhy.train import follow
from saywhy.train.follow import Trackers, followed
from saywhy.train.loop import finetune
from test_train import EXAMPLES, settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")


def test_the_loop_tells_every_step_and_every_judgement(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    chosen = settings(steps=4, evaluations=2)
    trained = finetune(
        tiny.model("llama"),
        EXAMPLES,
        chosen,
        5,
        tmp_path,
        "arm",
        lambda: 0.5,
        0,
        lambda s, f: told.append((s, dict(f))),
    )
    steps = [(step, figures) for step, figures in told if "loss" in figures]
    assert [(step, figures["loss"]) for step, figures in steps] == list(trained.curve)
    assert all(figures["gradient_norm"] > 0 and figures["tokens_per_second"] > 0 for _, figures in steps)
    assert steps[1][1]["learning_rate"] == chosen.learning_rate
    assert [one for one in told if "loss" not in one[1]] == [(2, {"dev_score": 0.5}), (4, {"dev_score": 0.5})]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    for trackers in (None, Trackers((), "task", tmp_path / "trackers")):
        with followed(trackers, "arm", Train()) as log:
            log(1, {"loss": 1.0})
    assert not (tmp_path / "trackers").exists()


def test_settings_are_told_as_numbers_and_texts() -> None:
    facts = follow._flat(settings(lora=Lora(rank=4, targets=("q_proj", "v_proj"))).model_dump(mode="json"))
    assert facts["lora.rank"] == 4 and facts["lora.targets"] == "q_proj, v_proj" and facts["steps"]
    assert all(isinstance(value, str | int | float) for value in facts.values())


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "find_spec", lambda name: None)
    data = toy.write_data(tmp_path / "data")
    with pytest.raises(RequestError, match="trackers: wandb is not installed; pip install wandb, or leave it out"):
        pipeline.run(toy.load(data, **toy.quick(trackers=["wandb"])), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match="should be one of tensorboard, wandb, mlflow, trackio"):
        toy.load(data, trackers=["tensorbord"])


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.slow
def test_tensorboard_has_the_curves_of_every_training(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    changes: dict[str, Any] = toy.quick(classifier__arms=["label_only", "label_then_reason"])
    plain = toy.run(data, tmp_path / "plain", **changes)
    done = toy.run(data, tmp_path / "run", **changes, trackers=["tensorboard"])
    for arm in ("label_only", "label_then_reason"):
        facts = store.read_json(done.folder / arm / "train.json")
        found = curves(done.folder / "trackers" / arm / "animals")
        assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "dev_score"} <= found.keys()
        assert found["loss"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in facts["curve"]]
        assert found["dev_score"] == [(facts["best_step"], pytest.approx(facts["dev"]))]
        model = "model.safetensors"
        assert (done.folder / arm / model).read_bytes() == (plain.folder / arm / model).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("model.safetensors")}
    again = toy.run(data, tmp_path / "run", **changes)
    assert {path: path.stat().st_mtime_ns for path in again.folder.rglob("model.safetensors")} == before


def test_nothing_leaves_the_machine_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trackers that are not installed here would be told."""
    for key in follow.AT_HOME:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    asked: dict[str, Any] = {}

    class Accelerator:
        trackers: tuple[Any, ...] = ()

        def __init__(self, **given: Any) -> None:
            asked.update(given)

        def init_trackers(self, project: str, **given: Any) -> None:
            asked.update(given, project=project)

        def log(self, values: dict[str, float], step: int) -> None:
            asked.setdefault("log", []).append((step, values))

    monkeypatch.setattr(follow, "Accelerator", Accelerator)
    with followed(Trackers(("wandb", "mlflow"), "animals", tmp_path / "trackers"), "label_only", Train()) as log:
        log(3, {"loss": 1.0})
    assert asked["log_with"] == ["wandb", "mlflow"] and asked["project"] == "animals"
    assert asked["init_kwargs"]["wandb"] == {"name": "label_only", "dir": str(tmp_path / "trackers" / "label_only")}
    assert asked["init_kwargs"]["mlflow"] == {"run_name": "label_only"}
    assert asked["config"]["rows_per_step"] == 32 and None not in asked["config"].values()
    assert asked["log"] == [(3, {"loss": 1.0})]
    assert follow.os.environ["WANDB_MODE"] == "online" and follow.os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for key in follow.AT_HOME:
        monkeypatch.delenv(key)
