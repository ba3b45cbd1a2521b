"""Open a source: records one by one, each with the place where it stands."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saywhy.config import FILE_SUFFIXES, Source, did_you_mean, locate, near_names
from saywhy.records import RequestError

Record = Mapping[str, Any]
Records = Iterator[tuple[str, Record]]

# Which part of a folder or data set is meant where none is named.
USUAL_PARTS = {"train": ("train",), "dev": ("validation", "dev", "val", "valid"), "test": ("test",)}
_SHARD = re.compile(r"(?P<part>.+)-\d{5}-of-\d{5}")
_BATCH = 1000
# A quote that is never closed makes one field of all that follows: so long a field is refused before memory is full.
_LONGEST_FIELD = 2**24


@dataclass(frozen=True)
class Table:
    """An opened source.

    `records` gives each record once, with its place ("train.csv, line 7"). `label_names` has the names of integer
    columns, where the source knows them. `other_parts` are those that the source has besides. `schema` is the Arrow
    schema of the records, None where the source has no types (CSV, JSONL).
    """

    name: str
    records: Records
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other_parts: tuple[str, ...] = ()
    schema: Any = None


def open_table(written: str, folder: Path, role: str = "") -> Table:
    """Open a file, a folder or a hub data set; `role` (train, dev, test) picks the part where none is named."""
    source = locate(written, folder)
    if source.path is None:
        return _open_hub(source, role)
    if source.path.is_dir():
        return _open_folder(source.path, source.part, role)
    if not source.path.exists():
        raise RequestError(f"{source.path}: there is no such file{near_names(source.path)}")
    if source.part is not None:
        raise RequestError(f"{source.path}: a file has no part '{source.part}'; only folders and hub ids have parts")
    return _open_file(source.path)


def _open_file(path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_parquet(path)
    if suffix == ".jsonl":
        return Table(str(path), _json_lines(path))
    if suffix in (".csv", ".tsv"):
        return Table(str(path), _csv_lines(path, "\t" if suffix == ".tsv" else ","))
    raise RequestError(
        f"{path}: saywhy reads {', '.join(FILE_SUFFIXES)} files, not {suffix or 'files without an ending'}"
    )


def _lines(path: Path) -> Iterator[str]:
    """Give a file's lines with their ends as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError:
        raise _wrong_encoding(path) from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from error


def _wrong_encoding(path: Path) -> RequestError:
    # The reader's own position counts from the chunk it was decoding, so the whole file is looked at again.
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fault = f"byte {error.start} (0x{content[error.start]:02x}) is not UTF-8"
        return RequestError(f"{path}, line {line}: {fault}; save the file as UTF-8")
    return RequestError(f"{path}: changed while it was read")


def _json_lines(path: Path) -> Records:
    for number, line in enumerate(_lines(path), start=1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{place}: this is not one JSON object: {error}") from error
        if not isinstance(record, dict):
            raise RequestError(f'{place}: a line should be an object such as {{"text": "…"}}, not {line.strip()[:40]}')
        yield place, record


def _csv_lines(path: Path, delimiter: str) -> Records:
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        # A quoted field may hold line breaks: a record stands where it begins.
        place = f"{path}, line {reader.line_num + 1}"
        usual = csv.field_size_limit(_LONGEST_FIELD)
        try:
            values = next(reader, None)
        except csv.Error as error:
            hint = 'a field that holds a quote is quoted, with "" for each quote inside'
            if "field limit" in str(error):
                hint = "if no quote is left open, save the texts as .jsonl or .parquet, which hold longer ones"
            raise RequestError(f"{place}: {error}; {hint}") from error
        finally:
            csv.field_size_limit(usual)
        if values is None:
            return
        if not values:
            continue
        if header is None:
            header = _checked_header(values, place)
        elif len(values) != len(header):
            hint = f"a field that holds {delimiter!r} or a line break needs quotes"
            raise RequestError(f"{place}: {len(values)} fields where the header has {len(header)}; {hint}")
        else:
            yield place, dict(zip(header, values, strict=True))


def _checked_header(names: Sequence[str], place: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"{place}: the header names {', '.join(map(repr, twice))} more than once")
    return list(names)


def _open_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise RequestError(f"{path}: this is not a Parquet file that can be read: {error}") from error
    _checked_header(file.schema_arrow.names, str(path))
    names = _names_in_metadata((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))

    def records() -> Records:
        number = 0
        try:
            for batch in file.iter_batches(_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
        except (pyarrow.ArrowInvalid, OSError, ValueError, OverflowError) as error:
            raise RequestError(f"{path}, after row {number}: cannot be read: {error}") from error

    return Table(str(path), records(), names, schema=file.schema_arrow)


def _names_in_metadata(metadata: bytes) -> dict[str, tuple[str, ...]]:
    """Read names of integer labels from what `datasets` writes into a Parquet file."""
    try:
        features = json.loads(metadata).get("info", {}).get("features", {})
        return {column: tuple(kind["names"]) for column, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, AttributeError, KeyError, TypeError):
        return {}


def _open_folder(path: Path, part: str | None, role: str) -> Table:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _open_saved(path, part, role)
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in FILE_SUFFIXES and not file.name.startswith("."):
            shard = _SHARD.fullmatch(file.stem)
            files.setdefault(shard["part"] if shard else file.stem, []).append(file)
    if not files:
        raise RequestError(f"{path}: this folder holds no data set and no {', '.join(FILE_SUFFIXES)} file")
    part = _choose(list(files), part, role, str(path))
    chosen = files[part]
    if len(chosen) > 1 and not all(_SHARD.fullmatch(file.stem) for file in chosen):
        raise RequestError(f"{path}: '{part}' could be {' or '.join(file.name for file in chosen)}; name the file")
    tables = [_open_file(file) for file in chosen]
    records = (item for table in tables for item in table.records)
    others = tuple(name for name in files if name != part)
    return Table(f"{path}:{part}", records, tables[0].label_names, others, _one_schema(f"{path}:{part}", tables))


def _one_schema(name: str, tables: Sequence[Table]) -> Any:
    """Give the schema that holds the records of every shard, None where one of them has none."""
    import pyarrow

    schemas = [table.schema for table in tables]
    if None in schemas:
        return None
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise RequestError(f"{name}: its files do not have the same columns: {error}") from error


def _open_saved(path: Path, part: str | None, role: str) -> Table:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: this is not a data set that `datasets` can load: {error}") from error
    return _from_datasets(saved, str(path), part, role)


def _open_hub(source: Source, role: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_dataset(source.hub, source.config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "check the id and the connection (HF_HUB_OFFLINE leaves only what was fetched before), or name a file"
        message = f"{source.written}: the hub data set '{source.hub}' cannot be loaded: {reason}; {fix}"
        raise RequestError(message) from error
    return _from_datasets(loaded, source.hub, source.part, role)


def _from_datasets(loaded: Any, name: str, part: str | None, role: str) -> Table:
    import datasets

    others: tuple[str, ...] = ()
    if isinstance(loaded, datasets.DatasetDict):
        chosen = _choose(list(loaded), part, role, name)
        others = tuple(other for other in loaded if other != chosen)
        loaded, name = loaded[chosen], f"{name}:{chosen}"
    elif part is not None:
        raise RequestError(f"{name}: this data set has no parts, so no '{part}'")
    kinds = loaded.features.items()
    names = {column: tuple(kind.names) for column, kind in kinds if isinstance(kind, datasets.ClassLabel)}

    def records() -> Records:
        number = 0
        # As Arrow, values stay as stored: images and sounds are not decoded for their hash.
        for batch in loaded.with_format("arrow").iter(_BATCH):
            for record in batch.to_pylist():
                number += 1
                yield f"{name}, row {number}", record

    return Table(name, records(), names, others, loaded.features.arrow_schema)


def _choose(names: Sequence[str], part: str | None, role: str, where: str) -> str:
    if part is not None:
        if part not in names:
            near = did_you_mean(part, names) or f"; there are {', '.join(names)}"
            raise RequestError(f"{where}: there is no part '{part}'{near}")
        return part
    if len(names) == 1:
        return names[0]
    for usual in USUAL_PARTS.get(role, ()):
        if usual in names:
            return usual
    raise RequestError(f"{where}: which part is meant? Write '{where}:{names[0]}'; there are {', '.join(names)}")
