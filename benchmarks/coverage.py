"""How often intervals over rows and seeds hold the true difference, which is 0 here: five ways on made-up answers.

    python benchmarks/coverage.py [--tries 500] [--rows 300] [--seeds 3 5] [--metric macro_f1]

Two systems are alike in all but chance: the seed moves the accuracy of each, and a row is easy or hard for each, in all
seeds and in each for itself. `of seeds` is the standard deviation of what a seed adds (in probits), `of rows` that of
what belongs to a system and a row in every seed. The ways:

    rows         the paired bootstrap of rows alone, the seeds taken as they are
    both         seeds and rows resampled together, percentiles
    rescaled     likewise, what seeds add taken times sqrt(m / (m - 1))
    student      Student's t over the seeds' differences
    over_seeds   evaluate.over_seeds

Each cell is the share of intervals that hold the truth, in percent, and in brackets their mean width in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from scipy.stats import t as student

from saywhy.evaluate import Answers, difference_of, measure_seeds
from saywhy.metrics import Floats
from saywhy.records import Task

TASK = Task("made up", "", ("a", "b", "c"))
RESAMPLES = 400
WAYS = ("rows", "both", "rescaled", "student", "over_seeds")
# The standard deviations of what a seed and of what a system and a row add, and whether seeds have rows of their own.
WORLDS = [
    (0.0, 0.8, False),
    (0.0, 0.2, False),
    (0.1, 0.5, False),
    (0.3, 0.5, False),
    (0.0, 0.5, True),
    (0.2, 0.5, True),
]


def main() -> None:
    """Print a table: worlds down, ways across."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=500)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--metric", default="accuracy", choices=["accuracy", "macro_f1", "mean_recall"])
    given = parser.parse_args()
    print("| seeds | of seeds | of rows | rows of seeds |", " | ".join(WAYS), "|")
    for seeds in given.seeds:
        for of_seed, of_row, own in WORLDS:
            found = {way: [0.0, 0.0] for way in WAYS}
            random = np.random.default_rng(0)
            for _ in range(given.tries):
                for way, (low, high) in intervals(random, seeds, given.rows, of_seed, of_row, own, given.metric):
                    found[way][0] += 100 * (low <= 0 <= high) / given.tries
                    found[way][1] += 100 * (high - low) / given.tries
            cells = " | ".join(f"{held:.1f} ({width:.1f})" for held, width in found.values())
            print(f"| {seeds} | {of_seed} | {of_row} | {'own' if own else 'the same'} | {cells} |", flush=True)


def intervals(
    random: np.random.Generator, seeds: int, rows: int, of_seed: float, of_row: float, own: bool, metric: str
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Give the interval of each way, on answers made up anew."""
    systems = made_up(random, seeds, rows, of_seed, of_row, own)
    found = measure_seeds(TASK, systems, (metric,), RESAMPLES, int(random.integers(2**31)))
    both = list(zip(found["a"], found["b"], strict=True))
    values = np.array([a.values[metric] - b.values[metric] for a, b in both])
    drawn = np.array([a.resampled[metric] - b.resampled[metric] for a, b in both])
    picked = random.integers(seeds, size=drawn.shape)
    yield "rows", ends(drawn.mean(axis=0))
    yield "both", ends(np.take_along_axis(drawn, picked, axis=0).mean(axis=0))
    of_seeds = (values[picked] - values.mean()).mean(axis=0)
    yield "rescaled", ends(drawn.mean(axis=0) + np.sqrt(seeds / (seeds - 1)) * of_seeds)
    half = student.ppf(0.975, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
    yield "student", (values.mean() - half, values.mean() + half)
    yield "over_seeds", difference_of(found["a"], found["b"], metric).ci95 or (np.nan, np.nan)


def ends(draws: Floats) -> tuple[float, float]:
    """Take the percentiles of draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def made_up(
    random: np.random.Generator, seeds: int, rows: int, of_seed: float, of_row: float, own: bool
) -> dict[str, list[Answers]]:
    """Make up the answers of two systems that differ by chance alone."""
    systems: dict[str, list[Answers]] = {"a": [], "b": []}
    for seed in range(seeds):
        if seed == 0 or own:
            gold = random.integers(3, size=rows)
            hard = random.normal(size=rows)
            of_system = {name: of_row * random.normal(size=rows) for name in systems}
        for name, answers in systems.items():
            sure = 0.8 + hard + of_system[name] + of_seed * random.normal() + 0.5 * random.normal(size=rows)
            said = np.where(sure > 0, gold, (gold + random.integers(1, 3, size=rows)) % 3)
            answers.append(as_answers(gold.tolist(), said.tolist(), f"{seed}-" if own else ""))
    return systems


def as_answers(gold: list[int], said: list[int], before: str) -> Answers:
    """Write labels as the answers of a system."""
    ids = tuple(f"{before}{i:05d}" for i in range(len(gold)))
    none, zeros = (None,) * len(gold), (0.0,) * len(gold)
    labels = tuple(TASK.labels[i] for i in said)
    sure = tuple(tuple(float(label == one) for one in TASK.labels) for label in labels)
    falsely = (False,) * len(gold)
    named = tuple(TASK.labels[i] for i in gold)
    return Answers(ids, ids, named, labels, sure, none, zeros, zeros, falsely, none, zeros, none, 1.0)


if __name__ == "__main__":
    main()
