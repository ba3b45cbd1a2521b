"""Does reasoning first cost the rarest class? The bundled task with a label of 3%, without and with top_up.

    python benchmarks/rare.py -o runs/rare [--rarest urgent] [--cases even] [--seeds 0 1 2 3 4] [--only plain]
                              [--set key=value …]

1,000 training and 5,000 test tickets, 3% of them with the rarest label. The 400 worked cases are those of the bundled
task, where every sum is as frequent (`even`), or as rare in that label as the rows (`alike`). SEED/plain and
SEED/topped hold the runs: `label_only` and `reason_then_label` on the same rows, in `topped` with more reasonings for
rare labels and each row counted as often in both arms. Then the table: recall of the rarest label and its difference,
reason_then_label minus label_only, with the 95% interval over rows and seeds. `--table` only prints it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saywhy import config, pipeline, store, tickets
from saywhy.evaluate.seeds import RECALL_OF
from seeds import compare, systems_scores

EXAMPLE = Path(__file__).parent.parent / "examples" / "tickets.yaml"
# `normal` is the rarest label of the task as it is, and its reasonings are made of sums that others have too; those of
# `urgent` are made of sums that hardly any other ticket reaches.
SHARES = {
    "normal": {"low": 40, "normal": 3, "high": 30, "urgent": 27},
    "urgent": {"low": 42, "normal": 30, "high": 25, "urgent": 3},
}
SIZES = tickets.Sizes(worked=400, train=1000, dev=200, test=5000)
# Even cases are drawn with another seed, a few more than are used: what is a row too is left out.
APART, MORE = 1000, 100
SETTINGS = (
    "reasoner.train.precision=float32",
    "classifier.train.precision=float32",
    "classifier.arms=[label_only, {name: reason_then_label, arm: reason_then_label,"
    " train: {learning_rate: 1e-2, weight_decay: 1.0}}]",
    "reasonings.candidates=4",
    "reasonings.max_tries=3",
    "reasonings.support=always",
    "reasonings.sampling.temperature=0.7",
    "evaluate.modes=[label, reason]",
    "evaluate.budget.tokens_per_row=null",
)
TOP_UP = 0.5
KINDS = ("plain", "topped")


def main() -> None:
    """Run every seed both ways, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rarest", choices=sorted(SHARES), default="urgent")
    parser.add_argument("--cases", choices=["even", "alike"], default="even")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--set", dest="sets", nargs="*", default=[])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    kinds = [given.only] if given.only else KINDS
    if not given.table:
        for seed in given.seeds:
            run(given.output / str(seed), seed, SHARES[given.rarest], given.cases, kinds, given.sets)
    for kind in kinds:
        table(kind, given.rarest, [given.output / str(seed) / kind for seed in given.seeds])


def run(folder: Path, seed: int, shares: dict[str, int], cases: str, kinds: Sequence[str], sets: list[str]) -> None:
    """Run one seed without top_up, and from a copy of that with it."""
    data = (folder / "data").resolve()
    tickets.write(data, seed, SIZES, shares)
    if cases == "even":
        write_even_cases(data, seed)
    places = [f"data.{part}={data / part}.jsonl" for part in ("train", "dev", "test")]
    told = [*places, f"reasoner.worked_cases.data={data / 'worked.jsonl'}", f"seed={seed}", *SETTINGS, *sets]
    if "plain" in kinds:
        pipeline.run(config.load(EXAMPLE, told), folder / "plain")
    if "topped" in kinds:
        if not (folder / "topped").exists():
            shutil.copytree(folder / "plain", folder / "topped")
        pipeline.run(config.load(EXAMPLE, [*told, f"reasonings.top_up={TOP_UP}"]), folder / "topped")


def write_even_cases(data: Path, seed: int) -> None:
    """Put worked cases of which every sum is as frequent in the place of those that are there."""
    lines = [line for part in ("train", "dev", "test") for line in (data / f"{part}.jsonl").read_text().splitlines()]
    rows = {json.loads(line)["text"] for line in lines}
    even = data / "even"
    tickets.write(even, seed + APART, tickets.Sizes(SIZES.worked + MORE, train=0, dev=0, test=0))
    cases = (even / "worked.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = [case for case in cases if json.loads(case)["question"] not in rows][: SIZES.worked]
    store.write_text(data / "worked.jsonl", "\n".join(chosen) + "\n")


def table(kind: str, rarest: str, runs: list[Path]) -> None:
    """Print recalls of every label and the difference at the rarest."""
    documents = [store.read_json(run / "metrics.json") for run in runs]
    labels = documents[0]["task"]["labels"]
    print(f"\n{kind}: {len(runs)} seeds, {documents[0]['floors']['linear']['n']} test rows each")
    print("arm | accuracy | " + " | ".join(f"recall {label}" for label in labels))
    for arm, mode in (("label_only", "label"), ("reason_then_label", "reason")):
        scores = systems_scores(documents, f"{arm}/{mode}")
        recalls = [100 * np.mean([s["per_class"][label]["recall"] for s in scores]) for label in labels]
        accuracy = 100 * np.mean([s["accuracy"] for s in scores])
        print(f"{arm} | {accuracy:.1f} | " + " | ".join(f"{recall:.1f}" for recall in recalls))
    for document in documents:
        told = document["reasonings"]["by_class"]
        without = {label: f"{told[label]['without']} of {told[label]['rows']}" for label in labels}
        print("rows without a reasoning:", without)
    found = compare(runs, documents[0]["task"], "reason_then_label/reason", "label_only/label", f"{RECALL_OF}{rarest}")
    low, high = found["ci95_rows_and_seeds"]
    print(
        f"recall of {rarest}, reason_then_label minus label_only: {100 * found['difference']:+.1f} points, "
        f"95% interval {100 * low:+.1f} to {100 * high:+.1f}"
    )


if __name__ == "__main__":
    main()
