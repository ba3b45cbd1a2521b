"""Classes: F1 by class, confusions, and what becomes of the rarest class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saywhy.metrics import mcnemar_exact
from saywhy.report import figures, story
from saywhy.report.explorer import LENGTH, drawing
from saywhy.report.figures import Table
from saywhy.report.page import cut, interval, percent
from saywhy.report.story import System

CLASSES = 20  # classes, and confusions, that a figure shows where there are more
LABEL_LENGTH = 60  # characters shown of a label in a table
SAMPLES = 3  # answers of the rarest class that are shown, right ones and wrong ones


@dataclass(frozen=True)
class Rarest:
    """The class with the fewest training rows: how it is answered, and reasonings of it.

    `written` are candidates for training rows as metrics.json keeps them, `answers` test rows of the class.
    """

    label: str
    train: int
    table: Table
    said: tuple[str, ...]
    written: tuple[Mapping[str, Any], ...]
    answers: tuple[Mapping[str, Any], ...]
    system: System | None


def by_class(metrics: Mapping[str, Any], pair: Sequence[System]) -> dict[str, Any] | None:
    """F1 per class of the headline's systems, worst classes only where there are many."""
    shown = [one for one in pair if one.test and one.test.get("per_class")]
    if not shown:
        return None
    rows = []
    for label in metrics["task"]["labels"]:
        each = [(one.test or {})["per_class"][label] for one in shown]
        rows.append(figures.ClassBars(label, each[0]["support"], tuple(one["f1"] for one in each)))
    drawn = sorted(rows, key=_mean_f1)[:CLASSES] if len(rows) > CLASSES else rows
    said = "; ".join(
        f"{figures.fit(row.label, 30)}: " + ", ".join("undefined" if v is None else story.points(v) for v in row.values)
        for row in drawn
    )
    title = f"F1 by class in percent: {' and '.join(one.key for one in shown)}"
    figure = figures.class_bars("classes", title, said, drawn, [one.tone for one in shown])
    recalls = [one for one in shown if (one.test or {}).get("recall_at_fpr")]
    rates = list(next(iter((recalls[0].test or {})["recall_at_fpr"].values()))) if recalls else []
    return {
        "systems": shown,
        "figure": figure,
        "drawn": len(drawn),
        "labels": metrics["task"]["labels"],
        "recalls": recalls,
        "rates": rates,
        "intervals": any("recall_ci95" in row for row in (shown[0].test or {})["per_class"].values()),
    }


def confusion(metrics: Mapping[str, Any], one: System, index: int) -> dict[str, Any]:
    """A matrix, or the most frequent confusions where there are many labels."""
    labels, counts = metrics["task"]["labels"], (one.test or {})["confusion"]
    wrong = [
        (count, gold, answer)
        for gold, row in enumerate(counts)
        for answer, count in enumerate(row)
        if count and gold != answer
    ]
    wrong.sort(key=lambda found: (-found[0], found[1], found[2]))
    most = [
        f"{figures.fit(labels[gold], 30)} answered as {figures.fit(labels[answer], 30)}: {count}"
        for count, gold, answer in wrong[:5]
    ]
    said = "Most frequent confusions: " + "; ".join(most) if most else "No confusions."
    title, key = f"Confusions of {one.key} on the test split", f"confusion-{index}"
    many = len(labels) > figures.MATRIX_LABELS
    if not many:
        svg = figures.matrix(key, title, said, labels, counts)
        names = tuple(cut(label, LABEL_LENGTH) for label in labels)
        rows = tuple((name, *(f"{count:,}" for count in row)) for name, row in zip(names, counts, strict=True))
        numbers = Table(f"{title}: gold labels by row, answers by column", ("gold", *names), rows)
    else:
        bars = [
            figures.Bar(
                f"{figures.fit(labels[gold], 17)} → {figures.fit(labels[answer], 17)}",
                count,
                f"{count} of {sum(counts[gold])}",
                one.tone,
            )
            for count, gold, answer in wrong[:CLASSES]
        ]
        svg = figures.bars(key, title, said, bars)
        found = tuple(
            (cut(labels[gold], LABEL_LENGTH), cut(labels[answer], LABEL_LENGTH), f"{n:,}", f"{sum(counts[gold]):,}")
            for n, gold, answer in wrong[:CLASSES]
        )
        numbers = Table(title, ("gold", "answered", "rows", "of"), found)
    return {"system": one, "figure": svg, "numbers": numbers, "many": many, "kinds": len(wrong)}


def rarest(
    metrics: Mapping[str, Any],
    known: Sequence[System],
    headline: story.Headline,
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Rarest | None:
    """What becomes of the rarest class; None where training rows were not counted or all classes are as frequent."""
    splits = (metrics.get("audit") or {}).get("splits") or {}
    counts = {
        label: n
        for label, n in ((splits.get("train") or {}).get("classes") or {}).items()
        if label in metrics["task"]["labels"]
    }
    if len(set(counts.values())) < 2:
        return None
    label = min(counts, key=lambda name: (counts[name], name))
    shown = [one for one in known if one.test and (one.test.get("per_class") or {}).get(label)]
    base = next((one for one in headline.systems if one.tone == "base"), None)
    order = [*(one for one in headline.systems if one.tone == "reasoned"), *known]
    said = {key for key, rows in predictions.items() if any(row.get("reasoning") for row in rows)}
    system = next((one for one in order if f"{one.arm}-{one.mode}" in said), None)
    samples = (metrics.get("reasonings") or {}).get("samples") or ()
    written = sorted((one for one in samples if one["label"] == label), key=lambda one: bool(one["dropped_because"]))
    return Rarest(
        label=label,
        train=counts[label],
        table=_rare_table(label, shown),
        said=tuple(_lost(label, shown, base, predictions)),
        written=tuple(written),
        answers=tuple(_rare_answers(label, system, predictions)) if system else (),
        system=system,
    )


def _rare_table(label: str, shown: Sequence[System]) -> Table:
    rows = []
    for one in shown:
        row = (one.test or {})["per_class"][label]
        rows.append(
            (
                one.key,
                f"{row['support']:,}",
                percent(row["recall"]),
                interval(row.get("recall_ci95")),
                percent(row["precision"]),
                interval(row.get("precision_ci95")),
                percent(row["f1"]),
            )
        )
    columns = ("arm / mode", "n", "recall", "95% interval", "precision", "95% interval", "F1")
    return Table(f"Test rows of {cut(label, LABEL_LENGTH)}, in percent", columns, tuple(rows))


def _lost(
    label: str, shown: Sequence[System], base: System | None, predictions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """A sentence for each reasoned system that finds fewer rows of the class than label only does."""
    if base is None or base not in shown:
        return []
    told = (base.test or {})["per_class"][label]
    said = []
    for one in (one for one in shown if one.tone == "reasoned" and one.mode != "explain"):
        row = (one.test or {})["per_class"][label]
        if row["recall"] is None or not row["recall"] < (told["recall"] or 0):
            continue
        lost, won = _exchanged(label, one, base, predictions)
        p = mcnemar_exact(lost, won)
        sure = p < story.SIGNIFICANT
        sentence = (
            f"{one.name} {'loses' if sure else 'finds fewer'} rows of the rarest class: it finds {_share(row)} of the "
            f"{row['support']:,} test rows of {cut(label, LABEL_LENGTH)}, {base.name} {_share(told)}."
        )
        if lost or won:
            sentence += (
                f" It misses {lost:,} that {base.name} finds and finds {won:,} that {base.name} misses "
                f"({story.p_value(p)}){'' if sure else ': chance alone can bring that about'}."
            )
        said.append(sentence)
    return said


def _exchanged(
    label: str, one: System, base: System, predictions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[int, int]:
    """How many rows of the class only the base has right, and how many only the other one."""
    mine, theirs = (
        {row["id"]: row["label"] == label for row in predictions.get(f"{x.arm}-{x.mode}", ()) if row["gold"] == label}
        for x in (one, base)
    )
    both = mine.keys() & theirs.keys()
    return sum(theirs[key] and not mine[key] for key in both), sum(mine[key] and not theirs[key] for key in both)


def _share(row: Mapping[str, Any]) -> str:
    span = f" {interval(row['recall_ci95'])}" if row.get("recall_ci95") else ""
    return f"{percent(row['recall'])}%{span}"


def _rare_answers(
    label: str, one: System, predictions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Test rows of the class with their reasonings: some answered rightly, then some wrongly."""
    rows = [row for row in predictions[f"{one.arm}-{one.mode}"] if row["gold"] == label and row.get("reasoning")]
    rows.sort(key=lambda row: drawing(row["id"]))
    found = []
    for right in (True, False):
        found += [
            {"text": cut(row["text"], LENGTH), "reasoning": cut(row["reasoning"], LENGTH), "label": row["label"],
             "right": right}
            for row in rows if (row["label"] == label) is right
        ][:SAMPLES]  # fmt: skip
    return found


def _mean_f1(row: figures.ClassBars) -> float:
    """The mean of what is defined; a class without any figure comes last."""
    defined = [value for value in row.values if value is not None]
    return sum(defined) / len(defined) if defined else math.inf
