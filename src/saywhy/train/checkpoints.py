"""Checkpoints: all that a training needs to go on as if it had never been stopped. Nothing is pickled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from saywhy import store
from saywhy.progress import say
from saywhy.records import RequestError, WorkError
from saywhy.train import optimizers, ranks
from saywhy.train.state import Trained


def changing(model: Any) -> dict[str, torch.Tensor]:
    """Give the tensors that a training changes by name: beside an adapter the base stays as it is."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    # A weight in 4 bits has its scales beside it, under names that begin with its own.
    held = tuple(f"{name}." for name in frozen)
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name not in frozen and not name.startswith(held)}


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Give the tensors to be saved, tied ones once: safetensors refuses two names of one memory."""
    seen: dict[int, str] = {}
    state = changing(model)
    for name, tensor in state.items():
        seen.setdefault(tensor.data_ptr(), name)
    return {name: state[name].contiguous() for name in seen.values()}


def untied(weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Give tied tensors all their names back."""
    state = changing(model)
    owner = {tensor.data_ptr(): name for name, tensor in state.items() if name in weights}
    return {name: weights[owner[tensor.data_ptr()]] for name, tensor in state.items()}


def keep(
    model: Any, moments: Mapping[str, torch.Tensor], state: Trained, folder: Path, accelerator: Accelerator
) -> None:
    """Write a checkpoint and remove what it replaces; at every moment one whole checkpoint is on the disk.

    It holds the weights, what the optimizers remember and, in state.json, the step and the rows that were seen. There
    are no random states to keep: every step seeds the generator anew, and `plan_steps` knows its rows. The first
    process writes; `model` is whole there, and `moments` are what the optimizers of all remember.
    """
    if not accelerator.is_main_process:
        return
    step, partial = folder / f"step-{state.steps:08d}", folder / "step.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save(weights_of(model), partial / "weights.safetensors")
        save(dict(moments), partial / "optimizer.safetensors")
        store.write_json(partial / "state.json", asdict(state))
    except WorkError:
        # What is left of it would fill the disk further.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # A damaged one may stand there, of which `resume` said that it could not be read.
    shutil.rmtree(step, ignore_errors=True)
    partial.rename(step)
    store.sync(folder)
    for older in folder.glob("step-*"):
        if older != step:
            shutil.rmtree(older)
    for other in folder.glob("best-*"):
        if other != best(folder, state):
            other.unlink()


def best(folder: Path, state: Trained) -> Path:
    """Give the place of the weights that the dev split chose.

    The step stands in the name: a killed training finds the ones that its checkpoint speaks of, not later ones.
    """
    return folder / f"best-{state.best_step:08d}.safetensors"


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Replace a file by these tensors, on the disk before it has its name; WorkError where it cannot be written."""
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        store.sync(partial)
        partial.replace(path)
        store.sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as problem:
        partial.unlink(missing_ok=True)
        raise WorkError(f"{path} cannot be written ({problem}); make room and run the same command again") from problem


def load(model: Any, path: Path) -> None:
    """Give a model the weights of a file."""
    # Beside an adapter there are no more tensors than its own.
    model.load_state_dict(untied(load_file(path), model), strict=False)


def resume(whole: Any | None, trained: Any, steppers: Sequence[Any], folder: Path, plan: str) -> Trained | None:
    """Put model and optimizers where the newest whole checkpoint left them; None where there is none.

    One that a dying disk cut short is passed over, which costs time and changes no result. WorkError where it belongs
    to another `plan`: a training cannot go on with other rows, nor should their work be thrown away unasked.
    `whole` is the model with all its weights, None in a process that has none; `trained` is the one that is stepped.
    """
    # One process looks: on a shared disk others may see a folder's list of names late.
    name = ranks.told(lambda: _newest(folder, plan))
    if not name:
        return None
    if whole is not None:
        load(whole, folder / name / "weights.safetensors")
    optimizers.restore(trained, steppers, load_file(folder / name / "optimizer.safetensors"))
    state = _state(folder / name)
    say(f"going on from step {state.steps}")
    return state


def _newest(folder: Path, plan: str) -> str:
    """Name the newest checkpoint that is whole, "" where there is none."""
    for found in sorted(folder.glob("step-*"), reverse=True):
        try:
            if store.read_json(found / "state.json").get("plan") != plan:
                raise WorkError(
                    f"{found} was made from other rows, or by another version of saywhy; remove {folder} to start anew"
                )
            state = _state(found)
            files = [found / "weights.safetensors", found / "optimizer.safetensors"]
            for file in [*files, *([best(folder, state)] if state.best_step else [])]:
                _refuse_short(file)
        except (FileNotFoundError, SafetensorError, RequestError) as problem:
            say(f"{found} is damaged and passed over ({problem})")
            continue
        return found.name
    return ""


def _state(checkpoint: Path) -> Trained:
    saved = store.read_json(checkpoint / "state.json")
    saved["curve"] = tuple((int(step), float(loss)) for step, loss in saved["curve"])
    return Trained(**saved)


def _refuse_short(path: Path) -> None:
    """Raise SafetensorError where a file is shorter than its header says, without reading all of it."""
    with safe_open(path, "pt"):
        return
