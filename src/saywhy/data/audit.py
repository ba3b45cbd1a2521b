"""Count what is wrong with the rows: duplicates, conflicting labels, overlap of splits, empty texts, class balance."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from saywhy.data.split import text_key
from saywhy.records import Row


def audit(
    labels: Sequence[str], splits: Mapping[str, Sequence[Row]], empty_train: int, notes: Sequence[str]
) -> dict[str, Any]:
    """Describe the splits train, dev and test and what they share.

    `duplicates` counts rows whose text stood before in the split, `conflicting` texts with more than one label,
    `…_other_label` rows whose text stands in the other split, never with their own label. Empty texts are counted
    apart; `empty_train` of them were left out of train before.
    """
    texts = {name: _labels_by_text(rows) for name, rows in splits.items()}
    described = {name: _describe(labels, rows, texts[name]) for name, rows in splits.items()}
    described["train"]["empty"] += empty_train
    overlap: dict[str, int] = {}
    for one, other in (("test", "train"), ("dev", "train"), ("test", "dev")):
        shared = [row for row in splits[one] if text_key(row) in texts[other]]
        overlap[f"{one}_in_{other}"] = len(shared)
        overlap[f"{one}_in_{other}_other_label"] = sum(row.label not in texts[other][text_key(row)] for row in shared)
    return {"splits": described, "overlap": overlap, "notes": [*notes, *_notes(labels, described, overlap)]}


def _labels_by_text(rows: Sequence[Row]) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for row in rows:
        if row.text.strip():
            found.setdefault(text_key(row), set()).add(row.label)
    return found


def _describe(labels: Sequence[str], rows: Sequence[Row], texts: Mapping[str, set[str | None]]) -> dict[str, Any]:
    counts = Counter(row.label for row in rows)
    words = [len(row.text.split()) for row in rows]
    empty = sum(not row.text.strip() for row in rows)
    return {
        "rows": len(rows),
        "duplicates": len(rows) - empty - len(texts),
        "conflicting": sum(len(found) > 1 for found in texts.values()),
        "empty": empty,
        "classes": {label: counts[label] for label in labels},
        "words": {"median": statistics.median(words), "max": max(words)},
    }


def _notes(labels: Sequence[str], described: Mapping[str, Any], overlap: Mapping[str, int]) -> list[str]:
    notes = []
    for name in ("test_in_train", "dev_in_train", "test_in_dev"):
        one, other = name.split("_in_")
        if overlap[name]:
            differing = overlap[f"{name}_other_label"]
            notes.append(
                f"{overlap[name]} {one} rows have a text that stands in {other}, {differing} with another label."
            )
    for split in ("train", "dev", "test"):
        if described[split]["conflicting"]:
            notes.append(f"{described[split]['conflicting']} texts of {split} have more than one label.")
        none = [label for label, count in described[split]["classes"].items() if not count]
        if none:
            notes.append(f"Without a row in {split}: {', '.join(none[:10])}{' and more' if len(none) > 10 else ''}.")
    folded: dict[str, list[str]] = {}
    for label in labels:
        folded.setdefault(label.casefold(), []).append(label)
    notes += [f"{' and '.join(same)} differ in case only." for same in folded.values() if len(same) > 1]
    return notes
