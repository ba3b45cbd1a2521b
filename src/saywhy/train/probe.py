"""What a training will take, from two steps of the base's shape with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM

from saywhy.config import Train
from saywhy.lm import adapters
from saywhy.lm.forward import attending
from saywhy.lm.load import random_of
from saywhy.machine import free_bytes
from saywhy.train import memory, optimizers
from saywhy.train.loss import Losses
from saywhy.train.steps import packs_tokens
from saywhy.train.ways import LAYOUTS, Way, fastest
from saywhy.trees import Branch, Pack, pack_trees

# A probe of two steps that would take longer is made of fewer layers and packs.
SECONDS = 10.0
# Layout and precision are chosen on this part of a step.
FEW = 4
WEIGHT_BYTES = 4
# Half a byte, and the quantised scales of its blocks (2305.14314: 0.127 bits a parameter).
QUANTIZED_BYTES = 0.516
Clock = Callable[[], float]


@dataclass(frozen=True)
class Probe:
    """What steps take: seconds for each token of their trees, seconds beside, and bytes at the peak.

    `parameters` is the size of the whole base; `measured` says what of it was timed.
    """

    per_token: float
    per_step: float
    peak_bytes: float
    parameters: int
    measured: str


@dataclass(frozen=True)
class _Timed:
    """Seconds of the packs of a step and of the optimizer, bytes beside the weights, and of a token of a pack."""

    packs: float
    optimizer: float
    fixed_bytes: float
    token_bytes: float


def probe(
    config: Any, branches: Sequence[Branch], settings: Train, clock: Clock = time.monotonic, room: int | None = None
) -> Probe:
    """Time two steps on these branches, the first step's, with the code that trains; give what later steps will take.

    `config` is the base's; its weights are not needed. Where two steps of all layers would take longer than `SECONDS`,
    or more memory than there is `room` for (in bytes; None: what is free), models of one and of two layers read the
    first pack, and what a layer takes is added for those left out.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    room = _free(device) if room is None else room
    before = _resident(device)
    layers = config.get_text_config().num_hidden_layers
    parameters, linear = _parameters(config)
    quantized = 0 if settings.bits is None else linear
    weights = WEIGHT_BYTES * (parameters - quantized) + QUANTIZED_BYTES * quantized
    one = _made(config, 1, device, settings)
    # Of the first pack, whatever a step has: none of this may take longer than what it is to predict.
    some = [branches[at] for at in np.unique(pack_trees(branches, settings.pack_tokens)[0].branch)]
    way = fastest(one, some[: max(1, len(some) // FEW)], settings, settings.pack_tokens)
    packs = LAYOUTS[way.layout](branches, settings.pack_tokens)
    first = _timed(one, packs[:1], branches, settings, way, clock)
    del one
    # Each pack of one layer has its share of the head, so this is more than the whole step takes.
    whole = 2 * layers * (len(packs) * first.packs + first.optimizer)
    # The probe's own weights are in float32, whatever the training's are.
    needs = WEIGHT_BYTES * parameters + memory.BYTES_PER_TRAINED * (parameters if settings.lora is None else 0)
    needs += layers * first.token_bytes * settings.pack_tokens
    if layers > 1 and (whole > SECONDS or needs > memory.PLANNED * room):
        two = _timed(_made(config, 2, device, settings), packs[:1], branches, settings, way, clock)
        found = _deeper(first, two, layers)
        scale = packs_tokens(packs) / packs[0].tokens
        measured = f"1 and 2 of {layers} layers, 1 of {len(packs)} packs"
    else:
        found = _timed(_made(config, layers, device, settings), packs, branches, settings, way, clock)
        scale, measured = 1.0, "two steps"
    apart = "" if settings.bits is None else ", weights in float32: what 4 bits cost in time is not in it"
    tokens = packs_tokens(pack_trees(branches, settings.pack_tokens))
    peak = before + weights + found.fixed_bytes
    each = found.token_bytes
    if settings.gradient_checkpointing:
        each = memory.recomputed(each, config.get_text_config())
    peak += each * max(pack.ids.size for pack in packs)
    return Probe(found.packs * scale / tokens, found.optimizer, peak, parameters, f"{measured}, {way}{apart}")


def _made(config: Any, layers: int, device: str, settings: Train) -> Any:
    """Make a model as a training has it, an adapter included; a base in 4 bits is timed as it is."""
    model, lora = random_of(config, layers, device), settings.lora
    if lora is not None and lora.targets != "all":
        # A target may name a layer that is left out here: its kind stands for it.
        lora = lora.model_copy(update={"targets": tuple({name.rpartition(".")[2] for name in lora.targets})})
    adapters.prepare(model, settings.model_copy(update={"bits": None, "lora": lora}), 0)
    return model


def _timed(
    model: Any,
    packs: Sequence[Pack],
    branches: Sequence[Branch],
    settings: Train,
    way: Way,
    clock: Clock,
) -> _Timed:
    """Take two steps and keep the faster: the first one warms up."""
    losses = Losses(model, way.precision)
    fixed, each = memory.step_bytes(losses, LAYOUTS[way.layout], branches, settings.pack_tokens)
    steppers = optimizers.make(model, settings)
    model.train()
    reading, stepping = [], []
    for _ in range(2):
        with attending(model, way.attention):
            reading.append(_backward(losses, packs, clock))
        began = clock()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        _finish()
        stepping.append(clock() - began)
    return _Timed(min(reading), min(stepping), fixed, each)


def _backward(losses: Losses, packs: Sequence[Pack], clock: Clock) -> float:
    began = clock()
    for pack in packs:
        losses(pack).backward()
    _finish()
    return clock() - began


def _finish() -> None:
    """Wait for what a GPU is still at."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _deeper(one: _Timed, two: _Timed, layers: int) -> _Timed:
    """Add what a layer takes for all that were left out; a clock that ran backwards adds nothing."""

    def at(first: float, second: float) -> float:
        return first + (layers - 1) * max(0.0, second - first)

    return _Timed(
        at(one.packs, two.packs),
        at(one.optimizer, two.optimizer),
        at(one.fixed_bytes, two.fixed_bytes),
        at(one.token_bytes, two.token_bytes),
    )


def _parameters(config: Any) -> tuple[int, int]:
    """Count a base's parameters from its config, on no device at all: all, and those that 4 bits can hold."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = (module for module in model.get_decoder().modules() if isinstance(module, torch.nn.Linear))
    return sum(one.numel() for one in model.parameters()), sum(one.weight.numel() for one in linear)


def _resident(device: str) -> int:
    """Give what this process holds before it has a model: a training's process holds as much."""
    return int(psutil.Process().memory_info().rss) if device == "cpu" else 0


def _free(device: str) -> int:
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else free_bytes()
