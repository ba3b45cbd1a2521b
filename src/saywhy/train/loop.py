"""The only training loop: rows in, a trained model out, wherever and however often it is stopped on the way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from saywhy.config import Train
from saywhy.lm.forward import attending
from saywhy.machine import keeping_freed
from saywhy.progress import say, track
from saywhy.records import RequestError
from saywhy.train import checkpoints, failures, memory, optimizers, ranks, shards
from saywhy.train.deal import deal
from saywhy.train.loss import Losses
from saywhy.train.state import Trained
from saywhy.train.steps import Example, hash_of, packs_tokens, plan_steps, rate_at, total_weight
from saywhy.train.ways import LAYOUTS, choose
from saywhy.trees import Pack

CURVE_POINTS = 200

Log = Callable[[int, Mapping[str, float]], None]


def nowhere(step: int, figures: Mapping[str, float]) -> None:
    """Log nothing."""


@keeping_freed()
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
    With `patience` it may end before the planned steps; rates are those of the plan all the same.
    `folder` keeps checkpoints: a run that was stopped goes on from the last one and ends with the same numbers.
    Where several processes train together, all call this with the same arguments; the first alone asks `dev_score`,
    tells `log` the figures of every step, writes, and is left with the weights.
    Raises RequestError without examples, WorkError where the loss is no number or diverges, where a pack is not exact
    or does not fit into a GPU, and where a checkpoint is of other rows.
    """
    if not examples:
        raise RequestError(f"{title}: there is nothing to train on")
    # Each part of this function's state is either here or in the checkpoint; nothing is drawn from a global generator.
    accelerator = ranks.accelerator(model)
    plugin = ranks.sharding()
    batches = plan_steps(examples, settings, seed)
    if plugin is None or accelerator.is_main_process:
        with memory.enough(title, "the base's weights"):
            model.to(accelerator.device)
    way = choose(model, examples, batches[0], settings, folder)
    losses, trained = _wrapped(model, way.precision, settings, accelerator, plugin)
    steppers = optimizers.make(trained, settings)
    # Where the weights are divided, the first process alone has a model with all of them.
    whole = model if plugin is None or accelerator.is_main_process else None
    plan = hash_of(examples, batches)
    state = checkpoints.resume(whole, trained, steppers, folder, plan) or Trained(
        layout=way.layout, precision=way.precision, pack_tokens=way.pack_tokens, plan=plan
    )
    shards.hand_out(trained, whole)
    evaluate_at = {math.ceil(len(batches) * (k + 1) / settings.evaluations) for k in range(settings.evaluations)}
    lay, width = LAYOUTS[way.layout], model.config.get_text_config().hidden_size

    def take(step: int, rows: Sequence[Example], pack_tokens: int) -> tuple[list[Pack], float]:
        # Only dropout draws from this generator; every process draws its own.
        torch.manual_seed((seed * 1_000_003 + step) + (accelerator.process_index << 40))
        branches = [branch for row in rows for branch in row.branches]
        hands = deal(branches, lay, pack_tokens, accelerator.num_processes, width)
        with attending(trained, way.attention):
            loss = _step(losses, hands[accelerator.process_index], rows, accelerator)
        return [pack for hand in hands for pack in hand], loss

    with track(title, sum(map(len, batches)), "rows") as advance:
        advance(state.rows, 0, "", before=True)
        for step in range(state.steps, len(batches)):
            # Asked of the state alone, so that a run that was stopped here ends here too.
            if settings.patience is not None and state.stale >= settings.patience:
                say(f"{title}: ends at step {step} of {len(batches)}, {state.stale} evaluations without a better one")
                break
            began = time.monotonic()
            rows = [examples[row] for row in batches[step]]
            rate = rate_at(step, len(batches), settings)
            for group in (group for stepper in steppers for group in stepper.param_groups):
                group["lr"] = rate
            trained.train()
            pack_tokens, alone = min(state.pack_tokens, settings.pack_tokens), accelerator.num_processes == 1
            (packs, loss), fitted = memory.halved(partial(take, step, rows), pack_tokens, trained, title, alone)
            gradient = _clipped(trained, settings.clip, accelerator)
            if not math.isfinite(loss + gradient):
                # Before the step: weights and checkpoints stay what they were.
                unwrapped = accelerator.unwrap_model(losses)
                raise failures.no_number(title, step, loss, gradient, rows, unwrapped, settings)
            with memory.enough(title, "what the optimizer keeps of every weight"):
                for stepper in steppers:
                    stepper.step()
                    stepper.zero_grad()
            trained.eval()
            took = time.monotonic() - began
            state = replace(_count(state, rows, packs, loss, took, len(batches)), pack_tokens=fitted)
            failures.watch(title, state, model.config.get_text_config().vocab_size, settings)
            advance(len(rows), packs_tokens(packs), f"loss {loss:.3f}")
            speed = packs_tokens(packs) / took
            figures = {"loss": loss, "learning_rate": rate, "gradient_norm": gradient, "tokens_per_second": speed}
            log(state.steps, figures)
            judged = dev_score is not None and state.steps in evaluate_at
            keeps = (judged or state.steps % settings.checkpoint_every == 0) and state.steps < len(batches)
            if judged or keeps:
                shards.collect(trained, whole)
            if dev_score is not None and judged:
                with memory.enough(title, "the dev rows that are asked at once (evaluate.max_tokens_in_flight)"):
                    score = ranks.told(lambda: _asked(dev_score, model, accelerator.device))
                log(state.steps, {"dev_score": score})
                state = _judge(model, score, dev_rows, state, folder, title, accelerator)
            if keeps:
                moments = optimizers.moments(trained, steppers)
                checkpoints.keep(model, moments, state, folder, accelerator)
    if state.dev is None:
        shards.collect(trained, whole)
    elif accelerator.is_main_process:
        checkpoints.load(model, checkpoints.best(folder, state))
    # Nobody may go on, and remove the folder, while another still reads it.
    accelerator.wait_for_everyone()
    return replace(state, ended="steps" if state.steps == len(batches) else "patience")


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
    stale = 0 if state.dev is None or score > state.highest else state.stale + 1
    error = math.sqrt(highest * (1 - highest) / rows) if rows else 0.0
    kept = state.dev is None or score >= highest - error
    refused = "" if kept else f", not kept: step {state.best_step} had {state.dev:.4f}"
    say(f"{title}: step {state.steps}, dev {score:.4f}{refused}")
    if not kept:
        return replace(state, stale=stale)
    state = replace(state, dev=score, best_step=state.steps, highest=highest, stale=stale)
    if accelerator.is_main_process:
        checkpoints.save(checkpoints.weights_of(model), checkpoints.best(folder, state))
    return state
