"""Rows of OpenAI's finetuning become a rows file and a config, and what saywhy exports comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from saywhy import cli, config, export
from saywhy.data import read
from saywhy.data.messages import import_messages
from saywhy.prompts import read_target, target
from saywhy.records import RequestError

pytest_plugins = ("runs",)


def line(text: str, answer: str, system: str | None = "Which one?", **last: Any) -> dict[str, Any]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, {"role": "user", "content": text}, {"role": "assistant", "content": answer, **last}]}


def imported(folder: Path, *rows: dict[str, Any]) -> tuple[list[dict[str, Any]], config.Config, list[str]]:
    """Import rows; give the rows that were written, the config and what was said."""
    source = toy.write_lines(folder / "given.jsonl", rows)
    said = import_messages(source, folder / "config.yaml")
    written = (folder / "config.train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(one) for one in written], config.load(folder / "config.yaml"), said


def test_labels_come_by_frequency_and_the_system_message_is_the_instruction(tmp_path: Path) -> None:
    rows, made, said = imported(tmp_path, line("a", "no"), line("b\nc", " yes "), line("d", "yes"))
    assert rows == [{"text": "a", "label": "no"}, {"text": "b\nc", "label": "yes"}, {"text": "d", "label": "yes"}]
    assert list(made.task.labels or ()) == ["yes", "no"] and made.task.instruction == "Which one?"
    assert (made.task.name, made.data.dev, made.data.test) == ("given", 0.1, 0.2)
    assert made.reasonings.teacher == () and made.data.train == str(tmp_path / "config.train.jsonl")
    assert said == [f"3 rows are in {tmp_path / 'config.train.jsonl'}"]


def test_reasonings_are_read_behind_either_cue(tmp_path: Path) -> None:
    rows, made, said = imported(
        tmp_path,
        line("a", "Reasoning: it sings.\nLabel: bird"),
        line("b", "Label: dog\nReasoning: it barks."),
        line("c", "Label: cat"),
        line("d", "Reasoning: a Label: inside.\nLabel: too.\nLabel: cat"),
    )
    assert rows == [
        {"text": "a", "label": "bird", "reasoning": "it sings."},
        {"text": "b", "label": "dog", "reasoning": "it barks."},
        {"text": "c", "label": "cat", "reasoning": ""},
        {"text": "d", "label": "cat", "reasoning": "a Label: inside.\nLabel: too."},
    ]
    assert made.reasonings.teacher == ("column",) and "3 of them bring a reasoning" in said


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    earlier = line("b", "no")
    earlier["messages"][1:1] = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    two = line("of it", "yes")
    two["messages"].insert(1, {"role": "user", "content": "first part"})
    rows, _, said = imported(
        tmp_path, line("a", "yes"), line("x", "no", weight=0), line("y", "maybe", "Another?", weight=0), earlier, two,
        line("z", "no", weight=1), line("z", "Reasoning: why.\nLabel: no"),
    )  # fmt: skip
    assert [row["text"] for row in rows] == ["a", "b", "first part\nof it", "z"]
    assert rows[-1]["reasoning"] == "why."
    assert said[1:] == [
        "1 of them bring a reasoning",
        "2 rows have the weight 0 and were left out",
        "1 rows stand there again with a reasoning and were left out",
        "1 rows have turns before their text, which were left out",
    ]


def test_without_a_system_message_there_is_a_plain_instruction(tmp_path: Path) -> None:
    _, made, said = imported(tmp_path, line("a", "null", None), line("b", "1", None))
    assert made.task.instruction == "Which label fits the text?" and list(made.task.labels or ()) == ["null", "1"]
    assert "no row has a system message" in said[-1]


def test_a_list_of_labels_in_the_instruction_is_read_as_one(tmp_path: Path) -> None:
    asked = "Which animal?\n- cat: purrs: softly\n- dog\n- bird: sings"
    _, made, _ = imported(tmp_path, line("a", "dog", asked), line("b", "cat", asked), line("c", "dog", asked))
    assert made.task.instruction == "Which animal?"
    assert made.task.labels == {"cat": "purrs: softly", "dog": "", "bird": "sings"}


def test_a_list_of_other_things_stays_in_the_instruction(tmp_path: Path) -> None:
    asked = "Which animal?\n- be brief"
    _, made, _ = imported(tmp_path, line("a", "dog", asked), line("b", "cat", asked))
    assert made.task.instruction == asked and made.task.labels == {"dog": "", "cat": ""}


def test_parts_of_a_content_are_joined(tmp_path: Path) -> None:
    parts = line("x", "no")
    parts["messages"][1]["content"] = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    rows, _, _ = imported(tmp_path, parts, line("b", "yes"))
    assert rows[0]["text"] == "two parts"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([line("a", "x"), line("b", "y", "Another?")], r"line 2: its system message is 'Another\?'.*line 1"),
        ([line("a", "x"), line("b", "y", None)], "line 2: its system message is ''"),
        ([{"text": "a"}], r'line 1: a line should be {"messages"'),
        ([{"messages": [{"role": "user", "content": "a"}]}], "line 1: the last message is of 'user'"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "line 1: no user's message stands before"),
        ([line("a", "x"), line("b", "two\nlines")], "line 2: the assistant's answer 'two.*is no label"),
        ([line("a", "x"), line("b", "")], "line 2: the assistant's answer '' is no label: it is empty"),
        ([line("a", "x", weight=0)], "there are no rows, or each has the weight 0"),
        ([line("a", "x"), line("b", "x")], "at least two labels"),
        ([line(None, "x")], "line 1: the content of 'user' is no text: None"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_such_file_is_refused_and_nothing_is_written(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        imported(tmp_path, *rows)
    assert [path.name for path in tmp_path.iterdir()] == ["given.jsonl"]


@pytest.mark.parametrize("there", ["config.yaml", "config.train.jsonl"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match=f"{there}: there is a file already"):
        imported(tmp_path, line("a", "x"), line("b", "y"))
    assert (tmp_path / there).read_text(encoding="utf-8") == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"given.jsonl", there}


@pytest.mark.parametrize("arm", toy.ARMS)
def test_exported_messages_come_back_as_the_rows_that_they_were(
    finished: toy.Done, tmp_path: Path, arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export.write(finished.folder / arm, tmp_path / "out", rows=True)
    source, made = tmp_path / "out" / "rows-messages.jsonl", tmp_path / "again" / "mail.yaml"
    assert cli.main(["init", str(made), "--from-openai", str(source)]) == 0
    found, wanted = read(config.load(made)), read(finished.config)
    assert found.task.instruction == wanted.task.instruction and found.task.labels == wanted.task.labels
    rows = [json.loads(one) for one in (made.parent / "mail.train.jsonl").read_text("utf-8").splitlines()]
    assert [(row["text"], row["label"]) for row in rows] == [(row.text, row.label) for row in wanted.train]
    reasoned = {row.get("reasoning") for row in rows} - {None, ""}
    assert bool(reasoned) == (arm != "label_only") and config.load(made).reasonings.teacher == (
        () if arm == "label_only" else ("column",)
    )
    capsys.readouterr()
    assert cli.main(["check", str(made)]) == 0
    assert "bird" in capsys.readouterr().out


def test_rows_with_and_without_a_reasoning_are_read_by_the_config(tmp_path: Path) -> None:
    answers = [("Reasoning: it sings.\nLabel: bird", "Label: dog", "Label: bird")[i % 3] for i in range(30)]
    _, made, _ = imported(tmp_path, *(line(f"number {i}", answer) for i, answer in enumerate(answers)))
    assert set(read(made).reasonings.values()) == {"it sings."}


def test_a_target_reads_back_as_the_parts_that_it_was_made_from() -> None:
    for arm in ("label_only", "reason_then_label", "label_then_reason"):
        for label, reasoning in (("joy", "a reason"), ("yes: no", " spaced "), ("Label", "two\nlines")):
            given = None if arm == "label_only" else reasoning
            text = "".join(part.text for part in target(arm, label, given))
            assert read_target(text) == (arm, label, given)
    assert read_target("joy") == ("label_only", "joy", None)
