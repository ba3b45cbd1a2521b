"""The report: what its sentences say in each case, that hostile text stays text, and that the page is sound."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saywhy import evaluate, report, store
from saywhy.evaluate import Answers
from saywhy.records import RequestError, Task
from saywhy.report import figures, story

URGENCY = ("low", "normal", "high", "urgent")
FACTS = (
    "the checkout page shows an error to every customer",
    "one colleague cannot print on the second floor",
    "a typing error stands in the footer of the intranet",
    "the nightly backup has failed twice in a row",
    "a customer asks when the new price list comes out",
    "two users were signed out in the middle of their work",
    "the warehouse scanners lose their connection every few minutes",
)
AUDIT = {
    "splits": {
        name: {
            "rows": rows,
            "duplicates": duplicates,
            "conflicting": 2 * (name == "train"),
            "empty": 0,
            "classes": {},
            "words": {"median": 21, "max": 64},
        }
        for name, rows, duplicates in (("train", 1200, 9), ("dev", 150, 0), ("test", 300, 1))
    },
    "overlap": {"test_in_train": 3, "test_in_train_other_label": 0, "dev_in_train": 0, "test_in_dev": 0},
    "notes": ["3 test texts stand in train, too."],
}
REASONINGS = {
    "rows": 1200,
    "candidates": 4800,
    "kept": 1130,
    "dropped": {"label_named_first": 1804, "copy_of_text": 311, "cut_off": 96, "empty": 12},
    "rows_without": 70,
}
VERSIONS = {"saywhy": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "transformers": "5.23.1"}


def answers(
    labels: Sequence[str], n: int, share_right: float, seed: int, reasoned: bool = False, tokens: float = 46.0
) -> Answers:
    """Made-up answers. The same rows are hard for every system, so that pairs are as correlated as real ones."""
    shared = np.random.default_rng(7)
    gold = shared.integers(len(labels), size=n)
    difficulty = shared.random(n)
    own = np.random.default_rng(seed)
    right = 0.7 * difficulty + 0.3 * own.random(n) < np.quantile(0.7 * difficulty + 0.3 * own.random(n), share_right)
    near = np.clip(gold + own.choice([-1, 1], size=n), 0, len(labels) - 1)
    other = np.where(near == gold, (gold + 1) % len(labels), near)
    given = np.where(right, gold, other)
    sure = own.uniform(0.5, 0.99, size=n)
    probabilities = np.full((n, len(labels)), 1.0) * ((1 - sure) / (len(labels) - 1))[:, None]
    probabilities[np.arange(n), given] = sure
    texts = tuple(f"Ticket {i}: {FACTS[i % 7]}, and {FACTS[(i // 7 + 3) % 7]}." for i in range(n))
    said = tuple(
        f"{FACTS[i % 7].capitalize()}, which weighs {3 + i % 4}; the other fact adds {i % 3}, so the sum is {3 + i % 4 + i % 3}."
        for i in range(n)
    )
    forced = tuple(bool(x < 0.08) for x in own.random(n)) if reasoned else (False,) * n
    names = tuple(labels[i] for i in given)
    return Answers(
        ids=tuple(f"row-{i:04}" for i in range(n)),
        texts=texts,
        gold=tuple(labels[i] for i in gold),
        labels=names,
        probabilities=tuple(map(tuple, probabilities.tolist())),
        reasonings=said if reasoned else (None,) * n,
        tokens=(tokens,) * n,
        forced=forced,
        strict=tuple(None if cut else name for cut, name in zip(forced, names, strict=True)) if reasoned else (None,) * n,
        pruned=(0.0,) * n,
        choices=(None,) * n,
        seconds=n * (tokens + 1) / 5000,
    )


def rows_of(one: Answers) -> list[dict[str, Any]]:
    """Answers as the rows of a predictions file."""
    names = {"ids": "id", "texts": "text", "labels": "label", "reasonings": "reasoning"}
    columns = {names.get(key, key): value for key, value in vars(one).items() if key != "seconds"}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def curve(start: float, end: float, steps: int) -> list[list[float]]:
    noise = np.random.default_rng(steps).normal(0, 0.03, steps)
    return [[i + 1, end + (start - end) * float(np.exp(-5 * i / steps)) + abs(float(noise[i]))] for i in range(steps)]


def run(
    shares: Mapping[str, float],
    labels: Sequence[str] = URGENCY,
    n: int = 300,
    linear: float = 0.62,
    ordinal: bool = True,
    name: str = "tickets",
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """metrics.json and predictions of a made-up run: a share of right answers for each arm/mode."""
    task = Task(name, "How urgent is the ticket?", tuple(labels), ordinal=ordinal)
    cost = {"label": 46.0, "explain": 88.0, "reason": 91.0, "vote": 312.5}
    made = {
        split: {
            key: answers(labels, size, share, seed + 10 * index, key.split("/")[1] in ("reason", "vote", "explain"),
                         cost[key.split("/")[1]])
            for index, (key, share) in enumerate(shares.items())
        }
        for split, size, seed in (("dev", n // 2, 100), ("test", n, 200))
    }  # fmt: skip
    floor = {
        "majority": {"dev": answers(labels, n // 2, 0.3, 1, tokens=0), "test": answers(labels, n, 0.3, 2, tokens=0)},
        "linear": {"dev": answers(labels, n // 2, linear, 3, tokens=0), "test": answers(labels, n, linear, 4, tokens=0)},
    }
    arms = dict.fromkeys(key.split("/")[0] for key in shares)
    train = {
        arm: {"steps": 456, "rows": 14592, "tokens": 812345, "target_tokens": 90_000 * (arm != "label_only") + 29184,
              "label_tokens": 29184, "seconds": 512.5 + 400 * i, "curve": curve(1.9 + i, 0.4 + 0.3 * i, 456)}
        for i, arm in enumerate(arms)
    }  # fmt: skip
    audit = {
        **AUDIT,
        "splits": {
            split: {**facts, "classes": {label: facts["rows"] // len(labels) for label in labels}}
            for split, facts in AUDIT["splits"].items()
        },
    }
    metrics = evaluate.metrics_json(
        task=task, dev=made["dev"], test=made["test"], floor=floor, train=train, audit=audit, versions=VERSIONS, seed=0,
        resamples=200, reasonings=REASONINGS if len(arms) > 1 else None,
    )  # fmt: skip
    return metrics, {key.replace("/", "-"): rows_of(one) for key, one in made["test"].items()}


FULL = {
    "label_only/label": 0.66,
    "reason_then_label/reason": 0.76,
    "reason_then_label/vote": 0.79,
    "label_then_reason/label": 0.71,
    "label_then_reason/explain": 0.71,
}
