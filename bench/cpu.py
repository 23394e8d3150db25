"""CPU seconds, memory and the end of a process and of all its descendants, from /proc."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def tree_cpu_s(pid: int) -> float:
    """Time on a CPU of every thread of `pid` and of its living descendants, to the nanosecond (schedstat).

    Threads and children that ended meanwhile are not counted: servers keep theirs.
    """
    return sum(_thread_cpu_s(task) for member in tree(pid) for task in _tasks(member))


def tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    parents = _parents()
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def end_tree(pid: int) -> None:
    """SIGKILL to `pid` and to its living descendants."""
    for member in tree(pid):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            pass


def resident_mb(pid: int) -> float:
    """Resident memory of the tree; shared pages count once per process."""
    return sum(int(_read(Path("/proc", str(member), "statm"), "0 0").split()[1]) for member in tree(pid)) * 4096 / 1e6


def _parents() -> dict[int, int]:
    """The second field after the command, whose name may hold spaces (proc_pid_stat(5))."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (text := _read(entry / "stat")):
            found[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path("/proc", str(pid), "task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _thread_cpu_s(task: Path) -> float:
    return int(_read(task / "schedstat", "0").split()[0]) / 1e9


def _read(path: Path, otherwise: str = "") -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return otherwise
