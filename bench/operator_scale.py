"""The operator at scale: `python -m bench.operator_scale`, `make bench-operator`; binaries from KUBE_ASSETS.

A control plane with kwok in place of kubelets, and the real operator process with the chart's rights and settings. 200
Models are made at once, scaled, given a new revision, left alone and deleted; then 50 Models of 20 workers each. The
floors in the same rounds, in turns: plain Deployments of as many Pods (a Model's are its prefill and decode workers and
its gateway), once with the very Pods in three Deployments as a Model has them, once bare in one. Times are from the
moment an object's request is sent to its last Pod Ready, by one watch for all.

Requests are counted from the API server's audit log, Lease renewals and watches left out; CPU and memory are from
/proc. What peers' operators need is quoted: measured on 2 cores with 200 resources of two Pods each, kwok, the same
limits.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import median

import uvloop

from baton_cli.kube_config import Chosen, find_access
from baton_wire.kube_api import KubeApi
from baton_wire.kube_watch import Reflector, Wanted, WatchTimes
from support.kube.cluster import Cluster
from support.kube.programs import API_QPS

from .operator_audit import Asked, AuditLog, last_end, spelled
from .operator_cluster import ACCOUNT, OperatorProcess, cluster_with_nodes, operator_process
from .operator_load import Contender, Models, Sizes, bare_pods, same_pods
from .operator_pods import Goal, Pods
from .rounds import turned
from .rows import Measure, Row, compare, show, single, write

AT_ONCE = 50
"""Requests of the bench itself that are on their way together."""
PHASE_S, QUIET_S, IDLE_S = 400.0, 3.0, 20.0
SCALE, WORKERS = Sizes(200, 1, 2), Sizes(50, 10, 10)
AIBRIX, LWS = "AIBrix StormService 2026-08", "LWS DisaggregatedSet 2026-08"
PEERS: dict[tuple[str, str], tuple[float, float]] = {
    ("create", "p50"): (6.0, 9.8), ("create", "p99"): (11.0, 17.8),
    ("scale", "p50"): (13.7, 12.3), ("scale", "p99"): (21.7, 22.7),
    ("revise", "p50"): (19.4, 119.0), ("revise", "p99"): (26.7, 139.0),
    ("delete", "p50"): (6.1, 7.8), ("delete", "p99"): (9.2, 9.6),
    ("create", "requests"): (14, 29), ("scale", "requests"): (25, 24), ("revise", "requests"): (29, 112),
    ("create", "cpu"): (22, 39), ("scale", "cpu"): (36, 46), ("revise", "cpu"): (43, 270),
}  # fmt: skip
"""AIBrix's and LeaderWorkerSet's main of August 2026, both in Go: seconds, requests and CPU ms per resource."""
PEERS_RSS_MB, PEERS_IDLE_WRITES = (122.0, 143.0), (2003, 380)


@dataclass
class Seen:
    """One contender's phase. `requests` are the operator's, until it was quiet."""

    took_s: list[float]
    cpu_s: float = 0.0
    requests: list[Asked] = field(default_factory=list)
    deployed_s: list[float] = field(default_factory=list)
    written_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What a round needs."""

    api: KubeApi
    audit: AuditLog
    process: OperatorProcess
    sizes: Sizes

    async def phase(
        self, contender: Contender, act: Callable[[str], Awaitable[object]], pods: Pods, goal: Goal
    ) -> Seen:
        """One request for each object, and the seconds until its Pods are as wanted."""
        names, began_s, wall_s = self.sizes.objects, dict[str, float](), time.time() - time.monotonic()
        pods.aim(names, goal)
        self.audit.read()
        cpu_s = self.process.cpu_s
        doors = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> None:
            async with doors:
                began_s[name] = time.monotonic()
                await act(name)

        await asyncio.gather(*(one(name) for name in names))
        met_s = await pods.until_met(PHASE_S)
        seen = Seen([met_s[name] - began_s[name] for name in names])
        seen.requests = await self._until_quiet()
        seen.cpu_s = self.process.cpu_s - cpu_s
        for resources, into in ((("deployments",), seen.deployed_s), (None, seen.written_s)):
            ended = last_end(seen.requests, lambda name: name.partition("-")[0], resources)
            into += [ended[name] - wall_s - began_s[name] for name in names if name in ended]
        return seen

    async def _until_quiet(self) -> list[Asked]:
        """All that the operator asks until it asks nothing for QUIET_S."""
        found, last_s = self.audit.read(), time.monotonic()
        while time.monotonic() - last_s < QUIET_S:
            await asyncio.sleep(0.5)
            if more := self.audit.read():
                found, last_s = found + more, time.monotonic()
        return found

    async def idle_writes(self) -> int:
        self.audit.read()
        await asyncio.sleep(IDLE_S)
        written = [asked for asked in self.audit.read() if asked.is_write]
        if written:
            print(f"written while idle: {spelled(written)}", flush=True)
        return len(written)


@asynccontextmanager
async def watched(api: KubeApi, contender: Contender) -> AsyncIterator[Pods]:
    pods = Pods(contender.label)
    wanted = Wanted("pods", f"/api/v1/namespaces/{contender.namespace}/pods", {})
    task = asyncio.create_task(Reflector(api, wanted, pods, WatchTimes(server_s=3600.0), random.random).run())
    try:
        yield pods
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def life(
    bench: Bench, contender: Contender, phases: Sequence[str], seen: dict[tuple[str, str], list[Seen]]
) -> None:
    """From creation to deletion; what each phase took goes into `seen`, by contender and phase."""
    sizes = bench.sizes
    async with watched(bench.api, contender) as pods:
        for phase in phases:
            total = {"create": sizes.pods, "scale": sizes.scaled_pods, "revise": contender.pods_when_revised}.get(
                phase, 0
            )
            if phase == "revise":
                await asyncio.gather(*(contender.before_revision(name) for name in sizes.objects))
                await _count(pods, total * sizes.count)
            old = pods.names() if phase == "revise" else frozenset[str]()
            goal = Goal(sizes.replaced if phase == "revise" else total, old)
            found = await bench.phase(contender, getattr(contender, phase), pods, goal)
            seen[contender.name, phase].append(found)
            await _count(pods, total * sizes.count)
            await _settled(contender, phase)
            print(_said(contender, phase, found, sizes), flush=True)
            if phase != "delete" and isinstance(contender, Models) and phase == phases[-2]:
                idle = Seen([float(await bench.idle_writes())])
                seen[contender.name, "idle"].append(idle)


async def _count(pods: Pods, wanted: int) -> None:
    end_s = time.monotonic() + PHASE_S
    while len(pods.names()) != wanted:
        if time.monotonic() > end_s:
            raise TimeoutError(f"{len(pods.names())} Pods, {wanted} wanted")
        await asyncio.sleep(0.2)
    await asyncio.sleep(QUIET_S)


async def _settled(contender: Contender, phase: str) -> None:
    if isinstance(contender, Models) and phase != "delete":
        end_s = time.monotonic() + 60.0
        while (late := await contender.unsettled()) and time.monotonic() < end_s:
            await asyncio.sleep(1.0)
        if late:
            raise RuntimeError(f"{len(late)} Models are not settled after {phase}: {late[0]}")


def _said(contender: Contender, phase: str, seen: Seen, sizes: Sizes) -> str:
    text = f"{contender.name} {phase}: p50 {percentile(seen.took_s, 50):.2f} s, p99 {percentile(seen.took_s, 99):.2f} s"
    if contender.name != Models.name:
        return text
    failed = sum(asked.status >= 400 for asked in seen.requests)
    if seen.written_s:
        text += f"; last Deployment written p50 {median(seen.deployed_s or [0]):.2f} s, p99"
        text += f" {percentile(seen.deployed_s or [0], 99):.2f} s, last child {percentile(seen.written_s, 99):.2f} s"
    per = f"{len(seen.requests) / sizes.count:.2f} requests and {1e3 * seen.cpu_s / sizes.count:.1f} ms of CPU"
    return f"{text}; {per} per Model; {failed} failed: {spelled(seen.requests)}"


def percentile(samples: Sequence[float], percent: int) -> float:
    """Nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def rows_of(case: str, sizes: Sizes, seen: dict[tuple[str, str], list[Seen]]) -> list[Row]:
    rows: list[Row] = []
    for phase in ("create", "scale", "revise", "delete"):
        ours, floors = seen[Models.name, phase], [name for name, of in seen if of == phase and name != Models.name]
        if not ours:
            continue
        name = f"{case}: {phase}"
        for percent, bar in ((50, None), (99, None if phase == "delete" else 2.0)):
            measure = Measure(f"p{percent} last Pod {'gone' if phase == 'delete' else 'Ready'}", "s", "lower", bar)
            mine = [percentile(one.took_s, percent) for one in ours]
            for floor in floors:
                theirs = [percentile(one.took_s, percent) for one in seen[floor, phase]]
                rows.append(compare(name, measure, mine, floor, theirs))
            rows += _beside_peers(name, (phase, f"p{percent}"), measure, mine, sizes)
        if ours[0].written_s:
            last = [percentile(one.written_s, 99) for one in ours]
            whole = [percentile(one.took_s, 99) for one in ours]
            rows.append(compare(name, Measure("p99 last child written", "s", "lower"), last, "last Pod Ready", whole))
        asked = [len(one.requests) / sizes.count for one in ours]
        measure = Measure("requests per Model", "requests", "lower", 1.0)
        allowed = [1.5 * sum(one.is_of_child for one in round_.requests) / sizes.count + 4 for round_ in ours]
        rows.append(compare(name, measure, asked, "1.5 x child writes + 4", allowed))
        rows += _beside_peers(
            name, (phase, "requests"), Measure("requests per Model", "requests", "lower"), asked, sizes
        )
        cpu = [1e3 * one.cpu_s / sizes.count for one in ours]
        rows += _beside_peers(name, (phase, "cpu"), Measure("CPU per Model", "ms", "lower"), cpu, sizes)
    idle = max(one.took_s[0] for one in seen[Models.name, "idle"])
    for peer, writes in zip((AIBRIX, LWS), PEERS_IDLE_WRITES, strict=True):
        rows.append(single(f"{case}: {IDLE_S:.0f} s idle", "writes", idle, (peer, writes), bar=0.0))
    return rows


def _beside_peers(case: str, what: tuple[str, str], measure: Measure, ours: list[float], sizes: Sizes) -> list[Row]:
    """Quoted for the case that they were measured in."""
    if what not in PEERS or sizes != SCALE:
        return []
    plain = Measure(measure.name, measure.unit, measure.better)
    pairs = zip((AIBRIX, LWS), PEERS[what], strict=True)
    return [compare(case, plain, ours, f"{peer}, 2 Pods", [figure] * len(ours)) for peer, figure in pairs]


async def bench_case(
    cluster: Cluster, process: OperatorProcess, sizes: Sizes, phases: Sequence[str], rounds: int
) -> dict[tuple[str, str], list[Seen]]:
    api = KubeApi(find_access(Chosen(), cluster.environment))
    seen: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    try:
        audit = AuditLog(cluster.audit_log, ACCOUNT)
        bench = Bench(api, audit, process, sizes)
        contenders: list[Contender] = [same_pods(api, sizes), bare_pods(api, sizes), Models(api, sizes)]
        for number in range(rounds):
            for contender in turned(contenders, number % 3):
                await life(bench, contender, phases, seen)
            print(f"round {number}: RSS {process.resident_mb:.1f} MB, peak {process.peak_mb:.1f} MB", flush=True)
    finally:
        await api.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=("models", "workers"), default=["models", "workers"])
    parser.add_argument("--phases", nargs="+", default=["create", "scale", "revise", "delete"])
    parser.add_argument("--models", type=int, default=SCALE.count, help="fewer, to try things out; no rows then")
    parser.add_argument("--profile", type=Path, help="run the operator under cProfile, its result here; no rows then")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing of the cluster is left
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, cluster_with_nodes(Path(name)) as cluster:
        for namespace in (Models.namespace, "same", "bare"):
            cluster.kubectl("create", "namespace", namespace)
        print(
            f"{cluster.kubectl('version').splitlines()[-1]}; controller manager and scheduler may ask {API_QPS} times a"
        )
        print(
            f"second, {2 * API_QPS} at once (a stock one 20 and 30: 200 Deployments then take 44 s whoever makes them)"
        )
        with operator_process(cluster, options.profile) as process:
            for case in options.cases:
                sizes = replace(SCALE, count=options.models) if case == "models" else WORKERS
                said = "200 Models" if case == "models" else "50 Models, 1,000 workers"
                phases = options.phases if case == "models" else ("create", "delete")
                seen = uvloop.run(bench_case(cluster, process, sizes, phases, options.rounds))
                found = rows_of(said, sizes, seen)
                for peer, figure in zip((AIBRIX, LWS), PEERS_RSS_MB, strict=True):
                    found.append(single(said, "MB", process.peak_mb, (peer, figure), bar=None, metric="peak RSS"))
                show(found)
                rows += found
    if options.profile or options.models != SCALE.count:
        sys.exit(0)
    print(write("operator", rows, keep_other_cases=True))


if __name__ == "__main__":
    main()
