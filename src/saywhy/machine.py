"""What this machine leaves a process: free memory, as the system and containers tell it, and what was freed."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# Names of glibc's mallopt, and the thresholds that it ends up with by itself where large blocks are freed.
_TRIM, _MMAP = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**26, 2**25
_NEVER = 2**31 - 1


@dataclass(frozen=True)
class _Files:
    """Where a version of control groups keeps its figures (kernel.org, cgroup-v2 and cgroup-v1/memory)."""

    top: str
    limit: str
    used: str
    reclaimable: str
    events: str


# The second place of version 2 is that of systems that mount both.
_SECOND = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file", "memory.events")
_BESIDE = _Files("sys/fs/cgroup/unified", "memory.max", "memory.current", "inactive_file", "memory.events")
_FIRST = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "memory.oom_control",
)


def free_bytes(root: Path = Path("/")) -> int:
    """Give how many bytes of main memory may still be taken: what the system has left, or less in a limited group.

    Pages of files that the system would give up count as free, as Linux counts them.
    """
    left = [psutil.virtual_memory().available]
    for files, group in _groups(root):
        limit, used = _number(group / files.limit), _number(group / files.used)
        if limit is not None and used is not None:
            left.append(limit - used + (_entry(group / "memory.stat", files.reclaimable) or 0))
    return max(0, min(left))


def memory_kills(root: Path = Path("/")) -> int | None:
    """Give how often the system has killed in this process's group for want of memory; None where nobody counts."""
    counts = [_entry(group / files.events, "oom_kill") for files, group in _groups(root)]
    return next((count for count in counts if count is not None), None)


def made_by_intel(root: Path = Path("/")) -> bool:
    """Tell whether the processor is Intel's, as far as the system says."""
    told = root / "proc/cpuinfo"
    return "GenuineIntel" in (told.read_text(errors="replace") if told.exists() else platform.processor())


@contextmanager
def keeping_freed() -> Iterator[None]:
    """Let this process keep what it frees, for what it takes next, until the block ends; then all of it goes back.

    By itself glibc gives every block of 32 MiB or more back at once and takes the next one page by page, zeroed: a
    seventh of a training step on a CPU (LOG.md, 2026-11-30). Where the C library is another one, nothing changes.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP, _NEVER)
    library.mallopt(_TRIM, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP, _MMAP_BYTES)
        library.mallopt(_TRIM, _TRIM_BYTES)
        library.malloc_trim(0)


def give_back_freed() -> None:
    """Give the system what this process has freed: by itself glibc keeps what lies below a block that is in use.

    Where the C library is another one, nothing changes.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if all(hasattr(library, name) for name in ("mallopt", "malloc_trim")) else None


def _groups(root: Path) -> Iterator[tuple[_Files, Path]]:
    """Go through the groups of this process, each before the one that holds it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        versions = (_SECOND, _BESIDE) if number == "0" else (_FIRST,) if "memory" in controllers.split(",") else ()
        for files in versions:
            top = root / files.top
            group = top / path.strip("/")
            while group != top:
                yield files, group
                group = group.parent
            yield files, top


def _number(path: Path) -> int | None:
    """Read one number; None where there is none, or `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _entry(path: Path, name: str) -> int | None:
    """Read the number that stands behind a name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)
