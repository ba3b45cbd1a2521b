"""Files of any length: every column is kept, every kill survived, and no more than a slice of rows held."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import saywhy
import toy
from saywhy import cli, progress, store
from saywhy.predict import stream
from saywhy.predict.texts import TextClassifier
from saywhy.records import Prediction, RequestError, Row, Task

pytest_plugins = ("runs",)

ANSWER = ["label", "probability", "probabilities", "abstained", "reasoning", "tokens", "forced", "pruned"]
ANIMALS = Task("animals", "Which?", toy.LABELS)
SLICE = 4


class Fake(TextClassifier):
    """Answers without a model, by the text alone, and keeps what it was asked."""

    asked: list[list[str]]

    def rows(self, rows: Sequence[Row], title: str = "") -> list[Prediction]:
        self.asked.append([row.text for row in rows])
        return [said(row, self.classifier.task) for row in rows]


def said(row: Row, task: Task) -> Prediction:
    labels = row.choices or task.labels
    best = len(row.text) % len(labels)
    shares = {label: 0.7 if at == best else 0.3 / (len(labels) - 1) for at, label in enumerate(labels)}
    why = None if "silent" in row.text else f'because "{row.text[:9]}",\nso'
    return Prediction(labels[best], shares, why, 12.5 + len(row.text), "long" in row.text, None, 1e-5)


def fake(folder: Path | None = None, task: Task = ANIMALS, mode: str = "label") -> Fake:
    made = Fake(SimpleNamespace(task=task, folder=folder, threshold=None, temperatures={}), mode)  # type: ignore[arg-type]
    object.__setattr__(made, "asked", [])
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a model's; slices are short."""
    monkeypatch.setattr(stream, "ROWS_PER_SLICE", SLICE)
    model = tmp_path / "model"
    model.mkdir()
    (model / "prompt.json").write_text("{}")
    return model


def answered(folder: Path, source: Path, output: Path, task: Task = ANIMALS, **changes: Any) -> Fake:
    """Answer a file; give the one that was asked."""
    classifier = fake(folder, task, changes.pop("mode", "label"))
    stream.answer_file(classifier, str(source), output, **changes)
    return classifier


def refusal(folder: Path, source: Path, output: Path, **changes: Any) -> str:
    with pytest.raises(RequestError) as caught:
        answered(folder, source, output, **changes)
    return str(caught.value).replace(f"{source.parent.resolve()}{os.sep}", "")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, strict=True))


def read(path: Path) -> list[dict[str, Any]]:
    """Read an output as records; cells of CSV stay text."""
    if path.suffix == ".parquet":
        return store.read_table(path).to_pylist()
    return read_lines(path) if path.suffix == ".jsonl" else read_csv(path, "\t" if path.suffix == ".tsv" else ",")


def hidden(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


TEXTS = [
    "it purrs",
    'it, "barks"',
    "it\tsings\r\nagain",
    "",
    "naïve 🐈\rit",
    "silent",
    "it purrs",
    "long",
    "x" * 9,
    "NA",
]
RECORDS = [
    {"text": text, "code": f"00{at}", "note": ["NA", "", " a b ", "null"][at % 4]} for at, text in enumerate(TEXTS)
]


def write_table(path: Path, records: Sequence[Mapping[str, Any]] = RECORDS) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=3)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in records))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL
            )
            writer.writeheader()
            writer.writerows(records)
    return path


# What an output has.


@pytest.mark.parametrize("target", stream.FORMS)
@pytest.mark.parametrize("source", stream.FORMS)
def test_every_output_has_the_columns_of_every_input(folder: Path, tmp_path: Path, source: str, target: str) -> None:
    given, output = write_table(tmp_path / f"in{source}"), tmp_path / "new" / f"out{target}"
    asked = answered(folder, given, output).asked
    assert [text for one in asked for text in one] == TEXTS
    assert [len(one) for one in asked] == [4, 4, 2]
    found = read(output)
    assert [list(row) for row in found] == [["text", "code", "note", *ANSWER]] * len(TEXTS)
    assert [{name: row[name] for name in RECORDS[0]} for row in found] == RECORDS
    for row, text in zip(found, TEXTS, strict=True):
        wanted = said(Row("", text), ANIMALS)
        in_text = target in (".csv", ".tsv")
        assert row["label"] == wanted.label
        assert row["reasoning"] == (wanted.reasoning or ("" if in_text else None))
        assert float(row["probability"]) == wanted.probabilities[wanted.label]
        shares = json.loads(row["probabilities"]) if in_text else row["probabilities"]
        assert list(shares.items()) == list(wanted.probabilities.items())
        assert row["abstained"] == (str(wanted.abstained).lower() if in_text else wanted.abstained)
        assert row["forced"] == (str(wanted.forced).lower() if in_text else wanted.forced)
        assert float(row["tokens"]) == wanted.tokens and float(row["pruned"]) == wanted.pruned
    assert [path.name for path in output.parent.iterdir()] == [output.name], "nothing is left beside the output"


def test_text_is_written_as_it_was(folder: Path, tmp_path: Path) -> None:
    """Byte by byte but for the quotes that nobody needs."""
    (tmp_path / "in.csv").write_bytes('\ufefftext,id\r\nit purrs,007\r\n\r\n"a""b",1e5\r\n'.encode())
    answered(folder, tmp_path / "in.csv", tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_bytes().decode().split("\n")
    assert lines[0] == "text,id," + ",".join(ANSWER)
    assert lines[1].startswith('it purrs,007,bird,0.7,"{""cat"": 0.15,')
    assert [row["id"] for row in read(tmp_path / "out.csv")] == ["007", "1e5"]


def test_parquet_keeps_its_types(folder: Path, tmp_path: Path) -> None:
    utc = datetime.datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=datetime.UTC)
    deep = pa.struct({"a": pa.int32(), "b": pa.list_(pa.string())})
    columns = {
        "text": pa.array(TEXTS, pa.large_string()),
        "small": pa.array([*range(9), None], pa.int16()),
        "half": pa.array([0.1] * 9 + [float("nan")], pa.float32()),
        "when": pa.array([utc] * 9 + [None], pa.timestamp("us", "UTC")),
        "exact": pa.array([1715000000000000001 + i for i in range(10)], pa.int64()).cast(pa.timestamp("ns")),
        "day": pa.array([utc.date()] * 10),
        "price": pa.array([Decimal("1.10")] * 10, pa.decimal128(9, 2)),
        "raw": pa.array([b"\x00\xff"] * 10),
        "kind": pa.array(["a", "b"] * 5).dictionary_encode(),
        "deep": pa.array([[{"a": 1, "b": ["x"]}], []] * 5, pa.list_(deep)),
        "pairs": pa.array([[("k", 1)], []] * 5, pa.map_(pa.string(), pa.int8())),
        "nothing": pa.nulls(10),
    }  # fmt: skip
    whole = pa.table(columns).replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(whole, tmp_path / "in.parquet", row_group_size=7)
    answered(folder, tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = store.read_table(tmp_path / "out.parquet")
    given = store.read_table(tmp_path / "in.parquet")
    assert found.column_names == [*columns, *ANSWER]
    assert found.select(list(columns)).schema.types == given.schema.types
    for name in columns:
        if name == "half":
            assert str(found[name].to_pylist()) == str(given[name].to_pylist())
        else:
            assert found[name].to_pylist() == given[name].to_pylist(), name
    assert found["exact"].cast(pa.int64()).to_pylist() == given["exact"].cast(pa.int64()).to_pylist()
    assert found.schema.metadata is None or b"huggingface" not in found.schema.metadata
    shares = found.schema.field("probabilities").type
    assert [shares.field(at).name for at in range(shares.num_fields)] == list(toy.LABELS)
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3
    answered(folder, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    row = read(tmp_path / "out.jsonl")[9]
    assert (row["half"], row["when"], row["day"], row["price"], row["raw"]) == (
        None,
        None,
        "2024-05-06",
        "1.10",
        "AP8=",
    )
    answered(folder, tmp_path / "in.parquet", tmp_path / "out.csv")
    row = read(tmp_path / "out.csv")[0]
    assert (row["small"], row["price"], row["day"], row["nothing"]) == ("0", "1.10", "2024-05-06", "")
    assert json.loads(row["deep"]) == [{"a": 1, "b": ["x"]}]
    assert row["when"] == "2024-05-06T07:08:09.000010+00:00"


def test_what_python_would_cut_is_refused(folder: Path, tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "at": pa.array([1001], pa.time64("ns"))})
    pq.write_table(table, tmp_path / "in.parquet")
    assert "column 'at' holds times in nanoseconds" in refusal(folder, tmp_path / "in.parquet", tmp_path / "o.parquet")


MIXED = [
    {"text": "a", "n": 1, "deep": {"x": [1]}},
    {"n": 2.5, "text": "b"},
    {"text": "c", "deep": {"y": None}, "empty": []},
    {"text": "d", "n": None},
    {"text": "e", "late": "007", "n": 10**15, "empty": ["x"]},
]


def test_lines_may_have_different_keys(folder: Path, tmp_path: Path) -> None:
    given = write_table(tmp_path / "in.jsonl", MIXED)
    for target in (".jsonl", ".csv", ".parquet"):
        answered(folder, given, tmp_path / f"out{target}")
    lines = read(tmp_path / "out.jsonl")
    assert [list(row.items())[: -len(ANSWER)] for row in lines] == [list(row.items()) for row in MIXED]
    names = ["text", "n", "deep", "empty", "late"]
    cells = read(tmp_path / "out.csv")
    assert list(cells[0]) == [*names, *ANSWER]
    assert [[row[name] for name in names] for row in cells] == [
        ["a", "1", '{"x": [1]}', "", ""],
        ["b", "2.5", "", "", ""],
        ["c", "", '{"y": null}', "[]", ""],
        ["d", "", "", "", ""],
        ["e", "1000000000000000", "", '["x"]', "007"],
    ]
    rows = read(tmp_path / "out.parquet")
    assert [row["n"] for row in rows] == [1.0, 2.5, None, None, 1e15]
    assert rows[0]["deep"] == {"x": [1], "y": None}
    assert [row["empty"] for row in rows] == [None, None, [], None, ["x"]]
    assert [row["late"] for row in rows] == [None] * 4 + ["007"]


@pytest.mark.parametrize(
    ("value", "why"),
    [("ten", "n"), (True, "n"), ([1], "n"), ({}, "without keys"), (2**70, "too large"), ("\ud800", "surrogates")],
    ids=["text", "truth", "list", "hollow", "large", "half-a-character"],
)
def test_what_parquet_cannot_hold_is_told_before_anything_is_asked(
    folder: Path, tmp_path: Path, value: Any, why: str
) -> None:
    rows = [{"text": f"row {at}", "n": at, "other": None} for at in range(9)]
    rows[6]["n" if why == "n" else "other"] = value
    given = write_table(tmp_path / "in.jsonl", rows)
    message = refusal(folder, given, tmp_path / "out.parquet")
    assert message.startswith("in.jsonl, line 7: ") and why in message and "write .jsonl" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model"]
    answered(folder, given, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[6]["n" if why == "n" else "other"] == value


def test_an_answer_never_takes_the_place_of_a_column(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text, "label": "cat"} for text in TEXTS]
    given = write_table(tmp_path / "in.csv", rows)
    answered(folder, given, tmp_path / "out.csv")
    assert "has a column 'label', so the answer's columns begin with predicted_" in capsys.readouterr().err
    assert list(read(tmp_path / "out.csv")[0]) == ["text", "label", *(f"predicted_{name}" for name in ANSWER)]
    # What was answered can be asked again.
    answered(folder, tmp_path / "out.csv", tmp_path / "twice.jsonl")
    found = read(tmp_path / "twice.jsonl")[0]
    assert found["label"] == "cat" and found["predicted_predicted_label"] == found["predicted_label"]
    # A name that only one row has counts for all.
    late = write_table(tmp_path / "late.jsonl", [*({"text": text} for text in TEXTS), {"text": "a", "tokens": 3}])
    answered(folder, late, tmp_path / "late.csv")
    assert list(read(tmp_path / "late.csv")[0]) == ["text", "tokens", *(f"predicted_{name}" for name in ANSWER)]


def test_rows_of_one_text_are_all_answered_and_ids_are_not_asked_for(folder: Path, tmp_path: Path) -> None:
    given = write_table(tmp_path / "in.csv", [{"id": "1", "text": "it purrs"}] * 9)
    answered(folder, given, tmp_path / "out.csv")
    assert len(read(tmp_path / "out.csv")) == 9


@pytest.mark.parametrize("target", stream.FORMS)
def test_templates_and_choices(folder: Path, tmp_path: Path, target: str) -> None:
    task = Task("quiz", "Which?", (), text="{story}\n{question[0].say}", choices="options")
    options = [["yes", "no"], ["a", "b", "c"]]
    rows = [{"story": f"s{at}", "question": [{"say": "q?"}], "options": options[at % 2]} for at in range(6)]
    given = write_table(tmp_path / "in.jsonl", rows)
    assert answered(folder, given, tmp_path / f"out{target}", task).asked[0][0] == "s0\nq?"
    found = read(tmp_path / f"out{target}")
    for at, row in enumerate(found):
        shares = json.loads(row["probabilities"]) if target in (".csv", ".tsv") else dict(row["probabilities"])
        assert list(shares) == options[at % 2]
        assert row["label"] in options[at % 2]


def test_folders_of_shards_are_read_in_order(folder: Path, tmp_path: Path) -> None:
    for shard, kind in ((0, pa.int32()), (1, pa.int64())):
        table = pa.table({"text": [f"{shard} {at}" for at in range(5)], "n": pa.array(range(5), kind)})
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "set" / f"new-{shard:05d}-of-00002.parquet")
    answered(folder, tmp_path / "set", tmp_path / "out.parquet")
    found = store.read_table(tmp_path / "out.parquet")
    assert found["text"].to_pylist() == [f"{shard} {at}" for shard in (0, 1) for at in range(5)]
    assert found.schema.field("n").type == pa.int64()
    other = pa.table({"text": ["a"], "n": ["x"]})
    pq.write_table(other, tmp_path / "set" / "new-00002-of-00002.parquet")
    assert "do not have the same columns" in refusal(folder, tmp_path / "set", tmp_path / "o.parquet")


# What is wrong with a file.


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("in.csv", "", "in.csv: there are no rows"),
        ("in.csv", "text,n\n", "in.csv: there are no rows"),
        ("in.jsonl", "\n\n", "in.jsonl: there are no rows"),
        ("in.csv", "text,n\n" + "a,1\n" * 6 + "a\n", "in.csv, line 8: 1 fields where the header has 2"),
        ("in.jsonl", '{"text": "a"}\n' * 6 + '{"text": \n', "in.jsonl, line 7: this is not one JSON object"),
        ("in.jsonl", '{"text": "a"}\n' * 6 + '{"body": "a"}\n', "in.jsonl, line 7: there is no column 'text'"),
        ("in.csv", "text\n" + "a\n" * 5 + '"b\n' + "c\n" * 3, "in.csv, line 7: unexpected end of data"),
        ("in.txt", "a", "saywhy reads"),
    ],
)
def test_a_mistake_is_told_with_its_line_before_anything_is_asked(
    folder: Path, tmp_path: Path, name: str, content: str, wanted: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert wanted in refusal(folder, tmp_path / name, tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "model"]


def test_a_parquet_file_may_not_name_a_column_twice(folder: Path, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "in.parquet")
    assert "names 'text' more than once" in refusal(folder, tmp_path / "in.parquet", tmp_path / "out.jsonl")


def test_a_huge_field_is_read(folder: Path, tmp_path: Path) -> None:
    usual = csv.field_size_limit()
    huge = "it purrs\n" * 100_000
    given = write_table(tmp_path / "in.csv", [{"text": "a", "n": "1"}, {"text": huge, "n": "2"}])
    answered(folder, given, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[1]["text"] == huge
    assert csv.field_size_limit() == usual
    (tmp_path / "bad.csv").write_text('text\n"' + "x" * 2**24 + "yz\n")
    assert "bad.csv, line 2: field larger than field limit" in refusal(folder, tmp_path / "bad.csv", tmp_path / "o.csv")


def test_the_row_that_cannot_be_answered_is_named_and_the_others_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_table(tmp_path / "in.jsonl", [{"text": f"row {at}"} for at in range(9)])
    answer = Fake.rows

    def failing(self: Fake, rows: Sequence[Row], title: str = "") -> list[Prediction]:
        if any(row.text == "row 6" for row in rows):
            raise RequestError("this text is a control token")
        return answer(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Fake, "rows", failing)
        message = refusal(folder, given, tmp_path / "out.jsonl")
    assert message == "in.jsonl, line 7: this text is a control token"
    assert not (tmp_path / "out.jsonl").exists()
    write_table(given, [{"text": f"row {at}" if at != 6 else "mended"} for at in range(9)])
    asked = answered(folder, given, tmp_path / "out.jsonl").asked
    assert [one[0] for one in asked] == ["row 4", "row 8"], "the first slice was answered before"
    assert [row["text"] for row in read(tmp_path / "out.jsonl")][5:8] == ["row 5", "mended", "row 7"]


# Where it may write.


def test_nothing_is_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    output.write_text("mine")
    assert "left as it is" in refusal(folder, given, output)
    assert output.read_text() == "mine"
    answered(folder, given, output, overwrite=True)
    assert len(read(output)) == len(TEXTS)
    before = given.read_bytes()
    assert "is the input" in refusal(folder, given, given, overwrite=True)
    assert given.read_bytes() == before
    # A folder of files is read whole.
    assert "one of the input's files" in refusal(folder, given.parent, given, overwrite=True)
    assert given.read_bytes() == before
    assert "is too long; name a shorter one" in refusal(folder, given, tmp_path / ("é" * 125 + ".csv"))
    assert "is a folder" in refusal(folder, write_table(tmp_path / "in.jsonl"), _folder(tmp_path / "a.csv"))
    assert "should end in .csv, .tsv, .jsonl or .parquet" in refusal(folder, given, tmp_path / "out.txt")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_what_can_be_read_only_once_is_refused(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.csv")
    assert "read only once" in refusal(folder, tmp_path / "in.csv", tmp_path / "out.csv")


def test_what_others_wrote_stays(folder: Path, tmp_path: Path) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    parts = hidden(output)
    _folder(parts)
    (parts / "mine.txt").write_text("mine")
    assert "nothing is written there" in refusal(folder, given, output)
    (parts / store.MARKER).write_text("saywhy")
    pq.write_table(pa.table({"a": [1]}), parts / "part-mine.parquet")
    answered(folder, given, output)
    assert sorted(path.name for path in parts.iterdir()) == ["mine.txt", "part-mine.parquet"]
    assert len(read(output)) == len(TEXTS)


def test_a_name_like_that_of_a_part_is_a_name_like_any_other(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "part-000000.parquet"
    answered(folder, write_table(tmp_path / "in.csv"), output)
    assert [row["text"] for row in read(output)] == TEXTS


# Going on.


def stop_after(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, calls: int, after: bool) -> None:
    """Let a call of a function end in Ctrl-C, before or after its work."""
    original, seen = getattr(room, name), []

    def stopping(*given: Any, **named: Any) -> Any:
        seen.append(None)
        if len(seen) == calls and not after:
            raise KeyboardInterrupt
        found = original(*given, **named)
        if len(seen) == calls:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(room, name, stopping)


@pytest.mark.parametrize("target", stream.FORMS)
@pytest.mark.parametrize(
    ("room", "name", "calls", "after", "left"),
    [
        (store, "open_run", 1, False, 3),
        (Fake, "rows", 1, False, 3),
        (Fake, "rows", 2, True, 2),
        (store, "write_table", 2, True, 1),
        (store, "write_table", 3, True, 0),
        (store, "write_file", 1, False, 3),
        (stream, "check_output", 3, False, 0),
    ],
)
def test_stopped_anywhere_the_same_command_gives_the_same_bytes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    room: Any,
    name: str,
    calls: int,
    after: bool,
    left: int,
) -> None:
    given = write_table(tmp_path / "in.parquet")
    answered(folder, given, tmp_path / f"never{target}")
    output = tmp_path / f"out{target}"
    with monkeypatch.context() as patch:
        if room is store and name == "write_file":
            # The parts are written through it too: this stops the whole.
            patch.setattr(store, name, _stopping)
        else:
            stop_after(patch, room, name, calls, after)
        with pytest.raises(KeyboardInterrupt):
            answered(folder, given, output)
    assert not output.exists()
    capsys.readouterr()
    asked = answered(folder, given, output).asked
    assert len(asked) == left
    if left < 3:
        assert f"{len(TEXTS) - sum(map(len, asked))} of 10 rows were answered before" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / f"never{target}").read_bytes()
    assert not hidden(output).exists()


def _stopping(*_: Any) -> None:
    raise KeyboardInterrupt


def test_killed_behind_the_last_step_the_output_is_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stop_after(patch, stream, "_clear", 1, False)
        with pytest.raises(KeyboardInterrupt):
            answered(folder, given, output)
    whole = output.read_bytes()
    assert "--overwrite" in refusal(folder, given, output)
    assert output.read_bytes() == whole and len(read(output)) == len(TEXTS)
    assert answered(folder, given, output, overwrite=True).asked == []
    assert output.read_bytes() == whole and not hidden(output).exists()


def half(folder: Path, given: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer two slices of a file and stop."""
    with monkeypatch.context() as patch:
        stop_after(patch, Fake, "rows", 3, False)
        with pytest.raises(KeyboardInterrupt):
            answered(folder, given, output)


CHANGES: dict[str, tuple[Callable[[Path, Path], None], dict[str, Any], int]] = {
    "nothing": (lambda given, model: None, {}, 1),
    "an-early-row": (lambda given, model: spoil(given, 0), {}, 2),
    "a-late-row": (lambda given, model: spoil(given, 6), {}, 2),
    "a-row-more": (lambda given, model: insert(given), {}, 3),
    "mode": (lambda given, model: None, {"mode": "reason"}, 3),
    "model": (lambda given, model: (model / "calibration.json").write_text("{}") and None, {}, 3),
    "another-column": (lambda given, model: column(given), {}, 1),
}


def spoil(given: Path, at: int) -> None:
    rows = [dict(row) for row in RECORDS]
    rows[at]["text"] = "changed"
    write_table(given, rows)


def insert(given: Path) -> None:
    write_table(given, [RECORDS[-1], *RECORDS])


def column(given: Path) -> None:
    write_table(given, [{**row, "note": "changed"} for row in RECORDS])


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_answered_again_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    half(folder, given, output, monkeypatch)
    alter, options, slices = CHANGES[change]
    alter(given, folder)
    capsys.readouterr()
    asked = answered(folder, given, output, **options).asked
    assert len(asked) == slices
    assert ("begins again" in capsys.readouterr().err) == (slices == 3)
    answered(folder, given, tmp_path / "never.csv", **options)
    assert output.read_bytes() == (tmp_path / "never.csv").read_bytes()
    assert not hidden(output).exists()


def test_a_moved_input_is_the_same_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    half(folder, given, output, monkeypatch)
    assert len(answered(folder, given.rename(tmp_path / "moved.csv"), output).asked) == 1


def test_a_broken_part_is_answered_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    half(folder, given, output, monkeypatch)
    part = hidden(output) / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    assert len(answered(folder, given, output).asked) == 2


def test_a_shorter_input_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    half(folder, given, output, monkeypatch)
    write_table(given, RECORDS[:3])
    answered(folder, given, output)
    assert len(read(output)) == 3 and not hidden(output).exists()


@pytest.mark.parametrize("rows", [RECORDS[:5], [*RECORDS, *RECORDS], [{**row, "new": 1} for row in RECORDS]])
def test_an_input_that_changes_meanwhile_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]
) -> None:
    given, output = write_table(tmp_path / "in.jsonl"), tmp_path / "out.csv"
    look = stream.look

    def changed(*given_to: Any) -> Any:
        found = look(*given_to)
        write_table(given, rows)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(stream, "look", changed)
        assert "changed while it was answered" in refusal(folder, given, output)
    assert not output.exists()


def test_two_processes_do_not_write_one_output(folder: Path, tmp_path: Path) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    with store.open_run(hidden(output)):
        assert "writes here" in refusal(folder, given, output)
    answered(folder, given, output)


def test_what_another_process_finished_meanwhile_is_not_answered_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    look, asked = stream.look, list[Row]()

    def finished_meanwhile(*told: Any) -> Any:
        seen = look(*told)
        output.write_text("of the other process")
        return seen

    monkeypatch.setattr(stream, "look", finished_meanwhile)
    monkeypatch.setattr(Fake, "rows", lambda self, rows, title="": asked.extend(rows))
    assert "there is a file already" in refusal(folder, given, output)
    assert not asked and output.read_text() == "of the other process"


# Memory and progress.


def test_no_more_than_a_slice_of_rows_is_held(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write_table(tmp_path / "in.jsonl", [{"text": f"row {at}"} for at in range(60)])
    alive: weakref.WeakSet[Row] = weakref.WeakSet()
    read, asked = [], []
    make, answer = stream.rows_to_predict, Fake.rows

    class Counted(Row):
        __hash__ = object.__hash__

    def counted(*wanted: Any) -> Iterator[tuple[Any, Row]]:
        for record, row in make(*wanted):
            one = Counted(row.id, row.text)
            alive.add(one)
            read.append(len(alive))
            yield record, one
            del one

    def counting(self: Fake, rows: Sequence[Row], title: str = "") -> list[Prediction]:
        asked.append(len(alive))
        return answer(self, rows)

    monkeypatch.setattr(stream, "rows_to_predict", counted)
    monkeypatch.setattr(Fake, "rows", counting)
    answered(folder, given, tmp_path / "out.csv")
    assert len(read) == 2 * 60 and len(asked) == 15
    assert max(asked) <= SLICE + 1
    # While a slice is read, the one before may still be there.
    assert max(read) <= 2 * SLICE + 1


@pytest.mark.parametrize("target", [".jsonl", ".csv"])
@pytest.mark.parametrize("source", [".jsonl", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str
) -> None:
    """As Python counts it: rows, records, answers and what is written of them."""
    monkeypatch.setattr(stream, "ROWS_PER_SLICE", 200)
    given = write_table(tmp_path / f"in{source}", [{"text": f"{at} " + "x" * 4000} for at in range(4000)])
    answered(folder, write_table(tmp_path / "few.jsonl"), tmp_path / f"first{target}")
    classifier = fake(folder)
    monkeypatch.setattr(Fake, "rows", lambda self, rows: [said(row, ANIMALS) for row in rows])
    tracemalloc.start()
    try:
        stream.answer_file(classifier, str(given), tmp_path / f"out{target}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A batch of Parquet is a thousand rows. The whole file is sixteen million characters.
    assert peak < 9e6 if source == ".parquet" else peak < 4e6


def test_progress_is_told_in_lines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(stream, "SHOW_PROGRESS_FROM", 5)
    given, output = write_table(tmp_path / "in.csv"), tmp_path / "out.csv"
    half(folder, given, output, monkeypatch)
    said = capsys.readouterr().err.splitlines()
    for line, count in zip(said[:3], (4, 8, 10), strict=True):
        assert re.fullmatch(rf"read: {count} rows, [0-9,.]+/s, 0 s", line), line
    assert [line.partition(" rows, ")[0] for line in said[3:]] == ["predict: 4 of 10", "predict: 8 of 10"]
    assert "tokens/s" in said[3] and "s left" in said[3]
    monkeypatch.setattr(stream, "SHOW_PROGRESS_FROM", 1)
    answered(folder, given, output)
    assert "predict: 2 of 2 rows" in capsys.readouterr().err, "only what is left to do counts"


def test_answers_are_shown_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ROWS_SHOWN_AT_ONCE", 2)
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "a"}\n{"text": "bb"}\n{"text": "ccc"}\n{"wrong": 1}\n', encoding="utf-8")
    classifier = fake()
    answers = stream.answer_source(classifier, str(given))
    row, prediction = next(answers)
    assert (row.text, row.id) == ("a", f"{given.resolve()}, line 1") and prediction.label == "dog"
    assert classifier.asked == [["a", "bb"]]
    next(answers)
    with pytest.raises(RequestError, match="line 4: there is no column 'text'"):
        next(answers)
    given.write_text("", encoding="utf-8")
    with pytest.raises(RequestError, match="there are no rows"):
        list(stream.answer_source(classifier, str(given)))


# With a model.


def rows_with_labels(folder: Path) -> Path:
    rows = [{"text": row["text"], "label": row["label"]} for row in toy.records()["test"]]
    return write_table(folder / "rows.csv", rows)


def test_the_answers_are_those_of_the_classifier(quick_run: toy.Done, tmp_path: Path) -> None:
    arm = quick_run.folder / "reason_then_label"
    command = ["predict", str(arm), "--input", str(rows_with_labels(tmp_path)), "--output", str(tmp_path / "o.parquet")]
    assert cli.main(command) == 0
    found = read(tmp_path / "o.parquet")
    wanted = saywhy.load(arm)([row["text"] for row in found])
    assert isinstance(wanted, list)
    for row, answer in zip(found, wanted, strict=True):
        assert row["predicted_label"] == answer.label
        assert row["predicted_reasoning"] == answer.reasoning
        assert row["predicted_probabilities"] == pytest.approx(dict(answer.probabilities))
        assert row["predicted_probability"] == row["predicted_probabilities"][answer.label]
    assert cli.main(command) == 2


def test_a_file_without_an_output_is_shown(
    quick_run: toy.Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm, given = str(quick_run.folder / "label_only"), str(rows_with_labels(tmp_path))
    assert cli.main(["predict", arm, "--input", given, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"].rpartition(", ")[2] for one in found] == [f"line {at}" for at in range(2, 26)]
    assert cli.main(["predict", arm, "--input", given]) == 0
    out = capsys.readouterr().out
    assert all(row["text"] in out for row in toy.records()["test"])


DRIVER = """
import os, signal, sys
import torch
from saywhy import cli, predict, store
from saywhy.predict import stream

signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
stream.ROWS_PER_SLICE = 8
room, name, at, when, number, *command = sys.argv[1:]
module = {"store": store, "stream": stream, "os": os}[room]
original, calls = getattr(module, name), []

def stopping(*given, **named):
    calls.append(None)
    if len(calls) == int(at) and when == "before":
        os.kill(os.getpid(), int(number))
    found = original(*given, **named)
    if len(calls) == int(at) and when == "after":
        os.kill(os.getpid(), int(number))
    return found

setattr(module, name, stopping)
sys.exit(cli.main(command))
"""
# In this order, every one in what the one before left: in the first reading, in a slice, between two, in the middle of
# writing a part, and before the whole is moved to its place.
STOPS = [
    ("stream", "_widened", 2, "before", signal.SIGKILL),
    ("stream", "_ask", 1, "before", signal.SIGKILL),
    ("store", "write_table", 1, "after", signal.SIGKILL),
    ("os", "fsync", 1, "after", signal.SIGKILL),
    ("store", "write_table", 1, "after", signal.SIGINT),
    ("stream", "check_output", 3, "before", signal.SIGKILL),
]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_every_moment_it_gives_the_same_bytes(
    quick_run: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stream, "ROWS_PER_SLICE", 8)
    given, output = write_table(tmp_path / "rows.jsonl", toy.records()["test"]), tmp_path / "out.parquet"
    arm = str(quick_run.folder / "reason_then_label")
    assert cli.main(["predict", arm, "--input", str(given), "--output", str(tmp_path / "never.parquet")]) == 0
    command = ["predict", arm, "--input", str(given), "--output", str(output)]
    for room, name, at, when, number in STOPS:
        script = [sys.executable, "-c", DRIVER, room, name, str(at), when, str(int(number)), *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=300)
        if number == signal.SIGINT:
            assert ended.returncode == 130, ended.stderr
            assert "Traceback" not in ended.stderr
            assert "the same command goes on" in ended.stderr.splitlines()[-1]
        else:
            assert ended.returncode == -signal.SIGKILL, (name, ended.stderr)
        assert not output.exists()
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "24 of 24 rows were answered before" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "never.parquet").read_bytes()
    assert not hidden(output).exists()
