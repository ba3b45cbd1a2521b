"""The door for texts: what may be given as texts, odd texts, huge ones, and files that are none."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_overloads

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import saywhy
import tiny
from saywhy import ReasoningClassifier, cli, predict
from saywhy.lm import encode
from saywhy.lm.cache import Reading
from saywhy.lm.encode import Encoder, make_encoder, prompt_ids, render, text_ids
from saywhy.predict import TextClassifier, modes
from saywhy.predict.texts import text_row
from saywhy.records import Prediction, RequestError, Task

ROOM = 60
TASK = Task("moods", "Which mood?", ("joy", "no"))
TWO = replace(TASK, text="First: {first}\nSecond: {second}")
PICKS = Task("picks", "Which answer?", (), choices="choices")
TEXTS = ["so alone tonight", "a lovely morning", "", "7"]
PAIRS = [{"first": "alone", "second": "tonight"}, {"first": "lovely", "second": "morning"}]


def door(task: Task = TASK, arm: str = "both", tokenizer: Any = None) -> TextClassifier:
    return tiny.door(task, arm, tokenizer, room=ROOM)


@pytest.fixture(scope="module")
def asked() -> TextClassifier:
    return door()


@pytest.fixture(scope="module")
def two() -> TextClassifier:
    return door(TWO)


# What may be given.

FRAME = pd.DataFrame({"id": range(4), "text": TEXTS}, index=[7, 3, 3, 1])
MANY: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "iterator": lambda: iter(TEXTS),
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "Series": lambda: FRAME["text"],
    "values of a dict": lambda: dict(enumerate(TEXTS)).values(),
    "DataFrame": lambda: FRAME,
    "Arrow array": lambda: pa.array(TEXTS),
    "Arrow table": lambda: pa.table({"n": [1, 2, 3, 4], "text": TEXTS}),
    "Arrow batch": lambda: pa.RecordBatch.from_pydict({"text": TEXTS}),
    "data set": lambda: datasets.Dataset.from_dict({"text": TEXTS}),
    "column of a data set": lambda: datasets.Dataset.from_dict({"text": TEXTS})["text"],
    "mappings": lambda: [{"text": text, "other": 1} for text in TEXTS],
    "texts and mappings": lambda: [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]],
}


@pytest.mark.parametrize("kind", MANY)
def test_many_texts_of_any_kind_are_answered_in_order(asked: TextClassifier, kind: str) -> None:
    wanted = asked(TEXTS)
    assert asked(MANY[kind]()) == wanted
    assert asked.predict(MANY[kind]()) == [one.label for one in wanted]
    assert asked.predict_proba(MANY[kind]()).tolist() == [list(one.probabilities.values()) for one in wanted]
    assert [one.reasoning for one in asked.explain(MANY[kind]())] == [one.reasoning for one in asked.explain(TEXTS)]


def test_tables_fill_the_templates_columns(two: TextClassifier) -> None:
    wanted = [f"First: {pair['first']}\nSecond: {pair['second']}" for pair in PAIRS]
    frame = pd.DataFrame(PAIRS)
    tables = [frame, frame[["second", "first"]], pa.Table.from_pylist(PAIRS), datasets.Dataset.from_list(PAIRS)]
    for table in (PAIRS, *tables):
        assert two(table) == two(wanted)
    assert two(PAIRS[0]) == two(wanted[0])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_what_a_table_lacks_is_empty_and_numbers_are_their_digits(two: TextClassifier, missing: Any) -> None:
    frame = pd.DataFrame({"first": pd.Series(["a", missing], dtype=object), "second": [1, 20]})
    assert two(frame) == two(["First: a\nSecond: 1", "First: \nSecond: 20"])
    assert two({"first": np.float64(2.0), "second": np.int64(3)}) == two("First: 2\nSecond: 3")


def test_choices_may_stand_in_lists_arrays_and_tuples() -> None:
    picks = door(PICKS)
    wanted = picks({"text": "so?", "choices": ["yes", "never"]})
    frame = pd.DataFrame({"text": ["so?"], "choices": [np.array(["yes", "never"])]})
    assert picks(frame) == [wanted] and picks({"text": "so?", "choices": ("yes", "never")}) == wanted
    with pytest.raises(RequestError, match="text 0: each row of this task brings its own choices"):
        picks("so?")
    with pytest.raises(RequestError, match="there is no table; call the classifier"):
        picks.predict_proba(frame)


def test_one_text_gives_one_answer_and_none_give_none(asked: TextClassifier) -> None:
    for one in (TEXTS[0], np.str_(TEXTS[0]), {"text": TEXTS[0]}):
        assert isinstance(asked(one), Prediction) and asked(one) == asked([TEXTS[0]])[0]
        assert isinstance(asked.explain(one), Prediction)
    for none in ([], (), np.array([]), FRAME[:0], iter([])):
        assert asked(none) == []
    assert asked.predict_proba([]).shape == (0, 2)
    assert len(get_overloads(TextClassifier.__call__)) == len(get_overloads(TextClassifier.explain)) == 2


BAD: dict[str, tuple[Any, str]] = {
    "none": (None, "texts are given as NoneType, which is neither a text nor a list"),
    "a number": (7, "texts are given as int, which is neither"),
    "bytes": (b"so alone", "texts are given as bytes, which is neither"),
    "an array without a dimension": (np.array("so"), "texts are given as ndarray, which is neither"),
    "none in a list": (["a", None], "text 1 is None, which is no text; give a string or a mapping"),
    "a number in a list": ([3.5], r"text 0 is 3\.5, which is no text"),
    "bytes in a list": (["a", b"b"], "text 1 is b'b', which is no text"),
    "a list in a list": ([["a"]], r"text 0 is \['a'\], which is no text"),
    "two dimensions": (np.array([["a", "b"]]), "text 0 is array.*, which is no text"),
    "nan in a series": (pd.Series(["a", np.nan]), "text 1 is nan, which is no text"),
    "half a character": (["a", "so \ud83d alone"], "text 1 holds half of a character"),
    "half a character in a column": ([{"text": "\udcff"}], "text 0: column 'text' holds half of a character"),
    "no such column": (pd.DataFrame({"txt": ["a"]}), "text 0: there is no column 'text'.*did you mean 'txt'"),
    "no such column in a table": (pa.table({"a": ["x"]}), "text 0: there is no column 'text'; columns: a"),
    "columns that are numbers": (pd.DataFrame([["a", "b"]]), "text 0: there is no column 'text'; columns: 0, 1"),
    "a mapping without it": ({"body": "a"}, "text 0: there is no column 'text'; columns: body"),
    "bytes in a column": ({"text": b"a"}, "text 0: column 'text' holds bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_refused_with_its_place(asked: TextClassifier, name: str) -> None:
    given, said = BAD[name]
    with pytest.raises(RequestError, match=said):
        asked(given)


def test_one_text_where_many_are_asked_for_is_refused(asked: TextClassifier) -> None:
    for ask in (asked.predict, asked.predict_proba):
        for one in ("so alone", {"text": "so alone"}):
            with pytest.raises(RequestError, match="one text was given where a list of texts is expected"):
                ask(one)


def test_an_error_inside_a_generator_is_its_own(asked: TextClassifier) -> None:
    def texts() -> Iterator[str]:
        yield "a"
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        asked(texts())


# Odd texts.

ODD = {
    "empty": "",
    "spaces": "   ",
    "white": "\n\t \r\n\u2028\u00a0",
    "nul": "\x00\x01\x7f\x00",
    "binary": "".join(map(chr, range(256))),
    "escape": "\x1b[2J\x1b]0;x\x07",
    "right to left": "שלום \u202e olleh \u202c مرحبا",
    "bidi isolates": "\u2066a\u2069\u200f\u061c",
    "joiners": "👩\u200d👩\u200d👧 \u200b\u200c\ufeff",
    "marks": "a" + "\u0301" * 50,
    "beyond": "\U0010ffff\ue000\ufffe",
}


@pytest.mark.parametrize("mode", ["label", "reason", "vote", "ensemble"])
def test_odd_texts_are_answered(asked: TextClassifier, mode: str) -> None:
    for found in asked(list(ODD.values()), mode):
        assert found.label in TASK.labels and sum(found.probabilities.values()) == pytest.approx(1)


# Huge texts.


class Counting:
    """A tokenizer that notes the longest text it is given."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.longest = inner, 0

    def encode(self, text: str, **options: Any) -> Any:
        self.longest = max(self.longest, len(text))
        return self.inner.encode(text, **options)


MILLION = 1_000_000
HUGE = {
    "letters": "a" * 10 * MILLION,
    "spaces": " " * 10 * MILLION,
    "emoji": "🙂" * (10 * MILLION // 4),
    "word": "abcdefghij" * (MILLION // 10),
    "controls": "</s>" * (MILLION // 4),
}


@pytest.mark.parametrize("kind", ["bytes", "template", "prepend", "metaspace"])
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_text_is_cut_before_it_is_encoded(kind: str, name: str) -> None:
    made = {
        "bytes": lambda: tiny.byte_level(),
        "template": lambda: tiny.byte_level(tiny.HEADERS, tiny.LLAMA3),
        "prepend": lambda: tiny.sentence_piece("prepend", spells_controls=True),
        "metaspace": lambda: tiny.sentence_piece("metaspace", tiny.INST),
    }[kind]()
    asked = door(TWO, tokenizer=made)
    lm = asked.classifier.lm
    plain = Counting(lm.encoder.plain)
    lm = replace(lm, encoder=replace(lm.encoder, plain=plain))
    asked = replace(asked, classifier=replace(asked.classifier, lm=lm))
    found = asked([HUGE[name], {"first": HUGE[name], "second": HUGE[name]}])
    assert all(one.label in TASK.labels for one in found)
    assert 0 < plain.longest <= encode.CHARACTERS_A_TOKEN * ROOM + 10


ENCODERS = {
    name: make_encoder(made, render(made, "Which?"))
    for name, made in {
        "bytes": tiny.byte_level(["<|eot_id|>"]),
        "template": tiny.byte_level(tiny.HEADERS, tiny.LLAMA3),
        "prepend": tiny.sentence_piece("prepend"),
    }.items()
}
PARTS = ("the ", "a", " ", "日", "🙂", "\n", "<|eot_id|>", "and of to ")
words = st.lists(st.sampled_from(PARTS), max_size=60).map("".join)


@pytest.mark.parametrize("name", ENCODERS)
@given(columns=st.lists(words, min_size=1, max_size=3), times=st.sampled_from([1, 9]), room=st.sampled_from([8, 40]))
@settings(max_examples=60)
def test_a_cut_is_what_encoding_every_candidate_whole_would_give(
    name: str, columns: list[str], times: int, room: int
) -> None:
    pieces = ["", *(part for column in columns for part in (column * times, "\n"))]
    encoder = replace(ENCODERS[name], prompt=replace(ENCODERS[name].prompt, room=room))
    try:
        ids, was_cut = prompt_ids(encoder, pieces)
    except RequestError as problem:
        assert "what stands around the columns" in str(problem) and cut_slowly(encoder, pieces) is None
    else:
        wanted = cut_slowly(encoder, pieces)
        assert wanted is not None
        assert ids == [*encoder.before, *wanted, *encoder.after]
        assert was_cut == (len(read(encoder, pieces)) > encoder.prompt.room)


def read(encoder: Encoder, pieces: Sequence[str]) -> list[int]:
    text = "".join(pieces)
    return text_ids(encoder, text.strip() if encoder.prompt.strip else text)


def cut_slowly(encoder: Encoder, pieces: Sequence[str]) -> list[int] | None:
    """Cut the middle of the longest columns with every candidate encoded whole; None where that is not enough."""
    room, parts = encoder.prompt.room, list(pieces)
    if len(read(encoder, parts)) <= room:
        return read(encoder, parts)
    for column in sorted(range(1, len(parts), 2), key=lambda i: -len(parts[i])):
        value, least, most = parts[column], -1, len(parts[column])

        def shortened(kept: int, value: str = value, column: int = column) -> list[int]:
            short = f"{value[: kept - kept // 2]} … {value[len(value) - kept // 2 :]}" if kept < len(value) else value
            return read(encoder, [*parts[:column], short, *parts[column + 1 :]])

        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if len(shortened(middle)) <= room else (least, middle - 1)
        if least >= 0:
            return shortened(least)
        parts[column] = ""
    return None


# The command line.


@pytest.fixture(scope="module")
def arm(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms") / "arm"
    few = {"steps": 1, "rows_per_step": 2, "layout": "tree", "precision": "float32"}
    ReasoningClassifier(str(base), train=few).fit(["so glad", "so alone"], ["joy", "no"]).save(folder)
    return folder


@pytest.mark.parametrize("text", [text for text in ODD.values() if "\x00" not in text])
def test_odd_texts_are_answered_on_the_command_line(arm: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(arm), "--json", "--", text]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("joy", "no")
    assert cli.main(["predict", str(arm), "--", text]) == 0


def test_huge_texts_are_answered_from_files(arm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = "so alone " * (MILLION // 9)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": big}) + "\n" + json.dumps({"text": "\x00"}) + "\n")
    (tmp_path / "rows.csv").write_text(f'text\n"{big}"\n')
    (tmp_path / "larger.csv").write_text(f'text\n"{big * 17}"\n')
    command = ["predict", str(arm), "--overwrite", "-o", str(tmp_path / "out.jsonl"), "--input"]
    for name in ("rows.jsonl", "rows.csv"):
        assert cli.main([*command, str(tmp_path / name)]) == 0, capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "larger.csv")]) == 2
    error = capsys.readouterr().err
    assert "larger.csv, line 2: field larger than field limit" in error and "save the texts as .jsonl" in error


BINARY = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\xff\xfe"
FILES: dict[str, tuple[bytes, str]] = {
    "rows.csv": (BINARY, "rows.csv, line 1: byte 0 (0x89) is not UTF-8; save the file as UTF-8"),
    "rows.jsonl": (BINARY, "rows.jsonl, line 1: byte 0 (0x89) is not UTF-8; save the file as UTF-8"),
    "rows.tsv": ("text\nso alone\n".encode("utf-16"), "rows.tsv, line 1: byte 0 (0xff) is not UTF-8"),
    "rows.parquet": (BINARY, "rows.parquet: this is not a Parquet file that can be read"),
    "nul.jsonl": (b"\x00" * 100, "nul.jsonl, line 1: this is not one JSON object"),
    "nul.csv": (b"\x00" * 100 + b"\n1\n", "line 2: there is no column 'text'"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', "half.jsonl, line 1: column 'text' holds half of a character"),
    "empty.csv": (b"", "empty.csv: there are no rows"),
    "rows.png": (BINARY, "saywhy reads .csv, .tsv, .jsonl, .parquet files, not .png"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_hold_no_texts_are_refused(
    arm: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert cli.main(["predict", str(arm), "--input", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_half_a_character_on_the_command_line_is_refused(arm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What Python makes of an argument that is not UTF-8.
    assert cli.main(["predict", str(arm), "so glad", "\udcff"]) == 2
    assert "text 1 holds half of a character (a lone surrogate); remove it" in capsys.readouterr().err


def test_a_loaded_folder_takes_the_columns_that_training_read(arm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(arm, tmp_path / "arm")
    task = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps({**task, "text": "{title}: {body}"}))
    frame = pd.DataFrame({"body": ["so glad", "so alone"], "title": ["a", "b"]})
    loaded = saywhy.load(folder)
    assert loaded.predict(frame) == loaded.predict(["a: so glad", "b: so alone"])
    assert loaded.classes_ == ("joy", "no") and loaded.predict_proba(frame).shape == (2, 2)
    with pytest.raises(RequestError, match="text 0: there is no column 'title'"):
        loaded(frame[["body"]])
    assert predict.list_texts(frame)[1] == {"body": "so alone", "title": "b"}


def test_conversations_are_asked_as_training_read_them(arm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(arm, tmp_path / "arm")
    task = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps({**task, "text": "talk"}))
    talk = [{"role": "user", "content": "so glad"}, {"role": "assistant", "content": "Me too."}]
    loaded, text = saywhy.load(folder), "user: so glad\n\nassistant: Me too."
    assert loaded({"talk": talk}) == loaded(text) == loaded({"talk": tuple(talk)}) != loaded("so alone")
    pq.write_table(pa.Table.from_pylist([{"talk": talk}]), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"talk": talk}) + "\n")
    for name in ("rows.parquet", "rows.jsonl"):
        out = tmp_path / f"{name}.out.jsonl"
        assert cli.main(["predict", str(folder), "--input", str(tmp_path / name), "-o", str(out)]) == 0
        (told,) = (json.loads(line) for line in out.read_text().splitlines())
        assert told["talk"] == talk and told["probabilities"] == pytest.approx(loaded(text).probabilities)


@pytest.mark.parametrize(
    ("mode", "times"), [("label", 1), ("adaptive", 1), ("reason", 3), ("ensemble", 3), ("vote", 3)]
)
@pytest.mark.parametrize("most", [600, 2000])
def test_the_tokens_that_are_held_at_one_time_are_bounded(
    monkeypatch: pytest.MonkeyPatch, mode: str, times: int, most: int
) -> None:
    """What is left of a batch whose texts end is copied beside it: for moments more is held where texts are written."""
    task = Task("moods", "Which mood?", ("joy", "no"))
    door = tiny.door(task, limit=24)
    alive: weakref.WeakSet[Reading] = weakref.WeakSet()
    held: list[int] = []
    append, part = Reading._append, Reading.part

    def appended(self: Reading, *told: Any) -> Any:
        alive.add(self)
        found = append(self, *told)
        held.append(sum(one.held for one in alive))
        return found

    def parted(self: Reading, rows: Any) -> Reading:
        other = part(self, rows)
        alive.add(other)
        held.append(sum(one.held for one in alive))
        return other

    monkeypatch.setattr(Reading, "_append", appended)
    monkeypatch.setattr(Reading, "part", parted)
    rows = [text_row(task, f"text {at} " + "so " * (at % 17), f"{at}") for at in range(60)]
    answers = replace(door, max_tokens_in_flight=most).rows(rows, mode=mode)
    assert len(answers) == 60 and most / 4 < max(held) <= times * most


@pytest.mark.parametrize("mode", ["label", "reason", "ensemble", "adaptive"])
def test_labels_alone_are_scored_no_further_than_the_likeliest(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """That the label is the same whatever is left out is a property of scoring, tested with it."""
    labels = tuple(f"the {first} {second} of it" for first in "abcd" for second in ("end", "start", "midst"))
    door = replace(tiny.door(Task("parts", "Which part?", labels), limit=6), mode=mode)
    texts = [f"text number {at} " + "so " * (at % 7) for at in range(24)]
    pruned: list[float] = []

    def noted(*told: Any, prune: float = modes.PRUNE, **more: Any) -> list[Prediction]:
        pruned.append(prune)
        return modes.answer(*told, prune=prune, **more)

    monkeypatch.setattr("saywhy.predict.texts.answer", noted)
    wanted = door(texts)
    assert door.predict(texts) == [one.label for one in wanted]
    # What abstains has to know how likely its label is.
    unsure = replace(door, abstain_below=sorted(max(one.probabilities.values()) for one in wanted)[12])
    assert unsure.predict(texts) == [None if one.abstained else one.label for one in unsure(texts)]
    least = 1.0 if mode in ("label", "reason") else modes.PRUNE
    assert pruned == [modes.PRUNE, least, modes.PRUNE, modes.PRUNE]


def test_what_is_held_at_one_time_changes_no_answer(arm: Path) -> None:
    texts = [text for text in ODD.values() if len(text) < 200]
    wanted = saywhy.load(arm)(texts)
    for most in (1, 60):
        found = saywhy.load(arm, max_tokens_in_flight=most)(texts)
        assert [one.label for one in found] == [one.label for one in wanted]
    for wrong in (0, None):
        with pytest.raises(RequestError, match=f"max_tokens_in_flight is {wrong}; it should be 1 or more"):
            saywhy.load(arm, max_tokens_in_flight=wrong)  # type: ignore[arg-type]
