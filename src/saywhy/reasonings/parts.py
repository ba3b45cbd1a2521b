"""The Parquet parts of stage 2: one row a candidate, a thousand rows a part, in the order of the data."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from saywhy import store
from saywhy.reasonings.asking import NOT_ANSWERED
from saywhy.records import Candidate, Figures, Row

_TYPES = {"length": pa.int64(), "twins": pa.int64(), "wins": pa.string()}
FIGURES = tuple(field.name for field in fields(Figures))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("reasoning", pa.string()),
        ("teacher", pa.string()),
        ("index", pa.int64()),
        ("prompt_hash", pa.string()),
        ("sampling", pa.string()),
        ("tokens", pa.int64()),
        ("cut", pa.bool_()),
        ("prompt_cut", pa.bool_()),
        *((name, _TYPES.get(name, pa.float64())) for name in FIGURES),
        ("kept", pa.bool_()),
        ("dropped_because", pa.string()),
    ]
)
# Candidates that a report shows before only the first of a reason or class is added, and columns of a printed table.
SAMPLES, COLUMNS = 120, 8
# Classes beside them that are named, those that got least.
NAMED = 5


def path_of(folder: Path, number: int) -> Path:
    """Give the place of a part."""
    return folder / f"part-{number:05d}.parquet"


def stands(path: Path, stamp: str) -> bool:
    """Tell whether a part is there, judged with what `stamp` says, and every question in it answered."""
    if store.table_stamp(path) != stamp:
        return False
    return NOT_ANSWERED not in store.read_table(path, ["dropped_because"])[0].unique().to_pylist()


def write_part(
    path: Path,
    rows: Sequence[Row],
    candidates: Sequence[Candidate],
    sampling: Mapping[str, Mapping[str, object]],
    stamp: str,
) -> None:
    """Write the candidates of some rows; `sampling` says how each teacher drew its words, `stamp` who judged them."""
    labels = {row.id: row.label for row in rows}
    drawn = {name: json.dumps(told, sort_keys=True) for name, told in sampling.items()}
    records = [
        {
            "id": one.row_id,
            "label": labels[one.row_id],
            "reasoning": one.reasoning,
            "teacher": one.teacher,
            "index": one.index,
            "prompt_hash": one.prompt_hash,
            "sampling": drawn[one.teacher],
            "tokens": one.tokens,
            "cut": one.cut,
            "prompt_cut": one.prompt_cut,
            **asdict(one.figures),
            "kept": one.kept,
            "dropped_because": one.dropped_because,
        }
        for one in candidates
    ]
    store.write_table(path, pa.Table.from_pylist(records, schema=SCHEMA), stamp)


def read_kept(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read the kept reasonings of every row that has one, in the order in which they were written."""
    kept: dict[str, tuple[str, ...]] = {}
    for record in _records(folder, ["id", "reasoning", "kept"]):
        if record["kept"]:
            kept[record["id"]] = (*kept.get(record["id"], ()), record["reasoning"])
    return kept


def kept_weights(kept: dict[str, tuple[str, ...]], per_row: int) -> dict[str, int]:
    """Say how many times a row counts: more than once where it was topped up with more reasonings than `per_row`."""
    return {name: -(-len(some) // per_row) for name, some in kept.items() if len(some) > per_row}


def short_of(
    every: Sequence[Row], rows: Sequence[Row], weights: Mapping[str, int], share: float
) -> dict[str, float]:
    """Give the classes that topping up left below `share` of what an even split would give them, with their share.

    Of `every` row `rows` are trained, and `weights` say how many times a row counts where that is more than once.
    """
    counts: Counter[str] = Counter(dict.fromkeys((row.label or "" for row in every), 0))
    for row in rows:
        counts[row.label or ""] += weights.get(row.id, 1)
    even = sum(counts.values()) / max(1, len(counts))
    return {label: counts[label] / even for label in sorted(counts) if counts[label] < share * even}


def summary(folder: Path) -> dict[str, Any]:
    """Count rows, candidates and what was kept or dropped, by reason, by class and by teacher; average the figures.

    `prompt_cut` counts by teacher and class the rows that a teacher could not read whole.
    """
    dropped: Counter[str] = Counter()
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    teachers: dict[str, Counter[str]] = defaultdict(Counter)
    halved: dict[str, Counter[str]] = defaultdict(Counter)
    totals: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    candidates = kept = rows = without = 0
    measured = [name for name in FIGURES if name != "wins"]
    columns = ["id", "label", "teacher", "prompt_cut", "kept", "dropped_because", *measured]
    for part in _parts(folder, columns):
        had: dict[str, bool] = {}
        label_of: dict[str, str] = {}
        shortened: set[tuple[str, str]] = set()
        for record in part:
            label, verdict = record["label"] or "", record["kept"]
            had[record["id"]] = had.get(record["id"], False) or verdict
            label_of[record["id"]] = label
            candidates, kept = candidates + 1, kept + verdict
            classes[label]["candidates"] += 1
            classes[label]["kept"] += verdict
            teachers[record["teacher"]]["candidates"] += 1
            teachers[record["teacher"]]["kept"] += verdict
            if record["prompt_cut"]:
                shortened.add((record["teacher"], record["id"]))
            if not verdict:
                dropped[record["dropped_because"]] += 1
                reasons[label][record["dropped_because"]] += 1
            for name in measured:
                if record[name] is not None:
                    totals[verdict][name] += record[name]
                    counts[verdict][name] += 1
        rows, without = rows + len(had), without + sum(not one for one in had.values())
        for teacher, name in shortened:
            halved[teacher][label_of[name]] += 1
        for name, one in had.items():
            classes[label_of[name]]["rows"] += 1
            classes[label_of[name]]["without"] += not one
    by_class = {
        label: {**{key: classes[label][key] for key in ("rows", "without", "candidates", "kept")},
                "dropped": dict(reasons[label].most_common())}
        for label in sorted(classes)
    }  # fmt: skip
    return {
        "rows": rows,
        "candidates": candidates,
        "kept": kept,
        "dropped": dict(dropped.most_common()),
        "rows_without": without,
        "by_class": by_class,
        "by_teacher": {name: dict(count) for name, count in sorted(teachers.items())},
        "prompt_cut": {name: dict(sorted(count.items())) for name, count in sorted(halved.items())},
        "figures": {
            name: {
                which: totals[verdict][name] / counts[verdict][name] if counts[verdict][name] else None
                for which, verdict in (("kept", True), ("dropped", False))
            }
            for name in measured
        },
    }


def samples(folder: Path) -> list[dict[str, Any]]:
    """Give the first candidate of every verdict and class: `label`, `reasoning`, `dropped_because` ("" for kept).

    Where these would be too many, each verdict and each class has one at least.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    seen: tuple[set[str], set[str]] = (set(), set())
    for record in _records(folder, ["id", "label", "reasoning", "teacher", "dropped_because"]):
        which = (record["dropped_because"], record["label"] or "")
        new = any(name not in names for name, names in zip(which, seen, strict=True))
        if which not in found and (new or len(found) < SAMPLES):
            found[which] = record
            for name, names in zip(which, seen, strict=True):
                names.add(name)
    return [found[which] for which in sorted(found)]


def lines(told: Mapping[str, Any]) -> list[str]:
    """Write a summary as a table of plain lines: what was kept and dropped, by reason and class."""
    classes = sorted(told["by_class"].items(), key=lambda item: -item[1]["rows"])
    # The rarest class is the one to look at.
    classes = [*classes[: COLUMNS - 1], *classes[COLUMNS - 1 :][-1:]]
    rows = [("", ["all", *(label for label, _ in classes)])]
    for key, name in (("rows", "rows"), ("without", "rows without a reasoning"), ("candidates", "candidates")):
        total = sum(one[key] for one in told["by_class"].values())
        rows.append((name, [total, *(one[key] for _, one in classes)]))
    rows.append(("kept", [told["kept"], *(one["kept"] for _, one in classes)]))
    for reason, count in told["dropped"].items():
        rows.append((reason, [count, *(one["dropped"].get(reason, 0) for _, one in classes)]))
    wide = max(len(name) for name, _ in rows)
    table = [
        f"{name:<{wide}} "
        + " ".join(
            f"{_cell(cell):>{max(8, len(str(head)[:16]))}}" for cell, head in zip(cells, rows[0][1], strict=True)
        )
        for name, cells in rows
    ]
    shown = {label for label, _ in classes}
    others = [(label, one) for label, one in told["by_class"].items() if label not in shown]
    others.sort(key=lambda item: (item[1]["rows"] - item[1]["without"]) / item[1]["rows"])
    if not others:
        return table
    lacking = [f"{label} {one['rows'] - one['without']} of {one['rows']}" for label, one in others if one["without"]]
    named = "rows with a reasoning, the fewest first: " + ", ".join(lacking[:NAMED])
    return [*table, f"{len(others)} classes more: {named if lacking else 'no row lacks one'}"]


def listed(counts: Mapping[str, int]) -> str:
    """Write counts by class, or by reason, in a line."""
    return ", ".join(f"{name or 'all'} {count}" for name, count in counts.items())


def unread(told: Mapping[str, Any]) -> list[str]:
    """Say of each teacher, in a sentence, how many texts it could not read whole, by class."""
    return [
        f"{teacher}: {sum(by_class.values())} texts of train did not fit and were cut in the middle where it wrote "
        f"({listed(by_class)})."
        for teacher, by_class in told["prompt_cut"].items()
    ]


def spent_line(teacher: str, taken: Mapping[str, float | None]) -> str:
    """Say what a teacher's attempts took until now, those of earlier runs in the same folder and failures included."""
    told = {name: value or 0 for name, value in taken.items()}
    failed = told["attempts"] - told["answers"]
    cost = "" if taken["cost"] is None else f", at a cost of {taken['cost']:,.2f}"
    tokens = f"{told['prompt_tokens']:,} tokens read and {told['tokens']:,} written"
    return (
        f"{teacher}: {told['attempts']:,} attempts, {failed:,} of them failed, {tokens}, "
        f"{told['seconds']:,.0f} s together{cost}"
    )


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)[:16]


def _records(folder: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in _parts(folder, columns):
        yield from part


def _parts(folder: Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    for path in sorted(folder.glob("part-*.parquet")):
        yield store.read_table(path, columns).to_pylist()
