"""Runs one target on so many inputs, guided by coverage (atheris, that is libFuzzer) or, without it, by chance.

python -m fuzzing.hunt TARGET --inputs N [--seed S] [--by atheris|chance]
The last line of stdout is JSON: target, by, inputs, accepted, failures; an input that failed is kept as a file.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

MAX_BYTES = 2048
MAX_FAILURES = 20


class Hunt:
    """Counts inputs; keeps those that fail, one for each place that raised."""

    def __init__(self, target: Any, keep: Path) -> None:
        self.target, self._keep = target, keep
        self.inputs = 0
        self.failures: dict[str, str] = {}

    def one(self, data: bytes) -> None:
        self.inputs += 1
        try:
            self.target(data)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            if where not in self.failures and len(self.failures) < MAX_FAILURES:
                self.failures[where] = self._kept(data)
                traceback.print_exc()

    def _kept(self, data: bytes) -> str:
        path = self._keep / f"failure-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        return str(path)


def by_chance(hunt: Hunt, inputs: int, seed: int) -> None:
    """Seeds cut, joined and spiced, again and again."""
    rng = random.Random(seed)
    target = hunt.target
    while hunt.inputs < inputs:
        data = bytearray(rng.choice(target.seeds))
        for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
            _mutate(data, rng, target)
        hunt.one(bytes(data[:MAX_BYTES]))


def _mutate(data: bytearray, rng: random.Random, target: Any) -> None:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0:
            data[at:at] = rng.choice(target.tokens)
        case 1:
            del data[at : at + rng.randint(1, 8)]
        case 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        case 3:
            other = rng.choice(target.seeds)
            data[at:] = other[rng.randrange(len(other)) :]
        case 4:
            data[at : at + rng.randint(1, 4)] = rng.choice(target.tokens)
        case _:
            data[at:at] = data[at : at + rng.randint(1, 40)]


def by_atheris(hunt: Hunt, inputs: int, seed: int, directory: Path) -> None:
    """Ends the process: libFuzzer knows no other way to stop."""
    import atheris

    corpus, words = directory / "corpus", directory / "words"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, raw in enumerate(hunt.target.seeds):
        (corpus / f"seed-{number}").write_bytes(raw)
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in hunt.target.tokens))

    def one(data: bytes) -> None:
        hunt.one(data)
        if hunt.inputs >= inputs:
            sys.stderr.flush()
            os._exit(tell(hunt, "atheris"))

    flags = ("-runs=-1", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-dict={words}", "-verbosity=0")
    atheris.Setup([sys.argv[0], str(corpus), *flags, f"-artifact_prefix={directory}/"], one)
    atheris.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def tell(hunt: Hunt, by: str) -> int:
    """The last line; returns the exit code."""
    told = {"target": type(hunt.target).__name__, "by": by, "inputs": hunt.inputs}
    told |= {"accepted": hunt.target.accepted, "failures": hunt.failures}
    print(json.dumps(told), flush=True)
    return 1 if hunt.failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="hunt")
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--by", choices=("atheris", "chance"), default="atheris")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()), metavar="DIRECTORY")
    parser.add_argument("--work", type=Path, default=None, metavar="DIRECTORY", help="atheris' corpus is written here")
    options = parser.parse_args()
    options.work = options.work or Path(tempfile.mkdtemp(prefix="hunt-"))
    if options.by == "atheris":
        import atheris

        with atheris.instrument_imports(include=["baton_wire", "baton_api"], enable_loader_override=False):
            from . import targets
    else:
        from . import targets

    async def hunt_down() -> Hunt:
        hunt = Hunt(targets.TARGETS[options.target](), options.keep)
        if options.by == "chance":
            by_chance(hunt, options.inputs, options.seed)
            return hunt
        by_atheris(hunt, options.inputs, options.seed, options.work)
        return hunt

    return tell(asyncio.run(hunt_down()), options.by)


if __name__ == "__main__":
    sys.exit(main())
