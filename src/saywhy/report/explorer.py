"""The explorer of predictions: what its script needs of every system's answers to the same rows, once a row.

The page holds it as JSON that nothing runs, and draws a row when it is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from saywhy import metrics as scores
from saywhy.report.page import CONTROL, cut
from saywhy.report.story import System

ROWS = 2000  # rows that the page holds, at most
SIZE = 4_000_000  # characters of JSON, at most: fewer rows are held where texts are long or systems many
LENGTH = 600  # characters kept of a text or a reasoning
SMALLEST = 0.0005  # a probability below it is not kept

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Explorer:
    """The rows as JSON that may stand inside a script element, and how many of the test rows they are."""

    data: Markup
    systems: tuple[System, ...]
    labels: tuple[str, ...]
    held: int
    of: int
    reasoned: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """Give the keys of all systems."""
        return tuple(one.key for one in self.systems)

    @property
    def names(self) -> str:
        """The sentence that says which rows are here."""
        if self.held == self.of:
            return f"All {self.of:,} test rows."
        return (
            f"{self.held:,} of the {self.of:,} test rows, drawn by the hash of their ids, so that the page stays "
            "small; predictions/ has all of them."
        )


def explore(
    task: Mapping[str, Any], known: Sequence[System], first: Sequence[System], predictions: Mapping[str, Rows]
) -> Explorer | None:
    """What the explorer shows; None without predictions.

    `first` are the systems it begins with. Rows are those that any system answered, in the order of `drawing`; a row of
    the JSON is [text, gold, id, answers, choices], an answer [label, per mille by place, reasoning, forced] or null
    where a system lacks the row. Labels are places in the task's labels or the row's own choices.
    """
    order = [*first, *(one for one in known if one not in first)]
    have = [one for one in order if predictions.get(f"{one.arm}-{one.mode}")]
    if not have:
        return None
    by_id = [{str(row["id"]): row for row in predictions[f"{one.arm}-{one.mode}"]} for one in have]
    ids = sorted(dict.fromkeys(key for rows in by_id for key in rows), key=drawing)
    written: list[str] = []
    size = 0
    for key in ids[:ROWS]:
        row = _row(task, have, [rows.get(key) for rows in by_id])
        size += len(row)
        if size > SIZE and written:
            break
        written.append(row)
    head = {
        "labels": [cut(label, LENGTH) for label in task["labels"]],
        "systems": [{"key": one.key, "tone": one.tone} for one in have],
        "first": [have.index(one) for one in first if one in have][:2] or [0],
    }
    rows = ",\n".join(written)
    data = f'{{"head":{_json(head)},"rows":[\n{rows}\n]}}'
    return Explorer(
        data=Markup(data),
        systems=tuple(have),
        labels=tuple(task["labels"]),
        held=len(written),
        of=len(ids),
        reasoned=any(row.get("reasoning") for rows in by_id for row in rows.values()),
    )


def drawing(key: object) -> bytes:
    """Where a row's id comes in a drawing: its hash, so that every report draws the same rows."""
    return hashlib.sha256(str(key).encode("utf-8", "surrogatepass")).digest()


def calibrated(labels: Sequence[str], one: System, row: Mapping[str, Any]) -> list[float] | None:
    """The probabilities of a row after the system's temperature and prior; None where it has none."""
    given = row.get("probabilities")
    if given is None or len(given) != len(labels):
        return None
    scaled = scores.apply_temperature(np.asarray([given], dtype=np.float64), one.temperature or 1.0)
    if one.prior:
        scaled = scores.apply_prior(scaled, np.array([one.prior.get(label, 1.0) for label in labels]))
    values: list[float] = scaled[0].tolist()
    return values


def _row(task: Mapping[str, Any], have: Sequence[System], answers: Sequence[Mapping[str, Any] | None]) -> str:
    some = next(row for row in answers if row is not None)
    own = some.get("choices")
    labels = list(own or task["labels"])
    said: list[list[Any] | None] = []
    for one, row in zip(have, answers, strict=True):
        if row is None:
            said.append(None)
            continue
        shares = calibrated(labels, one, row) or []
        kept = [(place, round(1000 * p)) for place, p in enumerate(shares) if p >= SMALLEST]
        flat = [value for pair in kept for value in pair]
        reasoning = cut(row.get("reasoning") or "", LENGTH)
        answer: list[Any] = [_place(labels, row["label"]), flat, reasoning, int(bool(row.get("forced")))]
        # What is empty at the end is left out: most answers of a mode without reasonings have nothing there.
        while answer and answer[-1] in ("", 0) and len(answer) > 2:
            answer.pop()
        said.append(answer)
    head = [cut(some["text"], LENGTH), _place(labels, some["gold"]), cut(some["id"], 40), said]
    return _json([*head, [cut(label, LENGTH) for label in own]] if own else head)


def _place(labels: Sequence[str], label: str) -> int | str:
    """The place of a label, or the label itself where it is none of them."""
    return labels.index(label) if label in labels else cut(label, LENGTH)


def _json(value: object) -> str:
    """Compact JSON without a character that could end or open an element, or that no HTML may hold."""
    text = CONTROL.sub("\ufffd", json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
