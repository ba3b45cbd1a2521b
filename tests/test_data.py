"""Data comes in as it is written or not at all: every fault has its place, every split is seeded and honest."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saywhy import config, data
from saywhy.data.read import open_table
from saywhy.data.rows import make_rows, parse_template, render, rows_to_predict
from saywhy.data.split import cut_share, draw, draw_each, text_key
from saywhy.records import RequestError, Row, WorkedCase

REAL = os.environ.get("SAYWHY_DATA", "")
needs_real_data = pytest.mark.skipif(not REAL, reason="SAYWHY_DATA names no folder with <set>/<split>.jsonl")


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def moods(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"row {i}", "label": "good" if i % 4 else "bad"} for i in range(start, start + count)]


def read(folder: Path, *sets: str) -> data.Data:
    text = (
        "task: {name: mood, instruction: Name the mood}\ndata: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}"
    )
    return data.read(config.parse(text, folder / "config.yaml", sets))


def refusal(folder: Path, *sets: str) -> str:
    with pytest.raises(RequestError) as caught:
        read(folder, *sets)
    return str(caught.value).replace(f"{folder.resolve()}{os.sep}", "")


def only(folder: Path, name: str, content: str | bytes, *sets: str) -> list[Row]:
    """Read one file as the rows of a task."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    made = config.parse("task: {name: a, instruction: b}\ndata: {train: x.csv}", folder / "config.yaml", sets)
    labels = None if made.task.labels is None else tuple(made.task.labels)
    return make_rows(open_table(name, folder), made.task, made.data, True, labels)[0]


def fault(folder: Path, name: str, content: str | bytes, *sets: str) -> str:
    with pytest.raises(RequestError) as caught:
        only(folder, name, content, *sets)
    return str(caught.value).replace(f"{folder.resolve()}{os.sep}", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", moods(40))
    write(tmp_path / "dev.jsonl", moods(8, 100))
    write(tmp_path / "test.jsonl", moods(12, 200))
    return tmp_path


# Files


def test_the_same_rows_come_from_every_kind_of_file(tmp_path: Path) -> None:
    records = [{"text": 'a, "b"', "label": "x"}, {"text": "c\nd\té", "label": "y"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "r.parquet")
    files = {
        "r.csv": 'text,label\n"a, ""b""",x\n"c\nd\té",y\n',
        "r.tsv": 'text\tlabel\r\n"a, ""b"""\tx\r\n"c\nd\té"\ty\r\n',
        "R.JSONL": "\n".join(json.dumps(record) for record in records) + "\n\n",
        "bom.csv": '\ufefftext,label\n"a, ""b""",x\n\n"c\nd\té",y',
        "bom.jsonl": "\ufeff" + "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records),
        "r.parquet": (tmp_path / "r.parquet").read_bytes(),
    }
    for name, content in files.items():
        rows = only(tmp_path, name, content)
        assert [(row.text, row.label, row.pieces) for row in rows] == [('a, "b"', "x", ()), ("c\nd\té", "y", ())], name
        assert [row.id for row in rows] == [row.id for row in only(tmp_path, "again.csv", files["r.csv"])], name


def test_labels_of_csv_are_text_as_written(tmp_path: Path) -> None:
    rows = only(tmp_path, "r.csv", "text,label\na,NA\nb,null\nc,1\nd,1.0\ne,true\nf,01\n")
    assert [row.label for row in rows] == ["NA", "null", "1", "1.0", "true", "01"]


def test_whole_numbers_of_json_and_parquet_are_their_digits(tmp_path: Path) -> None:
    values = [1, 1.0, -2, 0.5, 1e20, True, "1.0", "NA"]
    rows = only(tmp_path, "r.jsonl", "\n".join(json.dumps({"text": "a", "label": value}) for value in values))
    assert [row.label for row in rows] == ["1", "1", "-2", "0.5", "100000000000000000000", "true", "1.0", "NA"]
    table = pyarrow.table({"text": ["a", "b"], "label": [1.0, 2.0]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert [row.label for row in only(tmp_path, "p.parquet", (tmp_path / "p.parquet").read_bytes())] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", "text,label\na,b\nc\n", "r.csv, line 3: 1 fields where the header has 2; a field that holds ','"),
        ("r.csv", 'text,label\n"a\nb",x\nc,d,e\n', "r.csv, line 4: 3 fields where the header has 2"),
        ("r.csv", 'text,label\na,b\n"c,d\ne,f\n', "r.csv, line 3: unexpected end of data; a field that holds a quote"),
        ("r.csv", 'text,label\n"a"b,c\n', "r.csv, line 2: ',' expected after '\"'"),
        ("r.csv", "text,label,text\na,b,c\n", "r.csv, line 1: the header names 'text' more than once"),
        (
            "r.csv",
            "txt,label\na,b\n",
            "r.csv, line 2: there is no column 'text'; did you mean 'txt'? columns: txt, label",
        ),
        ("r.csv", "text;label\na;b\n", "if they are one, save the file with commas between its fields"),
        ("r.csv", "text,label\n", "r.csv: there are no rows"),
        ("r.csv", "", "r.csv: there are no rows"),
        ("r.csv", "text,label\na,\n", "r.csv, line 2: label '' is empty"),
        ("r.csv", "text,label\na, b\n", "r.csv, line 2: label ' b' starts or ends with white space"),
        (
            "r.csv",
            'text,label\na,"b\nc"\n',
            "r.csv, line 2: label 'b\\nc' starts or ends with white space or holds a line break",
        ),
        ("r.csv", b"text,label\na,b\nc\xe9,d\n", "r.csv, line 3: byte 16 (0xe9) is not UTF-8; save the file as UTF-8"),
        ("r.csv", "text,label\na,b\n".encode("utf-16"), "r.csv, line 1: byte 0 (0xff) is not UTF-8"),
        ("r.jsonl", '{"text": "a", "label": "b"}\n{"text"\n', "r.jsonl, line 2: this is not one JSON object"),
        ("r.jsonl", '{"text": "a", "label": "b"}\n\n[1]\n', "r.jsonl, line 3: a line should be an object"),
        ("r.jsonl", '{"text": "a", "label": null}', "r.jsonl, line 1: the label is null; remove the row or label it"),
        ("r.jsonl", '{"text": "a", "label": NaN}', "r.jsonl, line 1: the label is null"),
        (
            "r.jsonl",
            '{"text": "a", "label": ["b"]}',
            "r.jsonl, line 1: column 'label' holds a list; a row has one label",
        ),
        ("r.jsonl", '{"text": "a"}', "r.jsonl, line 1: there is no column 'label'; columns: text"),
        (
            "r.jsonl",
            '{"text": ["a"], "label": "b"}',
            "column 'text' holds a list, not one text; reach into it with {text[0]}",
        ),
        ("r.jsonl", '{"text": "\\ud83d", "label": "b"}', "column 'text' holds half of a character"),
        ("r.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}", "r.jsonl, line 1: this is not one JSON object"),
        ("r.jsonl", b'{"text": "a", "label": "b"}\n\xff\n', "r.jsonl, line 2: byte 28 (0xff) is not UTF-8"),
        ("r.parquet", "not parquet", "r.parquet: this is not a Parquet file that can be read"),
        ("r.json", "[]", "r.json: saywhy reads .csv, .tsv, .jsonl, .parquet files, not .json"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert message in fault(tmp_path, name, content)


def test_null_labels_of_parquet_have_their_row(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "b"], "label": ["x", None]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    content = (tmp_path / "p.parquet").read_bytes()
    assert "p.parquet, row 2: the label is null" in fault(tmp_path, "p.parquet", content)


def test_a_missing_file_is_never_looked_for_on_a_hub(folder: Path) -> None:
    assert "tran.jsonl: there is no such file; did you mean train.jsonl" in refusal(folder, "data.train=tran.jsonl")
    assert "sub: there is no such file" in refusal(folder, "data.train=./sub")
    assert "there is no folder" in refusal(folder, "data.train=no/where/x.csv")
    assert "a file has no part 'test'" in refusal(folder, "data.train=train.jsonl:test")


# Folders and data sets


def test_a_folder_of_files_has_parts(folder: Path) -> None:
    rows = read(folder, f"data.train={folder}", f"data.dev={folder}:dev", f"data.test={folder}")
    assert (len(rows.train), len(rows.dev), len(rows.test)) == (40, 8, 12)
    assert rows.test[0].text == "row 200"
    assert "there is no part 'tst'; did you mean 'test'?" in refusal(folder, f"data.train={folder}:tst")
    write(folder / "three" / "a.jsonl", moods(4))
    assert len(read(folder, "data.test=three").test) == 4
    write(folder / "three" / "b.jsonl", moods(4))
    assert "which part is meant?" in refusal(folder, "data.test=three")
    (folder / "three" / "a.csv").write_text("text,label\na,b\n")
    assert "'a' could be a.csv or a.jsonl; name the file" in refusal(folder, "data.test=three:a")
    (folder / "none").mkdir()
    assert "this folder holds no data set" in refusal(folder, "data.test=none")


def test_shards_are_one_part(folder: Path) -> None:
    for i in range(2):
        write(folder / "s" / f"test-0000{i}-of-00002.jsonl", moods(3, 300 + 3 * i))
    assert [row.text for row in read(folder, "data.test=s").test] == [f"row {i}" for i in range(300, 306)]


def saved_set(path: Path, parts: Mapping[str, Sequence[int]]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    made = {
        part: datasets.Dataset.from_dict({"text": [f"{part} {i}" for i in range(len(labels))], "label": labels}, kinds)
        for part, labels in parts.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(path))
    datasets.enable_progress_bars()


def test_a_saved_data_set_brings_parts_and_label_names(folder: Path) -> None:
    saved_set(folder / "saved", {"train": [0, 1, 1], "validation": [0, 1], "test": [1]})
    rows = read(folder, "data.train=saved", "data.dev=saved", "data.test=saved:test")
    assert rows.task.labels == ("bad", "good")
    assert [(row.text, row.label) for row in rows.train] == [
        ("train 0", "bad"),
        ("train 1", "good"),
        ("train 2", "good"),
    ]
    assert [row.text for row in rows.dev] == ["validation 0", "validation 1"]
    assert "there is no part 'tset'; did you mean 'test'?" in refusal(folder, "data.train=saved:tset")
    saved_set(folder / "hidden", {"test": [-1]})
    assert "row 1: label -1 says that the row has none" in refusal(folder, "data.train=saved", "data.test=hidden")


def test_a_share_beside_a_part_of_its_own_is_noted(folder: Path) -> None:
    saved_set(folder / "saved", {"train": [0, 1] * 10, "validation": [0, 1]})
    notes = read(folder, "data.train=saved", "data.dev=0.2", "data.test=0.2").audit["notes"]
    assert any("dev is a share of train although" in note and "a part validation" in note for note in notes)
    assert not any("test is a share" in note for note in notes)


def test_parquet_written_by_datasets_knows_its_label_names(folder: Path) -> None:
    saved_set(folder / "saved", {"train": [0, 1, 1]})
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.load_from_disk(str(folder / "saved"))["train"].to_parquet(str(folder / "t.parquet"))
    datasets.enable_progress_bars()
    assert [row.label for row in read(folder, "data.train=t.parquet").train] == ["bad", "good", "good"]


def test_a_hub_set_is_asked_for_by_id_config_and_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    saved_set(folder / "saved", {"train": [0, 1, 1], "test": [0]})
    loaded, asked = datasets.load_from_disk(str(folder / "saved")), []

    def load_dataset(*arguments: str | None) -> Any:
        asked.append(arguments)
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read(folder, "data.train=owner/name/small:train", "data.test=owner/name")
    assert asked == [("owner/name", "small"), ("owner/name", None)]
    assert (len(rows.train), [row.text for row in rows.test]) == (3, ["test 0"])


def test_an_unreachable_hub_set_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*arguments: str | None) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal(folder, "data.train=owner/name")
    assert "owner/name: the hub data set 'owner/name' cannot be loaded: Dataset 'owner/name' doesn't exist" in message
    assert "check the id and the connection" in message


# Templates


@pytest.mark.parametrize(
    ("written", "text", "pieces"),
    [
        ("a", "A", ()),
        ("{a}", "A", ()),
        ("m[0].content", "hi", ()),
        ("{m[-1].content}", "yo", ()),
        ("Q: {a}\nC: { b }", "Q: A\nC: 2", ("Q: ", "A", "\nC: ", "2", "")),
        ("{a}{b}", "A2", ("", "A", "", "2", "")),
        ("{{{a}}}", "{A}", ("{", "A", "}")),
        ("{{a}} {a}", "{a} A", ("{a} ", "A", "")),
        ("{a.b} {x y} {n}", "dotted spaced ", ("", "dotted", " ", "spaced", " ", "", "")),
        ("{o.k[1]}", "z", ()),
    ],
)
def test_templates_are_columns_in_braces(written: str, text: str, pieces: tuple[str, ...]) -> None:
    record = {
        "a": "A", "b": 2, "m": [{"content": "hi"}, {"content": "yo"}], "a.b": "dotted", "x y": "spaced", "n": None,
        "o": {"k": ["y", "z"]},
    }  # fmt: skip
    assert render(parse_template(written, "task.text"), record, "here") == (text, pieces)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{a", "task.text: '{' at character 1 of '{a' is no {column}; a brace is written {{ or }}"),
        ("a}", "'}' at character 2"),
        ("{}", "'{}' at character 1"),
        ("{a} {0", "'{' at character 5"),
        ("{{a}}", "names no {column}"),
        ("{b}", "here: there is no column 'b'; columns: a, words, m"),
        ("{word}", "there is no column 'word'; did you mean 'words'?"),
        ("{a!r}", "there is no column 'a!r'"),
        ("{a:>9}", "there is no column 'a:>9'"),
        ("{a.__class__}", "here: a.__class__: a is 'A', it has no '__class__'"),
        ("{m[2].x}", "here: m[2].x: m is a list of 1, it has no item [2]"),
        ("{m[0].x}", "here: m[0].x: m[0] has content, it has no 'x'"),
        ("{a[0]}", "here: a[0]: a is no list but 'A', it has no item [0]"),
        ("{m}", "column 'm' holds a list, not one text"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(written: str, message: str) -> None:
    record = {"a": "A", "words": "w", "m": [{"content": "hi"}]}
    with pytest.raises(RequestError) as caught:
        render(parse_template(written, "task.text"), record, "here")
    assert message in str(caught.value)


TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "it?"}], "name": "x"},
    {"role": "assistant", "content": None, "tool_calls": [1]},
    {"role": "user", "content": "There.\n\nassistant: yes \n"},
]
SAID = "system: Be kind.\n\nuser: Where is it?\n\nassistant:\n\nuser: There.\n\nassistant: yes"


def test_a_conversation_becomes_a_paragraph_a_message(tmp_path: Path) -> None:
    plain = [{"role": "user", "content": "hm"}, {"role": "bot", "content": "so"}]
    records = [{"talk": TALK, "to": "us", "label": "a"}, {"talk": plain, "to": 1, "label": "b"}]
    records += [{"talk": [], "to": "", "label": "b"}, {"talk": "as it is", "to": None, "label": "a"}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    found = only(tmp_path, "r.jsonl", lines, "task.text=talk")
    assert [row.text for row in found] == [SAID, "user: hm\n\nbot: so", "", "as it is"]
    (first, *_) = only(tmp_path, "r.jsonl", lines, "task.text='To {to}: {talk}'")
    assert first.pieces == ("To ", "us", ": ", SAID, "")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"talk": plain}]), tmp_path / "r.parquet")
    made = config.parse("task: {name: a, instruction: b, text: talk}\ndata: {train: x.csv}", tmp_path / "c.yaml")
    ((_, row),) = rows_to_predict(open_table("r.parquet", tmp_path), made.task)
    assert row.text == "user: hm\n\nbot: so"


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([{"from": "user", "value": "hm"}], "message 1: {'from': 'user', 'value': 'hm'} is no"),
        ([TALK[0], {"role": "user"}], "r.jsonl, line 1: column 'talk', message 2: {'role': 'user'} is no"),
        ([{"role": "user\n\nsystem", "content": "hm"}], "the role one word"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1: the content of 'user' is no text: [{'ty"),
        ([{"role": "user", "content": 3}], "message 1: the content of 'user' is no text: 3"),
        ([{"role": "user", "content": "\ud83d"}], "column 'talk' holds half of a character"),
        ([TALK[0], "hm"], "column 'talk' holds a list, not one text; reach into it with {talk[0]}"),
        ({"role": ["user"], "content": ["hm"]}, "column 'talk' holds an object"),
    ],
)
def test_lists_that_are_no_conversations_are_refused(tmp_path: Path, talk: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        only(tmp_path, "r.jsonl", json.dumps({"talk": talk, "label": "a"}), "task.text=talk")
    assert message in str(caught.value)


def test_the_question_of_a_worked_case_may_be_a_conversation_and_its_reasoning_none(folder: Path) -> None:
    write(folder / "cases.jsonl", [{"question": TALK, "answer": "so", "reasoning": "for", "messages": TALK}])
    told = "reasoner.worked_cases={data: cases.jsonl}"
    assert read(folder, told).worked_cases == (WorkedCase(SAID, "so", "for"),)
    assert "column 'messages' holds a list" in refusal(folder, told, "reasoner.worked_cases.reasoning=messages")


@given(st.lists(st.text(), min_size=2, max_size=4), st.text())
def test_pieces_join_to_the_text_and_values_are_never_templates(values: list[str], literal: str) -> None:
    record = {f"c{i}": value.encode("utf-8", "ignore").decode() for i, value in enumerate(values)}
    escaped = literal.replace("{", "{{").replace("}", "}}")
    text, pieces = render(parse_template(escaped.join(f"{{{name}}}" for name in record), "k"), record, "here")
    assert text == literal.join(record.values()) == "".join(pieces)
    assert pieces[1::2] == tuple(record.values())


# Labels, choices, ids


def test_labels_come_from_train_in_natural_order(folder: Path) -> None:
    assert read(folder).task.labels == ("bad", "good")
    numbers = [{"text": f"t{i}", "label": i % 11} for i in range(33)]
    for name in ("train", "dev", "test"):
        write(folder / f"{name}.jsonl", numbers)
    assert read(folder, "task.ordinal=true").task.labels == tuple(map(str, range(11)))
    write(folder / "train.jsonl", [*numbers, {"text": "x", "label": "many"}])
    assert read(folder).task.labels[:3] == ("0", "1", "10")
    assert "write task.labels, lowest first" in refusal(folder, "task.ordinal=true")


def test_labels_of_the_config_keep_their_order_and_descriptions(folder: Path) -> None:
    task = read(folder, "task.labels={good: fine, bad: }").task
    assert task.labels == ("good", "bad") and task.descriptions == {"good": "fine"}
    assert "Without a row in train: fair." in read(folder, "task.labels=[bad, fair, good]").audit["notes"]


def test_labels_that_train_lacks_are_refused(folder: Path) -> None:
    write(folder / "test.jsonl", [*moods(3), {"text": "x", "label": "goood"}])
    message = "test.jsonl, line 4: label 'goood' is not among the labels of the task; did you mean 'good'?"
    assert message in refusal(folder)
    write(folder / "test.jsonl", moods(3))
    message = "train.jsonl, line 1: label 'bad' is not among the labels of the task; there are fine, good"
    assert message in refusal(folder, "task.labels=[good, fine]")


def test_one_class_only_is_refused(folder: Path) -> None:
    write(folder / "train.jsonl", [{"text": f"{i}", "label": "a"} for i in range(9)])
    assert "train.jsonl: every row has the label 'a'" in refusal(folder)
    assert "every row has the label 'a'" in refusal(folder, "task.labels=[a, good, bad]")


def test_integer_labels_take_names(folder: Path) -> None:
    for name, values in (("train", [0, 1, "1"]), ("dev", ["good"]), ("test", [0.0])):
        write(folder / f"{name}.jsonl", [{"text": f"{name} {i}", "label": value} for i, value in enumerate(values)])
    rows = read(folder, "data.label_names=[bad, good]")
    assert [row.label for row in rows.train] == ["bad", "good", "good"]
    assert (rows.dev[0].label, rows.test[0].label) == ("good", "bad")
    write(folder / "test.jsonl", [{"text": "x", "label": 2}])
    assert "test.jsonl, line 1: label '2' is no number from 0 to 1" in refusal(folder, "data.label_names=[bad, good]")
    numbers = only(folder, "r.csv", "text,label\na,1\nb,0\n", "data.label_names=[1, 2]")
    assert [row.label for row in numbers] == ["2", "1"]


def quiz(count: int) -> list[dict[str, Any]]:
    return [{"text": f"q{i}", "label": f"{i + 1}", "options": [f"{i}", i + 1, f"{i + 2}"]} for i in range(count)]


def test_choices_are_each_rows_own_answers(folder: Path) -> None:
    for name in ("train", "dev", "test"):
        write(folder / f"{name}.jsonl", quiz(6))
    rows = read(folder, "task.choices=options")
    assert rows.task.labels == () and rows.audit["splits"]["train"]["classes"] == {}
    assert rows.train[2].choices == ("2", "3", "4") and rows.train[2].label == "3"
    write(folder / "test.jsonl", [{"text": "q", "label": "ten", "options": ["one", "tenn"]}])
    message = "test.jsonl, line 1: label 'ten' is not among this row's choices; did you mean 'tenn'?"
    assert message in refusal(folder, "task.choices=options")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("a", "column 'options' should hold a list of choices, not 'a'"),
        (["a", "a"], "column 'options' should hold two choices or more"),
        (["a", "b\nc"], "holds a line break"),
        (["a", None], "choice '' is empty"),
        ("[1", "column 'options' is no JSON list"),
    ],
)
def test_choices_that_cannot_be_scored_are_refused(tmp_path: Path, choices: Any, message: str) -> None:
    line = json.dumps({"text": "q", "label": "a", "options": choices})
    assert message in fault(tmp_path, "r.jsonl", line, "task.choices=options")


def test_choices_may_stand_as_a_json_list_and_count_once(tmp_path: Path) -> None:
    rows = only(tmp_path, "r.csv", 'text,label,options\nq,b ,"[""a"", ""b "", ""a""]"\n', "task.choices=options")
    assert (rows[0].choices, rows[0].label) == (("a", "b"), "b")


def test_ids_are_a_column_or_a_hash(tmp_path: Path) -> None:
    lines = "text,label,n\na,x,1\nb,y,2\na,x,1\na,x,1\n"
    hashed = [row.id for row in only(tmp_path, "r.csv", lines)]
    assert len(hashed[0]) == 16 and hashed[2:] == [f"{hashed[0]}-2", f"{hashed[0]}-3"] and hashed[1] != hashed[0]
    assert only(tmp_path, "r.csv", lines.replace("b,y,2", "b,y,3"))[1].id != hashed[1]
    message = fault(tmp_path, "r.csv", lines, "data.id=n")
    assert message == "r.csv, line 4: id '1' stands already at r.csv, line 2; ids are unique"
    twice = only(tmp_path, "r.jsonl", '{"text": "a", "label": "x"}\n{"label": "x", "text": "a"}')
    assert twice[1].id == f"{twice[0].id}-2"
    assert [row.id for row in only(tmp_path, "r.csv", "text,label,n\na,x,1\nb,y,2\n", "data.id=n")] == ["1", "2"]
    assert "line 2: column 'n' holds no id" in fault(tmp_path, "r.csv", "text,label,n\na,x,\n", "data.id=n")


def test_rows_to_predict_need_no_label(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text\na\n\nb\n")
    made = config.parse("task: {name: a, instruction: b, labels: [x, y]}\ndata: {train: x.csv}", tmp_path / "c.yaml")
    rows = [row for _, row in rows_to_predict(open_table("r.csv", tmp_path), made.task)]
    assert [(row.text, row.label) for row in rows] == [("a", None), ("b", None)]


def test_a_fingerprint_is_of_content_and_order() -> None:
    one, two = Row("1", "a", "x"), Row("2", "b", "y", ("y", "z"))
    assert data.fingerprint([one, two]) == data.fingerprint((one, two)) != data.fingerprint([two, one])
    assert len({data.fingerprint([row]) for row in (one, two, Row("1", "a"), Row("1", "a", "x", ("x",)))}) == 4


# Splits and subsets

many = st.lists(st.tuples(st.integers(0, 30), st.sampled_from("aaaaabbc")), min_size=1, max_size=60).map(
    lambda made: [
        Row(str(i), f"text {text}", label)
        for i, (text, label) in enumerate([*made, *((40 + n, "b") for n in range(20))])
    ]
)
one_each = st.lists(st.sampled_from("aaaaaabbbc"), min_size=20, max_size=200).map(
    lambda labels: [Row(str(i), f"text {i}", label) for i, label in enumerate(labels)]
)


@settings(deadline=None)
@given(many, st.integers(0, 3))
def test_a_share_keeps_duplicates_together_and_loses_nothing(rows: list[Row], seed: int) -> None:
    size = len(rows) // 4
    rest, cut = cut_share(rows, size, seed, "data.dev")
    assert 0 < len(cut) <= size
    assert not {text_key(row) for row in rest} & {text_key(row) for row in cut}
    assert sorted([*rest, *cut], key=lambda row: int(row.id)) == rows
    again = cut_share(rows[::-1], size, seed, "data.dev")[1]
    assert {text_key(row) for row in again} == {text_key(row) for row in cut}


@settings(deadline=None)
@given(one_each, st.integers(0, 3), st.data())
def test_draws_are_nested_stratified_and_independent_of_order(
    rows: list[Row], seed: int, given_data: st.DataObject
) -> None:
    more = given_data.draw(st.integers(2, len(rows)))
    fewer = given_data.draw(st.integers(2, more))
    large, small = draw(rows, more, seed), draw(rows, fewer, seed)
    assert (len(large), len(small)) == (more, fewer) and set(small) <= set(large)
    assert large == [row for row in rows if row in set(large)]
    assert set(draw(rows[::-1], more, seed)) == set(large)
    totals, drawn = Counter(row.label for row in rows), Counter(row.label for row in large)
    for label, total in totals.items():
        assert abs(drawn[label] - total * more / len(rows)) <= 2


def test_seeds_and_splits_draw_differently() -> None:
    rows = [Row(str(i), f"text {i}", "ab"[i % 2]) for i in range(200)]
    cuts = [
        {row.id for row in cut_share(rows, 40, seed, what)[1]} for seed in (0, 1) for what in ("data.dev", "data.test")
    ]
    cuts += [{row.id for row in draw(rows, 40, seed)} for seed in (0, 1)]
    assert all(len(one & other) < 25 for i, one in enumerate(cuts) for other in cuts[:i])
    assert [Counter(row.label for row in rows if row.id in cut) for cut in cuts] == [{"a": 20, "b": 20}] * 6


def test_shares_are_of_all_rows_and_test_is_cut_first(folder: Path) -> None:
    write(folder / "train.jsonl", moods(200))
    both = read(folder, "data.dev=0.1", "data.test=0.2")
    assert (len(both.train), len(both.dev), len(both.test)) == (140, 20, 40)
    assert {row.id for row in read(folder, "data.dev=0.3", "data.test=0.2").test} == {row.id for row in both.test}
    for split in (both.train, both.dev, both.test):
        assert abs(sum(row.label == "bad" for row in split) - len(split) / 4) <= 1
    assert read(folder, "data.dev=0.1", "data.test=0.2", "seed=1").test != both.test
    write(folder / "train.jsonl", moods(4))
    assert "data.dev: 0 of 4 rows cannot be cut off" in refusal(folder, "data.dev=0.1")


def test_fewer_rows_change_neither_dev_nor_test(folder: Path) -> None:
    write(folder / "train.jsonl", moods(200))
    whole = read(folder, "data.dev=0.1", "data.test=0.1")
    large, small = (read(folder, "data.dev=0.1", "data.test=0.1", f"data.rows={n}") for n in (64, 16))
    assert set(small.train) <= set(large.train) <= set(whole.train) and len(small.train) == 16
    assert (small.dev, small.test) == (whole.dev, whole.test)
    assert "16 of 160 rows of train were drawn." in small.audit["notes"]
    assert "data.rows: 161 is more than the 160 rows" in refusal(
        folder, "data.dev=0.1", "data.test=0.1", "data.rows=161"
    )


@settings(deadline=None)
@given(one_each, st.integers(0, 3), st.data())
def test_balanced_draws_are_nested_alike_and_independent_of_order(
    rows: list[Row], seed: int, given_data: st.DataObject
) -> None:
    totals = Counter(row.label for row in rows)
    more = given_data.draw(st.integers(1, min(totals.values())))
    large, small = draw_each(rows, more, seed), draw_each(rows, given_data.draw(st.integers(1, more)), seed)
    assert Counter(row.label for row in large) == dict.fromkeys(totals, more)
    assert set(small) <= set(large) and large == [row for row in rows if row in set(large)]
    assert set(draw_each(rows[::-1], more, seed)) == set(large)


def test_a_balanced_train_has_as_many_rows_of_every_label(folder: Path) -> None:
    write(folder / "train.jsonl", moods(200))
    every = read(folder, "data.balanced=true")
    assert every.audit["splits"]["train"]["classes"] == {"bad": 50, "good": 50}
    assert "50 rows of each label were drawn, 100 of 200 rows of train." in every.audit["notes"]
    few = read(folder, "data.balanced=true", "data.rows=17")
    assert few.audit["splits"]["train"]["classes"] == {"bad": 8, "good": 8} and set(few.train) < set(every.train)
    assert (few.dev, few.test) == (every.dev, every.test)
    assert set(read(folder, "data.balanced=true", "seed=1").train) != set(every.train)
    assert refusal(folder, "data.balanced=true", "data.rows=120") == (
        "data.balanced: 120 rows take 60 of each of 2 labels, and label 'bad' has 50; set data.rows to 100 or less, or "
        "to all"
    )
    three = "task.labels=[good, bad, so]"
    assert "label 'so' has no row in train" in refusal(folder, "data.balanced=true", three)
    write(folder / "train.jsonl", [*moods(20), {"text": "x", "label": "so"}])
    assert "2 rows cannot hold 3 labels alike" in refusal(folder, "data.balanced=true", three, "data.rows=2")
    assert "data.balanced: it balances labels that rows share" in refusal(
        folder, "data.balanced=true", "task.choices=options"
    )


def test_test_rows_are_not_the_training_rows(folder: Path) -> None:
    assert "data.test: " in refusal(folder, "data.test=./train.jsonl")
    assert "is what data.train names" in refusal(folder, "data.dev=train.jsonl")
    assert "is what data.train names" in refusal(folder, f"data.train={folder}:train", f"data.dev={folder}:train")


# The audit


def test_the_audit_counts_what_is_wrong(folder: Path) -> None:
    train = [
        ("one", "good"), ("One ", "good"), ("two", "good"), ("two", "bad"), ("two", "bad"), ("  ", "bad"), ("", "bad"),
        ("three words here", "bad"),
    ]  # fmt: skip
    dev = [("two", "good"), ("new", "bad"), (" ", "bad"), ("", "good")]
    test = [("one", "bad"), ("one", "good"), ("new", "good"), ("other", "bad")]
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        write(folder / f"{name}.jsonl", [{"text": text, "label": label} for text, label in rows])
    found = read(folder)
    assert found.audit["splits"]["train"] == {
        "rows": 6, "duplicates": 3, "conflicting": 1, "empty": 2, "classes": {"bad": 3, "good": 3},
        "words": {"median": 1.0, "max": 3},
    }  # fmt: skip
    dev_found = found.audit["splits"]["dev"]
    assert [dev_found[key] for key in ("rows", "empty", "duplicates", "conflicting")] == [4, 2, 0, 0]
    assert found.audit["overlap"] == {
        "test_in_train": 2, "test_in_train_other_label": 1, "dev_in_train": 1, "dev_in_train_other_label": 0,
        "test_in_dev": 1, "test_in_dev_other_label": 1,
    }  # fmt: skip
    assert len(found.train) == 6 and found.dev[2].text == " "
    notes = found.audit["notes"]
    assert "2 rows with an empty text were left out of train." in notes
    assert "2 test rows have a text that stands in train, 1 with another label." in notes
    assert "1 texts of train have more than one label." in notes
    json.dumps(found.audit)


def test_labels_that_differ_in_case_are_noted(folder: Path) -> None:
    write(folder / "train.jsonl", [*moods(8), {"text": "x", "label": "Good"}])
    assert "Good and good differ in case only." in read(folder).audit["notes"]


def test_a_text_column_without_text_is_refused(folder: Path) -> None:
    write(folder / "train.jsonl", [{"text": None, "label": label} for label in ("good", "bad")])
    assert "every text of" in refusal(folder) and "is task.text the right column?" in refusal(folder)


# Worked cases and given reasonings


def test_worked_cases_fit_by_configuration(folder: Path) -> None:
    cases = [
        {"messages": [{"content": f"what is {i}"}, {"content": f"because {i}"}], "meta": {"answer": i}}
        for i in range(9)
    ]
    write(folder / "cases.jsonl", [*cases, {"messages": [{"content": "q"}, {"content": " "}], "meta": {"answer": 1}}])
    told = (
        "reasoner.worked_cases={data: cases.jsonl, question: 'Q: {messages[0].content}', answer: meta.answer, "
        "reasoning: '{messages[-1].content}'}"
    )
    found = read(folder, told)
    assert found.worked_cases[3] == WorkedCase("Q: what is 3", "3", "because 3") and len(found.worked_cases) == 9
    assert any(note.startswith("1 worked cases with an empty") for note in found.audit["notes"])
    few, more = (read(folder, told, f"reasoner.worked_cases.rows={n}").worked_cases for n in (3, 6))
    assert len(few) == 3 and set(few) < set(more) < set(found.worked_cases)
    assert "is more than the 9 there are" in refusal(folder, told, "reasoner.worked_cases.rows=10")
    message = "cases.jsonl, line 1: there is no column 'question'; columns: messages, meta"
    assert message in refusal(folder, "reasoner.worked_cases.data=cases.jsonl")


def test_general_cases_and_those_of_the_task_stand_together(folder: Path) -> None:
    cases = [{"question": f"what is {i}", "answer": f"{i}", "reasoning": f"because {i}"} for i in range(9)]
    write(folder / "general.jsonl", cases)
    own = [{"text": f"row {i}", "label": "good", "why": f"own {i}"} for i in range(4)]
    write(folder / "own.jsonl", [*own, {"text": "row 5", "label": "bad", "why": " "}])
    both = (
        "reasoner.worked_cases=[{data: general.jsonl, rows: 3}, "
        "{data: own.jsonl, question: text, answer: label, reasoning: why, of_this_task: true}]"
    )
    found = read(folder, both)
    assert [case.of_this_task for case in found.worked_cases] == [False] * 3 + [True] * 4
    assert found.worked_cases[-1] == WorkedCase("row 3", "good", "own 3", of_this_task=True)
    assert found.worked_cases[:3] == read(folder, "reasoner.worked_cases={data: general.jsonl, rows: 3}").worked_cases
    left = "1 worked cases of reasoner.worked_cases[1] with an empty question, answer or reasoning were left out."
    assert left in found.audit["notes"]
    assert "reasoner.worked_cases[1].rows: 9 is more than the 4" in refusal(
        folder, both, "reasoner.worked_cases.1.rows=9"
    )
    assert "worked_cases[0].answer: " in refusal(folder, both, "reasoner.worked_cases.0.answer={}")


def test_reasonings_come_from_a_column_of_train(folder: Path) -> None:
    write(folder / "train.jsonl", [{**row, "why": f"why {i}" if i % 2 else None} for i, row in enumerate(moods(20))])
    found = read(folder, "reasonings.teacher=column", "reasonings.column=why", "data.rows=8")
    assert set(found.reasonings) <= {row.id for row in found.train} and found.reasonings
    assert all(
        found.reasonings[row.id] == f"why {row.text.split()[1]}" for row in found.train if row.id in found.reasonings
    )
    assert read(folder, "data.rows=8").reasonings == {}
    message = refusal(folder, "reasonings.teacher=column", "reasonings.column=wy")
    assert "train.jsonl, line 1: there is no column 'wy'" in message


def test_reasonings_come_from_a_file_by_id(folder: Path) -> None:
    write(folder / "train.jsonl", [{**row, "n": i} for i, row in enumerate(moods(6))])
    for name in ("dev", "test"):
        write(folder / f"{name}.jsonl", [{**row, "n": i} for i, row in enumerate(moods(2, 100))])
    (folder / "why.csv").write_text("key,because\n0,zero\n3,three\n99,none\n4,\n")
    told = ("data.id=n", "reasonings.teacher=file", "reasonings.file={path: why.csv, id: key, reasoning: because}")
    found = read(folder, *told)
    assert found.file_reasonings == {"0": "zero", "3": "three"} and found.reasonings == {}
    assert "4 rows of train have no reasoning in why.csv." in found.audit["notes"]
    (folder / "why.csv").write_text("key,because\n0,zero\n0,again\n")
    assert "why.csv, line 3: id '0' stands already at" in refusal(folder, *told)
    (folder / "why.csv").write_text("key,because\nx,zero\n")
    assert "no id is one of a training row: here is 'x', there '0'; set reasonings.file.id" in refusal(folder, *told)
    (folder / "why.csv").write_text("key,because\n0,\n1, \n")
    assert "no training row has a text in because" in refusal(folder, *told)
    (folder / "why.csv").write_text("key,because\n")
    assert "there are no rows" in refusal(folder, *told)


def test_rows_without_a_reasoning_in_their_column_are_counted(folder: Path) -> None:
    why = ["a", " ", None, "b", "", "c"]
    write(folder / "train.jsonl", [{**row, "why": text} for row, text in zip(moods(6), why, strict=True)])
    for name in ("dev", "test"):
        write(folder / f"{name}.jsonl", [{**row, "why": None} for row in moods(2, 100)])
    found = read(folder, "reasonings.teacher=column", "reasonings.column=why")
    assert "3 rows of train have no reasoning in the column why." in found.audit["notes"]


# Real data


@needs_real_data
def test_the_audit_of_emotion_is_the_published_one() -> None:
    text = "task: {name: a, instruction: b}\ndata: {train: train.jsonl, dev: val.jsonl, test: test.jsonl}"
    found = data.read(config.parse(text, Path(REAL) / "emotion" / "config.yaml"))
    train = found.audit["splits"]["train"]
    assert (train["rows"], train["duplicates"], train["conflicting"], train["empty"]) == (16000, 31, 30, 0)
    assert train["words"] == {"median": 17, "max": 66}
    assert found.audit["splits"]["test"]["classes"]["joy"] == 695
    assert found.audit["overlap"] == {
        "test_in_train": 11, "test_in_train_other_label": 11, "dev_in_train": 5, "dev_in_train_other_label": 5,
        "test_in_dev": 3, "test_in_dev_other_label": 3,
    }  # fmt: skip


@needs_real_data
@pytest.mark.parametrize(
    ("name", "task", "labels"),
    [
        ("banking77", "", 77),
        ("sst5", "", 5),
        ("trec6", "", 6),
        ("esnli-human:val", ", text: question, label: answer", 3),
        ("emotion-why:train", "", 6),
        ("cqa-llm", ", text: stem, label: answer, choices: choices", 0),
        ("cqa-cose-human", ", text: '{stem}', label: answer, choices: choices", 0),
        ("aqua-rat:val", ", text: stem, label: answer, choices: choices", 0),
    ],
)
def test_real_sets_are_read_as_they_are(name: str, task: str, labels: int) -> None:
    text = f"task: {{name: a, instruction: b{task}}}\ndata: {{train: '{name}', dev: 0.1, test: 0.1}}"
    found = data.read(config.parse(text, Path(REAL) / "config.yaml"))
    assert len(found.task.labels) == labels
    assert len({row.id for row in (*found.train, *found.dev, *found.test)}) == sum(
        len(split) for split in (found.train, found.dev, found.test)
    )
    assert not found.audit["overlap"]["test_in_train"] and not found.audit["overlap"]["dev_in_train"]


def test_the_rows_that_are_asked_are_the_same_whatever_the_seed(folder: Path) -> None:
    write(folder / "dev.jsonl", moods(40, 1000))
    write(folder / "test.jsonl", moods(80, 2000))
    found = [read(folder, "data.dev_rows=8", "data.test_rows=12", f"seed={seed}") for seed in (0, 1)]
    assert [(len(one.dev), len(one.test)) for one in found] == [(8, 12)] * 2
    assert (found[0].dev, found[0].test) == (found[1].dev, found[1].test)
    assert Counter(row.label for row in found[0].test) == {"good": 9, "bad": 3}
    assert "12 of 80 rows of test were drawn." in found[0].audit["notes"]
    assert "data.test_rows: 81 is more than the 80 rows of test" in refusal(folder, "data.test_rows=81")
