"""Does checking pay? Q→RA on the bundled task with reasoners of several strengths, and with corrupted reasonings.

    python benchmarks/checking.py -o runs/checking [--seeds 0 1 2] [--set key=value …]

For each seed a reasoner learns from 150, 400 and 1,000 worked cases and writes four candidates a row; `all` trains
`reason_then_label` on the first of them, without any check, `checked` on what the built-in checks and support choose.
`corrupted` takes the reasonings of the reasoner of 400 cases, a fifth of them exchanged for another label's. The last
lines are the table: accuracy on 1,000 test rows, means over the seeds. `--table` only prints it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from saywhy import classifier, config, controls, data, pipeline, reasonings, store, tickets

EXAMPLE = Path(__file__).parent.parent / "examples" / "tickets.yaml"
CASES = (150, 400, 1000)
CORRUPTED_OF = 400
SHARE = 0.2
SETTINGS = (
    "reasoner.train.precision=float32",
    "classifier.train.precision=float32",
    "reasoner.train.steps=1000",
    "classifier.train.steps=430",
    "classifier.arms=[{name: reason_then_label, arm: reason_then_label,"
    " train: {learning_rate: 1e-2, weight_decay: 1.0}}]",
    "reasonings.candidates=4",
    "reasonings.max_tries=3",
    "reasonings.support=always",
    "reasonings.sampling.temperature=0.7",
    "evaluate.modes=[reason]",
    "evaluate.budget.tokens_per_row=null",
)
KINDS = {
    "all": ("reasonings.checks=[]", "reasonings.support=never", "reasonings.candidates=1"),
    "checked": ("reasonings.support=always",),
}


def main() -> None:
    """Run every condition of every seed, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="sets", nargs="*", default=[])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            run(given.output / str(seed), seed, given.sets)
    table(given.output, given.seeds)


def run(folder: Path, seed: int, sets: list[str]) -> None:
    """Run one seed: each reasoner once, its reasonings as they are and checked, then a fifth of them corrupted."""
    places = (folder / "data").resolve()
    # The same rows whatever the number of cases: the larger sets of cases begin with the smaller ones.
    tickets.write(places, seed, tickets.Sizes(worked=max(CASES)))
    told = [f"data.{part}={places / part}.jsonl" for part in ("train", "dev", "test")]
    told += [f"reasoner.worked_cases.data={places / 'worked.jsonl'}", f"seed={seed}", *SETTINGS]
    for cases in CASES:
        rows = "all" if cases == max(CASES) else str(cases)
        for kind, settings in KINDS.items():
            target = folder / f"{cases}-{kind}"
            own = [*told, f"reasoner.worked_cases.rows={rows}", *settings, *sets]
            if not target.exists() and kind != "all":
                # The reasoner is the same, and what it wrote is in the journal.
                shutil.copytree(folder / f"{cases}-all", target)
            pipeline.run(config.load(EXAMPLE, own), target)
    corrupted = places / "corrupted.jsonl"
    if not corrupted.exists():
        corrupt(config.load(EXAMPLE, told), folder / f"{CORRUPTED_OF}-all", corrupted)
    for kind, settings in KINDS.items():
        own = [*told, "reasonings.teacher=file", f"reasonings.file={{path: {corrupted}}}", *settings, *sets]
        pipeline.run(config.load(EXAMPLE, own), folder / f"corrupted-{kind}")


def corrupt(settings: config.Config, written: Path, target: Path) -> None:
    """Write the kept reasonings of a run with a share of them exchanged for those of rows with another label."""
    rows = data.read(settings).train
    kept = reasonings.read_kept(written / "reasonings")
    tokens = classifier.tokens(data.read(settings).task, str(written / "base"), False)
    found = controls.replace(f"corrupt({SHARE})", rows, kept, tokens, settings.seed)
    lines = (json.dumps({"id": name, "reasoning": some[0]}) for name, some in found.items())
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(output: Path, seeds: list[int]) -> None:
    """Print accuracy by condition, and what was kept."""
    print(
        "reasonings | all: accuracy | checked: accuracy | right reasonings, all | right reasonings, checked | rows kept"
    )
    for name in (*map(str, CASES), "corrupted"):
        cells = []
        for kind in KINDS:
            runs = [store.read_json(output / str(seed) / f"{name}-{kind}" / "metrics.json") for seed in seeds]
            each = [100 * one["arms"]["reason_then_label"]["modes"]["reason"]["test"]["accuracy"] for one in runs]
            cells.append(f"{np.mean(each):.1f} ({', '.join(f'{one:.1f}' for one in each)})")
        for kind in KINDS:
            folders = [output / str(seed) / f"{name}-{kind}" / "reasonings" for seed in seeds]
            each = [right(one, output / str(seed)) for one, seed in zip(folders, seeds, strict=True)]
            cells.append(f"{100 * np.mean(each):.1f}%")
        told = [reasonings.summary(one) for one in folders]
        cells.append(", ".join(f"{one['rows'] - one['rows_without']} of {one['rows']}" for one in told))
        print(" | ".join([name, *cells]))


def right(folder: Path, seed: Path) -> float:
    """Give the share of kept reasonings whose last sum leads to the row's label."""
    labels = {}
    for line in (seed / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        labels[record["id"]] = record["label"]
    sums = [
        (tickets.last_sum(text), labels[name]) for name, some in reasonings.read_kept(folder).items() for text in some
    ]
    return float(np.mean([total is not None and tickets.label_of(total) == label for total, label in sums]))


if __name__ == "__main__":
    main()
