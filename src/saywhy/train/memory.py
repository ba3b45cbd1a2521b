"""How much memory a step takes, packs that fit into what is free, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from saywhy.lm.forward import SLICE_NUMBERS
from saywhy.machine import free_bytes
from saywhy.progress import say
from saywhy.records import WorkError
from saywhy.train.loss import Losses
from saywhy.trees import Branch, Pack

# Of what is free, the share that a training plans with.
PLANNED = 0.9
# What a step takes at its peak for each byte that the forward pass keeps (docs/training.md, Memory: as measured).
PEAK = 3.0
# float32: a gradient and two moments. Muon has one moment, and is reckoned like AdamW.
BYTES_PER_TRAINED = 12
# Copies of a slice of logits that are held at one time: logits, their exponentials and gradient.
SLICES = 3
FEWEST_TOKENS = 16
# Packs of these shares of the budget are measured: what grows from one to the other is what a token takes.
SMALL, LARGE = 8, 4
Result = TypeVar("Result")


def kept_bytes(losses: Losses, pack: Pack) -> int:
    """Measure the bytes that a forward pass keeps for its backward, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*losses.parameters(), *losses.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # While the loss lives, so do these tensors: no two of them can have one place.
    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        loss = losses(pack)
    del loss
    return sum(kept.values())


def step_bytes(
    losses: Losses, lay: Callable[[Sequence[Branch], int], list[Pack]], branches: Sequence[Branch], budget: int
) -> tuple[float, float]:
    """Estimate what a step takes beside the weights: bytes whatever its packs, and bytes for each token of a pack.

    The optimizer's moments and the gradients are known; what a token takes is measured on two short packs, so that it
    holds for every architecture, attention and precision.
    """
    short, longer = (lay(branches, max(FEWEST_TOKENS, budget // share))[0] for share in (SMALL, LARGE))
    few, more = kept_bytes(losses, short), kept_bytes(losses, longer)
    grown = longer.ids.size - short.ids.size
    each = (more - few) / grown if grown > 0 else few / short.ids.size
    whatever = max(0.0, few - each * short.ids.size)
    trained = sum(parameter.numel() for parameter in losses.parameters() if parameter.requires_grad)
    sources = budget * len(set(longer.source.tolist())) / longer.ids.size
    vocabulary = losses.model.config.get_text_config().vocab_size
    slices = SLICES * 4 * min(SLICE_NUMBERS, sources * vocabulary)
    return BYTES_PER_TRAINED * trained + whatever + slices, PEAK * each


def recomputed(each: float, config: Any) -> float:
    """Give what a token takes of the `each` bytes of all layers where layers are computed again in backward.

    What goes into every layer is kept, and all of the one layer that is computed again. Measured is the whole: only a
    model that trains computes again.
    """
    layers = config.num_hidden_layers
    return each / layers + PEAK * 4 * config.hidden_size * layers


def fitting(
    losses: Losses,
    lay: Callable[[Sequence[Branch], int], list[Pack]],
    branches: Sequence[Branch],
    budget: int,
    free: Callable[[], int] = free_bytes,
    longest: tuple[str, int] = ("", 0),
) -> int:
    """Give the longest pack, of at most `budget` tokens, whose step fits into the main memory that is free.

    `longest` is a row's id and its tokens: it is read whole where no pack has room for it, and named where even that
    does not fit. On a GPU all is left at `budget`: there a step that does not fit fails alone, and is taken again
    (`halved`).
    """
    if losses.model.device.type != "cpu":
        return budget
    room = free() * PLANNED
    fixed, each = step_bytes(losses, lay, branches, budget)
    if losses.model.is_activation_checkpointing:
        each = recomputed(each, losses.model.config.get_text_config())
    fits = max(FEWEST_TOKENS, int(min(budget, (room - fixed) / each)))
    if fixed + each * FEWEST_TOKENS > room:
        say(
            f"this training needs {gib(fixed + each * fits)} beside its weights and {gib(room)} are free: "
            "the system may kill it; close other programs or take a smaller base"
        )
    elif fits < budget:
        say(f"packs of {budget} tokens need {gib(fixed + each * budget)} and {gib(room)} are free: packs of {fits}")
    row, tokens = longest
    if tokens > fits and fixed + each * tokens > room:
        say(
            f"row {row} has {tokens} tokens, needs about {gib(fixed + each * tokens)}, and {gib(room)} are free: the "
            "system may kill this training; shorten the row or leave it out"
        )
    return fits


@contextmanager
def enough(title: str, what: str) -> Iterator[None]:
    """Raise WorkError where a GPU's memory is full in this block, whose work `what` names."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        raise WorkError(
            f"{title}: the GPU's memory is full with {what} ({_first(problem)}); set lora, take a smaller base, or "
            "free what other programs hold"
        ) from None


def halved(
    step: Callable[[int], Result], pack_tokens: int, model: Any, title: str, alone: bool = True
) -> tuple[Result, int]:
    """Call `step(pack_tokens)`, where a GPU's memory runs out once more with half of it; give what fitted, too.

    Raises WorkError where half does not fit either, and at once where this process is not `alone`: others wait for the
    step that it could not take.
    """
    half = max(FEWEST_TOKENS, pack_tokens // 2)
    try:
        return step(pack_tokens), pack_tokens
    except torch.OutOfMemoryError as problem:
        if not alone:
            raise WorkError(
                f"{title}: the GPU's memory is full ({_first(problem)}); set pack_tokens to {half} and run again"
            ) from None
    # Behind the except: the exception holds the tensors of the step.
    _release(model)
    say(f"{title}: the GPU's memory is full with packs of {pack_tokens} tokens; the step is taken again with {half}")
    try:
        return step(half), half
    except torch.OutOfMemoryError as problem:
        _release(model)
        raise WorkError(
            f"{title}: the GPU's memory is full with packs of {half} tokens, too ({_first(problem)}); set "
            f"pack_tokens to {max(FEWEST_TOKENS, half // 2)}, take a smaller base, or free what other programs hold"
        ) from None


def _release(model: Any) -> None:
    model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first(problem: BaseException) -> str:
    return str(problem).strip().split("\n")[0]


def gib(size: float) -> str:
    """Write bytes for people."""
    return f"{size / 2**30:.1f} GiB"
