"""Where data is: a file, a folder, or a data set on the hub, and which part of it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from saywhy.records import RequestError

FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
# Names nobody gives to a hub data set: a source that ends so is a file, one that saywhy reads or not.
_FOREIGN_SUFFIXES = (".json", ".ndjson", ".txt", ".xlsx", ".xls", ".gz", ".zip", ".arrow", ".feather")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


@dataclass(frozen=True)
class Source:
    """A place of data: `path` for a file or folder (absolute, perhaps missing), else `hub` with its `config`."""

    written: str
    path: Path | None = None
    hub: str = ""
    config: str | None = None
    part: str | None = None

    def absolute(self) -> str:
        """Write it so that it means the same from every folder."""
        if self.path is None:
            return self.written
        return str(self.path) if self.part is None else f"{self.path}:{self.part}"


def locate(written: str, folder: Path) -> Source:
    """Find what a source means from a folder: what exists wins, then what looks like a path, then the hub."""
    whole = _path(written, folder)
    if _exists(whole):
        return Source(written, path=whole)
    name, colon, part = written.rpartition(":")
    # "C:\data" and "C:data" begin with a drive, they do not end with a part.
    if not colon or re.search(r"[\\/]", part) or re.fullmatch("[A-Za-z]", name):
        name, part = written, ""
    path = _path(name, folder)
    if _exists(path) or _looks_like_a_path(name, folder):
        return Source(written, path=path, part=part or None)
    if not _HUB_NAME.fullmatch(name) or (colon and not part):
        raise RequestError(f"{written!r} is neither a file, nor a folder, nor a hub id such as owner/name:train")
    pieces = name.split("/")
    config = pieces[2] if len(pieces) == 3 else None
    return Source(written, hub="/".join(pieces[:2]), config=config, part=part or None)


def locate_base(written: str, folder: Path) -> str:
    """Make a base absolute where it is a folder or looks like one; a hub id stays, and so does scratch."""
    if written == "scratch":
        return written
    path = _path(written, folder)
    local = written.startswith((".", "~", "/")) or "\\" in written
    return str(path) if local or _exists(path) else written


def near_names(path: Path) -> str:
    """Say what stands near a missing path, as the end of a sentence."""
    parent = path.parent
    if not parent.is_dir():
        return f"; there is no folder {parent}"
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; in {parent} there are {', '.join(names[:10])}" if names else f"; {parent} is empty"


def _path(written: str, folder: Path) -> Path:
    try:
        return (folder / Path(written).expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise RequestError(f"{written!r} cannot be a path: {error}") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long for a file
        return False


def _looks_like_a_path(name: str, folder: Path) -> bool:
    if name.lower().endswith((*FILE_SUFFIXES, *_FOREIGN_SUFFIXES)):
        return True
    if name.startswith((".", "/", "~")) or "\\" in name or re.match("[A-Za-z]:", name) or name.count("/") > 2:
        return True
    first, slash, _ = name.partition("/")
    return bool(slash) and (folder / first).is_dir()
