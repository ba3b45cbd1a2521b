"""Answer the rows of a file of any length: read, asked and written in slices, going on where a kill stopped it.

The input is read twice. First every row is looked at, so that a mistake in the last line is told before the first row
is asked, and the columns, their types and the number of rows are known. Then each slice is asked. Its answers are kept
in a hidden folder beside the output, stamped with what they were made from, so that the same command finds them again.
The output is written from the first row on each time, into that folder, and moved to its place when it is whole.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from saywhy import store
from saywhy.config import TaskConfig, locate
from saywhy.data.read import Record, Table, open_table
from saywhy.data.rows import rows_to_predict
from saywhy.predict.texts import SHOW_PROGRESS_FROM, TextClassifier, columns_of
from saywhy.progress import say, track
from saywhy.records import Prediction, RequestError, Row, Task

FORMS = (".csv", ".tsv", ".jsonl", ".parquet")
# Bytes of a file's name on the usual file systems.
LONGEST_NAME = 255
# Rows that are held, asked and written at one time. What is asked together may change the last digits of an answer, so
# slices are cut by row number alone: an answer does not depend on where a run was stopped.
ROWS_PER_SLICE = 2048
# However few rows that are: texts of a megabyte each are held by the dozen.
CHARACTERS_PER_SLICE = 16_000_000
# Fewer where answers are only shown: nobody wants to wait long for the first.
ROWS_SHOWN_AT_ONCE = 256

Slice = tuple[list[Record], list[Row]]
_UNWRITABLE = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the first reading found: rows, how many are answered already, columns, and their types for Parquet."""

    name: str
    rows: int
    answered: int
    columns: tuple[str, ...]
    schema: Any


@dataclasses.dataclass(frozen=True)
class Filling:
    """What is put beside the rows of a file.

    `columns` says how a row is read, and `settings` has all that an answer depends on beside its row. `answer` gives
    one record a row, the tokens they took, and whether another attempt may use them again; `names` are the columns of
    these records in the output. A record whose first column is null is left out of the output with its row. `note` is
    told of every such table in turn, also of those that an earlier attempt left; `last` is called before the output
    takes its place, and may refuse it.
    """

    columns: TaskConfig
    settings: Mapping[str, object]
    names: tuple[str, ...]
    answer: Callable[[Sequence[Row]], tuple[Any, float, bool]]
    note: Callable[[Any], None] = lambda table: None
    last: Callable[[], None] = lambda: None


def answer_source(classifier: TextClassifier, source: str) -> Iterator[tuple[Row, Prediction]]:
    """Answer the rows of a file, folder or hub data set one after the other; their ids are their places."""
    table, empty = open_table(source, Path()), True
    with track("predict", None, "rows") as advance:
        for _, rows in slices(table, columns_of(classifier.classifier.task), ROWS_SHOWN_AT_ONCE):
            empty = False
            answers = _ask(classifier, rows)
            advance(len(rows), sum(answer.tokens for answer in answers), "")
            yield from zip(rows, answers, strict=True)
    if empty:
        raise RequestError(f"{table.name}: there are no rows")


def check_output(source: str, output: Path, overwrite: bool) -> None:
    """Raise RequestError where answers cannot or must not be written to `output`."""
    if output.suffix.lower() not in FORMS:
        raise RequestError(f"--output {output}: the name should end in {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    read = locate(source, Path()).path
    if read is not None and read == output.resolve():
        raise RequestError(f"--output {output} is the input; name another file")
    if read is not None and read.is_dir() and output.resolve() in read.iterdir():
        raise RequestError(f"--output {output} is one of the input's files; name another file")
    if read is not None and read.exists() and not read.is_file() and not read.is_dir():
        raise RequestError(f"{read} can be read only once, and predict reads twice; save it as a file first")
    if output.is_dir():
        raise RequestError(f"--output {output} is a folder; name a file")
    if len(os.fsencode(_parts(output).name)) > LONGEST_NAME:
        raise RequestError(f"--output: the name {output.name:.40}… is too long; name a shorter one")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(
            f"--output {output}: there is a file already and it is left as it is; name another one, "
            "or replace it with --overwrite"
        )


def answer_file(classifier: TextClassifier, source: str, output: Path, overwrite: bool = False) -> int:
    """Answer the rows of `source`, write them to `output` and count them.

    The output has the columns of the input and those of `answer_table`, whose names begin with `predicted_` where the
    input has one of them. RequestError names the line of a row that is wrong.
    """
    check_output(source, output, overwrite)
    settings, task = _settings(classifier), classifier.classifier.task
    seen = look(source, columns_of(task), settings, output)

    def answer(rows: Sequence[Row]) -> tuple[Any, float, bool]:
        answers = _ask(classifier, rows)
        return answer_table(answers, task), sum(answer.tokens for answer in answers), True

    filling = Filling(columns_of(task), settings, _answer_names(seen, task), answer)
    with opened(output):
        fill(filling, source, output, seen, overwrite, "predict")
    return seen.rows


@contextmanager
def opened(output: Path) -> Iterator[None]:
    """Hold the hidden folder beside an output, where what is finished waits; nobody else works on it meanwhile."""
    parts = _parts(output)
    with store.open_run(parts):
        yield
    if not any(parts.iterdir()):
        parts.rmdir()


def fill(filling: Filling, source: str, output: Path, seen: Seen, overwrite: bool, title: str) -> None:
    """Write the rows of `source` with what is put beside them to `output`, whose folder is `opened`."""
    # Another process may have finished the same file since it was looked for.
    check_output(source, output, overwrite)
    parts = _parts(output)
    changed = RequestError(f"{seen.name}: changed while it was answered; run the same command again")
    with track(title, seen.rows - seen.answered, "rows", _is_long(seen)) as advance:

        def answered() -> Iterator[tuple[list[Record], Any]]:
            count = 0
            for number, (records, rows) in enumerate(slices(open_table(source, Path()), filling.columns)):
                part, stamp = _part(parts, number), _stamp(filling.settings, rows)
                count += len(rows)
                if count > seen.rows or not set(seen.columns).issuperset(name for one in records for name in one):
                    raise changed
                if store.table_stamp(part) != stamp:
                    table, tokens, stands = filling.answer(rows)
                    store.write_table(part, table, stamp if stands else f"{stamp} to be asked again")
                    advance(len(rows), tokens, "")
                table = store.read_table(part)
                filling.note(table)
                yield _without_null(records, table)
            if count < seen.rows:
                raise changed

        whole = parts / "whole"
        store.write_file(whole, lambda file: _write(file, output.suffix.lower(), answered(), seen, filling.names))
        filling.last()
        check_output(source, output, overwrite)
        whole.replace(output)
        _clear(parts)


def _parts(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def _without_null(records: list[Record], table: Any) -> tuple[list[Record], Any]:
    """Leave out records whose first column is null."""
    kept = table.column(0).is_valid()
    if table.column(0).null_count == 0:
        return records, table
    return [record for record, keep in zip(records, kept.to_pylist(), strict=True) if keep], table.filter(kept)


def _settings(classifier: TextClassifier) -> dict[str, object]:
    """Give what all answers depend on, beside their rows."""
    model = classifier.classifier
    if model.folder is None:
        raise RequestError("a classifier in memory answers no files; save it and load its folder")
    options = {field.name: getattr(classifier, field.name) for field in dataclasses.fields(classifier)}
    del options["classifier"], options["max_tokens_in_flight"]
    hashed = store.sha256_folder(model.folder)
    fitted = {"threshold": model.threshold, "temperatures": model.temperatures}
    return {**options, **fitted, "model": hashed, "slice": [ROWS_PER_SLICE, CHARACTERS_PER_SLICE]}


def answer_table(answers: Sequence[Prediction], task: Task) -> Any:
    """Give answers as an Arrow table: the answer's columns as every output has them.

    `probabilities` is a struct with a field for each label, or a map where rows bring their own choices. `expected`
    stands where labels are a scale.
    """
    one_each = pa.struct([(label, pa.float64()) for label in task.labels])
    shares = one_each if task.labels else pa.map_(pa.string(), pa.float64())
    rating = {"expected": pa.array([answer.expected for answer in answers], pa.float64())} if task.ordinal else {}
    return pa.table(
        {
            "label": pa.array([answer.label for answer in answers], pa.string()),
            "probability": pa.array([answer.probabilities[answer.label] for answer in answers], pa.float64()),
            "probabilities": pa.array([list(answer.probabilities.items()) for answer in answers], shares),
            **rating,
            "abstained": pa.array([answer.abstained for answer in answers], pa.bool_()),
            "reasoning": pa.array([answer.reasoning for answer in answers], pa.string()),
            "tokens": pa.array([answer.tokens for answer in answers], pa.float64()),
            "forced": pa.array([answer.forced for answer in answers], pa.bool_()),
            "pruned": pa.array([answer.pruned for answer in answers], pa.float64()),
        }
    )


def slices(table: Table, columns: TaskConfig, size: int | None = None) -> Iterator[Slice]:
    """Cut a table's records, with the rows they make, into slices of `size` or fewer, None for ROWS_PER_SLICE."""
    pairs = rows_to_predict(table, columns)
    size = size or ROWS_PER_SLICE
    records: list[Record] = []
    rows: list[Row] = []
    characters = 0
    for record, row in pairs:
        if rows and (len(rows) == size or characters + len(row.text) > CHARACTERS_PER_SLICE):
            yield records, rows
            records, rows, characters = [], [], 0
        records.append(record)
        rows.append(row)
        characters += len(row.text)
        del record, row
    if rows:
        yield records, rows


def _ask(classifier: TextClassifier, rows: Sequence[Row]) -> list[Prediction]:
    """Answer rows; where one cannot be answered, halve them until it is found and named."""
    try:
        return classifier.rows(rows)
    except RequestError as problem:
        if len(rows) == 1:
            raise RequestError(f"{rows[0].id}: {problem}") from problem
        half = len(rows) // 2
        return [*_ask(classifier, rows[:half]), *_ask(classifier, rows[half:])]


def look(source: str, row_columns: TaskConfig, settings: Mapping[str, object], output: Path) -> Seen:
    """Read all rows once. Raises RequestError for a row that cannot be asked or whose columns Parquet cannot hold."""
    table, parts, as_parquet = open_table(source, Path()), _parts(output), output.suffix.lower() == ".parquet"
    count = answered = 0
    columns = dict.fromkeys(table.schema.names if table.schema else ())
    schema = table.schema.remove_metadata() if table.schema else None
    # Python's time ends at microseconds.
    if as_parquet and schema and (lossy := [field.name for field in schema if "time64[ns]" in str(field.type)]):
        raise RequestError(f"{table.name}: column '{lossy[0]}' holds times in nanoseconds; save it in microseconds")
    began = parts.exists()
    with track("read", None, "rows") as advance:
        for number, (records, rows) in enumerate(slices(table, row_columns)):
            count += len(rows)
            if began and store.table_stamp(_part(parts, number)) == _stamp(settings, rows):
                answered += len(rows)
            if not table.schema:
                columns.update(dict.fromkeys(name for record in records for name in record))
                schema = _widened(schema, records, rows) if as_parquet else None
            advance(len(rows), 0.0, "")
    if not count:
        raise RequestError(f"{table.name}: there are no rows")
    if answered:
        say(f"{answered} of {count} rows were answered before")
    elif _part(parts, 0).exists():
        say("begins again: what was answered before were other rows, or another model or mode was asked")
    return Seen(table.name, count, answered, tuple(columns), schema)


def _widened(schema: Any, records: Sequence[Record], rows: Sequence[Row]) -> Any:
    """Widen a schema so that it holds these records too; RequestError names the first that does not fit."""
    try:
        return _unified(schema, records)
    except _UNWRITABLE:
        for record, row in zip(records, rows, strict=True):
            try:
                schema = _unified(schema, [record])
            except _UNWRITABLE as problem:
                fix = "Parquet has one type for each column; write .jsonl, which takes every row as it is"
                raise RequestError(f"{row.id}: {problem}; {fix}") from problem
        return schema


def _unified(schema: Any, records: Sequence[Record]) -> Any:
    names = dict.fromkeys(name for record in records for name in record)
    found = pa.schema([(name, pa.array([record.get(name) for record in records]).type) for name in names])
    whole = found if schema is None else pa.unify_schemas([schema, found], promote_options="permissive")
    if hollow := [field.name for field in whole if _is_hollow(field.type)]:
        raise ValueError(f"column '{hollow[0]}' holds an object without keys")
    return whole


def _is_hollow(kind: Any) -> bool:
    """Whether a type is or has a struct without fields, which Parquet cannot hold."""
    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not inner) or any(map(_is_hollow, inner))


def _answer_names(seen: Seen, task: Task) -> tuple[str, ...]:
    """Name the answer's columns so that none of them is one of the input's, and say so where that took a prefix."""
    plain, prefix = answer_table([], task).column_names, ""
    while taken := [name for name in plain if prefix + name in seen.columns]:
        say(f"{seen.name} has a column '{prefix}{taken[0]}', so the answer's columns begin with predicted_{prefix}")
        prefix = f"predicted_{prefix}"
    return tuple(prefix + name for name in plain)


def _is_long(seen: Seen) -> bool:
    return seen.rows - seen.answered > SHOW_PROGRESS_FROM


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.parquet"


def _stamp(settings: Mapping[str, object], rows: Sequence[Row]) -> str:
    """Hash all that the answers to these rows depend on."""
    asked = json.dumps([[row.text, row.pieces, row.choices] for row in rows])
    return store.fingerprint("answers", settings, hashlib.sha256(asked.encode()).hexdigest())


def _clear(parts: Path) -> None:
    """Remove what this file wrote into its folder, and nothing else that lies there."""
    for part in parts.glob("part-*.parquet"):
        if store.table_stamp(part):
            part.unlink()
    (parts / store.MARKER).unlink(missing_ok=True)


def _write(
    file: IO[bytes], form: str, slices: Iterable[tuple[list[Record], Any]], seen: Seen, names: Sequence[str]
) -> None:
    """Write slices of records with the table of their answers in one of FORMS."""
    if form == ".parquet":
        _write_parquet(file, slices, seen, names)
    elif form == ".jsonl":
        for records, answers in slices:
            lines = (_json({**record, **answer}) for record, answer in _joined(records, answers, names))
            file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
    else:
        delimiter = "\t" if form == ".tsv" else ","
        file.write(_csv_line([*seen.columns, *names], delimiter))
        for records, answers in slices:
            for record, answer in _joined(records, answers, names):
                values = [*map(record.get, seen.columns), *answer.values()]
                file.write(_csv_line([_cell(value) for value in values], delimiter))


def _joined(records: Iterable[Record], answers: Any, names: Sequence[str]) -> Iterator[tuple[Record, dict[str, Any]]]:
    maps = [name for name, field in zip(names, answers.schema, strict=True) if pa.types.is_map(field.type)]
    for record, answer in zip(records, answers.rename_columns(names).to_pylist(), strict=True):
        # A map comes as pairs, a struct as a dict.
        yield record, {**answer, **{name: dict(answer[name]) for name in maps}}


def _write_parquet(
    file: IO[bytes], slices: Iterable[tuple[list[Record], Any]], seen: Seen, names: Sequence[str]
) -> None:
    """Write one row group a slice."""
    writer, done = None, 0
    try:
        for records, answers in slices:
            added = [pa.field(name, field.type) for name, field in zip(names, answers.schema, strict=True)]
            schema = pa.schema([*seen.schema, *added])
            writer = writer or pq.ParquetWriter(file, schema)
            try:
                given = pa.Table.from_pylist(records, schema=seen.schema)
            except _UNWRITABLE as problem:
                raise RequestError(
                    f"{seen.name}: rows {done + 1} to {done + len(records)} cannot be written as Parquet: {problem}; "
                    "write .jsonl, which takes every row as it is"
                ) from problem
            writer.write_table(pa.Table.from_arrays([*given.columns, *answers.columns], schema=schema))
            done += len(records)
    finally:
        if writer is not None:
            writer.close()


def _csv_line(cells: Sequence[str], delimiter: str) -> bytes:
    """Write one record as CSV, with quotes around what holds a line break of any kind."""
    line = io.StringIO(newline="")
    # Python before 3.13 quotes only the characters of its own line end.
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return f"{line.getvalue()[:-2]}\n".encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    """Write a value as the text of a CSV cell: texts as they are, nothing as "", lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return _json(value)
    return repr(value) if isinstance(value, int | float) else str(_as_json(value))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=_as_json)


def _without_nan(value: Any) -> Any:
    """Put null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_json(value: Any) -> str:
    """Write what Parquet knows and JSON does not: times as ISO 8601, bytes as base64, decimals as their digits."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)
