"""A load beside a test, started where the cluster is and judged; the logs of every Pod that lived meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .load import Seen
from .release import Deployed

LOAD = Path(__file__).with_name("load.py")
HEAD = (
    "# Faults on a node: what clients lost",
    "",
    "Made by `make e2e ARGS=tests/e2e/test_faults.py` with BATON_E2E_FAULTS naming this file: a real node, our images,",
    "two workers of each role and two gateways behind one Service. Each stream is a connection of its own and is never",
    "tried again; a failed one was refused, broken off, or answered otherwise than before. A fault begins 5 s after",
    "the load, which ends 3 s after all Pods and the Model are Ready again.",
    "",
)
COLUMNS = (
    "| fault | streams | failed | what may fail, and why | p50 s | p99 s | whole again s after begin, end |",
    "|---|---|---|---|---|---|---|",
)


@dataclass
class Outcome:
    """Of a load that is over."""

    seen: list[Seen] = field(default_factory=list)

    @property
    def failed(self) -> list[Seen]:
        return [one for one in self.seen if one.failed is not None]

    @property
    def why(self) -> Counter[str]:
        return Counter(str(one.failed) for one in self.failed)

    def took_s(self, share: float) -> float:
        took = sorted(one.took_s for one in self.seen)
        return took[min(len(took) - 1, int(len(took) * share))]

    def line(self) -> str:
        span_s = max(one.began_s for one in self.seen) - min(one.began_s for one in self.seen)
        rate = len(self.seen) / span_s if span_s else 0.0
        times = f"p50 {self.took_s(0.5):.2f} s, p99 {self.took_s(0.99):.2f} s"
        return f"{len(self.seen)} streams at {rate:.1f}/s, {len(self.failed)} failed; {times}"


@dataclass
class Table:
    """One line per fault, as Markdown."""

    lines: list[str] = field(default_factory=list)

    def add(self, fault: str, outcome: Outcome, whole_s: tuple[float, float], allowed: str) -> None:
        short = Counter(str(one.failed).partition(": ")[0] for one in outcome.failed)
        why = "; ".join(f"{count} x {said}" for said, count in short.most_common())
        times = f"{outcome.took_s(0.5):.2f} | {outcome.took_s(0.99):.2f} | {whole_s[0]:.1f}, {whole_s[1]:.1f}"
        failed = f"{len(outcome.failed)}{f': {why}' if why else ''}"
        self.lines.append(f"| {fault} | {len(outcome.seen)} | {failed} | {allowed or 'nothing'} | {times} |")

    def text(self, rate: float) -> str:
        return "\n".join((*HEAD, f"{rate:g} streams a second.", "", *COLUMNS, *self.lines, ""))


@contextmanager
def load(demo: Deployed, rate: float, folder: Path) -> Iterator[Outcome]:
    """`rate` streams a second while the block runs; the outcome is filled at its end."""
    out, outcome = folder / "load.jsonl", Outcome()
    with demo.cluster.reach(demo.namespace, f"{demo.name}-gateway") as url:
        command = demo.cluster.inside([sys.executable, str(LOAD), url, demo.name, f"{rate:g}", str(out)])
        environment = demo.cluster.environment | {"BATON_API_KEY": demo.api_key}
        process = subprocess.Popen(command, env=environment)
        try:
            yield outcome
            assert process.poll() is None, f"the load ended by itself with {process.returncode}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    outcome.seen = [Seen(**json.loads(line)) for line in out.read_text().splitlines()]


@dataclass
class PodLogs:
    """Follows the log of every Pod of a Model, from when it is first seen to its end."""

    demo: Deployed
    folder: Path
    following: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ending: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> PodLogs:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.thread = threading.Thread(target=self._watch, name="pod-logs")
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.thread.join(30)
        for process in self.following.values():
            process.terminate()
            process.wait(10)

    def _watch(self) -> None:
        while not self.ending.wait(0.5):
            for component in ("prefill", "decode", "gateway"):
                for pod in self.demo.pods(component):
                    name = pod["metadata"]["name"]
                    if name not in self.following and pod["status"].get("phase") == "Running":
                        self._follow(name)

    def _follow(self, name: str) -> None:
        command = ["kubectl", "--namespace", self.demo.namespace, "logs", "--follow", name]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.following[name] = subprocess.Popen(
                self.demo.cluster.inside(command),
                env={**os.environ, **self.demo.cluster.environment},
                stdout=log,
                stderr=log,
            )

    def lines(self, *words: str) -> list[str]:
        """Those that hold all of the words, with their Pod."""
        found = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            found += [f"{path.stem}: {line}" for line in lines if all(word in line for word in words)]
        return found
