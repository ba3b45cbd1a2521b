"""Cut shares off and draw subsets: seeded, by class, independent of the rows' order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from saywhy.records import RequestError, Row

T = TypeVar("T")


def text_key(row: Row) -> str:
    """Give what two rows share when they ask the same: the text but for case and spacing, and the choices."""
    return "\0".join([" ".join(row.text.split()).casefold(), *sorted(row.choices or ())])


def cut_share(rows: Sequence[Row], size: int, seed: int, what: str) -> tuple[list[Row], list[Row]]:
    """Cut about `size` rows off, by class, with all duplicates of a text on one side: the rest and what was cut."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(text_key(row), []).append(row)
    # A text with two labels counts with the first by name, so that the rows' order does not matter.
    ordered = _spread(
        list(groups.items()), lambda group: (min(map(_class, group[1])), group[0], len(group[1])), f"{seed} {what}"
    )
    cut: set[str] = set()
    for _, group in ordered:
        if len(cut) + len(group) <= size:
            cut.update(row.id for row in group)
    if not cut or len(cut) == len(rows):
        raise RequestError(f"{what}: {size} of {len(rows)} rows cannot be cut off; give a file, or another share")
    return [row for row in rows if row.id not in cut], [row for row in rows if row.id in cut]


def draw(rows: Sequence[Row], size: int, seed: int) -> list[Row]:
    """Draw `size` rows by class, in their order; what a smaller size draws with the same seed is part of it."""
    ordered = _spread(list(rows), lambda row: (_class(row), row.id, 1), f"{seed} rows")
    drawn = {row.id for row in ordered[:size]}
    return [row for row in rows if row.id in drawn]


def draw_each(rows: Sequence[Row], each: int, seed: int) -> list[Row]:
    """Draw `each` rows of every class, in their order; what fewer draw with the same seed is part of it."""
    taken: Counter[str] = Counter()
    drawn = set()
    for row in _spread(list(rows), lambda row: (_class(row), row.id, 1), f"{seed} rows"):
        if taken[_class(row)] < each:
            taken[_class(row)] += 1
            drawn.add(row.id)
    return [row for row in rows if row.id in drawn]


def _class(row: Row) -> str:
    return "" if row.choices is not None else row.label or ""


def _spread(items: list[T], facts: Callable[[T], tuple[str, str, int]], seed: str) -> list[T]:
    """Order items so that every beginning of the list holds each class in proportion; facts: class, name, size.

    Within a class the order is that of a seeded hash. The item with n rows before it stands at the share n + half its
    own size of its class's rows.
    """
    ranked = sorted((hashlib.sha256(f"{seed}\0{facts(item)[1]}".encode()).digest(), i) for i, item in enumerate(items))
    totals: dict[str, int] = {}
    for item in items:
        totals[facts(item)[0]] = totals.get(facts(item)[0], 0) + facts(item)[2]
    before = dict.fromkeys(totals, 0)
    placed = []
    for rank, i in ranked:
        kind, _, size = facts(items[i])
        placed.append(((before[kind] + size / 2) / totals[kind], rank, i))
        before[kind] += size
    return [items[i] for _, _, i in sorted(placed)]
