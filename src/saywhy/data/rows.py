"""Make rows from records: templates, labels, choices, ids."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saywhy.config import DataConfig, TaskConfig, did_you_mean, label_fault
from saywhy.data.read import Record, Table
from saywhy.records import RequestError, Row

_MARKS = re.compile(r"\{\{|\}\}|\{(?P<column>[^{}]*)\}|[{}]")
_HALVES = re.compile("[\ud800-\udfff]")
_STEPS = re.compile(r"\[-?\d+\]|\.[^.\[\]]+")


@dataclass(frozen=True)
class Template:
    """A text over columns: `literals` has one more than `columns` and stands around them."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]


def parse_template(written: str, key: str) -> Template:
    """Read a column name or a template; `key` is the config key that errors name."""
    if "{" not in written and "}" not in written:
        return Template(("", ""), (written,))
    literals, columns, end = [""], [], 0
    for mark in _MARKS.finditer(written):
        literals[-1] += written[end : mark.start()]
        end = mark.end()
        if mark[0] in ("{{", "}}"):
            literals[-1] += mark[0][0]
        elif not (mark["column"] or "").strip():
            where = f"{mark[0]!r} at character {mark.start() + 1} of {written!r}"
            raise RequestError(f"{key}: {where} is no {{column}}; a brace is written {{{{ or }}}}")
        else:
            columns.append(mark["column"].strip())
            literals.append("")
    literals[-1] += written[end:]
    if not columns:
        raise RequestError(f"{key}: {written!r} names no {{column}}, so every text would be the same")
    return Template(tuple(literals), tuple(columns))


def render(template: Template, record: Record, place: str, spoken: bool = False) -> tuple[str, tuple[str, ...]]:
    """Fill a template: the text, and its pieces (`Row.pieces`), which are empty where the text is one column.

    `spoken` says that a column may hold a conversation, a list of messages.
    """
    written = as_spoken if spoken else as_text
    values = [written(reach(record, column, place), column, place) for column in template.columns]
    if len(values) == 1 and not any(template.literals):
        return values[0], ()
    pieces = [template.literals[0]]
    for value, literal in zip(values, template.literals[1:], strict=True):
        pieces += [value, literal]
    return "".join(pieces), tuple(pieces)


def reach(record: Record, column: str, place: str) -> Any:
    """Give a record's value of a column, or of what `messages[0].content` means; an exact column name wins."""
    if column in record:
        return record[column]
    for cut in (mark.start() for mark in re.finditer(r"[\[.]", column)):
        steps = _STEPS.findall(column[cut:])
        if column[:cut] in record and "".join(steps) == column[cut:]:
            return _follow(record[column[:cut]], column, cut, steps, place)
    near = did_you_mean(column, record)
    names = ", ".join(map(str, record))
    hint = ""
    if len(record) == 1 and re.search(r"[;\t|]", names):
        hint = "; if they are one, save the file with commas between its fields"
    raise RequestError(
        f"{place}: there is no column '{column}'{near}{'' if near.endswith('?') else ';'} columns: {names}{hint}"
    )


def _follow(value: Any, column: str, cut: int, steps: Sequence[str], place: str) -> Any:
    done = column[:cut]
    for step in steps:
        key: Any = int(step[1:-1]) if step[0] == "[" else step[1:]
        if isinstance(key, int):
            if not isinstance(value, list) or not -len(value) <= key < len(value):
                what = f"a list of {len(value)}" if isinstance(value, list) else f"no list but {value!r:.40}"
                raise RequestError(f"{place}: {column}: {done} is {what}, it has no item {step}")
        elif not isinstance(value, dict) or key not in value:
            what = f"has {', '.join(map(str, value))}" if isinstance(value, dict) else f"is {value!r:.40}"
            raise RequestError(f"{place}: {column}: {done} {what}, it has no '{key}'")
        value, done = value[key], done + step
    return value


def half_character(text: str) -> bool:
    """Tell whether a text holds a lone surrogate, which no tokenizer and no file takes."""
    return not text.isascii() and _HALVES.search(text) is not None


def as_text(value: Any, column: str, place: str) -> str:
    """Write a value as text: a whole number as its digits (1 and 1.0 are "1"), nothing as ""."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        if half_character(value):
            raise RequestError(f"{place}: column '{column}' holds half of a character (a lone surrogate); remove it")
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, list | dict | bytes):
        kind = {list: "a list", dict: "an object", bytes: "bytes"}[type(value)]
        fix = f"reach into it with {{{column}[0]}}, {{{column}[0].content}} or {{{column}.content}}"
        raise RequestError(f"{place}: column '{column}' holds {kind}, not one text; {fix}")
    return str(value)


def as_spoken(value: Any, column: str, place: str) -> str:
    """Write a conversation, a list of {"role", "content"}, as text: a paragraph "role: content" for each message.

    Whatever else is text by itself is written as `as_text` does. A content that looks like another message is not told
    from one: it is text that somebody wrote, here as in any other column.
    """
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return as_text(value, column, place)
    paragraphs = []
    for number, turn in enumerate(value):
        where = f"{place}: column '{column}', message {number + 1}"
        role = turn.get("role")
        if not isinstance(role, str) or not re.fullmatch(r"\S+", role) or "content" not in turn:
            raise RequestError(f'{where}: {turn!r:.60} is no {{"role": …, "content": …}}, the role one word')
        # A message that only calls a tool says nothing.
        content = "" if turn["content"] is None else content_of(turn, where)
        paragraphs.append(f"{role}: {as_text(content, column, place)}".rstrip())
    return "\n\n".join(paragraphs)


def content_of(turn: Mapping[str, Any], where: str) -> str:
    """Give the text of a message: its content, or the parts of it put together.

    Raises RequestError where it is no text, or one of its parts is none, such as an image.
    """
    content = turn.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{where}: the content of {turn.get('role')!r} is no text: {content!r:.60}")
    return content


@dataclass(frozen=True)
class Columns:
    """Which columns make a row, read from the config."""

    text: Template
    label: str | None
    choices: str | None
    names: tuple[str, ...] | None
    labels: frozenset[str] | None


def make_rows(
    table: Table,
    task: TaskConfig,
    data: DataConfig,
    need_label: bool,
    labels: Sequence[str] | None = None,
    reasoning: str | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Read a table to its end: its rows, and by row id what the column or template `reasoning` holds.

    Each label must be one of `labels`, where they are given, or of the row's choices. RequestError names the place.
    """
    columns = Columns(
        parse_template(task.text, "task.text"),
        task.label if need_label else None,
        task.choices,
        data.label_names or table.label_names.get(task.label),
        None if labels is None else frozenset(labels),
    )
    why = None if reasoning is None else parse_template(reasoning, "reasonings.column")
    rows, reasonings, places, hashes = [], {}, dict[str, str](), Counter[str]()
    for place, record in table.records:
        name = _hash(record, hashes) if data.id is None else given_id(record, data.id, place, places)
        row = _make_row(name, record, place, columns)
        places[name] = place
        rows.append(row)
        if why is not None and (text := render(why, record, place)[0]).strip():
            reasonings[name] = text
    if not rows:
        raise RequestError(f"{table.name}: there are no rows")
    return rows, reasonings


def rows_to_predict(table: Table, task: TaskConfig) -> Iterator[tuple[Record, Row]]:
    """Give each record with its row, which has no label and the record's place for an id; none of them is kept."""
    columns = Columns(parse_template(task.text, "task.text"), None, task.choices, None, None)
    for place, record in table.records:
        yield record, _make_row(place, record, place, columns)


def _make_row(name: str, record: Record, place: str, columns: Columns) -> Row:
    text, pieces = render(columns.text, record, place, spoken=True)
    choices = None if columns.choices is None else _choices(record, columns.choices, place)
    label = None
    if columns.label is not None:
        label = _label(record, columns.label, columns.names, choices is not None, place)
        known = columns.labels if choices is None else choices
        if known is not None and label not in known:
            whose = "the labels of the task" if choices is None else "this row's choices"
            near = did_you_mean(label, known) or f"; there are {', '.join(sorted(known)[:20])}"
            raise RequestError(f"{place}: label {label!r} is not among {whose}{near}")
    return Row(name, text, label, choices, pieces)


def _label(record: Record, column: str, names: tuple[str, ...] | None, is_choice: bool, place: str) -> str:
    value = reach(record, column, place)
    if value is None or value != value:
        raise RequestError(f"{place}: the label is null; remove the row or label it")
    if isinstance(value, list | dict):
        raise RequestError(f"{place}: column '{column}' holds a list; a row has one label, a text or a whole number")
    label = as_text(value, column, place)
    label = label.strip() if is_choice else label
    # A split that has the names already keeps them.
    if names is not None and (label not in names or re.fullmatch(r"-?\d+", label)):
        label = _named(label, names, place)
    if fault := label_fault(label):
        raise RequestError(f"{place}: label {label!r} {fault}")
    return label


def _named(label: str, names: tuple[str, ...], place: str) -> str:
    if label == "-1":
        raise RequestError(f"{place}: label -1 says that the row has none; take a split that has labels")
    if not re.fullmatch(r"\d+", label) or int(label) >= len(names):
        raise RequestError(
            f"{place}: label {label!r} is no number from 0 to {len(names) - 1}, as data.label_names has it"
        )
    return names[int(label)]


def _choices(record: Record, column: str, place: str) -> tuple[str, ...]:
    value = reach(record, column, place)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RequestError(f"{place}: column '{column}' is no JSON list: {error}") from error
    if not isinstance(value, list):
        raise RequestError(f"{place}: column '{column}' should hold a list of choices, not {value!r:.60}")
    # Public sets list an answer twice, or with a space at its end. Choices stand alone, so it is one answer.
    choices = tuple(dict.fromkeys(as_text(choice, column, place).strip() for choice in value))
    for choice in choices:
        if fault := label_fault(choice):
            raise RequestError(f"{place}: choice {choice!r} {fault}")
    if len(choices) < 2:
        raise RequestError(f"{place}: column '{column}' should hold two choices or more, not {value!r:.60}")
    return choices


def _hash(record: Record, hashes: Counter[str]) -> str:
    """Hash all columns of a record, numbered where the same record stood before."""
    name = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]
    hashes[name] += 1
    return name if hashes[name] == 1 else f"{name}-{hashes[name]}"


def given_id(record: Record, column: str, place: str, places: Mapping[str, str]) -> str:
    """Give what a record's id column holds; `places` has the ids before it, which it may not repeat."""
    name = as_text(reach(record, column, place), column, place)
    if not name.strip():
        raise RequestError(f"{place}: column '{column}' holds no id")
    if name in places:
        raise RequestError(f"{place}: id {name!r} stands already at {places[name]}; ids are unique")
    return name
