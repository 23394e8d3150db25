"""CPU seconds of a process and of all its descendants, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree_cpu_s(pid: int) -> float:
    """User and system time of `pid`, its living descendants and its reaped children. 0 when it is gone."""
    return sum(_own_cpu_s(member) for member in tree(pid))


def tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    parents = _parents()
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        fields = _stat(entry.name) if entry.name.isdigit() else None
        if fields is not None:
            found[int(entry.name)] = int(fields[1])
    return found


def _own_cpu_s(pid: int) -> float:
    fields = _stat(str(pid))
    return 0.0 if fields is None else sum(map(int, fields[11:15])) / _TICKS


def _stat(pid: str) -> list[str] | None:
    """Fields of /proc/PID/stat from `state` on; the command's name may hold spaces (proc_pid_stat(5))."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
