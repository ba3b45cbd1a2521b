"""Measure the memory of stage 2 for a million rows: asked, kept in the journal, checked, written as parts.

    python benchmarks/stream.py [--rows N] [--candidates K] [--quick] [-o DIR]

The rows are synthetic and the teacher costs nothing, so what is measured is what saywhy itself holds: the most memory
of the process above what it had when the rows stood in it, and above what it had before. `--quick` takes 20,000 rows.
The last line is one JSON object; that of a million rows is written to benchmarks/results/stream.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

import bench
from saywhy import checks, journal, reasonings, store
from saywhy.config import Reasonings
from saywhy.records import Row, Task
from saywhy.teachers import Draft, Question, Teacher, Writer

LABELS = tuple(bench.EMOTIONS)
TASK = Task("synthetic", "Which emotion does the writer express?", LABELS, bench.EMOTIONS)
MEBIBYTE = 1 << 20
MILLION = 1_000_000
# Words of a row's text and of a reasoning, out of so many different ones.
TEXT, REASONING, VOCABULARY = 20, 30, 5000


def main() -> None:
    """Stream the rows through and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    parser.add_argument("-o", "--output", type=Path, help="an empty folder for the journal and the parts")
    given = parser.parse_args()
    rows = 20_000 if given.quick else given.rows
    with TemporaryDirectory(dir=given.output) as folder:
        found = stream(Path(folder), rows, given.candidates)
    if rows == MILLION:
        store.write_json(bench.RESULTS / "stream.json", {**bench.machine(), **found})
    print(json.dumps({"stream": found}))


def stream(folder: Path, count: int, candidates: int) -> dict[str, float]:
    """Do stage 2 for so many rows in a folder, and keep the best of so many candidates of each."""
    before = _memory()
    rows = [Row(f"row-{at}", _sentence(at, 0, TEXT), LABELS[at % len(LABELS)]) for at in range(count)]
    with_rows = _memory()
    settings = Reasonings(candidates=candidates, max_tries=1)
    limits = checks.Limits(
        settings.too_long_tokens,
        settings.too_short_tokens,
        checks.generic_limit(settings.generic_rows, count),
        settings.least_support,
    )
    writer = Writer("free", {"name": "free"}, _teacher)
    rules = checks.by_name(settings.checks, limits)
    job = reasonings.Job(TASK, rows, [writer], rules, settings, length=lambda reasoning: len(reasoning.split()))
    parts = folder / "reasonings"
    parts.mkdir()
    began = time.perf_counter()
    with journal.opened(folder / journal.FILE) as book:
        reasonings.write(parts, job, book)
    seconds = time.perf_counter() - began
    told = reasonings.summary(parts)
    return {
        "rows": told["rows"],
        "candidates": candidates,
        "kept": told["kept"],
        "seconds": seconds,
        "rows_per_second": count / seconds,
        "before_mib": before / MEBIBYTE,
        "rows_mib": (with_rows - before) / MEBIBYTE,
        "above_rows_mib": (bench.peak_memory() - with_rows) / MEBIBYTE,
        "above_before_mib": (bench.peak_memory() - before) / MEBIBYTE,
        "journal_mib": (folder / journal.FILE).stat().st_size / MEBIBYTE,
    }


def _memory() -> int:
    memory: int = psutil.Process().memory_info().rss
    return memory


def _sentence(at: int, kind: int, length: int) -> str:
    """Draw words by a number alone; the first of 5,000 are drawn most, as in a language."""
    drawn = np.random.Generator(np.random.Philox(key=[at, kind])).random(length) ** 2
    return " ".join(f"w{int(word)}" for word in drawn * VOCABULARY)


def _teacher() -> Teacher:
    def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
        for at, question in enumerate(questions):
            number = int(question.row_id.partition("-")[2])
            yield at, Draft(_sentence(number, 1 + question.index, REASONING), tokens=REASONING)

    return write


if __name__ == "__main__":
    main()
