"""The only training loop: rows in, a trained model out, wherever and however often it is stopped on the way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from saywhy.config import Train
from saywhy.progress import say, track
from saywhy.records import RequestError, WorkError
from saywhy.train import checkpoints, optimizers, ranks, shards
from saywhy.train.deal import deal
from saywhy.train.loss import Losses
from saywhy.train.state import Trained
from saywhy.train.steps import Example, packs_tokens, plan_steps, rate_at, total_weight
from saywhy.train.ways import LAYOUTS, choose
from saywhy.trees import Pack

CURVE_POINTS = 200

Log = Callable[[int, Mapping[str, float]], None]


def nowhere(step: int, figures: Mapping[str, float]) -> None:
    """Log nothing."""


def finetune(
    model: Any,
    examples: Sequence[Example],
    settings: Train,
    seed: int,
    folder: Path,
    title: str,
    dev_score: Callable[[], float] | None = None,
    dev_rows: int = 0,
    log: Log = nowhere,
) -> Trained:
    """Train `model` in place and leave it with the weights of the checkpoint that `dev_score` chose.

    That is the last one within one standard error of the best, taken as that of a share of `dev_rows` rows: late in the
    schedule weights are better than few rows can tell (LOG.md, 2026-11-21). With 0 rows every difference counts.
    `folder` keeps checkpoints: a run that was stopped goes on from the last one and ends with the same numbers.
    Where several processes train together, all call this with the same arguments; the first alone asks `dev_score`,
    tells `log` the figures of every step, writes, and is left with the weights.
    Raises RequestError without examples, WorkError where the loss is no number or a pack is not exact.
    """
    if not examples:
        raise RequestError(f"{title}: there is nothing to train on")
    # Each part of this function's state is either here or in the checkpoint; nothing is drawn from a global generator.
    accelerator = ranks.accelerator(model)
    plugin = ranks.sharding()
    batches = plan_steps(examples, settings, seed)
    if plugin is None or accelerator.is_main_process:
        model.to(accelerator.device)
    choice = choose(model, examples, batches[0], settings, folder)
    losses, trained = _wrapped(model, choice["precision"], settings, accelerator, plugin)
    steppers = optimizers.make(trained, settings)
    # Where the weights are divided, the first process alone has a model with all of them.
    whole = model if plugin is None or accelerator.is_main_process else None
    state = checkpoints.resume(whole, steppers, folder) or Trained(
        layout=choice["layout"], precision=choice["precision"]
    )
    shards.hand_out(trained, whole)
    evaluate_at = {math.ceil(len(batches) * (k + 1) / settings.evaluations) for k in range(settings.evaluations)}
    lay, width = LAYOUTS[choice["layout"]], model.config.get_text_config().hidden_size
    with track(title, sum(map(len, batches)), "rows") as advance:
        advance(state.rows, 0, "")
        for step in range(state.steps, len(batches)):
            began = time.monotonic()
            # Only dropout draws from this generator; every process draws its own.
            torch.manual_seed((seed * 1_000_003 + step) + (accelerator.process_index << 40))
            rows = [examples[row] for row in batches[step]]
            branches = [branch for row in rows for branch in row.branches]
            hands = deal(branches, lay, settings.pack_tokens, accelerator.num_processes, width)
            packs = [pack for hand in hands for pack in hand]
            rate = rate_at(step, len(batches), settings)
            for group in (group for stepper in steppers for group in stepper.param_groups):
                group["lr"] = rate
            trained.train()
            loss = _step(losses, hands[accelerator.process_index], rows, accelerator)
            gradient = _clipped(trained, settings.clip, accelerator)
            if not math.isfinite(loss + gradient):
                # Before the step: weights and checkpoints stay what they were.
                raise WorkError(
                    f"{title}: the loss of step {step + 1} is {loss} and its gradient {gradient}; lower learning_rate "
                    f"({settings.learning_rate})"
                )
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            trained.eval()
            took = time.monotonic() - began
            state = _count(state, rows, packs, loss, took, len(batches))
            advance(len(rows), packs_tokens(packs), f"loss {loss:.3f}")
            log(
                state.steps,
                {
                    "loss": loss,
                    "learning_rate": rate,
                    "gradient_norm": gradient,
                    "tokens_per_second": packs_tokens(packs) / took,
                },
            )
            if dev_score is not None and state.steps in evaluate_at:
                shards.collect(trained, whole)
                score = ranks.told(lambda: _asked(dev_score, model, accelerator.device))
                log(state.steps, {"dev_score": score})
                state = _judge(model, score, dev_rows, state, folder, title, accelerator)
            if state.steps % settings.checkpoint_every == 0 and state.steps < len(batches):
                shards.collect(trained, whole)
                checkpoints.keep(model, steppers, state, folder, accelerator)
    if state.dev is None:
        shards.collect(trained, whole)
    elif whole is not None:
        whole.load_state_dict(checkpoints.untied(load_file(folder / "best.safetensors"), whole))
    # Nobody may go on, and remove the folder, while another still reads it.
    accelerator.wait_for_everyone()
    return state


def _wrapped(
    model: Any, precision: str, settings: Train, accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None
) -> tuple[Any, Any]:
    """Give the module that computes a pack's loss, and the model whose weights this process steps."""
    if plugin is None:
        return accelerator.prepare(Losses(model, precision)), model
    if settings.optimizer == "muon":
        raise RequestError(
            "optimizer: muon needs whole matrices, and FSDP divides them; set adamw, or launch without FSDP"
        )
    trained = shards.twin(model.to("cpu"))
    losses = Losses(trained, precision)
    shards.divide(losses, plugin)
    return losses, trained


def _step(losses: Any, packs: Sequence[Pack], rows: Sequence[Example], accelerator: Accelerator) -> float:
    """Add up the gradient of one step over this process's packs; the loss is Σ w·nll / Σ w over those of all."""
    weight = total_weight(rows)
    total = torch.zeros((), device=accelerator.device)
    for at, pack in enumerate(packs):
        # DDP adds gradients up once a step; divided ones are added up pack by pack, so that nobody holds them whole.
        wait = at < len(packs) - 1 and hasattr(losses, "no_sync")
        with losses.no_sync() if wait else contextlib.nullcontext():
            loss = losses(pack) / weight
            # Processes average their gradients; the loss is a sum, so each gives its part that many times.
            (loss * accelerator.num_processes).backward()
        total += loss.detach()
    return float(accelerator.reduce(total, "sum"))


def _clipped(model: Any, most: float, accelerator: Accelerator) -> float:
    """Shorten the gradient to at most this length; give the length it had."""
    length = accelerator.clip_grad_norm_(model.parameters(), most)
    return float(length.full_tensor() if isinstance(length, DTensor) else length)


def _asked(dev_score: Callable[[], float], model: Any, device: torch.device) -> float:
    """Score a model on the device; it goes back to where it was."""
    before = model.device
    model.to(device)
    score = dev_score()
    model.to(before)
    return score


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
