"""The benchmarks are run by hand and rarely: what they import has to be there all the same."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from saywhy import evaluate
from test_seeds import TASK, given_answers

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_benchmark_finds_what_it_imports() -> None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert {"rare", "controls", "generate"} <= set(names)
    script = "\n".join(
        f"try: import {name}\nexcept ImportError as error: print({name!r}, error, flush=True)" for name in names
    )
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_runs_of_other_rows_with_the_same_ids_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets of another seed are called as those of the first, and each run is resampled on its own."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    seeds = importlib.import_module("seeds")
    gold = [[0, 1, 2, 0, 1, 2] * 20, [2, 0, 1, 1, 0, 2] * 20]
    for number, labels in enumerate(gold):
        for arm, right in (("reasoned", 5), ("label_only", 3)):
            said = [label if at % 6 < right else (label + 1) % 3 for at, label in enumerate(labels)]
            found = given_answers(TASK, labels, said)
            texts = tuple(f"{number}-{name}" for name in found.ids)
            evaluate.save_answers(
                replace(found, texts=texts), tmp_path / str(number) / "predictions" / f"{arm}-label-test.parquet"
            )
    told = {"name": TASK.name, "labels": TASK.labels, "ordinal": False}
    runs = [tmp_path / "0", tmp_path / "1"]
    found = seeds.compare(runs, told, "reasoned/label", "label_only/label", "accuracy")
    assert found["by_seed"] == pytest.approx((1 / 3, 1 / 3)) and found["runs"] == 2
    assert found["ci95_rows_and_seeds"][0] > 0.2
