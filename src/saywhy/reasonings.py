"""Stage 2: for every training row, candidates are written, checked, and kept or dropped with a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from saywhy import store
from saywhy.checks import Check, first_failing
from saywhy.config import Reasonings
from saywhy.progress import track
from saywhy.prompts import described, reasoner_question
from saywhy.records import Candidate, Row, Task, WorkError
from saywhy.teachers import Question, Teacher

ROWS_PER_PART = 256
NOT_NEEDED = "enough_kept"
COLUMNS = ("id", "reasoning", "teacher", "index", "prompt_hash", "sampling", "tokens", "cut", "kept", "dropped_because")


def write(
    folder: Path,
    task: Task,
    rows: Sequence[Row],
    teachers: Mapping[str, Teacher],
    checks: Sequence[Check],
    settings: Reasonings,
    prompt_hash: str,
) -> None:
    """Write candidates for every row into `folder`, part by part; parts that stand are not written again.

    Every candidate keeps its row, whatever the verdict. Raises WorkError where no reasoning is kept for any row.
    """
    kept_any = False
    with track("reasonings", len(rows), "rows") as advance:
        for number, start in enumerate(range(0, len(rows), ROWS_PER_PART)):
            some = rows[start : start + ROWS_PER_PART]
            path = folder / f"part-{number:05d}.parquet"
            if not path.exists():
                candidates = _candidates(task, some, teachers, checks, settings)
                store.write_table(path, _table(candidates, settings, prompt_hash))
            part = store.read_table(path)
            kept_any |= any(part.column("kept").to_pylist())
            advance(len(some), sum(part.column("tokens").to_pylist()), "")
    if not kept_any:
        reasons = ", ".join(f"{name} {count}" for name, count in summary(folder)["dropped"].items())
        raise WorkError(
            f"no reasoning is kept for any row ({reasons}); read {folder}/part-*.parquet, then loosen "
            "reasonings.checks, train the reasoner longer, or take another teacher"
        )


def _candidates(
    task: Task, rows: Sequence[Row], teachers: Mapping[str, Teacher], checks: Sequence[Check], settings: Reasonings
) -> list[Candidate]:
    asked: dict[str, list[Candidate]] = {row.id: [] for row in rows}
    for name, teacher in teachers.items():
        # What came with the rows stands once; what is written is written as often as candidates are asked for.
        count = 1 if name in ("column", "file") else settings.candidates
        pairs = [(row, index) for row in rows for index in range(count)]
        questions = [_question(task, row, index) for row, index in pairs]
        for (row, index), draft in zip(pairs, teacher(questions), strict=True):
            asked[row.id].append(Candidate(row.id, draft.reasoning, name, index, draft.cut, draft.tokens))
    return [one for row in rows for one in verdicts(task, row, asked[row.id], checks, settings.per_row)]


def _question(task: Task, row: Row, index: int) -> Question:
    return Question(row.id, reasoner_question(task, row.text), described(task, row.label or ""), index)


def verdicts(
    task: Task, row: Row, candidates: Sequence[Candidate], checks: Sequence[Check], per_row: int
) -> list[Candidate]:
    """Keep the first `per_row` candidates of a row that pass every check; give the others their reason."""
    judged = []
    kept = 0
    for candidate in candidates:
        reason = first_failing(checks, task, row, candidate) or (NOT_NEEDED if kept == per_row else "")
        kept += not reason
        judged.append(replace(candidate, dropped_because=reason))
    return judged


def _table(candidates: Sequence[Candidate], settings: Reasonings, prompt_hash: str) -> pa.Table:
    sampling = json.dumps(settings.sampling.model_dump(), sort_keys=True)
    records = [
        (c.row_id, c.reasoning, c.teacher, c.index, prompt_hash, sampling, c.tokens, c.cut, c.kept, c.dropped_because)
        for c in candidates
    ]
    return pa.table(dict(zip(COLUMNS, map(list, zip(*records, strict=True)), strict=True)))


def read_kept(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read the kept reasonings of every row that has one."""
    kept: dict[str, tuple[str, ...]] = {}
    for record in _records(folder, ["id", "reasoning", "kept"]):
        if record["kept"]:
            kept[record["id"]] = (*kept.get(record["id"], ()), record["reasoning"])
    return kept


def summary(folder: Path) -> dict[str, Any]:
    """Count rows, candidates and what was kept or dropped, by reason."""
    records = _records(folder, ["id", "kept", "dropped_because"])
    rows = {record["id"] for record in records}
    served = {record["id"] for record in records if record["kept"]}
    dropped = Counter(record["dropped_because"] for record in records if not record["kept"])
    return {
        "rows": len(rows),
        "candidates": len(records),
        "kept": sum(record["kept"] for record in records),
        "dropped": dict(dropped.most_common()),
        "rows_without": len(rows - served),
    }


def _records(folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    return [
        record
        for path in sorted(folder.glob("part-*.parquet"))
        for record in store.read_table(path).select(columns).to_pylist()
    ]
