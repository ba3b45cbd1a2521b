"""Checkpoints: all that a training needs to go on as if it had never been stopped. Nothing is pickled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from saywhy import store
from saywhy.progress import say
from saywhy.records import WorkError
from saywhy.train import optimizers, ranks
from saywhy.train.state import Trained


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Give the tensors to be saved, tied ones once: safetensors refuses two names of one memory."""
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        seen.setdefault(tensor.data_ptr(), name)
    state = model.state_dict()
    return {name: state[name].contiguous() for name in seen.values()}


def untied(weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Give tied tensors all their names back."""
    state = model.state_dict()
    owner = {tensor.data_ptr(): name for name, tensor in state.items() if name in weights}
    return {name: weights[owner[tensor.data_ptr()]] for name, tensor in state.items()}


def keep(model: Any, steppers: Sequence[Any], state: Trained, folder: Path, accelerator: Accelerator) -> None:
    """Write a checkpoint and remove the one before; at every moment one of the two is whole.

    The first process writes; `model` is whole there, and what the optimizers of all remember is brought together.
    """
    moments = optimizers.moments(steppers)
    if not accelerator.is_main_process:
        return
    step = folder / f"step-{state.steps:08d}"
    partial = folder / "step.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(weights_of(model), partial / "weights.safetensors")
    save(moments, partial / "optimizer.safetensors")
    store.write_json(partial / "state.json", asdict(state))
    partial.rename(step)
    for older in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(older)


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as problem:
        partial.unlink(missing_ok=True)
        raise WorkError(f"{path} cannot be written ({problem}); make room and run the same command again") from problem


def resume(model: Any | None, steppers: Sequence[Any], folder: Path) -> Trained | None:
    """Go on from the last checkpoint, where there is one; `model` is None in a process that has no whole one."""
    # One process looks: on a shared disk others may see a folder's list of names late.
    name = ranks.told(lambda: max((path.name for path in folder.glob("step-*")), default=""))
    if not name:
        return None
    if model is not None:
        model.load_state_dict(untied(load_file(folder / name / "weights.safetensors"), model))
    optimizers.restore(steppers, load_file(folder / name / "optimizer.safetensors"))
    saved = store.read_json(folder / name / "state.json")
    saved["curve"] = tuple((int(step), float(loss)) for step, loss in saved["curve"])
    say(f"going on from step {saved['steps']}")
    return Trained(**saved)
