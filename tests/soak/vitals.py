"""What one process holds at a moment: memory, descriptors, threads, tasks, blocks, leases, requests."""

from __future__ import annotations

import os
import re
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from support.stack import Stack

# Our names for the metrics of both kinds of process.
METRICS = {
    "baton_gateway_tasks": "tasks",
    "baton_worker_tasks": "tasks",
    "baton_gateway_in_flight": "requests",
    "baton_gateway_connections": "connections",
    "baton_kv_leases": "leases",
    "vllm:num_requests_running": "requests",
    "vllm:num_requests_waiting": "waiting",
}


@dataclass(frozen=True, slots=True)
class Vitals:
    """`rss_mib` is resident memory; `blocks` those that requests hold. `pid` tells incarnations apart."""

    pid: int
    rss_mib: float
    fds: int
    threads: int
    tasks: int
    blocks: int = 0
    leases: int = 0
    requests: int = 0
    waiting: int = 0
    connections: int = 0

    @property
    def held(self) -> int:
        """What must be 0 when nobody asks for anything."""
        return self.blocks + self.leases + self.requests + self.waiting + self.connections

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def vitals(stack: Stack, name: str) -> Vitals:
    """Raises OSError when the process does not answer."""
    child = stack.gateway if name == "gateway" else stack.workers[name]
    assert child is not None
    pid = child.process.pid
    numbers = dict.fromkeys(METRICS.values(), 0)
    for metric, value in samples(child.url).items():
        if metric in METRICS:
            numbers[METRICS[metric]] += int(value)
    if name == "gateway":
        numbers["requests"] -= 1  # this very question
        numbers["connections"] -= 1
        return Vitals(pid, rss_mib(pid), *_counts(pid), **numbers)
    load = stack.info(name).load
    return Vitals(pid, rss_mib(pid), *_counts(pid), blocks=load.total_blocks - load.free_blocks, **numbers)


def samples(url: str) -> dict[str, float]:
    """Every metric's samples added up."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    added: dict[str, float] = {}
    for line in lines:
        found = re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})? (\S+)$", line)
        if found is not None:
            added[found[1]] = added.get(found[1], 0.0) + float(found[2])
    return added


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _counts(pid: int) -> tuple[int, int]:
    """(descriptors, threads)."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
