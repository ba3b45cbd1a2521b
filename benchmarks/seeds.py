"""Put runs that differ only in their seed together: means, and one interval over rows and seeds.

    python benchmarks/seeds.py runs/emotion-small-0 runs/emotion-small-1 … [--metric mean_recall] [--against label_only]
                               [--recall-of LABEL]

With --recall-of the metric is the recall of one label. The arm and mode are chosen by the mean of the metric over the
dev splits of all runs, from those that are not label-only. How the interval over rows and seeds is computed stands in
docs/statistics.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saywhy import metrics, store
from saywhy.evaluate import Answers, load_answers, over_seeds
from saywhy.records import Task


def main() -> None:
    """Print a table of means and the comparison as the last line, a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--metric", default="mean_recall", choices=sorted(metrics.METRICS))
    parser.add_argument("--against", nargs="+", default=["label_only"], help="arms; the best of them on test counts")
    parser.add_argument("--recall-of", metavar="LABEL", help="compare the recall of this label instead")
    given = parser.parse_args()
    documents = [store.read_json(run / "metrics.json") for run in given.runs]
    systems = [f"{arm}/{mode}" for arm, entry in documents[0]["arms"].items() for mode in entry["modes"]]
    systems = [name for name in systems if not name.endswith("/explain")]
    print(f"{len(given.runs)} runs, {documents[0]['floors']['linear']['n']} test rows each")
    for name in systems:
        print(line(name, documents, systems_scores(documents, name)))
    for name in ("majority", "linear"):
        print(line(f"floor {name}", documents, [document["floors"][name] for document in documents]))
    reasoned = [name for name in systems if name.partition("/")[0] not in given.against]
    plain = [name for name in systems if name.partition("/")[0] in given.against]
    metric = given.metric if given.recall_of is None else f"recall:{given.recall_of}"
    of = reader(given.metric, given.recall_of)
    chosen = max(reasoned, key=lambda name: mean_dev(documents, name, of))
    # The strongest opponent counts, whatever dev said of it.
    opponent = max(plain, key=lambda name: np.mean([of(s) for s in systems_scores(documents, name)]))
    print(json.dumps({"metric": metric, **compare(given.runs, documents[0]["task"], chosen, opponent, metric)}))


def reader(metric: str, label: str | None) -> Callable[[dict[str, Any]], float]:
    """Give a metric as it is read out of saved scores."""
    if label is None:
        return lambda scores: float(scores[metric])
    return lambda scores: float(scores["per_class"][label]["recall"])


def systems_scores(documents: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Give the test scores of one arm and mode, one a run."""
    arm, mode = name.split("/")
    return [document["arms"][arm]["modes"][mode]["test"] for document in documents]


def mean_dev(documents: list[dict[str, Any]], name: str, of: Callable[[dict[str, Any]], float]) -> float:
    """Average a metric over the dev splits of all runs."""
    arm, mode = name.split("/")
    return float(np.mean([of(document["arms"][arm]["modes"][mode]["dev"]) for document in documents]))


def line(name: str, documents: list[dict[str, Any]], scores: list[dict[str, Any]]) -> str:
    """Write one row: means over the runs, each run's accuracy behind."""
    parts = [f"{name:<28}"]
    for metric in ("accuracy", "macro_f1", "mean_recall"):
        parts.append(f"{metric} {100 * np.mean([s[metric] for s in scores]):.1f}")
    each = ", ".join(f"{100 * s['accuracy']:.1f}" for s in scores)
    return "  ".join([*parts, f"(accuracy by seed: {each})"])


def compare(runs: list[Path], task: dict[str, Any], a: str, b: str, metric: str) -> dict[str, Any]:
    """Compare two systems over all runs: the mean difference, its intervals, McNemar a run."""
    asked = Task(task["name"], "", tuple(task["labels"]), ordinal=task["ordinal"])

    def answers_of(run: Path, name: str) -> Answers:
        arm, mode = name.split("/")
        return load_answers(run / "predictions" / f"{arm}-{mode}-test.parquet", asked)

    pairs = [(answers_of(run, a), answers_of(run, b)) for run in runs]
    rows = [dict(zip(one.ids, one.texts, strict=True)) for one, _ in pairs]
    if any(one != rows[0] for one in rows):
        # Tickets of another seed are other rows, though they have the same ids.
        pairs = [(of_run(one, number), of_run(two, number)) for number, (one, two) in enumerate(pairs)]
    found = over_seeds(asked, pairs, (metric, "accuracy"))
    return {
        "a": a,
        "b": b,
        "difference": found[metric].difference,
        "by_seed": found[metric].by_seed,
        "ci95_rows_and_seeds": found[metric].ci95,
        "ci95_seeds": found[metric].seed_ci95,
        "p_seeds": found[metric].p_seeds,
        "mde": found[metric].mde,
        "p_mcnemar": found["accuracy"].p_mcnemar,
        "runs": len(runs),
    }


def of_run(answers: Answers, number: int) -> Answers:
    """Give the rows of a run ids that no other run has."""
    return replace(answers, ids=tuple(f"{number}/{name}" for name in answers.ids))


if __name__ == "__main__":
    main()
