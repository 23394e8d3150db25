"""The exact versions that the images are built from: `python tools/lock.py write | check`.

One file per image in deploy/requirements/, from an extra of pyproject.toml and what is installed here: the extra's
requirements, theirs, and so on. torch stands apart, and with it what only its CUDA builds need: which build it is (CPU,
CUDA) is the image builder's choice.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "deploy/requirements"
IMAGES = {"gateway": ("gateway",), "operator": ("operator",), "worker": ("worker", "ucx")}
APART = "torch"
CUDA_ONLY = ("nvidia-", "cuda-", "triton")
OWN = "baton-serve"


def requirements_of(extras: tuple[str, ...]) -> Iterator[Requirement]:
    """What the extras of pyproject.toml name, extras of our own followed."""
    optional = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras:
        for requirement in map(Requirement, optional[extra]):
            if canonicalize_name(requirement.name) == OWN:
                yield from requirements_of(tuple(requirement.extras))
            else:
                yield requirement


def closure(roots: Iterator[Requirement]) -> dict[str, str]:
    """Name to installed version of the roots and all that they need on this platform."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        installed = distribution(name)
        if not requirement.specifier.contains(installed.version, prereleases=True):
            raise SystemExit(f"{requirement} is wanted and {installed.version} installed: run `make install`")
        found[name] = installed.version
        wanted = needed(installed.requires or [], requirement.extras)
        waiting += (one for one in wanted if name != APART or not one.name.startswith(CUDA_ONLY))
    found.pop(APART, None)
    return found


def needed(requires: list[str], extras: set[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, requires):
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(one) for one in environments):
            yield requirement


def render(image: str) -> str:
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(closure(requirements_of(IMAGES[image])).items()))
    return f"# Made by `python tools/lock.py write` from the extras {', '.join(IMAGES[image])}.\n{pins}"


def main(verb: str) -> int:
    stale = []
    for image in IMAGES:
        path = FOLDER / f"{image}.txt"
        if verb == "write":
            path.write_text(render(image))
        elif not path.exists() or path.read_text() != render(image):
            stale.append(str(path.relative_to(REPOSITORY)))
    if stale:
        print(f"stale: {', '.join(stale)}; run `python tools/lock.py write`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
