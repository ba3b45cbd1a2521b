"""Made-up runs for tests of the report, and what every page must be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np

from saywhy import evaluate
from saywhy.evaluate import Answers
from saywhy.metrics import wilson
from saywhy.records import Task

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
        f"{FACTS[i % 7].capitalize()}, which weighs {3 + i % 4}; the other adds {i % 3}: sum {3 + i % 4 + i % 3}."
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
        prompt_tokens=(tokens / 2,) * n,
        forced=forced,
        strict=tuple(name if reasoned and not cut else None for cut, name in zip(forced, names, strict=True)),
        pruned=(0.0,) * n,
        choices=(None,) * n,
        seconds=n * (tokens + 1) / 5000,
    )


def rows_of(one: Answers) -> list[dict[str, Any]]:
    """Answers as the rows of a predictions file."""
    names = {"ids": "id", "texts": "text", "labels": "label", "reasonings": "reasoning"}
    columns = {names.get(key, key): value for key, value in vars(one).items() if key not in ("seconds", "prior")}
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
        floor_name: {"dev": answers(labels, n // 2, share, 3, tokens=0), "test": answers(labels, n, share, 4, tokens=0)}
        for floor_name, share in (("majority", 0.3), ("linear", linear))
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


def scores(accuracy: float | None, n: int = 300) -> dict[str, Any]:
    ci = None if accuracy is None else [accuracy - 0.05, accuracy + 0.05]
    empty = dict.fromkeys(("per_class", "confusion", "nll", "brier", "ece", "forced", "accuracy_unforced"))
    figures_ = {"accuracy": accuracy, "accuracy_ci95": ci, "macro_f1": accuracy, "mean_recall": accuracy}
    return {"n": n, **figures_, **empty, "rows_per_second": None, "tokens_per_row": None}


def bare(
    accuracies: Mapping[str, float], recommended: str, rows: Sequence[tuple[Any, ...]] = (), linear: float | None = 0.5
) -> dict[str, Any]:
    """A metrics.json in which every figure is chosen; rows are (a, b, metric, difference, low, high, p, holm)."""
    arms: dict[str, Any] = {}
    for key, accuracy in accuracies.items():
        arm, mode = key.split("/")
        modes = arms.setdefault(arm, {"train": {}, "modes": {}})["modes"]
        modes[mode] = {"dev": scores(accuracy), "test": scores(accuracy), "temperature": 1.0}
    arm, _, mode = recommended.partition("/")
    return {
        "task": {"name": "t", "labels": ["a", "b"], "ordinal": False},
        "recommended": {"arm": arm, "mode": mode, "metric": "macro_f1", "why": "Because."} if recommended else None,
        "arms": arms,
        "floors": {"majority": scores(0.3), "linear": None if linear is None else scores(linear)},
        "comparisons": [
            {"a": a, "b": b, "metric": metric, "difference": d, "ci95": [low, high], "p_mcnemar": p, "p_holm": holm,
             "a_only": 30, "b_only": 10, "n": 300}
            for a, b, metric, d, low, high, p, holm in rows
        ],
        "audit": {},
        "versions": {},
        "seed": 3,
    }  # fmt: skip


BOTH = {"label_only/label": 0.6, "reason_then_label/reason": 0.66}
REASON, LABEL, LINEAR = "reason_then_label/reason", "label_only/label", "floors/linear"


def share(value: float | None, n: int = 280) -> dict[str, Any]:
    right = round((value or 0) * n)
    return {"share": None if value is None else right / n, "n": n, "ci95": None if value is None else wilson(right, n)}


def mean(value: float | None, n: int = 280, width: float = 0.1) -> dict[str, Any]:
    return {"mean": value, "ci95": None if value is None else [value - width, value + width], "n": n}


def faithful(
    followed: float | None = 0.93,
    stayed: float | None = 0.04,
    masked: float = 0.88,
    first: float = 0.35,
    without: float = 0.35,
) -> dict[str, Any]:
    """What a faithfulness probe found, by default that answers follow; every share is another one."""
    half = {"followed": share(followed, 140), "changed": share(0.41, 140), "agrees": share(0.97, 140)}
    other = {"followed": share(None if followed is None else max(followed - 0.2, 0.0), 60), "changed": share(0.52, 60)}
    return {
        "n": 300,
        "own": share(1.0, 300),
        "swap_same": {"stayed": share(0.97)},
        "swap_other": {"followed": share(followed), "stayed": share(stayed), "elsewhere": share(0.03)},
        "truncated": [
            {"at": at / 10, "same": share(without + (1 - without) * at / 10, 300), "accuracy": share(0.3 + 0.04 * at)}
            for at in range(11)
        ],
        "first_tokens": [
            {"at": at, "same": share(min(first + 0.02 * at, 1.0), 300), "accuracy": share(min(0.3 + 0.01 * at, 1.0))}
            for at in (1, 2, 4, 8, 16, 32)
        ],
        "mistake": {"changed": share(0.44)},
        "masked": {"named": share(0.61, 300), "same": share(masked, 183), "accuracy": share(0.7, 183)},
        "conclusion": {"read": share(0.9, 300), "agrees": share(0.98, 270)},
        "by_right": {"right": half, "wrong": {**other, "agrees": share(0.8, 60)}},
        "rq": {"value": 0.082, "ci95": [0.031, 0.133], "with": 0.76, "without": 0.678, "n": 300,
               "without_system": "label_only/label"},
        "las": {"value": -0.021, "ci95": [-0.06, 0.018], "leaking": {"value": 0.051, "n": 199},
                "hidden": {"value": -0.093, "n": 101}},
        "rev": {"all": mean(0.61, 300), "right": mean(0.82, 228), "wrong": mean(-0.07, 72), "vacuous": mean(0.0, 300)},
        "missing": "",
    }  # fmt: skip


def inside(position: str = "after the text", start: float = 6.0, layers: int = 5) -> dict[str, Any]:
    """What was seen in the layers of one system."""
    return {
        "n": 300,
        "position": position,
        "layers": [
            {
                "layer": i,
                "logit_lens": mean(start - i, 300, 0.2),
                "magnitude": mean(4.5 + 0.1 * i, 300, 0.02),
                "softmax": mean(4.9 - 0.03 * i, 300, 0.01),
            }
            for i in range(layers)
        ],
        "label_entropy": mean(0.41, 300),
        "vocabulary_entropy": mean(0.52, 300),
        "top": mean(0.83, 300),
        "margin": mean(0.71, 300),
    }


def probes(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """All three probes of a run with a system of each kind."""
    names = [f"{arm}/{mode}" for arm, facts in metrics["arms"].items() for mode in facts["modes"]]
    written = [name for name in names if name.endswith("/reason")]
    return {
        "faithfulness": {name: faithful() for name in written},
        "inside": {
            name: inside("after the reasoning" if name in written else "after the text", 6.0 + index / 3)
            for index, name in enumerate(names)
            if name.endswith(("/label", "/reason"))
        },
        "latency": {
            "rows": 200,
            "device": "cpu",
            "threads": 2,
            "systems": {
                name: [
                    {"batch": batch, "rows": 200, "seconds": 8.0 / batch**0.5, "right": 130 + 7 * index,
                     "tokens": 9000 * (index + 1)}
                    for batch in (1, 8, 32)
                ]
                for index, name in enumerate(names)
            },
        },
    }  # fmt: skip


class Page(HTMLParser):
    """Every start tag with its attributes; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "wbr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), self.open[-1] if self.open else ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), self.open[-1] if self.open else ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def check_sound(page: str) -> Page:
    """What every page must be: well formed, accessible, and without anything that is fetched or run but its script."""
    found = Page(page)
    scripts = [attributes for tag, attributes, _ in found.tags if tag == "script"]
    assert [one for one in scripts if one.get("type") != "application/json"] == [{}]
    ids = [attributes["id"] for _, attributes, _ in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    kinds = {tag for tag, _, _ in found.tags}
    assert not kinds & {"link", "iframe", "object", "embed", "img", "form", "base"}
    for tag, attributes, parent in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert attributes.get("href", "#").startswith("#")
        assert tag != "table" or parent == "div"
        assert tag != "th" or "scope" in attributes
        for target in (attributes.get("aria-labelledby") or "").split():
            assert target in ids
        assert tag != "a" or (attributes["href"] or "")[1:].partition("?")[0] in ids
    assert page.count("<table") == page.count("<caption")
    assert "url(http" not in page and "@import" not in page and "NaN" not in page
    for svg in re.findall(r'<svg class="(?:wide|sized)".*?</svg>(?=\s*(?:</div>|<figcaption|<ul))', page, re.DOTALL):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
    return found
