"""What this machine leaves a process: free memory, read from the system and from the control groups of containers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


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
