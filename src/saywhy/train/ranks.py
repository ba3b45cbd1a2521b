"""The processes that train together: the first does the work of a run, and calls the others to each training.

Launchers such as `accelerate launch` and `torchrun` start every process with the same command. The first walks through
the command as if it were alone, and only it writes and prints; the others wait until there is a training to join.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy

from saywhy.records import RequestError, WorkError

# The others wait as long as the first reads, writes reasonings or answers rows; one that ends is noticed at once.
PATIENCE = timedelta(days=365)
OTHER_ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def accelerator(model: Any) -> Accelerator:
    """Give this process its device and its place among the others; RequestError for an engine that is not ours."""
    for engine in OTHER_ENGINES:
        if os.environ.get(engine, "false").lower() == "true":
            name = engine.removeprefix("ACCELERATE_USE_").lower()
            raise RequestError(
                f"accelerate launch: {name} is not supported; configure MULTI_GPU (DDP) or FSDP version 2"
            )
    # Experts that no token of a pack chose have no gradient, and the others would wait for it.
    experts = any(re.search(r"experts\.\d+\.", name) for name, _ in model.named_parameters())
    ddp = DistributedDataParallelKwargs(find_unused_parameters=experts)
    # The precision is the training's own, whatever the launcher was told.
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[ddp])


def sharding() -> FullyShardedDataParallelPlugin | None:
    """Give what the launcher was told of FSDP, None where it is not wanted; RequestError for what is not supported."""
    if count() == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise RequestError("accelerate launch: FSDP version 1 is not supported; set fsdp_version: 2 (--fsdp_version 2)")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise RequestError("accelerate launch: weights are not offloaded to the CPU; set fsdp_offload_params: false")
    return plugin


def count() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this process is the one that writes and prints."""
    return count() == 1 or dist.get_rank() == 0


def told(make: Callable[[], Any]) -> Any:
    """Let the first process make a value that JSON can hold, and give it to all; the others wait for it."""
    if count() == 1:
        return make()
    return json.loads(_sent(json.dumps(make()).encode() if is_first() else b""))


def together(first: Callable[[], int], others: Callable[[], int]) -> int:
    """Do `first` in the first process and `others` in the others; give what it gives, an exit code.

    Where the first fails it leaves the others without a word, and they end with 1: they notice that it is gone.
    """
    # Every process reads a base by itself: what accelerate would leave out of the others' memory is divided here.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    PartialState(cpu=not torch.cuda.is_available())
    code = first() if is_first() else others()
    if code == 0:
        if is_first():
            _sent(b"")
        dist.destroy_process_group()
    return code


def call(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Call the other processes, where there are any, to a training."""
    if count() > 1:
        _sent(json.dumps(facts).encode())
        _sent(save(dict(tensors)))


def called() -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Wait until the first process calls to a training; None when it has done its work."""
    facts = _sent(b"")
    return (json.loads(facts), load(_sent(b""))) if facts else None


@contextmanager
def lost() -> Iterator[None]:
    """Turn the news that another process is gone into WorkError in the first, and into a silent end in the others."""
    try:
        yield
    except RuntimeError as problem:
        if count() == 1 or not (isinstance(problem, dist.DistError) or "gloo" in str(problem).lower()):
            raise
        if not is_first():
            raise SystemExit(1) from problem
        raise WorkError(
            "another process of this training has ended, see what it said; the same command goes on from the last "
            "checkpoint"
        ) from problem


def _sent(content: bytes) -> bytes:
    """Give what the first process has in `content` to all."""
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0, group=_line())
    found = torch.zeros(int(size), dtype=torch.uint8)
    if len(content):
        found = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if len(found):
        dist.broadcast(found, 0, group=_line())
    return found.numpy().tobytes()


@cache
def _line() -> Any:
    """A group of its own: it has its own patience, and carries bytes where the models are on GPUs."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)
