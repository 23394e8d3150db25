"""`make fuzz`: the HTTP parser beside h11, JSON bodies and workers' answers on made-up bytes, coverage-guided and by
chance; then schemathesis on the gateway's own document, against real processes.

python -m fuzzing [--inputs 1000000] [--examples 700] [--seed 1]
Writes bench/results/fuzz.json. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.stack import Stack
from support.tiny_models import TinyModel, make_model

from .conformance import conformance
from .targets import TARGETS

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "fuzz.json"
SHARES = {"requests": 1.0, "bodies": 0.25, "answers": 0.25}


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzzing")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="to the parser of requests, each way")
    parser.add_argument("--examples", type=int, default=700, help="of schemathesis, per operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = [
        _hunt(target, by, int(options.inputs * SHARES[target]), options.seed)
        for target in TARGETS
        for by in ("atheris", "chance")
    ]
    if options.examples:
        found.append(_conformance(options.examples, options.seed))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    failed = [one for one in found if one["failures"]]
    for one in failed:
        print(f"FOUND: {one}")
    return 1 if failed else 0


def _hunt(target: str, by: str, inputs: int, seed: int) -> dict[str, Any]:
    began_s = time.monotonic()
    command = [sys.executable, "-m", "fuzzing.hunt", target, "--inputs", str(inputs), "--seed", str(seed), "--by", by]
    with tempfile.TemporaryDirectory() as work:
        ran = subprocess.run([*command, "--work", work], capture_output=True, text=True, check=False)
    lines = ran.stdout.splitlines()
    if ran.returncode not in (0, 1) or not lines:
        return _told({"target": target, "by": by, "inputs": 0, "failures": {"crash": ran.stderr[-2000:]}}, began_s)
    return _told(json.loads(lines[-1]), began_s)


def _conformance(examples: int, seed: int) -> dict[str, Any]:
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = make_model(directory / "model", TinyModel("llama", max_position=96))
        with Stack.up(model, directory / "run") as stack:
            report = conformance(stack.url, directory, examples=examples, seed=seed)
            stack.wait_quiet()
    if report.failures:
        print(report.output)
    told = {"target": "openapi", "by": "schemathesis", "inputs": report.cases, "accepted": report.accepted}
    return _told({**told, "failures": list(report.failures)}, began_s)


def _told(one: dict[str, Any], began_s: float) -> dict[str, Any]:
    one = {**one, "seconds": round(time.monotonic() - began_s, 1)}
    print(json.dumps(one), flush=True)
    return one


if __name__ == "__main__":
    sys.exit(main())
