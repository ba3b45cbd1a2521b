"""Rows that were made to finetune a model of OpenAI's: read into a rows file and a config."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.config import label_fault, parse, written
from saywhy.data.read import Record, open_table
from saywhy.data.rows import content_of
from saywhy.prompts import read_target
from saywhy.records import RequestError

# What is asked where no row has a system message; as the scikit-learn door has it.
INSTRUCTION = "Which label fits the text?"
HEADING = """\
# Made from {source}. What is not written here has a default: `saywhy init` writes them all, with comments.
# base is what is trained: a hub id, a folder, or scratch (random weights).
"""


@dataclass(frozen=True)
class Conversation:
    """One line: `earlier` says that turns before the text were left out."""

    place: str
    instruction: str
    text: str
    label: str
    reasoning: str | None
    earlier: bool


def import_messages(source: Path, path: Path) -> list[str]:
    """Write the rows of `source` beside the config `path`, and the config; give the lines that say what was found.

    The system message is the instruction, the user's last turns are the text, the assistant's answer is the label or
    has a reasoning and a label behind saywhy's cues. Raises RequestError naming the line, or the file that is there.
    """
    rows_path = path.with_name(f"{path.stem}.train.jsonl")
    for place in (path, rows_path):
        if place.exists():
            raise RequestError(f"{place}: there is a file already and it is left as it is; name another config")
    read = [_conversation(place, record) for place, record in open_table(str(source), Path()).records]
    found = [one for one in read if one is not None]
    if not found:
        raise RequestError(f"{source}: there are no rows, or each has the weight 0")
    first = found[0]
    for one in found:
        if one.instruction != first.instruction:
            raise RequestError(
                f"{one.place}: its system message is {one.instruction[:60]!r}, that of {first.place} is "
                f"{first.instruction[:60]!r}; a task has one instruction: split the file, or make them equal"
            )
    reasoned = {(one.text, one.label) for one in found if one.reasoning}
    kept = [one for one in found if one.reasoning or (one.text, one.label) not in reasoned]
    text = _config(source, first.instruction, [one.label for one in kept], rows_path.name, bool(reasoned))
    parse(text, path)
    store.write_text(rows_path, "".join(_line(one, bool(reasoned)) for one in kept))
    store.write_text(path, text)
    counted = (
        (len(kept), f"rows are in {rows_path}"),
        (sum(one.reasoning is not None for one in kept), "of them bring a reasoning"),
        (len(read) - len(found), "rows have the weight 0 and were left out"),
        (len(found) - len(kept), "rows stand there again with a reasoning and were left out"),
        (sum(one.earlier for one in kept), "rows have turns before their text, which were left out"),
    )
    notes = [f"{count} {what}" for count, what in counted if count]
    return notes if first.instruction else [*notes, f"no row has a system message: the instruction is {INSTRUCTION!r}"]


def _conversation(place: str, record: Record) -> Conversation | None:
    """Read one line; None where its answer has the weight 0."""
    turns = record.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise RequestError(f'{place}: a line should be {{"messages": [{{"role": "user", "content": "…"}}, …]}}')
    *asked, last = turns
    if last.get("role") != "assistant":
        raise RequestError(f"{place}: the last message is of {last.get('role')!r}; it should be the assistant's label")
    if last.get("weight") == 0:
        return None
    system = [turn for turn in asked if turn.get("role") in ("system", "developer")]
    spoken = [turn for turn in asked if turn not in system]
    start = len(spoken)
    while start and spoken[start - 1].get("role") == "user":
        start -= 1
    if start == len(spoken):
        raise RequestError(f"{place}: no user's message stands before the label, so there is no text")
    _, label, reasoning = read_target(content_of(last, place).strip())
    label = label.strip()
    if fault := label_fault(label):
        raise RequestError(f"{place}: the assistant's answer {label[:60]!r} is no label: it {fault}")
    return Conversation(
        place,
        "\n".join(content_of(turn, place) for turn in system).strip(),
        "\n".join(content_of(turn, place) for turn in spoken[start:]),
        label,
        (reasoning or "").strip() or None,
        start > 0,
    )


def _line(one: Conversation, reasoned: bool) -> str:
    """Write a row; where any row has a reasoning, all have the column."""
    row = {"text": one.text, "label": one.label, **({"reasoning": one.reasoning or ""} if reasoned else {})}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _config(source: Path, instruction: str, answers: Sequence[str], rows: str, reasoned: bool) -> str:
    labels = [label for label, _ in Counter(answers).most_common()]
    asked, described = _listed(instruction, labels)
    told: dict[str, Any] = {
        "task": {
            "name": re.sub(r"[^\w-]+", "-", source.stem).strip("-") or "task",
            "instruction": asked or INSTRUCTION,
            "labels": described if any(described.values()) else list(described),
        },
        "data": {"train": rows, "dev": 0.1, "test": 0.2},
        "base": "scratch",
    }
    if reasoned:
        told["reasonings"] = {"teacher": "column"}
    return HEADING.format(source=source.name) + written.write(told)


def _listed(instruction: str, labels: Sequence[str]) -> tuple[str, dict[str, str | None]]:
    """Take the labels with their descriptions out of an instruction that ends with their list, as saywhy's own do.

    saywhy writes that list itself, so it would stand there twice. Without such a list: the labels as they are.
    """
    lines = instruction.split("\n")
    items = list[str]()
    while lines and lines[-1].startswith("- "):
        items.insert(0, lines.pop().removeprefix("- "))
    found = dict[str, str | None]()
    for item in items:
        known = [label for label in labels if item == label or item.startswith(f"{label}: ")]
        label = max(known, key=len) if known else item.partition(": ")[0]
        found[label] = item.removeprefix(label).removeprefix(": ") or None
    if set(labels) <= set(found) and any(line.strip() for line in lines):
        return "\n".join(lines), found
    return instruction, dict.fromkeys(labels)
