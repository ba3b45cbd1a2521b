"""The only training loop: rows in, a trained model out, wherever and however often it is stopped on the way."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from saywhy import store
from saywhy.config import Train
from saywhy.lm.forward import log_probs
from saywhy.lm.load import why_no_tree
from saywhy.progress import say, track
from saywhy.records import RequestError, WorkError
from saywhy.train import optimizers
from saywhy.train.selfcheck import check_packs
from saywhy.trees import Branch, Pack, pack_alone, pack_rows, pack_trees

Lay = Callable[[Sequence[Branch], int], list[Pack]]
LAYOUTS: dict[str, Lay] = {"tree": pack_trees, "rows": pack_rows, "alone": pack_alone}
CURVE_POINTS = 200
TIMED_STEPS = 2


@dataclass(frozen=True)
class Example:
    """One row as branches, one a target, with its own counts of trained tokens."""

    branches: tuple[Branch, ...]
    target_tokens: int
    label_tokens: int


@dataclass(frozen=True)
class Trained:
    """What a training took: `tokens` computed, `target_tokens` and `label_tokens` trained on, `curve` of (step, loss).

    `best_step` is the checkpoint that the dev split chose, `dev` what it scored there, `highest` the best of all.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    target_tokens: int = 0
    label_tokens: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    layout: str = ""
    precision: str = ""
    best_step: int = 0
    dev: float | None = None
    highest: float = 0.0


class Losses(torch.nn.Module):
    """The model as a function from a pack to its weighted loss, so that every device wraps one module."""

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, pack: Pack) -> torch.Tensor:
        with autocast(self.model, self.precision):
            found = log_probs(self.model, pack)
        return -(torch.from_numpy(pack.weight).to(found) * found).sum()


def autocast(model: Any, precision: str) -> Any:
    """Compute in bf16 on float32 master weights, or change nothing."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")


def plan_steps(examples: Sequence[Example], settings: Train, seed: int) -> list[list[int]]:
    """Choose the rows of every step: whole passes in an order of their own, cut into steps of equally many rows.

    With `tokens_per_step` a step takes rows until it has so many tokens (the papers' way).
    """
    order = _passes(len(examples), seed)
    rows = math.ceil(len(examples) * settings.epochs)
    if settings.rows_per_step is not None:
        steps = settings.steps or math.ceil(rows / settings.rows_per_step)
        return [list(islice(order, settings.rows_per_step)) for _ in range(steps)]
    sizes = [sum(len(branch.ids) for branch in example.branches) for example in examples]
    taken = order if settings.steps else islice(order, rows)
    return list(islice(_by_tokens(taken, sizes, settings.tokens_per_step or 1), settings.steps))


def _passes(rows: int, seed: int) -> Iterator[int]:
    """Go through the rows without end, every pass in an order of its own."""
    for number in count():
        yield from np.random.default_rng([seed, number]).permutation(rows).tolist()


def _by_tokens(order: Iterable[int], sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    held = 0
    for row in order:
        if batch and held + sizes[row] > budget:
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += sizes[row]
    yield batch


def rate_at(step: int, steps: int, settings: Train) -> float:
    """Give the learning rate of a step: a linear rise, then the schedule's fall."""
    rise = math.ceil(settings.warmup * steps)
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    share = (step - rise) / max(1, steps - rise)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}
    return settings.learning_rate * fall[settings.schedule]


def finetune(
    model: Any,
    examples: Sequence[Example],
    settings: Train,
    seed: int,
    folder: Path,
    title: str,
    dev_score: Callable[[], float] | None = None,
    dev_rows: int = 0,
) -> Trained:
    """Train `model` in place and leave it with the weights of the checkpoint that `dev_score` chose.

    That is the last one within one standard error of the best, taken as that of a share of `dev_rows` rows: late in the
    schedule weights are better than few rows can tell (LOG.md, 2026-11-21). With 0 rows every difference counts.
    `folder` keeps checkpoints: a run that was stopped goes on from the last one and ends with the same numbers.
    Raises RequestError without examples, WorkError where the loss is no number or a pack is not exact.
    """
    if not examples:
        raise RequestError(f"{title}: there is nothing to train on")
    # Each part of this function's state is either here or in the checkpoint; nothing is drawn from a global generator.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    batches = plan_steps(examples, settings, seed)
    model.to(accelerator.device)
    choice = _choose(model, examples, batches[0], settings, folder, accelerator)
    losses = Losses(model, choice["precision"])
    losses, *steppers = accelerator.prepare(losses, *optimizers.make(model, settings))
    state = _resume(model, steppers, folder) or Trained(layout=choice["layout"], precision=choice["precision"])
    evaluate_at = {math.ceil(len(batches) * (k + 1) / settings.evaluations) for k in range(settings.evaluations)}
    lay = LAYOUTS[choice["layout"]]
    with track(title, sum(map(len, batches)), "rows") as advance:
        advance(state.rows, 0, "")
        for step in range(state.steps, len(batches)):
            began = time.monotonic()
            # Only dropout draws from this generator.
            torch.manual_seed(seed * 1_000_003 + step)
            rows = [examples[row] for row in batches[step]]
            packs = _packs(rows, lay, settings.pack_tokens, accelerator)
            for group in (group for stepper in steppers for group in stepper.param_groups):
                group["lr"] = rate_at(step, len(batches), settings)
            model.train()
            loss = _step(losses, packs, rows, accelerator)
            gradient = float(accelerator.clip_grad_norm_(model.parameters(), settings.clip))
            if not math.isfinite(loss + gradient):
                # Before the step: weights and checkpoints stay what they were.
                raise WorkError(
                    f"{title}: the loss of step {step + 1} is {loss} and its gradient {gradient}; lower learning_rate "
                    f"({settings.learning_rate})"
                )
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            model.eval()
            state = _count(state, rows, packs, loss, time.monotonic() - began, len(batches))
            advance(len(rows), packs_tokens(packs), f"loss {loss:.3f}")
            if dev_score is not None and state.steps in evaluate_at:
                state = _judge(model, dev_score(), dev_rows, state, folder, title, accelerator)
            if state.steps % settings.checkpoint_every == 0 and state.steps < len(batches):
                _keep(model, steppers, state, folder, accelerator)
    accelerator.wait_for_everyone()
    if state.dev is not None:
        model.load_state_dict(_untied(load_file(folder / "best.safetensors"), model))
    return state


def packs_tokens(packs: Sequence[Pack]) -> int:
    """Count the tokens computed for some packs."""
    return sum(pack.tokens for pack in packs)


def _packs(rows: Sequence[Example], lay: Lay, budget: int, accelerator: Accelerator) -> list[Pack]:
    """Lay this process's share of a step's rows."""
    if len(rows) < accelerator.num_processes:
        raise RequestError(f"a step of {len(rows)} rows cannot be shared by {accelerator.num_processes} processes")
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    return lay([branch for row in mine for branch in row.branches], budget)


def total_weight(rows: Sequence[Example]) -> float:
    """Sum the loss weights of a step's rows over all packs and processes: every process knows all rows."""
    return float(sum(branch.weights.sum() for row in rows for branch in row.branches))


def _step(losses: Any, packs: Sequence[Pack], rows: Sequence[Example], accelerator: Accelerator) -> float:
    """Add up the gradient of one step over its packs; the loss is Σ w·nll / Σ w over all of them."""
    weight = total_weight(rows)
    total = torch.zeros((), device=accelerator.device)
    for at, pack in enumerate(packs):
        last = at == len(packs) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(losses):
            loss = losses(pack) / weight
            # Processes average their gradients; the loss is a sum, so each gives its part that many times.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return float(accelerator.reduce(total, "sum"))


def _choose(
    model: Any,
    examples: Sequence[Example],
    batch: Sequence[int],
    settings: Train,
    folder: Path,
    accelerator: Accelerator,
) -> dict[str, str]:
    """Settle layout and precision once a training: both are timed where the settings leave them open.

    The choice is written down, since a training that goes on, and every process of one, must use the same arithmetic.
    """
    path = folder / "choice.json"
    if accelerator.is_main_process and not path.exists():
        branches = [branch for row in batch for branch in examples[row].branches]
        store.write_json(path, _measured(model, branches, settings))
    accelerator.wait_for_everyone()
    return dict(store.read_json(path))


def _measured(model: Any, branches: Sequence[Branch], settings: Train) -> dict[str, str]:
    layouts = ["tree", "rows"] if settings.layout == "auto" else [settings.layout]
    if reason := why_no_tree(model):
        say(f"this model cannot read token trees ({reason}); it is trained row by row")
        layouts = ["alone"]
    precisions = ["float32", "bf16"] if settings.precision == "auto" else [settings.precision]
    layout = _fastest(model, branches, settings, [(layout, precisions[0]) for layout in layouts])[0]
    precision = _fastest(model, branches, settings, [(layout, precision) for precision in precisions])[1]
    if layout == "tree":
        check_packs(model, branches, settings.pack_tokens, lambda: autocast(model, precision), precision)
    return {"layout": layout, "precision": precision}


def _fastest(
    model: Any, branches: Sequence[Branch], settings: Train, ways: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    if len(ways) == 1:
        return ways[0]
    took: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    # The first round warms up and is not counted; the ways take turns, so that a slow moment hits them all.
    for _ in range(1 + TIMED_STEPS):
        for layout, precision in ways:
            began = time.monotonic()
            losses = Losses(model, precision)
            for pack in LAYOUTS[layout](branches, settings.pack_tokens):
                losses(pack).backward()
            took[layout, precision].append(time.monotonic() - began)
    seconds = {way: min(times[1:]) for way, times in took.items()}
    model.zero_grad()
    best = min(seconds, key=lambda way: seconds[way])
    say("measured a step: " + ", ".join(f"{' '.join(way)} {s:.3f} s" for way, s in seconds.items()))
    return best


def _count(
    state: Trained, rows: Sequence[Example], packs: Sequence[Pack], loss: float, seconds: float, steps: int
) -> Trained:
    step = state.steps + 1
    every = max(1, steps // CURVE_POINTS)
    curve = (*state.curve, (step, loss)) if step % every == 0 or step in (1, steps) else state.curve
    return replace(
        state,
        steps=step,
        rows=state.rows + len(rows),
        tokens=state.tokens + packs_tokens(packs),
        target_tokens=state.target_tokens + sum(row.target_tokens for row in rows),
        label_tokens=state.label_tokens + sum(row.label_tokens for row in rows),
        seconds=state.seconds + seconds,
        curve=curve,
    )


def _judge(
    model: Any, score: float, rows: int, state: Trained, folder: Path, title: str, accelerator: Accelerator
) -> Trained:
    """Keep these weights unless an earlier checkpoint was better by more than the dev rows can be wrong."""
    highest = max(score, state.highest)
    error = math.sqrt(highest * (1 - highest) / rows) if rows else 0.0
    kept = state.dev is None or score >= highest - error
    refused = "" if kept else f", not kept: step {state.best_step} had {state.dev:.4f}"
    say(f"{title}: step {state.steps}, dev {score:.4f}{refused}")
    if not kept:
        return state
    if accelerator.is_main_process:
        _save(_weights(model), folder / "best.safetensors")
    return replace(state, dev=score, best_step=state.steps, highest=highest)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Give the tensors to be saved, tied ones once: safetensors refuses two names of one memory."""
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        seen.setdefault(tensor.data_ptr(), name)
    state = model.state_dict()
    return {name: state[name].contiguous() for name in seen.values()}


def _untied(weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Give tied tensors all their names back."""
    state = model.state_dict()
    owner = {tensor.data_ptr(): name for name, tensor in state.items() if name in weights}
    return {name: weights[owner[tensor.data_ptr()]] for name, tensor in state.items()}


def _keep(model: Any, steppers: Sequence[Any], state: Trained, folder: Path, accelerator: Accelerator) -> None:
    """Write a checkpoint and remove the one before; at every moment one of the two is whole."""
    if not accelerator.is_main_process:
        return
    step = folder / f"step-{state.steps:08d}"
    partial = folder / "step.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save(_weights(model), partial / "weights.safetensors")
    _save(optimizers.moments(steppers), partial / "optimizer.safetensors")
    store.write_json(partial / "state.json", asdict(state))
    partial.rename(step)
    for older in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(older)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as problem:
        partial.unlink(missing_ok=True)
        raise WorkError(f"{path} cannot be written ({problem}); make room and run the same command again") from problem


def _resume(model: Any, steppers: Sequence[Any], folder: Path) -> Trained | None:
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    model.load_state_dict(_untied(load_file(found[-1] / "weights.safetensors"), model))
    optimizers.restore(steppers, load_file(found[-1] / "optimizer.safetensors"))
    saved = store.read_json(found[-1] / "state.json")
    saved["curve"] = tuple((int(step), float(loss)) for step, loss in saved["curve"])
    say(f"going on from step {saved['steps']}")
    return Trained(**saved)
