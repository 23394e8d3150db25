"""schemathesis against a running gateway, on the document that this gateway serves: no answer outside it, no 5xx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.stack import API_KEY

MODEL = "tiny"
# Valid by the document is not yet valid: two fields may disagree, an id may lie beyond the vocabulary, a prompt beyond
# the context. All else is checked: statuses, bodies, events, media types and headers as described, no 5xx, wrong input
# refused, the key needed where it is said to be, other methods 405 with `Allow`.
LEFT_OUT = "positive_data_acceptance"
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Report:
    """`accepted`: cases that the document allows and the gateway answered with 2xx; `output`: what was said."""

    cases: int
    accepted: int
    failures: tuple[str, ...]
    output: str


def document(url: str) -> dict[str, Any]:
    """What GET /openapi.json answers, with the model narrowed to the one served (any other name is only a 404), and an
    event's data as what it decodes to (module sse_hook does the decoding)."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as response:
        told: dict[str, Any] = json.loads(response.read())
    narrowed: dict[str, Any] = _narrowed(told)
    return narrowed


def _narrowed(value: Any) -> Any:
    if isinstance(value, list):
        return [_narrowed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "contentSchema" in value:
        return value["contentSchema"]
    narrowed = {name: _narrowed(inner) for name, inner in value.items()}
    model = narrowed.get("model")
    if isinstance(model, dict) and "maxLength" in model:
        narrowed["model"] = {"enum": [MODEL]}
    return narrowed


def conformance(url: str, directory: Path, *, examples: int, seed: int) -> Report:
    """Up to `examples` cases per operation and phase. Raises RuntimeError when schemathesis itself fails."""
    described, report = directory / "openapi.json", directory / "report.json"
    described.write_text(json.dumps(document(url)))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(described), "--url", url),
        *("-H", f"Authorization: Bearer {API_KEY}", "--checks", "all", "--exclude-checks", LEFT_OUT),
        *("--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--no-color"),
        *("--suppress-health-check", "all", "--generation-database", "none", "--warnings", "off"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "SCHEMATHESIS_HOOKS": "fuzzing.sse_hook"}
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, env=environment)
    if not report.exists():
        raise RuntimeError(f"schemathesis ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return _read(json.loads(report.read_text()), ran.stdout)


def _read(told: dict[str, Any], output: str) -> Report:
    failures = [f"{one['title']} ({one['count']} x): {', '.join(one['operations'])}" for one in told["failures"]]
    failures += [f"error: {error}" for error in told["errors"]]
    if not told["complete"]:
        failures.append(f"stopped early: {told['stop_reason']}")
    rates = [phase for phases in told["valid_rates"].values() for phase in phases.values()]
    return Report(told["test_cases"]["generated"], sum(phase["accepted"] for phase in rates), tuple(failures), output)
