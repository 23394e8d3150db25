"""A control group of its own for each node: two kubelets under one root would end each other's Pods as orphans."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def make(name: str) -> None:
    """In every hierarchy of cgroup v1, or once in v2."""
    for parent in hierarchies():
        (parent / name).mkdir(exist_ok=True)


def remove(name: str) -> None:
    """Whatever is empty of it; a kubelet on v1 makes one in the mixed hierarchy `unified` too."""
    for parent in (*hierarchies(), ROOT / "unified"):
        for path, _, _ in os.walk(parent / name, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)


def hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink() and path.name != "unified"]
