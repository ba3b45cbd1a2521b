"""A toy task that a tiny model learns in seconds: one verb decides a text's label, and some gold labels are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import yaml

from saywhy import config, pipeline, store
from saywhy.config import Config
from saywhy.records import Candidate, Row, Task

LABELS = ("cat", "dog", "bird")
VERBS = {"cat": ("purrs", "meows"), "dog": ("barks", "growls"), "bird": ("sings", "flies")}
# What a reasoning says of each verb; the label itself stands in none.
WHY = {
    "purrs": "'purrs' is soft and warm.",
    "meows": "'meows' is soft and small.",
    "barks": "'barks' is loud and rough.",
    "growls": "'growls' is rough and low.",
    "sings": "'sings' is light and high.",
    "flies": "'flies' is light and up.",
}
PLACES = ("door", "wall", "tree", "lake", "barn", "road", "roof", "gate")
TIMES = ("today", "again", "alone", "early", "still")
DEV, TEST = 18, 24
# Every tenth training row and these of test and dev bring a gold label that their text does not have.
WRONG_IN_TEST = (0, 9)
WRONG_IN_DEV = (4,)

ARMS = ["label_only", "reason_then_label", "label_then_reason", "both"]
DROPPED_ROW = "train-5"

Record = dict[str, Any]


def records() -> dict[str, list[Record]]:
    """Rows of train, dev and test, none of them twice, each with the reasoning that its text asks for."""
    made = []
    for label, verb, place, time in _shuffled():
        reasoning = WHY[verb]
        made.append({"id": "", "text": f"{time} by the {place} it {verb}", "label": label, "reasoning": reasoning})
    # Classes take turns, so that every split has each.
    taking_turns = [row for rows in zip(*(_of(made, label) for label in LABELS), strict=True) for row in rows]
    splits = {
        "test": taking_turns[:TEST],
        "dev": taking_turns[TEST : TEST + DEV],
        "train": taking_turns[TEST + DEV : TEST + DEV + 60],
    }
    for name, rows in splits.items():
        for number, row in enumerate(rows):
            row["id"] = f"{name}-{number}"
    wrong = [*(("test", i) for i in WRONG_IN_TEST), *(("dev", i) for i in WRONG_IN_DEV)]
    for row in [*splits["train"][::10], *(splits[name][i] for name, i in wrong)]:
        row["label"] = LABELS[(LABELS.index(row["label"]) + 1) % 3]
    return splits


def _shuffled() -> list[tuple[str, str, str, str]]:
    every = [(label, *words) for label in LABELS for words in product(VERBS[label], PLACES, TIMES)]
    Random(0).shuffle(every)
    return every


def _of(rows: Sequence[Record], label: str) -> list[Record]:
    return [row for row in rows if row["label"] == label]


def worked_cases() -> list[Record]:
    """One case for each text of train: question, answer and reasoning."""
    return [
        {"question": row["text"], "answer": row["label"], "reasoning": row["reasoning"]} for row in records()["train"]
    ]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path) -> Path:
    """Write train, dev, test and worked.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in records().items():
        write_lines(folder / f"{name}.jsonl", rows)
    write_lines(folder / "worked.jsonl", worked_cases())
    return folder


def settings(**changes: Any) -> dict[str, Any]:
    """The config of the toy task as plain values: a column of reasonings, a base that learns in seconds.

    A change replaces the section below a key, `a__b` the value at a.b.
    """
    train = {"steps": 200, "rows_per_step": 16, "learning_rate": 1e-2, "evaluations": 2, "checkpoint_every": 60}
    train |= {"layout": "tree", "precision": "float32"}
    told: dict[str, Any] = {
        "task": {"name": "animals", "instruction": "Which animal is it?", "labels": list(LABELS)},
        "data": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl", "id": "id"},
        "base": {"scratch": {"width": 64, "layers": 1, "vocabulary": 400, "heads": 2}},
        "reasoner": {"train": dict(train)},
        "reasonings": {"teacher": "column", "candidates": 2, "sampling": {"max_tokens": 24}, "support": "never"},
        "classifier": {"arms": ["label_only", "reason_then_label", "label_then_reason"], "train": dict(train)},
        "evaluate": {"bootstrap": 100, "explain_rows": 6},
        "seed": 0,
    }
    for key, value in changes.items():
        put(told, key.split("__"), value)
    return told


def put(told: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        told = told.setdefault(key, {})
    told[path[-1]] = value


def quick(**changes: Any) -> dict[str, Any]:
    """What makes a run short where nothing needs to be learnt: few steps, and no checks on what a bad model writes."""
    few = {"steps": 4, "rows_per_step": 8, "evaluations": 1, "layout": "tree", "precision": "float32"}
    told: dict[str, Any] = {
        "reasoner__train": dict(few),
        "classifier__train": dict(few),
        "classifier__arms": ["label_only", "reason_then_label"],
        "reasonings__checks": [],
        "reasonings__sampling": {"max_tokens": 8},
        "base__scratch": {"width": 16, "layers": 1, "vocabulary": 300, "heads": 2},
    }
    return told | changes


def write_config(folder: Path, **changes: Any) -> Path:
    """Write the toy task's config beside its data and give its path."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings(**changes), sort_keys=False), encoding="utf-8")
    return path


def load(folder: Path, **changes: Any) -> Config:
    """The toy task's config, read as a user's would be; `folder` holds its data."""
    return config.parse(yaml.safe_dump(settings(**changes), sort_keys=False), folder / "config.yaml")


def about_one_row(task: Task, row: Row, candidate: Candidate) -> bool:
    """A check of the user's own that drops every candidate of one row."""
    return row.id == DROPPED_ROW


@dataclass(frozen=True)
class Done:
    """A finished run: its config, its data's folder, its own folder and its metrics."""

    config: Config
    data: Path
    folder: Path
    metrics: dict[str, Any]


def run(data: Path, folder: Path, *checks: Any, **changes: Any) -> Done:
    """Run the toy task with changes to its config."""
    config = load(data, **changes)
    pipeline.run(config, folder, checks)
    return Done(config, data, folder, store.read_json(folder / "metrics.json"))


def with_reasoner(**changes: Any) -> dict[str, Any]:
    """The changes of `quick_run`."""
    return quick(reasonings__teacher="reasoner", reasoner__worked_cases={"data": "worked.jsonl"}, **changes)
