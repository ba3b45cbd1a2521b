"""How the cost of training grows: with rows, with what rows share, and with reasonings a row; one plot of each.

    SAYWHY_DATA=… SAYWHY_MODELS=… python benchmarks/growth.py [--only rows|trunk|reasonings] [--alone]

A model of 42 million parameters as in train.py, which also times the peer: TRL's SFTTrainer, packed. `rows` is what has
to be done before the first step of 1,000 to 64,000 rows of emotion, each once, by saywhy alone. `trunk` is a step of 16
rows behind 0 to 2,000 more tokens of instruction, `reasonings` one of 4 rows with 1 to 16 reasonings each. --alone
leaves the peer out. Figures go to benchmarks/results/growth.json, plots beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import bench
import train
from saywhy import classifier, store
from saywhy.config import Train
from saywhy.records import Row
from saywhy.train.folder import encode
from saywhy.train.steps import Example, hash_of, plan_steps

AXES = {
    "rows": ((1_000, 4_000, 16_000, 64_000), "training rows", "seconds before the first step"),
    "trunk": ((0, 250, 500, 1_000, 2_000), "tokens of instruction that all rows share", "seconds a step of 16 rows"),
    "reasonings": ((1, 2, 4, 8, 16), "reasonings a row", "seconds a step of 4 rows"),
}
PEER = ("packing", 1024)
# About one token each, for the model's tokenizer.
WORDS = ("see", "the", "way", "and", "day", "old", "new", "one", "two", "all")


def main() -> None:
    """Measure every axis and plot it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=AXES)
    parser.add_argument("--alone", action="store_true", help="leave the peer out")
    parser.add_argument("--at", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.system:
        print(json.dumps(measured(given.only, given.at, given.system)))
        return
    for axis in [given.only] if given.only else AXES:
        systems = ["saywhy"] if given.alone or axis == "rows" else ["saywhy", "peer"]
        found = {
            system: [bench.child(__file__, "--only", axis, "--at", str(at), "--system", system) for at in AXES[axis][0]]
            for system in systems
        }
        bench.keep("growth", {axis: {"at": AXES[axis][0], **found}}, of="axes")
        plot(axis, found)
        print(axis, json.dumps(found))


def measured(axis: str, at: int, system: str) -> dict[str, Any]:
    """Give the seconds, and the most memory in MiB, of one system at one point."""
    if axis == "rows":
        return before_training(at)
    examples = behind(at) if axis == "trunk" else with_reasonings(at)
    told = (
        train._saywhy(system, 0, "42m", examples, time.perf_counter)
        if system == "saywhy"
        else train._trl(*PEER, "42m", examples, time.perf_counter)
    )
    return {"seconds": bench.median(told["seconds"]), "mib": told["peak"] / 2**20}


def before_training(count: int) -> dict[str, Any]:
    """Encode so many rows, plan their steps, and hash the plan."""
    work = bench.workload("emotion-label")
    some = [replace(work.train[at % len(work.train)], id=f"{at}") for at in range(count)]
    began = time.perf_counter()
    examples = encoded(work, "label_only", some, {}, work.task.instruction)
    hash_of(examples, plan_steps(examples, Train(), 0))
    return {"seconds": time.perf_counter() - began, "mib": bench.peak_memory() / 2**20}


def behind(tokens: int) -> tuple[Example, ...]:
    """Give rows of emotion behind an instruction that is longer by about so many tokens."""
    work = bench.workload("emotion-label")
    filler = " ".join(np.random.default_rng(0).choice(WORDS, tokens))
    return encoded(work, "label_only", work.train[:16], {}, f"{work.task.instruction} {filler}".strip())


def with_reasonings(count: int) -> tuple[Example, ...]:
    """Give rows with so many reasonings each: their own, and those of the rows with their label that come next."""
    work = bench.workload("emotion-reason")
    kept = train.several(work, count)
    return encoded(work, "reason_then_label", work.train[:4], kept, work.task.instruction)


def encoded(
    work: bench.Workload, arm: str, rows: Any, kept: dict[str, tuple[str, ...]], instruction: str
) -> tuple[Example, ...]:
    """Encode rows under an instruction."""
    task = replace(work.task, instruction=instruction)
    settings = Train.model_validate({"label_weight": "tokens"})
    course = classifier.course(task, arm, str(shape()), settings, rows, 0, "cut", False)
    return encode(course, classifier.lessons(arm, list[Row](rows), kept)).examples


def shape() -> Path:
    """Give tokenizer and config of the model with room for twice the tokens: its positions are not learnt."""
    base = bench.base()
    folder = base.with_name(f"{base.name}-long")
    if not (folder / "config.json").exists():
        bench.tokenizer(base).save_pretrained(folder)
        config = store.read_json(base / "config.json")
        store.write_json(folder / "config.json", {**config, "max_position_embeddings": 4096})
    return folder


def plot(axis: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Draw seconds over the axis, a line for each system, and write it beside the results."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    at, across, up = AXES[axis]
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for system, points in found.items():
        named = "saywhy" if system == "saywhy" else f"SFTTrainer, packs of {PEER[1]}"
        axes.plot(at, [point["seconds"] for point in points], marker="o", label=named)
    axes.set(xlabel=across, ylabel=up, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(bench.RESULTS / f"growth-{axis}.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
