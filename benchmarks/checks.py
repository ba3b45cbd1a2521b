"""How often the checks drop true reasonings, and what looking for near-duplicates among a million of them takes.

    python benchmarks/checks.py [--show CHECK]
    python benchmarks/checks.py --million

The first prints, for each check and each set of reasonings that people or large models wrote for the right label, the
share that it drops: nearly all of it false alarms. It reads the bundled task and, where SAYWHY_DATA names a folder with
them, sets of JSON lines with a text (or question), a label (or answer), a reasoning and sometimes `choices`. The second
gives seconds of one processor and needs some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import get_args

from saywhy import checks, tickets
from saywhy.config.reasonings import CheckName, Reasonings
from saywhy.records import Candidate, Figures, Row, Task

SETS = {
    "emotion-why": ("emotion-why/train.jsonl", "Which emotion does the writer express?"),
    "esnli-llm": ("esnli-llm/val.jsonl", "Does the premise entail the hypothesis, contradict it, or neither?"),
    "esnli-human": ("esnli-human/val.jsonl", "Does the premise entail the hypothesis, contradict it, or neither?"),
    "cqa-llm": ("cqa-llm/train.jsonl", "Which of the choices answers the question best?"),
    "strategyqa": ("strategyqa/train.jsonl", "Is the answer to the question yes or no?"),
}
Case = tuple[Row, str]


def bundled() -> tuple[Task, list[Case]]:
    parts = tickets.generate(0)
    return tickets.task(), [(row, parts.solutions[row.id]) for row in parts.train]


def read(path: Path, instruction: str) -> tuple[Task, list[Case]]:
    cases: list[Case] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        it = json.loads(line)
        text = it.get("text") or it.get("stem") or it["question"]
        choices = tuple(it["choices"]) if "choices" in it else None
        cases.append((Row(str(number), text, it.get("label") or it["answer"], choices), it["reasoning"]))
    labels = () if cases[0][0].choices else tuple(sorted({row.label or "" for row, _ in cases}))
    return Task(path.parent.name, instruction, labels), cases


def shares(task: Task, cases: list[Case], show: str | None) -> dict[str, float]:
    """The share of these reasonings that each check drops by itself."""
    default = Reasonings()
    limits = checks.Limits(
        default.too_long_tokens,
        default.too_short_tokens,
        checks.generic_limit(default.generic_rows, len(cases)),
        default.least_support,
    )
    texts, said = [row.text for row, _ in cases], [reasoning for _, reasoning in cases]
    twins = checks.count_twins(checks.index(zip(texts, said, strict=True)), texts, said)
    dropped = {}
    for check in checks.by_name(get_args(CheckName), limits):
        count = 0
        for (row, reasoning), others in zip(cases, twins, strict=True):
            # About as many tokens as a tokenizer makes of it.
            figures = Figures(length=round(1.3 * len(reasoning.split())), twins=int(others))
            if check(task, row, Candidate(row.id, reasoning, "file", figures=figures)):
                count += 1
                if check.__name__ == show:
                    print(f"  {row.label!r} <- {row.text!r}: {reasoning!r}")
        dropped[check.__name__] = count / len(cases)
    return dropped


def million() -> None:
    """A million reasonings of 10 to 60 words, a tenth of them one of a hundred sentences."""

    def said() -> Iterator[tuple[str, str]]:
        rng = Random(0)
        words = [f"word{number}" for number in range(20_000)]
        common = [" ".join(rng.choices(words, k=30)) for _ in range(100)]
        for number in range(1_000_000):
            every_tenth = common[number // 10 % 100] if number % 10 == 0 else ""
            yield f"text {number}", every_tenth or " ".join(rng.choices(words, k=rng.randrange(10, 61)))

    before, start = peak(), time.process_time()
    for _ in said():
        pass
    drawn = time.process_time() - start
    start = time.process_time()
    made = checks.index(said())
    built = time.process_time() - start - drawn
    kept = sum(array.nbytes for array in (made.keys, made.bands, made.orders)) / 1_000_000
    print(
        f"index: {built:.0f} s, {kept:.0f} bytes a reasoning, peak {(peak() - before) / 1024:.0f} MiB above the start"
    )
    texts: list[str] = []
    reasonings: list[str] = []
    spent, asked, counted = 0.0, 0, 0
    for text, reasoning in said():
        texts.append(text)
        reasonings.append(reasoning)
        if len(texts) == 4096:
            start = time.process_time()
            counted += int((checks.count_twins(made, texts, reasonings) > 0).sum())
            spent += time.process_time() - start
            asked += len(texts)
            texts, reasonings = [], []
    print(f"counts: {spent:.0f} s for {asked}, {counted} of them with twins, peak {(peak() - before) / 1024:.0f} MiB")


def peak() -> float:
    """The most memory so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", help="print what this check drops")
    parser.add_argument("--million", action="store_true", help="time the index instead")
    told = parser.parse_args()
    if told.million:
        million()
        return
    folder = Path(os.environ.get("SAYWHY_DATA", "data"))
    table = {"tickets": bundled()}
    table |= {name: read(folder / path, ask) for name, (path, ask) in SETS.items() if (folder / path).exists()}
    found = {f"{name} ({len(cases)})": shares(task, cases, told.show) for name, (task, cases) in table.items()}
    print("| check | " + " | ".join(found) + " |")
    print("|---|" + "---|" * len(found))
    for check in get_args(CheckName):
        print(f"| `{check}` | " + " | ".join(f"{100 * share[check]:.1f}" for share in found.values()) + " |")


if __name__ == "__main__":
    main()
