"""A control group of its own for each node: two kubelets under one root would end each other's Pods as orphans."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
WEIGHT = {"cpu.shares": 8 * 1024, "cpu.weight": 8 * 100}
"""Else all Pods together would get as much of a busy machine as one of its processes."""


def make(name: str) -> None:
    """In every hierarchy of cgroup v1, or once in v2."""
    for parent in hierarchies():
        group = parent / name
        group.mkdir(exist_ok=True)
        for file, weight in WEIGHT.items():
            if (group / file).exists():
                (group / file).write_text(str(weight))


def remove(name: str, within_s: float = 5.0) -> None:
    """Once its last processes have ended; a kubelet on v1 makes one in the mixed hierarchy `unified` too."""
    end_s = time.monotonic() + within_s
    while _remaining(name) and time.monotonic() < end_s:
        time.sleep(0.1)


def _remaining(name: str) -> bool:
    groups = [parent / name for parent in (*hierarchies(), ROOT / "unified")]
    for group in groups:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
    return any(group.exists() for group in groups)


def hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink() and path.name != "unified"]
