"""From `kubectl apply` to Ready: when each thing came about, and what of the time was the model's and what was ours."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .faults import is_so
from .release import Deployed

COMPONENTS = ("prefill", "decode", "gateway")


@dataclass
class Seen:
    """The first time of (component, what), in seconds since `began_s`, and each component's first Pod."""

    began_s: float = field(default_factory=time.time)
    times_s: dict[tuple[str, str], float] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)

    def take(self, item: Any) -> None:
        component = item["metadata"].get("labels", {}).get("app.kubernetes.io/component", "model")
        states = [one.get("state", {}) for one in item.get("status", {}).get("containerStatuses", [])]
        self._first(component, "made")
        if item["kind"] == "Pod":
            self.pods.setdefault(component, item["metadata"]["name"])
        if any("running" in state for state in states):
            self._first(component, "started")
        if is_so(item, "Ready"):
            self._first(component, "ready")

    def _first(self, component: str, what: str) -> None:
        self.times_s.setdefault((component, what), time.time() - self.began_s)

    def take_log(self, component: str, log: str) -> None:
        """With time stamps. A worker says when its interpreter has all its imports, and when it listens."""
        for line in log.splitlines():
            stamp, _, said = line.partition(" ")
            if said.startswith('{"progress"'):
                self._at(component, "imported", stamp)
            elif said.startswith('{"ready"'):
                self._at(component, "listens", stamp)

    def _at(self, component: str, what: str, stamp: str) -> None:
        self.times_s.setdefault((component, what), datetime.fromisoformat(stamp).timestamp() - self.began_s)

    def table(self) -> str:
        steps = ("made", "started", "imported", "listens", "ready")
        rows = [f"{'s after apply':14}" + "".join(f"{step:>10}" for step in steps)]
        for component in (*COMPONENTS, "model"):
            times = (self.times_s.get((component, step)) for step in steps)
            rows.append(f"{component:14}" + "".join(f"{'-' if at is None else f'{at:.2f}':>10}" for at in times))
        ready_s, load_s = self.times_s["model", "ready"], self.load_s
        rows.append(f"Ready after {ready_s:.1f} s; the slower worker's imports and model took {load_s:.1f} s of it")
        return "\n".join(rows)

    @property
    def load_s(self) -> float:
        """From the container's start until it listens: of the worker that was last."""
        last = max(("prefill", "decode"), key=lambda role: self.times_s[role, "listens"])
        return self.times_s[last, "listens"] - self.times_s[last, "started"]


@contextmanager
def watched(demo: Deployed) -> Iterator[Seen]:
    """Watches Pods and Models of the namespace while the block runs; the logs are read at its end."""
    seen = Seen()
    watches = [_watch(demo, kind) for kind in ("pods", "models")]
    threads = [threading.Thread(target=_follow, args=(watch, seen)) for watch in watches]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        for watch, thread in zip(watches, threads, strict=True):
            watch.terminate()
            watch.wait(10)
            thread.join(10)
    for component, pod in seen.pods.items():
        seen.take_log(component, demo.kubectl("logs", "--timestamps", pod))


def _watch(demo: Deployed, kind: str) -> subprocess.Popen[str]:
    command = ["kubectl", "--namespace", demo.namespace, "get", kind, "--watch", "--output=json"]
    return subprocess.Popen(
        demo.cluster.inside(command), env=demo.cluster.environment, text=True, stdout=subprocess.PIPE
    )


def _follow(watch: subprocess.Popen[str], seen: Seen) -> None:
    """Documents come one after another, over several lines each."""
    assert watch.stdout is not None
    text = ""
    for line in watch.stdout:
        text += line
        if line == "}\n":
            seen.take(json.loads(text))
            text = ""
