"""The journal of what teachers answered and what was measured of it: one SQLite file, written as things arrive.

An answer is found again by its key, a hash of all it depends on: the teacher and its revision, the prompt, the sampling
and the seed. Every attempt has a row, with its time and cost; the first success of a key stands for good, failures are
recorded with their reason and do not stand in the way of another attempt.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from saywhy.records import RequestError, WorkError

Journal = sqlite3.Connection
FILE = "answers.sqlite"
# SQLite takes at least as many variables in one statement.
AT_ONCE = 900
VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL, row_id TEXT NOT NULL, teacher TEXT NOT NULL,
    candidate INTEGER NOT NULL, reasoning TEXT NOT NULL, cut INTEGER NOT NULL, tokens INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, seconds REAL NOT NULL, cost REAL, failed TEXT NOT NULL, prompt_cut INTEGER NOT NULL,
    at TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS answers ON attempts (key) WHERE failed = '';
CREATE TABLE IF NOT EXISTS figures (key BLOB PRIMARY KEY, figures TEXT NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "key, row_id, teacher, candidate, reasoning, cut, tokens, prompt_tokens, seconds, cost, failed, prompt_cut"
# What journals of version 1 lack.
_ADDED = "ALTER TABLE attempts ADD COLUMN prompt_cut INTEGER NOT NULL DEFAULT 0;"


@dataclass(frozen=True)
class Attempt:
    """One attempt of a teacher at one question; `failed` says why there is no answer, "" where there is one."""

    key: bytes
    row_id: str
    teacher: str
    candidate: int
    reasoning: str
    cut: bool = False
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = None
    failed: str = ""
    prompt_cut: bool = False


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """Open a journal, or begin one.

    Raises RequestError for a file that is none, WorkError where it cannot be written or another process holds it.
    """
    with _errors(path):
        journal = sqlite3.connect(path, timeout=20)
    try:
        with _errors(path):
            journal.execute("PRAGMA journal_mode = WAL")
            # What is committed survives a killed process; only a power cut may lose the last answers.
            journal.execute("PRAGMA synchronous = NORMAL")
            found = journal.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, 1, VERSION):
                raise RequestError(
                    f"{path}: is a journal of another version ({found}); move it away to begin a new one"
                )
            added = _ADDED if found == 1 else ""
            journal.executescript(f"BEGIN; {added} {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        with _errors(path):
            yield journal
    finally:
        journal.close()


def set_aside(path: Path) -> None:
    """Give a journal another name beside its place, so that a new one begins; nothing is lost."""
    if not path.exists():
        return
    number = 1
    while (target := path.with_name(f"{path.stem}.kept-{number}{path.suffix}")).exists():
        number += 1
    with _errors(path), sqlite3.connect(path) as journal:
        # Into one file again, without its log.
        journal.execute("PRAGMA journal_mode = DELETE")
    journal.close()
    path.rename(target)


def take_over(journal: Journal, other: Path) -> None:
    """Take over the answers and the figures of another run's journal; here they took no time and cost nothing.

    What cannot be read is passed over: then the questions are asked.
    """
    names = [name.strip() for name in f"{_COLUMNS}, at".split(",")]
    free = {"seconds": "0.0", "cost": "CASE WHEN cost IS NULL THEN NULL ELSE 0.0 END"}
    with suppress(sqlite3.DatabaseError):
        journal.execute("ATTACH DATABASE ? AS other", (str(other),))
        try:
            if journal.execute("PRAGMA other.user_version").fetchone()[0] == 1:
                free["prompt_cut"] = "0"
            taken = ", ".join(free.get(name, name) for name in names)
            with journal:
                journal.execute(
                    f"INSERT OR IGNORE INTO attempts ({', '.join(names)}) SELECT {taken} FROM other.attempts "
                    "WHERE failed = ''"
                )
                journal.execute("INSERT OR IGNORE INTO figures SELECT * FROM other.figures")
        finally:
            journal.execute("DETACH DATABASE other")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn SQLite's refusals into the project's errors, with the path and the fix."""
    try:
        yield
    except sqlite3.OperationalError as problem:
        fix = "free some space or end the other process, and run the same command again: what was answered is kept"
        raise WorkError(f"{path}: cannot be written or read ({problem}); {fix}") from problem
    except sqlite3.DatabaseError as problem:
        raise RequestError(
            f"{path}: is no journal of answers ({problem}); move it away to begin a new one"
        ) from problem


def keep(journal: Journal, attempts: Sequence[Attempt]) -> None:
    """Write attempts, all or none; of a key that has an answer nothing is written again."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows = [(*astuple(replace(a, reasoning=_plain(a.reasoning), failed=_plain(a.failed))), at) for a in attempts]
    with journal:
        journal.executemany(
            f"INSERT OR IGNORE INTO attempts ({_COLUMNS}, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
        )


def answers(journal: Journal, keys: Sequence[bytes]) -> dict[bytes, Attempt]:
    """Find the answers of some keys; what was never answered is not in it."""
    found = {}
    for some in _groups(keys):
        marks = ", ".join("?" * len(some))
        query = f"SELECT {_COLUMNS} FROM attempts WHERE failed = '' AND key IN ({marks})"
        for row in journal.execute(query, some):
            found[row[0]] = replace(Attempt(*row), cut=bool(row[5]), prompt_cut=bool(row[11]))
    return found


def failures(journal: Journal) -> dict[str, int]:
    """Count failed attempts by their reason, the most frequent first."""
    query = "SELECT failed, COUNT(*) FROM attempts WHERE failed != '' GROUP BY failed ORDER BY 2 DESC, 1"
    return dict(journal.execute(query).fetchall())


def spent(journal: Journal) -> dict[str, dict[str, float | None]]:
    """Add up for every teacher its attempts, tokens, seconds and cost (None where nobody reckoned it)."""
    query = (
        "SELECT teacher, COUNT(*), SUM(failed = ''), SUM(tokens), SUM(prompt_tokens), SUM(seconds), SUM(cost) "
        "FROM attempts GROUP BY teacher ORDER BY teacher"
    )
    names = ("attempts", "answers", "tokens", "prompt_tokens", "seconds", "cost")
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in journal.execute(query)}


def keep_figures(journal: Journal, figures: Mapping[bytes, Mapping[str, Any]]) -> None:
    """Write figures by key, all or none; those that stand are not replaced."""
    rows = [(key, json.dumps(value)) for key, value in figures.items()]
    with journal:
        journal.executemany("INSERT OR IGNORE INTO figures (key, figures) VALUES (?, ?)", rows)


def figures(journal: Journal, keys: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
    """Find the figures of some keys."""
    found = {}
    for some in _groups(keys):
        marks = ", ".join("?" * len(some))
        for key, value in journal.execute(f"SELECT key, figures FROM figures WHERE key IN ({marks})", some):
            found[key] = json.loads(value)
    return found


def _groups(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), AT_ONCE):
        yield list(keys[start : start + AT_ONCE])


def _plain(text: str) -> str:
    """Half a surrogate pair, which a server may send, is nothing SQLite can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
