"""Trackers, programs that draw curves of trainings: accelerate tells them the figures of every step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from saywhy.config import Train
from saywhy.records import RequestError
from saywhy.train.loop import Log, nowhere

# Nothing leaves this machine, and nothing is told about its use, unless the user's environment says otherwise.
AT_HOME = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


@dataclass(frozen=True)
class Trackers:
    """The trackers' names, the project that they file a training under, and a folder for what they write."""

    names: tuple[str, ...]
    project: str
    folder: Path


def refuse_missing(names: Sequence[str]) -> None:
    """Raise RequestError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise RequestError(f"trackers: {name} is not installed; pip install {name}, or leave it out")


@contextmanager
def followed(trackers: Trackers | None, title: str, settings: Train) -> Iterator[Log]:
    """Give a function that tells the figures of a step to every tracker, as a run that is named after the training."""
    if trackers is None or not trackers.names:
        yield nowhere
        return
    for key, value in AT_HOME.items():
        os.environ.setdefault(key, value)
    folder = trackers.folder / title
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        log_with=list(trackers.names),
        project_dir=folder,
    )
    named = {"wandb": {"name": title, "dir": str(folder)}, "mlflow": {"run_name": title}, "trackio": {"name": title}}
    facts = _flat(settings.model_dump(mode="json"))
    accelerator.init_trackers(trackers.project, config=facts, init_kwargs=named)
    try:
        yield lambda step, figures: accelerator.log(dict(figures), step=step)
    finally:
        # Not end_training: that would also part the processes, and there may be more trainings.
        for tracker in accelerator.trackers:
            tracker.finish()


def _flat(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Give settings as trackers take them, numbers and texts alone: what is inside others under both names."""
    found: dict[str, str | int | float] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": one for inner, one in _flat(value).items()}
        elif value is not None:
            found[key] = value if isinstance(value, str | int | float) else ", ".join(map(str, value))
    return found
