"""Read the data of a config: rows in three splits, worked cases, given reasonings, and an audit of it all."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from saywhy.config import Config, WorkedCases, locate
from saywhy.data.audit import audit
from saywhy.data.read import USUAL_PARTS, open_table
from saywhy.data.rows import Template, given_id, half_character, make_rows, parse_template, render
from saywhy.data.split import cut_share, draw, draw_each
from saywhy.records import RequestError, Row, Task, WorkedCase

__all__ = [
    "Data",
    "Template",
    "fingerprint",
    "half_character",
    "parse_template",
    "read",
    "read_examples",
    "render",
    "task_of",
]

# Labelled rows that a prompt may show: each teacher reads them all.
MOST_EXAMPLES = 64


@dataclass(frozen=True)
class Data:
    """Everything that a run reads before it trains; `reasonings` and `file_reasonings` are by row id."""

    task: Task
    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    worked_cases: tuple[WorkedCase, ...] = ()
    reasonings: Mapping[str, str] = field(default_factory=dict)
    file_reasonings: Mapping[str, str] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)


def read(config: Config) -> Data:
    """Read, split and audit what a config names; RequestError names file, line or key and the fix."""
    notes: list[str] = []
    _refuse_same_source(config)
    column = config.reasonings.column if "column" in config.reasonings.teacher else None
    given = None if config.task.labels is None else tuple(config.task.labels)
    table = open_table(config.data.train, config.folder, "train")
    whole, reasonings = make_rows(table, config.task, config.data, True, given, column)
    labels = _labels(config, whole, table.name)
    for name, source in (("dev", config.data.dev), ("test", config.data.test)):
        if isinstance(source, float) and (own := set(USUAL_PARTS[name]).intersection(table.other_parts)):
            notes.append(f"{name} is a share of train although {table.name} has a part {min(own)}.")
    train, dev, test = _split(config, whole, labels)
    dev, test = (_asked(config, name, rows, notes) for name, rows in (("dev", dev), ("test", test)))
    train, empty = _train_rows(config, train, labels, notes)
    task = task_of(config, labels)
    worked_cases = _worked_cases(config, notes)
    from_file = _file_reasonings(config, train, notes)
    ids = {row.id for row in train}
    reasonings = {name: text for name, text in reasonings.items() if name in ids}
    if "column" in config.reasonings.teacher:
        none = sum(not reasonings.get(name, "").strip() for name in ids)
        notes += [f"{none} rows of train have no reasoning in the column {config.reasonings.column}."] if none else []
    found = audit(labels, {"train": train, "dev": dev, "test": test}, empty, notes)
    return Data(task, tuple(train), tuple(dev), tuple(test), worked_cases, reasonings, from_file, found)


def task_of(config: Config, labels: Sequence[str]) -> Task:
    """Give the task that a config describes, with these labels."""
    return Task(
        config.task.name,
        config.task.instruction,
        tuple(labels),
        {label: text for label, text in (config.task.labels or {}).items() if text},
        config.task.ordinal,
        config.task.text,
        config.task.choices,
    )


def read_examples(config: Config) -> list[tuple[Row, str]]:
    """Read the labelled rows that `label.examples` names, each with its reasoning, "" where there is none."""
    if config.label is None or config.label.examples is None:
        return []
    table = open_table(config.label.examples, config.folder)
    records = list(islice(table.records, MOST_EXAMPLES + 1))
    if len(records) > MOST_EXAMPLES:
        raise RequestError(
            f"label.examples: {table.name} has more than {MOST_EXAMPLES} rows, and a prompt shows each of them; "
            "name a file with a few"
        )
    column = config.reasonings.column
    told = column if all(column in record for _, record in records) else None
    unnamed = config.data.model_copy(update={"id": None})
    rows, reasonings = make_rows(
        replace(table, records=iter(records)), config.task, unnamed, True, tuple(config.task.labels or ()), told
    )
    return [(row, " ".join(reasonings.get(row.id, "").split())) for row in rows]


def fingerprint(rows: Iterable[Row]) -> str:
    """Hash the content of rows, in order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.text, row.label, row.choices, row.pieces]).encode() + b"\n")
    return digest.hexdigest()


def _refuse_same_source(config: Config) -> None:
    train = locate(config.data.train, config.folder)
    for name, source in (("dev", config.data.dev), ("test", config.data.test)):
        # Without a part, each split takes its own one of a folder or data set.
        if (
            isinstance(source, str)
            and locate(source, config.folder) == train
            and (train.part is not None or (train.path is not None and train.path.is_file()))
        ):
            raise RequestError(
                f"data.{name}: {source} is what data.train names; give other rows or a share such as 0.1"
            )


def _labels(config: Config, rows: Sequence[Row], name: str) -> tuple[str, ...]:
    """Give the labels in order: the config's, else those of train, numbers by value and words by letter."""
    if config.task.choices is not None:
        return ()
    found = {row.label for row in rows if row.label is not None}
    if len(found) < 2:
        raise RequestError(f"{name}: every row has the label {min(found)!r}; a classifier needs two or more")
    if config.task.labels is not None:
        return tuple(config.task.labels)
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    if config.task.ordinal:
        raise RequestError("task.ordinal: an order of words cannot be guessed; write task.labels, lowest first")
    return tuple(sorted(found))


def _split(config: Config, whole: list[Row], labels: tuple[str, ...]) -> tuple[list[Row], list[Row], list[Row]]:
    """Give train, dev and test; shares are of all rows of the source, test's is cut off first."""
    train, found = whole, dict[str, list[Row]]()
    for name, source in (("test", config.data.test), ("dev", config.data.dev)):
        if isinstance(source, float):
            train, found[name] = cut_share(train, round(source * len(whole)), config.seed, f"data.{name}")
        else:
            table = open_table(source, config.folder, name)
            known = None if config.task.choices is not None else labels
            found[name], _ = make_rows(table, config.task, config.data, True, known)
    return train, found["dev"], found["test"]


def _train_rows(config: Config, rows: list[Row], labels: tuple[str, ...], notes: list[str]) -> tuple[list[Row], int]:
    """Leave empty texts out, then draw `data.rows`; also the number of empty ones."""
    kept = [row for row in rows if row.text.strip()]
    empty = len(rows) - len(kept)
    if not kept:
        raise RequestError(f"data.train: every text of {config.data.train} is empty; is task.text the right column?")
    if empty:
        notes.append(f"{empty} rows with an empty text were left out of train.")
    if config.data.rows != "all" and config.data.rows > len(kept):
        raise RequestError(f"data.rows: {config.data.rows} is more than the {len(kept)} rows of train; write all")
    if config.data.balanced:
        each = _of_each(config, kept, labels)
        notes.append(f"{each} rows of each label were drawn, {each * len(labels)} of {len(kept)} rows of train.")
        return draw_each(kept, each, config.seed), empty
    if config.data.rows != "all":
        notes.append(f"{config.data.rows} of {len(kept)} rows of train were drawn.")
        kept = draw(kept, config.data.rows, config.seed)
    return kept, empty


def _asked(config: Config, name: str, rows: list[Row], notes: list[str]) -> list[Row]:
    """Draw the rows of dev or test that are asked; the run's seed has no part in it, so that runs can be paired."""
    wanted = config.data.dev_rows if name == "dev" else config.data.test_rows
    if wanted == "all":
        return rows
    if wanted > len(rows):
        raise RequestError(f"data.{name}_rows: {wanted} is more than the {len(rows)} rows of {name}; write all")
    notes.append(f"{wanted} of {len(rows)} rows of {name} were drawn.")
    return draw(rows, wanted, 0)


def _of_each(config: Config, rows: Sequence[Row], labels: tuple[str, ...]) -> int:
    """Say how many rows of every label a balanced train has: what `data.rows` divides into, or the rarest label has."""
    counts = Counter(row.label for row in rows)
    rarest = min(labels, key=lambda label: counts[label])
    if not counts[rarest]:
        raise RequestError(f"data.balanced: label {rarest!r} has no row in train; take it out of task.labels")
    if config.data.rows == "all":
        return counts[rarest]
    each = config.data.rows // len(labels)
    if not each:
        raise RequestError(f"data.rows: {config.data.rows} rows cannot hold {len(labels)} labels alike; write more")
    if each > counts[rarest]:
        raise RequestError(
            f"data.balanced: {config.data.rows} rows take {each} of each of {len(labels)} labels, and label {rarest!r} "
            f"has {counts[rarest]}; set data.rows to {counts[rarest] * len(labels)} or less, or to all"
        )
    return each


def _worked_cases(config: Config, notes: list[str]) -> tuple[WorkedCase, ...]:
    """Read the cases of every source, one source after another."""
    sources = config.reasoner.sources
    found = list[WorkedCase]()
    for at, told in enumerate(sources):
        # One source may be written without a list, and is named as it is written.
        alone = isinstance(config.reasoner.worked_cases, WorkedCases)
        key = "reasoner.worked_cases" if alone else f"reasoner.worked_cases[{at}]"
        cases, empty = _cases_of(told, key, config.folder)
        if empty:
            where = "" if alone else f" of {key}"
            notes.append(f"{empty} worked cases{where} with an empty question, answer or reasoning were left out.")
        found += _drawn_cases(told, key, cases, config.seed)
    return tuple(found)


def _cases_of(told: WorkedCases, key: str, folder: Path) -> tuple[list[WorkedCase], int]:
    """Read one source's cases; also the number of those that lack something."""
    table = open_table(told.data, folder, "train")
    names = ("question", "answer", "reasoning")
    templates = {name: parse_template(getattr(told, name), f"{key}.{name}") for name in names}
    cases, empty = [], 0
    for place, record in table.records:
        question, answer, reasoning = (
            render(template, record, place, spoken=name == "question")[0] for name, template in templates.items()
        )
        if question.strip() and answer.strip() and reasoning.strip():
            cases.append(WorkedCase(question, answer, reasoning, told.of_this_task))
        else:
            empty += 1
    if not cases:
        raise RequestError(f"{table.name}: there are no worked cases")
    return cases, empty


def _drawn_cases(told: WorkedCases, key: str, cases: Sequence[WorkedCase], seed: int) -> Sequence[WorkedCase]:
    if told.rows == "all":
        return cases
    if told.rows > len(cases):
        raise RequestError(f"{key}.rows: {told.rows} is more than the {len(cases)} there are; write all")
    places = draw([Row(str(i), "") for i in range(len(cases))], told.rows, seed)
    return [cases[int(row.id)] for row in places]


def _file_reasonings(config: Config, rows: Sequence[Row], notes: list[str]) -> dict[str, str]:
    told = config.reasonings.file
    if told is None or "file" not in config.reasonings.teacher:
        return {}
    template = parse_template(told.reasoning, "reasonings.file.reasoning")
    table = open_table(told.path, config.folder)
    found, places = dict[str, str](), dict[str, str]()
    for place, record in table.records:
        name = given_id(record, told.id, place, places)
        places[name] = place
        found[name] = render(template, record, place)[0]
    ids = {row.id for row in rows}
    matching = {name: text for name, text in found.items() if name in ids and text.strip()}
    if not found:
        raise RequestError(f"{table.name}: there are no rows; reasonings.file needs one for each training row")
    if not ids & found.keys():
        raise RequestError(
            f"{table.name}: no id is one of a training row: here is {next(iter(found))!r}, there {rows[0].id!r}; set "
            "reasonings.file.id and data.id to the columns that have the same"
        )
    if not matching:
        raise RequestError(f"{table.name}: no training row has a text in {told.reasoning}; name the column that has")
    if len(matching) < len(rows):
        notes.append(f"{len(rows) - len(matching)} rows of train have no reasoning in {Path(told.path).name}.")
    return matching
