"""Builds the library that makes UCX fail (ucx_shim.c) and says how a worker is started with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import libucx

from support.processes import Launch

SOURCE = Path(__file__).with_name("ucx_shim.c")
SHARE_PPM = 8000


def unavailable() -> str | None:
    """Why it cannot be built here."""
    if shutil.which("gcc") is None:
        return "no gcc: ucx_shim.c is not built, UCX errors are NOT tested"
    return None if _include().exists() else f"no UCX headers in {_include()}: UCX errors are NOT tested"


def _include() -> Path:
    return Path(libucx.__file__).parent / "include"


def build(folder: Path) -> Path:
    """The shared library, in `folder`. Raises CalledProcessError with gcc's words."""
    library = folder / "ucx_shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-isystem{_include()}"]
    subprocess.run(["gcc", *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    return library


def launch(library: Path, folder: Path, seed: int) -> Launch:
    """Faults come while `folder`/on exists; they are told of in `folder`/told."""
    env = {
        "LD_PRELOAD": str(library),
        "UCX_SHIM_ON": str(folder / "on"),
        "UCX_SHIM_LOG": str(folder / "told"),
        "UCX_SHIM_SEED": str(seed),
        "UCX_SHIM_SHARE": str(SHARE_PPM),
    }
    return Launch(env=env)
