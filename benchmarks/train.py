"""Time training against TRL's SFTTrainer: rows a second on the same model, the same rows and the same rows a step.

    SAYWHY_DATA=… SAYWHY_MODELS=… python benchmarks/train.py [--quick] [--only WORKLOAD] [--size 1m|42m|150m|1b]

Both sides train every weight with AdamW in float32 on float32 master weights, products in bf16 where this machine is
faster at them than in float32; neither keeps a checkpoint while the clock runs.
TRL is given what saywhy trains on, as tokens with -100 where nothing is trained, and runs as it is by default, with
rows of like length together, and packed; of all its settings the fastest counts. Every step takes the same few rows
again, so that both sides have the same rows a step however TRL packs them; each turn of a full run takes other rows.
`agree` is true where the losses of the first step, here the plain token mean on both sides, are the same to 1%.
`matmul_share` is the products that a token tree needs, 6 FLOPs a weight and token, over the best rate of the model's
own matrix shapes in the same process, in whichever precision is faster. With --processor all times are the
processor's, which other work on the machine moves less; set OMP_NUM_THREADS=1. The last line is one JSON object.
Without --quick the results are written to benchmarks/results/train.json. On a GPU `--size 1b` is the shape of
Llama-3.2-1B, `matmul_share` is the model FLOPs utilisation against the GPU's own products, and memory is the GPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import bench
from saywhy import classifier
from saywhy.config import Train
from saywhy.lm.load import model_of
from saywhy.train.folder import encode
from saywhy.train.loop import finetune
from saywhy.train.steps import Example, packs_tokens
from saywhy.trees import pack_trees

# Rows a step of every workload.
WORKLOADS = {"emotion-label": 32, "emotion-reason": 32, "emotion-both": 32, "banking77-label": 32, "reasons-8": 8}
QUICK = {**WORKLOADS, "banking77-label": 16}
REASONINGS = 8
# TRL's settings: how it lays rows, and rows a pass, or tokens a pack.
PEERS = [("default", 8), ("grouped", 32), ("packing", 1024), ("packing", 2048)]
# What won the last full run, for a quick one.
BEST = {"banking77-label": ("packing", 1024), "emotion-both": ("grouped", 32), "reasons-8": ("grouped", 32)}
OTHERWISE = ("packing", 2048)
# Steps before the clock, and on it.
WARM = 1
TIMED = 2
RATE = 1e-4


def main() -> None:
    """Measure every workload and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one peer, few rows, one turn")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--size", choices=bench.SHAPES, default="42m", help="1b is for a GPU")
    parser.add_argument("--processor", action="store_true", help="count processor time")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every system in a full run")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--on", nargs=2, type=int, metavar=("ROWS", "TURN"), help=argparse.SUPPRESS)
    parser.add_argument("--peer-size", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.system:
        clock = time.process_time if given.processor else time.perf_counter
        examples = taught(given.only, given.size, *given.on)
        make = _saywhy if given.system == "saywhy" else _trl
        print(json.dumps(make(given.system, given.peer_size, given.size, examples, clock)))
        return
    found = {}
    for name in [given.only] if given.only else WORKLOADS:
        found[name] = measure(name, given)
        if not given.quick:
            bench.keep("train" if given.size == "42m" else f"train-{given.size}", {name: found[name]})
    bench.print_last(found)


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Time saywhy and the peers on one workload, turn by turn: every setting once, the fastest two in every turn."""
    rows = (QUICK if given.quick else WORKLOADS)[name]
    times: dict[tuple[str, int], list[float]] = {}
    last: dict[tuple[str, int], dict[str, Any]] = {}
    some = [BEST.get(name, OTHERWISE)] if given.quick else PEERS
    for turn in range(1 if given.quick else given.rounds):
        for who, size in [("saywhy", 0), *some]:
            arguments = ["--only", name, "--size", given.size, "--on", str(rows), str(turn), "--system", who]
            arguments += ["--peer-size", str(size), *(["--processor"] * given.processor)]
            told = bench.child(__file__, *arguments)
            times.setdefault((who, size), []).extend(told["seconds"])
            print(f"{name}, {named(who, size)}: {rows / bench.median(told['seconds']):.2f} rows/s", file=sys.stderr)
            last[who, size] = told
        some = sorted(some, key=lambda peer: bench.median(times[peer]))[:2]
    rate = {key: rows / bench.median(seconds) for key, seconds in times.items()}
    best = max((key for key in rate if key[0] != "saywhy"), key=lambda peer: rate[peer])
    ours, theirs = last["saywhy", 0], last[best]
    return {
        "saywhy": rate["saywhy", 0],
        "best_peer": rate[best],
        "peer": named(*best),
        "ratio": rate["saywhy", 0] / rate[best],
        "peak_memory_ratio": ours["peak"] / theirs["peak"],
        "matmul_share": ours["flops"] / bench.median(times["saywhy", 0]) / ours["matmul_rate"],
        "agree": abs(ours["loss"] - theirs["loss"]) <= 0.01 * theirs["loss"],
        "losses": [ours["loss"], theirs["loss"]],
        "passes": [ours["passes"], theirs["passes"]],
        "way": ours["way"],
        "rows": rows,
        "clock": "processor" if given.processor else "time",
        "all": {named(*key): value for key, value in rate.items()},
    }


def named(who: str, size: int) -> str:
    """Name a system with its setting."""
    if who == "saywhy":
        return who
    return f"SFTTrainer, {who}, {size} {'tokens a pack' if who == 'packing' else 'rows a pass'}"


def taught(name: str, size: str, rows: int, turn: int) -> tuple[Example, ...]:
    """Encode the rows that every step of one turn takes."""
    read = {"emotion-both": "emotion-reason", "reasons-8": "emotion-reason"}.get(name, name)
    work = bench.workload(read)
    arm = "both" if name == "emotion-both" else work.arm
    kept = several(work, REASONINGS) if name == "reasons-8" else work.reasonings
    order = np.random.default_rng(0).permutation(len(work.train))[turn * rows : (turn + 1) * rows]
    some = [work.train[at] for at in order]
    settings = Train.model_validate({"label_weight": "tokens"})
    course = classifier.course(work.task, arm, str(bench.base(size)), settings, work.train, 0, "cut", False)
    return encode(course, classifier.lessons(arm, some, kept)).examples


def several(work: bench.Workload, count: int) -> dict[str, tuple[str, ...]]:
    """Give every row so many reasonings: its own and those of the rows with its label that come next."""
    alike: dict[str, list[str]] = {}
    for row in work.train:
        alike.setdefault(row.label or "", []).append(row.id)
    return {
        name: tuple(work.reasonings[names[(at + k) % len(names)]][0] for k in range(count))
        for names in alike.values()
        for at, name in enumerate(names)
    }


def _saywhy(
    _who: str, _size: int, model_size: str, examples: Sequence[Example], clock: Callable[[], float]
) -> dict[str, Any]:
    """Train by the loop that every run takes, and look at the clock after each step."""
    stamps: list[float] = []

    def stamp(_step: int, _figures: Mapping[str, float]) -> None:
        bench.finish()
        stamps.append(clock())

    steps = WARM + TIMED
    told = {"steps": steps, "rows_per_step": len(examples), "learning_rate": RATE, "schedule": "constant"}
    settings = Train.model_validate({**told, "warmup": 0.0, "label_weight": "tokens"})
    model = model_of(bench.base(model_size))
    with TemporaryDirectory() as folder:
        trained = finetune(model, examples, settings, 0, Path(folder), "saywhy", log=stamp)
    peak = bench.peak_memory()
    seconds = np.diff(stamps[WARM - 1 :]).tolist()
    packs = pack_trees([branch for row in examples for branch in row.branches], settings.pack_tokens)
    body, head = bench.parameters(model_size)
    sources = sum(len(np.unique(pack.source)) for pack in packs)
    return {
        "seconds": seconds,
        "loss": trained.curve[0][1],
        "peak": peak,
        "passes": len(packs),
        "way": f"{trained.layout} {trained.precision}",
        "flops": 6.0 * (packs_tokens(packs) * body + sources * head),
        "matmul_rate": bench.best_rate(model_size),
    }


def _trl(
    who: str, size: int, model_size: str, examples: Sequence[Example], clock: Callable[[], float]
) -> dict[str, Any]:
    """Train the same rows with TRL in one of its settings."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    stamps: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.finish()
            stamps.append(clock())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    branches = [branch for row in examples for branch in row.branches]
    if who == "grouped":
        branches = sorted(branches, key=lambda branch: -len(branch.ids))
    rows = {
        "input_ids": [branch.ids.tolist() for branch in branches],
        "labels": [np.where(branch.weights > 0, branch.ids, -100).tolist() for branch in branches],
    }
    packed = who == "packing"
    # A row that is longer than a pack would be cut.
    longest = max(size, *(len(ids) for ids in rows["input_ids"])) if packed else None
    with TemporaryDirectory() as folder:
        told = SFTConfig(
            output_dir=folder,
            max_steps=WARM + TIMED,
            per_device_train_batch_size=1 if packed else min(size, len(branches)),
            gradient_accumulation_steps=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            bf16=bench.quicker_precision(model_size) == "bf16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            packing=packed,
            max_length=longest,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        )
        base = bench.base(model_size)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        trainer = SFTTrainer(
            model=model,
            args=told,
            train_dataset=Dataset.from_dict(rows),
            processing_class=bench.tokenizer(base),
            callbacks=[Watch()],
        )
        # One step is one pass over the rows, however many packs or batches they make.
        passes = -(-len(trainer.train_dataset) // told.per_device_train_batch_size)
        trainer.args.gradient_accumulation_steps = passes
        trainer.accelerator.gradient_state.plugin_kwargs["num_steps"] = passes
        trainer.train()
    seconds = np.diff(stamps[WARM - 1 :]).tolist()
    return {"seconds": seconds, "loss": losses[0], "peak": bench.peak_memory(), "passes": passes}


if __name__ == "__main__":
    main()
