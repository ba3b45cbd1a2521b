"""What went wrong in a training, told so that one knows which rows, why, and what to change."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from saywhy import store
from saywhy.config import Train
from saywhy.machine import memory_kills
from saywhy.progress import say
from saywhy.records import RequestError, WorkError
from saywhy.train.loss import Losses
from saywhy.train.state import Trained
from saywhy.train.steps import Example
from saywhy.trees import pack_alone

# Rows that a message names; of more it tells how many there are.
NAMED = 8
# The last points of a curve that are compared with its first ones.
FIRST, LAST = 5, 10
RUNNING = "running.json"


def named(rows: Sequence[str]) -> str:
    """Name rows by their ids, the first of many."""
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(rows[:NAMED])}{more}"


def refuse_untrained(examples: Sequence[Example]) -> None:
    """Raise RequestError naming the rows that have no token to learn: they would divide a step's loss by nothing."""
    empty = [row.id for row in examples if not any(branch.weights.any() for branch in row.branches)]
    if empty:
        raise RequestError(
            f"{named(empty)}: no token of the answer has a weight, so there is nothing to learn from; "
            "give each a label, leave them out, or set label_weight to balanced"
        )


@torch.no_grad()
def no_number(
    title: str, step: int, loss: float, gradient: float, rows: Sequence[Example], losses: Losses, settings: Train
) -> WorkError:
    """Tell why a loss or a gradient is no number: the base's weights, rows that give it by themselves, or the rate."""
    what = f"{title}: the loss of step {step + 1} is {loss} and its gradient {gradient}"
    broken = [name for name, weight in losses.model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken and step == 0:
        return WorkError(
            f"{what}: the base holds values that are no numbers, in {broken[0]}; fetch it again or take another base"
        )
    losses.eval()
    alone = [row.id for row in rows if not math.isfinite(_loss(losses, row))]
    if 0 < len(alone) < len(rows):
        why = f"{named(alone)} give it by themselves: look at these, or leave them out, and"
    else:
        why = f"the step has {named([row.id for row in rows])}, and none gives it by itself;"
        if alone:
            why = f"every row gives it ({named([row.id for row in rows])});"
    precise = ", or set precision to float32" if losses.precision == "bf16" else ""
    return WorkError(f"{what}; {why} {_slower(settings)}{precise}; weights and checkpoint are as before")


def _loss(losses: Losses, row: Example) -> float:
    return sum(float(losses(pack)) for pack in pack_alone(row.branches, 0))


def _slower(settings: Train) -> str:
    return f"lower learning_rate ({settings.learning_rate}), for example to {settings.learning_rate / 10:.1g}"


def watch(title: str, state: Trained, vocabulary: int, settings: Train) -> None:
    """Say once that the loss has risen far above where it began; raise WorkError where it tells less than a guess.

    Far above is twice as high, and higher by one at least, on the mean of the last ten points of the curve: in a long
    training these are a twentieth of it. A guess among all tokens has the loss ln(vocabulary). A training that is worse
    than that is measured by the lowest of its first points, since it may have gone astray among these.
    """
    losses = [loss for _, loss in state.curve]
    if len(losses) < 2 * LAST or state.curve[-1][0] != state.steps:
        return
    now, before = (sum(part) / LAST for part in (losses[-LAST:], losses[-LAST - 1 : -1]))
    lowest, mean = min(losses[:FIRST]), sum(losses[:FIRST]) / FIRST
    worthless = now > max(math.log(vocabulary), _high(lowest))
    began = lowest if worthless else mean
    what = f"{title}: the loss has risen from {began:.2f} to {now:.2f} by step {state.steps}: the training diverges"
    if worthless:
        raise WorkError(f"{what}, and knows less than a guess among all tokens; {_slower(settings)}")
    if now > _high(mean) and (before <= _high(mean) or len(losses) == 2 * LAST):
        say(f"{what}; {_slower(settings)}")


def _high(began: float) -> float:
    return began + max(began, 1.0)


@contextmanager
def marked(
    folder: Path, title: str, pack_tokens: int, kills: Callable[[], int | None] = memory_kills
) -> Iterator[None]:
    """Leave a file in `folder` while a training runs; where one is there already, say that its training was killed."""
    if os.environ.get("RANK", "0") != "0":
        # Of several processes one writes.
        yield
        return
    marker = folder / RUNNING
    if marker.exists():
        say(_killed(folder, title, pack_tokens, kills()))
    store.write_json(marker, {"process": os.getpid(), "memory_kills": kills()})
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def _killed(folder: Path, title: str, pack_tokens: int, kills: int | None) -> str:
    steps = sorted(path.name.removeprefix("step-") for path in folder.glob("step-*[0-9]"))
    where = f"after its checkpoint of step {int(steps[-1])}" if steps else "before its first checkpoint"
    choice = folder / "choice.json"
    if choice.exists():
        pack_tokens = min(pack_tokens, store.read_json(choice).get("pack_tokens", pack_tokens))
    known = store.read_json(folder / RUNNING).get("memory_kills")
    for_memory = kills is not None and known is not None and kills > known
    why = "by the system, which had no memory left" if for_memory else "; if that was for want of memory"
    joint = ":" if for_memory else ","
    return (
        f"{title}: the training before was killed {where}{' ' if for_memory else ''}{why}{joint} "
        f"set pack_tokens to {max(16, pack_tokens // 2)}: it goes on from the checkpoint all the same"
    )
