"""The pure modules: which there are, what they import, how well they are covered.

python tools/pure.py list        one dotted name a line: every module whose first docstring paragraph says "Pure."
python tools/pure.py coverage    branch coverage of them from the .coverage file; exit 1 below 95 %
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOTS = (
    *("api", "wire", "kv_transfer", "engine", "worker"),
    *("prefill_worker", "decode_worker", "gateway", "operator", "cli"),
)
FLOOR_PERCENT = 95


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of ours, generated ones left out."""
    for root in ROOTS:
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            if "_pb2" not in path.name:
                name = ".".join(path.relative_to(REPOSITORY / root).with_suffix("").parts)
                yield name.removesuffix(".__init__"), path


def is_pure(path: Path) -> bool:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return "Pure." in docstring.split("\n\n")[0]


def pure_modules() -> list[tuple[str, Path]]:
    return [(name, path) for name, path in modules() if is_pure(path)]


def coverage() -> int:
    files = ",".join(str(path.relative_to(REPOSITORY)) for _, path in pure_modules())
    command = ["coverage", "report", f"--include={files}", f"--fail-under={FLOOR_PERCENT}", "--skip-covered", "-m"]
    print(f"Branch coverage of the {len(pure_modules())} pure modules:")
    return subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["list"]:
            print("\n".join(name for name, _ in pure_modules()))
        case ["coverage"]:
            sys.exit(coverage())
        case _:
            sys.exit(__doc__)
