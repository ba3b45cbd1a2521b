"""What each way to ask costs and gives: means over finished runs, and right answers a second by batch size.

    python benchmarks/modes.py runs/tickets/0/checked runs/tickets/1/checked … [--batches 1 8 32 128] [--rows 256]

The first table has the test figures of every arm and mode, means over the runs; where an arm has the mode adaptive, the
lines behind say what share of reason's gain over label it keeps, and at what share of reason's tokens. With --batches
the arms of the first run are asked again, so many rows at a time, as a server is asked.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from saywhy import config, data, store
from saywhy.predict import load
from saywhy.probe import TIMED_ROWS, latency

FIGURES = ("accuracy", "mean_recall", "nll", "ece", "tokens_per_row", "rows_per_second")


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--batches", nargs="*", type=int, default=[])
    parser.add_argument("--rows", type=int, default=TIMED_ROWS, help="at most so many are timed")
    given = parser.parse_args()
    documents = [store.read_json(run / "metrics.json") for run in given.runs]
    print(f"{len(documents)} runs, {documents[0]['floors']['majority']['n']} test rows each\n")
    for line in figures(documents):
        print(line)
    for arm in documents[0]["arms"]:
        if "adaptive" in documents[0]["arms"][arm]["modes"]:
            print(kept(documents, arm))
    if given.batches:
        print()
        for line in by_batch(given.runs[0], documents[0], given.batches, given.rows):
            print(line)


def figures(documents: list[dict[str, Any]]) -> list[str]:
    """Write the mean figures of every arm and mode as a table."""
    lines = [f"| arm / mode | {' | '.join(name.replace('_', ' ') for name in FIGURES)} |", "|---" * 7 + "|"]
    for arm, entry in documents[0]["arms"].items():
        for mode in entry["modes"]:
            if mode != "explain":
                means = [mean(documents, arm, mode, name) for name in FIGURES]
                shown = [f"{100 * value:.1f}" for value in means[:2]] + [f"{value:.3f}" for value in means[2:4]]
                lines.append(f"| {arm} / {mode} | {' | '.join([*shown, *(f'{x:.0f}' for x in means[4:])])} |")
    return lines


def kept(documents: list[dict[str, Any]], arm: str) -> str:
    """Say what adaptive keeps of the gain, and at which share of the tokens."""
    label, reason, adaptive = (mean(documents, arm, mode, "accuracy") for mode in ("label", "reason", "adaptive"))
    tokens = mean(documents, arm, "adaptive", "tokens_per_row") / mean(documents, arm, "reason", "tokens_per_row")
    if reason <= label:
        return f"\n{arm}: reason gains nothing over label; adaptive computes {100 * tokens:.0f}% of its tokens"
    gain = (adaptive - label) / (reason - label)
    return f"\n{arm}: adaptive keeps {100 * gain:.0f}% of reason's gain over label at {100 * tokens:.0f}% of its tokens"


def mean(documents: list[dict[str, Any]], arm: str, mode: str, name: str) -> float:
    """Average a test figure over runs."""
    return float(np.mean([document["arms"][arm]["modes"][mode]["test"][name] for document in documents]))


def by_batch(run: Path, document: dict[str, Any], sizes: list[int], count: int) -> list[str]:
    """Ask each arm and mode about the same rows, so many at a time: accuracy, and rows and right answers a second."""
    rows = data.read(config.load(run / "config.yaml")).test[:count]
    heads = " | ".join(f"{size} at a time: rows/s, right/s" for size in sizes)
    lines = [f"| arm / mode, {len(rows)} rows | accuracy | {heads} |", "|---" * (2 + len(sizes)) + "|"]
    for arm, entry in document["arms"].items():
        classifier = load(run / arm)
        for mode in entry["modes"]:
            if mode != "explain":
                found = latency(classifier, rows, mode, sizes)
                cells = [f"{one['rows'] / one['seconds']:.0f}, {one['right'] / one['seconds']:.0f}" for one in found]
                lines.append(f"| {arm} / {mode} | {100 * found[-1]['right'] / len(rows):.1f} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
