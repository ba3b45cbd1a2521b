"""Files that survive a kill: fingerprints, finished folders, the lock, the journal, JSON and Parquet.

A file is written beside its place and renamed onto it, so a reader sees the old one or the new one. A folder is built
in a hidden sibling and renamed when its stamp is written. The stamp lists the folder's files: only those are ever
deleted, whatever else stands beside them is kept.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from saywhy.records import RequestError, WorkError

# The number goes up when a stage's outputs change their form or meaning: what an older version wrote is then redone.
FORMATS = {
    "base": 1, "reasoner": 1, "reasonings": 3, "scorer": 1, "classifier": 1, "predictions": 2, "answers": 1,
    "probes": 1, "metrics": 1,
}  # fmt: skip

MARKER = ".saywhy"
LOCK = ".lock"
STAMP = "stamp.json"
BEGAN = "began.json"
TEMPORARY = ".saywhy-tmp"


def _plain(value: object, place: str) -> Any:
    """The value in dicts, lists and JSON's scalars; `place` is where it stands, for the message."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise WorkError(f"{place} is {float(value)}, which JSON cannot hold: write None for an undefined figure")
        return float(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{place} has the key {wrong[0]!r}: keys must be text")
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(f"{place} is a {type(value).__name__}, which has no form in JSON")


def hash_of(value: object) -> str:
    """The sha256 (64 hex digits) of a value's canonical JSON.

    The order of keys does not matter; a tuple counts as a list, a dataclass as a dict of its fields, a path as text
    with forward slashes. NaN and infinity raise WorkError, values without a form in JSON TypeError.
    """
    text = json.dumps(_plain(value, "the value"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair is no UTF-8, but JSON files may bring one and a text must keep a hash of its own.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint(stage: str, settings: object, inputs: object) -> str:
    """The hash that says whether a stage's outputs are still good: its settings, its inputs' hashes, its format."""
    return hash_of({"stage": stage, "format": FORMATS[stage], "settings": settings, "inputs": inputs})


def sha256_file(path: Path) -> str:
    """The sha256 (64 hex digits) of a file's bytes; RequestError where it cannot be read."""
    with _request_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: Path) -> str:
    """The sha256 (64 hex digits) of a folder's file names and contents, such as a model's.

    Left out are hidden files and folders, and the two files this module keeps about a folder: they are not content.
    """
    if not path.is_dir():
        raise RequestError(f"{path}: no such folder")
    names = [name for name in _files(path) if not any(part.startswith(".") for part in name.split("/"))]
    return hash_of({name: sha256_file(path / name) for name in names})


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text in UTF-8, line ends as they are; WorkError where it cannot be written."""
    content = text.encode("utf-8", "backslashreplace")
    write_file(path, lambda file: file.write(content))


def write_json(path: Path, value: object) -> None:
    """Replace a file by this value in strict, indented JSON; WorkError for NaN, naming where it stands."""
    # What UTF-8 cannot hold is half a surrogate pair, and what backslashreplace writes for it is JSON's own escape.
    write_text(path, json.dumps(_plain(value, f"{path}: the value"), ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; RequestError where the file is missing or broken, naming the line."""
    with _request_errors(path, " as JSON"):
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant)


def write_table(path: Path, table: pa.Table, stamp: str = "", extra: Mapping[str, object] | None = None) -> None:
    """Replace a Parquet file by this table, with a stamp and a few facts of the writer's own in its metadata."""
    facts = json.dumps(_plain(extra or {}, f"{path}: extra"))
    # Bytes, as the keys that a table read from a file brings: the older stamp is replaced, not doubled.
    ours = {b"saywhy.stamp": stamp.encode(), b"saywhy.extra": facts.encode()}
    stamped = table.replace_schema_metadata({**(table.schema.metadata or {}), **ours})
    write_file(path, lambda file: pq.write_table(stamped, file))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file, or some of its columns; RequestError where the file is missing or broken."""
    # Not pq.read_table: it would add a column for every `key=value` folder in the path.
    with _request_errors(path, " as Parquet"), pq.ParquetFile(path) as file:
        return file.read(columns)


def table_stamp(path: Path) -> str | None:
    """The stamp a table was written with; None where the file is missing, broken or without one."""
    try:
        return _table_metadata(path).get(b"saywhy.stamp", b"").decode() or None
    except RequestError:
        return None


def table_extra(path: Path) -> dict[str, Any]:
    """The facts a table was written with; RequestError where the file is missing or broken."""
    return dict(json.loads(_table_metadata(path).get(b"saywhy.extra", b"{}")))


def append(path: Path, event: Mapping[str, object]) -> None:
    """Add one event to a journal, as a line of JSON.

    A line that a kill or a full disk left without its end is cut off first. Lines are handed to the system, not forced
    to the disk: a killed process loses none, a power cut may lose the last ones.
    """
    line = json.dumps(_plain(event, f"{path}: the event"), ensure_ascii=False) + "\n"
    with _work_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(_end_of_whole_lines(file))
            file.write(line.encode("utf-8", "backslashreplace"))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events of a journal, oldest first; a torn last line is left out, a missing file has none."""
    if not path.exists():
        return []
    with _request_errors(path):
        lines = path.read_bytes().split(b"\n")[:-1]
    events = []
    for number, line in enumerate(lines, start=1):
        with _request_errors(path, f" (line {number} is not valid JSON)"):
            event = json.loads(line.decode("utf-8"))
        if not isinstance(event, dict):
            raise RequestError(f"{path}: line {number} is not an event: a JSON object was expected")
        events.append(event)
    return events


def write_file(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Let `fill` write a temporary file in the same folder, force it to the disk and rename it onto its place.

    WorkError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    with _work_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    _list_in_stamp(path)


def even_rights(folder: Path, like: Path) -> None:
    """Give weights the rights of another file: safetensors 0.8 writes them for their owner alone.

    A server that runs as somebody else, as in a container, could not read them.
    """
    for path in folder.glob("*.safetensors"):
        path.chmod(stat.S_IMODE(like.stat().st_mode))


@contextmanager
def _work_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals into WorkError with the path and what to do."""
    try:
        yield
    except OSError as error:
        fix = "run the same command again when this is mended: what was finished before is kept"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space and run the same command again: what was finished before is kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            fix = "allow writing there, close programs that hold it open, or choose another folder"
        raise WorkError(f"{path}: cannot be written ({error.strerror or error}): {fix}") from error


@contextmanager
def _request_errors(path: Path, form: str = "") -> Iterator[None]:
    """Turn a file that is missing or broken into RequestError with the path."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, pa.ArrowException) as error:
        raise RequestError(f"{path}: cannot be read{form}: {error}") from error


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk, where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes only what is open for writing; elsewhere a file may be read-only.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _table_metadata(path: Path) -> dict[bytes, bytes]:
    with _request_errors(path, " as Parquet"):
        return dict(pq.read_schema(path).metadata or {})


def _end_of_whole_lines(file: IO[bytes]) -> int:
    if (size := file.seek(0, os.SEEK_END)) == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def reopen(folder: Path) -> None:
    """Let a folder be built anew the next time: a finished one is replaced then, what was half done goes now."""
    if _record(_partial(folder) / BEGAN):
        _remove(_partial(folder))
    if record := _record(folder / STAMP):
        _write_record(folder / STAMP, "", record["files"])


def is_done(folder: Path, fingerprint: str) -> bool:
    """Whether a folder was finished with this fingerprint and still has every file it was stamped with."""
    record = _record(folder / STAMP)
    return record.get("fingerprint") == fingerprint and all((folder / name).exists() for name in record["files"])


@contextmanager
def build(folder: Path, fingerprint: str) -> Iterator[Path]:
    """Give a hidden folder to work in, and put it in its place when the block ends without an error.

    The hidden folder is as an earlier attempt with the same fingerprint left it, else empty; after an error it stays.
    An older finished folder is replaced: its stamped files go, files that saywhy did not write are kept in
    `NAME.kept-1`. RequestError where something that saywhy did not stamp is in the way.
    """
    _refuse_unstamped(folder)
    with _work_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        partial = _begin(folder, fingerprint)
    yield partial
    _refuse_unstamped(folder)
    with _work_errors(folder):
        _finish(partial, fingerprint)
        _exchange(partial, folder)


def adopt(folder: Path, source: Path, fingerprint: str) -> None:
    """Put the files of a folder that was finished with this fingerprint into another place too.

    They are hard links where the system has them, and cost nothing then: files are replaced and never written into, so
    neither place sees what becomes of the other.
    """
    with build(folder, fingerprint) as partial, _work_errors(partial):
        for child in [child for child in partial.iterdir() if child.name != BEGAN]:
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        for name in _files(source):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _link(source / name, partial / name)


def adopt_file(path: Path, source: Path) -> None:
    """Put a file that is only ever replaced into another place too, in the place of what is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    with _work_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _link(source, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)


def _record(path: Path) -> dict[str, Any]:
    """What `stamp.json` or `began.json` says, empty where it is not there or not ours."""
    try:
        record = read_json(path)
    except RequestError:
        return {}
    if not isinstance(record, dict) or record.get("made_by") != "saywhy":
        return {}
    whole = isinstance(record.get("fingerprint"), str) and isinstance(record.get("files"), list)
    return record if whole and all(isinstance(name, str) for name in record["files"]) else {}


def _write_record(path: Path, fingerprint: str, files: list[str]) -> None:
    write_json(path, {"made_by": "saywhy", "fingerprint": fingerprint, "files": files})


def _files(folder: Path) -> list[str]:
    """Relative names of a folder's files, sorted, without the two that describe the folder."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() or file.is_symlink()]
    return sorted(name for name in names if name not in (STAMP, BEGAN))


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what a killed write left in it."""
    return all(child.name.endswith(TEMPORARY) for child in folder.iterdir())


def _refuse_unstamped(folder: Path) -> None:
    for place in (folder, _old(folder)):
        if not os.path.lexists(place):
            continue
        if place.is_symlink() or not place.is_dir():
            raise RequestError(f"{place}: not a folder that saywhy made. Move it away, or choose another output folder")
        if not _record(place / STAMP) and not _is_empty(place):
            raise RequestError(
                f"{place}: has files but no {STAMP} of saywhy, so it is not replaced. "
                "Move it away, or choose another output folder"
            )


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _begin(folder: Path, fingerprint: str) -> Path:
    """The hidden folder to work in, made or found again."""
    partial = _partial(folder)
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise RequestError(f"{partial}: not a folder that saywhy made. Move it away")
    if partial.exists():
        began = _record(partial / BEGAN)
        if not began and not _is_empty(partial):
            raise RequestError(f"{partial}: has files but no {BEGAN} of saywhy, so it is not touched. Move it away")
        if began.get("fingerprint") == fingerprint:
            # Killed after the stamp and before the rename: what follows may change files, so it is unfinished again.
            (partial / STAMP).unlink(missing_ok=True)
            return partial
        _remove(partial)
    partial.mkdir()
    _write_record(partial / BEGAN, fingerprint, [])
    return partial


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _remove(folder: Path) -> None:
    """Remove an unfinished folder; what proves that it is ours goes last, a kill must not leave files without it."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != BEGAN:
            child.unlink()
    (folder / BEGAN).unlink(missing_ok=True)
    folder.rmdir()


def _finish(partial: Path, fingerprint: str) -> None:
    """Force everything to the disk, then write the stamp."""
    _remove_temporary(partial)
    for inner in partial.rglob("*"):
        if inner.exists():
            sync(inner)
    _write_record(partial / STAMP, fingerprint, _files(partial))


def _exchange(partial: Path, folder: Path) -> None:
    """Put a stamped folder in its place. Killed in the middle, `_settle` mends it."""
    for place in (folder, _old(folder)):
        if place.is_dir() and _is_empty(place):
            _remove(place)
    if folder.exists():
        folder.rename(_old(folder))
    partial.rename(folder)
    sync(folder.parent)
    (folder / BEGAN).unlink(missing_ok=True)
    _settle(folder)


def _settle(folder: Path) -> None:
    """End what a kill interrupted: the older folder goes once the newer is in place, else it comes back."""
    old = _old(folder)
    if not (record := _record(old / STAMP)):
        return
    if not folder.exists():
        old.rename(folder)
        return
    _remove_temporary(old)
    for name in set(_files(old)).intersection(record["files"]):
        (old / name).unlink()
    for inner in sorted(old.rglob("*"), reverse=True):
        if inner.is_dir() and not inner.is_symlink() and not any(inner.iterdir()):
            inner.rmdir()
    if _files(old):
        number = 1
        while os.path.lexists(folder.with_name(f"{folder.name}.kept-{number}")):
            number += 1
        old = old.rename(folder.with_name(f"{folder.name}.kept-{number}"))
    (old / BEGAN).unlink(missing_ok=True)
    (old / STAMP).unlink()
    if not any(old.iterdir()):
        old.rmdir()


def _list_in_stamp(path: Path) -> None:
    """Name a file that is written into a finished folder in its stamp, so that it counts as ours."""
    stamp = path.with_name(STAMP)
    if path.name in (STAMP, BEGAN):
        return
    record = _record(stamp)
    if record and path.name not in record["files"]:
        _write_record(stamp, record["fingerprint"], sorted([*record["files"], path.name]))


def _remove_temporary(folder: Path) -> None:
    """Remove what killed writes left: temporary files whose process is gone."""
    for left in folder.rglob(f".*{TEMPORARY}"):
        pid = left.name.removesuffix(TEMPORARY).rpartition(".")[2].partition("-")[0]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            left.unlink(missing_ok=True)


@contextmanager
def open_run(folder: Path) -> Iterator[Path]:
    """Make or enter a run's folder and keep other processes out until the block ends.

    RequestError where the folder has files that are not a run's, or another process writes in it.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise RequestError(f"{folder}: not a folder. Choose another output folder")
    if folder.is_dir() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise RequestError(
            f"{folder}: has files but no {MARKER}, so it is no run of saywhy and nothing is written there. "
            "Choose a new or an empty folder"
        )
    with _work_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Not through a temporary file: killed before the rename, that would leave a folder that looks foreign.
        _create(folder / MARKER, b"saywhy writes in this folder\n")
        mine = _take_lock(folder / LOCK)
    try:
        with _work_errors(folder):
            _remove_temporary(folder)
            for old in folder.glob(".*.old"):
                _settle(folder / old.name[1 : -len(".old")])
        yield folder
    finally:
        _release(folder / LOCK, mine)


def _take_lock(lock: Path) -> bytes:
    """Write this process into the lock file; RequestError where a living process stands there."""
    started = psutil.Process().create_time()
    mine = json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started}).encode()
    if _create(lock, mine):
        return mine
    dead = _refuse_living(lock)
    # Of several that find a dead lock only one may take it over: the one whose claim comes first, and only while the
    # dead one still stands there.
    claim = lock.with_name(f"{LOCK}.claim")
    claimed = _create(claim, mine)
    if not claimed and _refuse_living(claim) is not None:
        claim.unlink(missing_ok=True)
        claimed = _create(claim, mine)
    if claimed:
        try:
            if lock.read_bytes() == dead:
                claim.replace(lock)
        except FileNotFoundError:
            # Another process took this claim for a dead one, or the lock was given back: the check below decides.
            pass
        finally:
            claim.unlink(missing_ok=True)
    if not lock.exists() or lock.read_bytes() != mine:
        raise RequestError(f"{lock.parent}: another process is just starting or ending here. Try again")
    return mine


def _create(path: Path, content: bytes) -> bool:
    """Write a file that must not be there yet; False where it is."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _refuse_living(lock: Path) -> bytes | None:
    """The content of a lock whose process is gone, None where there is no lock; RequestError where it may still run."""
    content, holder = b"", None
    for _ in range(20):
        try:
            content = lock.read_bytes()
        except FileNotFoundError:
            return None
        holder = _holder(content)
        if holder:
            break
        # Another process may have made the file and not yet written into it.
        time.sleep(0.02)
    if holder is None or not _is_alive(*holder):
        return content
    pid, host, _ = holder
    where = "" if host == platform.node() else f" on {host} (if it is gone, delete {lock})"
    raise RequestError(f"{lock.parent}: process {pid}{where} writes here. Wait until it ends, or choose another folder")


def _holder(content: bytes) -> tuple[int, str, float] | None:
    """Process id, host and start (seconds since 1970) that a lock names; None for garbage."""
    try:
        record = json.loads(content)
        return int(record["pid"]), str(record["host"]), float(record["started"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def _is_alive(pid: int, host: str, started: float) -> bool:
    """Whether that process may still run; one on another host may."""
    if host != platform.node():
        return True
    if not 0 < pid < 2**31:
        return False
    try:
        process = psutil.Process(pid)
        # The same number can be another, later process. Clock corrections shift the figure by less than seconds.
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 5)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _release(lock: Path, mine: bytes) -> None:
    try:
        if lock.read_bytes() == mine:
            lock.unlink()
    except FileNotFoundError:
        # The user removed the folder or the lock meanwhile: there is nothing left to give back.
        return
