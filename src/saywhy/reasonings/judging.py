"""Candidates get their figures, then the verdict of the checks; of those that pass, the best are kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from saywhy import journal
from saywhy.checks import Check, Index, count_twins, first_failing, text_figures
from saywhy.journal import Journal
from saywhy.records import Candidate, Figures, Row, Task

EMPTY = "empty"
NOT_NEEDED = "enough_kept"
SAME = "same_as_kept"
MERGED = "merged"

# Figures that need a model, for rows with a reasoning each.
Measure = Callable[[Sequence[tuple[Row, str]]], list[Figures]]


@dataclass(frozen=True)
class Measured:
    """What measures candidates with models: `identity` says which, `begin` loads them when they are first needed."""

    identity: object
    begin: Callable[[], Measure]


def with_figures(
    book: Journal,
    task: Task,
    rows: Mapping[str, Row],
    candidates: Sequence[Candidate],
    length: Callable[[str], int],
    index: Index,
    measured: Measured | None,
) -> list[Candidate]:
    """Give every candidate its figures: those of its text, and those of models, which the journal keeps."""
    twins = count_twins(index, [rows[one.row_id].text for one in candidates], [one.reasoning for one in candidates])
    found = []
    for one, same in zip(candidates, twins.tolist(), strict=True):
        share, at = text_figures(task, rows[one.row_id], one.reasoning)
        found.append(replace(one, figures=Figures(length(one.reasoning), share, at, same)))
    if measured is None:
        return found
    worth = [at for at, one in enumerate(found) if one.reasoning and not one.dropped_because]
    pairs = [(rows[found[at].row_id], found[at].reasoning) for at in worth]
    for at, told in zip(worth, measures(book, measured, pairs), strict=True):
        found[at] = replace(found[at], figures=replace(found[at].figures, **told))
    return found


def measures(book: Journal, measured: Measured, pairs: Sequence[tuple[Row, str]]) -> list[dict[str, Any]]:
    """Give the figures that models take of rows with a reasoning each, from the journal where it has them."""
    keys = [_key(measured, row, reasoning) for row, reasoning in pairs]
    held = journal.figures(book, keys)
    missing = [at for at, key in enumerate(keys) if key not in held]
    if missing:
        found = measured.begin()([pairs[at] for at in missing])
        fresh = {keys[at]: _written(one) for at, one in zip(missing, found, strict=True)}
        journal.keep_figures(book, fresh)
        held |= fresh
    return [held[key] for key in keys]


def _key(measured: Measured, row: Row, reasoning: str) -> bytes:
    told = [measured.identity, row.text, row.label, row.choices, reasoning]
    return hashlib.sha256(json.dumps(told).encode()).digest()[:16]


def _written(figures: Figures) -> dict[str, Any]:
    return {name: value for name, value in asdict(figures).items() if value is not None}


def verdicts(
    task: Task, row: Row, candidates: Sequence[Candidate], checks: Sequence[Check], most: int
) -> list[Candidate]:
    """Keep the best `most` candidates of a row that pass every check; give the others their reason.

    The best have the most support, then the highest likelihood; where neither was measured, the first ones. Of two that
    say the same one is kept. No reasoning is none whatever the checks: a file or a column may lack some.
    """
    judged = [
        one
        if one.dropped_because
        else replace(one, dropped_because=first_failing(checks, task, row, one) if one.reasoning else EMPTY)
        for one in candidates
    ]
    passed = [at for at, one in enumerate(judged) if not one.dropped_because]
    said: set[str] = set()
    for at in sorted(passed, key=lambda at: _rank(judged[at], at)):
        words = " ".join(judged[at].reasoning.casefold().split())
        if len(said) == most:
            judged[at] = replace(judged[at], dropped_because=NOT_NEEDED)
        elif words in said:
            judged[at] = replace(judged[at], dropped_because=SAME)
        else:
            said.add(words)
    return judged


def _rank(candidate: Candidate, at: int) -> tuple[float, float, int]:
    figures = candidate.figures
    support = float("-inf") if figures.support is None else figures.support
    likelihood = float("-inf") if figures.likelihood is None else figures.likelihood
    return -support, -likelihood, at


def in_turn(more: Mapping[str, int], able: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Give out what each class is to have more of to its rows in turn, the first ones first."""
    extra: Counter[str] = Counter()
    for label, count in more.items():
        for at in range(count):
            extra[able[label][at % len(able[label])]] += 1
    return dict(extra)


def extra_of(weights: Mapping[str, int], rows: Mapping[str, int], share: float) -> dict[str, int]:
    """Say how many more reasonings each class needs until it has `share` of what an even split would give it.

    `weights` counts the targets of each class, `rows` those of its rows that have a reasoning: a class without any gets
    none. What is added raises the total, and so what is needed: this is repeated until nothing changes.
    """
    able = {label for label, count in rows.items() if count}
    extra = dict.fromkeys(weights, 0)
    while True:
        even = (sum(weights.values()) + sum(extra.values())) / len(weights)
        wanted = {c: max(0, -int(-share * even // 1) - n) if c in able else 0 for c, n in weights.items()}
        if all(wanted[label] <= extra[label] for label in extra):
            return extra
        extra = {label: max(extra[label], wanted[label]) for label in extra}
