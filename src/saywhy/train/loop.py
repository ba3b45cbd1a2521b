"""The only training loop: rows in, a trained model out, wherever and however often it is stopped on the way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from saywhy.config import Train
from saywhy.progress import say, track
from saywhy.records import RequestError, WorkError
from saywhy.train import checkpoints, optimizers
from saywhy.train.loss import Losses
from saywhy.train.state import Trained
from saywhy.train.steps import Example, packs_tokens, plan_steps, rate_at, total_weight
from saywhy.train.ways import LAYOUTS, Lay, choose
from saywhy.trees import Pack

CURVE_POINTS = 200


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
    choice = choose(model, examples, batches[0], settings, folder, accelerator)
    losses = Losses(model, choice["precision"])
    losses, *steppers = accelerator.prepare(losses, *optimizers.make(model, settings))
    state = checkpoints.resume(model, steppers, folder) or Trained(
        layout=choice["layout"], precision=choice["precision"]
    )
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
                checkpoints.keep(model, steppers, state, folder, accelerator)
    accelerator.wait_for_everyone()
    if state.dev is not None:
        model.load_state_dict(checkpoints.untied(load_file(folder / "best.safetensors"), model), strict=False)
    return state


def _packs(rows: Sequence[Example], lay: Lay, budget: int, accelerator: Accelerator) -> list[Pack]:
    """Lay this process's share of a step's rows."""
    if len(rows) < accelerator.num_processes:
        raise RequestError(f"a step of {len(rows)} rows cannot be shared by {accelerator.num_processes} processes")
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    return lay([branch for row in mine for branch in row.branches], budget)


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
        checkpoints.save(checkpoints.weights_of(model), folder / "best.safetensors")
    return replace(state, dev=score, best_step=state.steps, highest=highest)
