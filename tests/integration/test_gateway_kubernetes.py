"""A gateway that finds its workers on a cluster: an outside API server, fake workers, real requests through it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton_api.fleet import Fleet
from baton_api.kubernetes import worker_pod_labels
from baton_api.worker import Role
from baton_gateway.kube_source import KubernetesSource, ModelPlace
from baton_gateway.source import Take
from baton_wire.http_server import Exchange
from baton_wire.kube_watch import WatchTimes
from support.fake_watch import FakeApi
from support.fake_worker import FakeWorker, answer
from support.fleets import fleet_of
from support.gateways import WORKER_KEY, Stage, chat_body, until

SLICES, PODS = "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices", "/api/v1/namespaces/ns/pods"
QUICK = WatchTimes(request_s=1.0, silence_s=30.0, wait_base_s=0.02, wait_max_s=0.2)


class Cluster:
    """Workers as Pods: each has a slice of its own, because each has another port here."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        api.objects[SLICES] = {}
        api.objects[PODS] = {}

    def add(self, worker: FakeWorker, revision: str | None = None, role: str | None = None, **conditions: bool) -> None:
        info = worker.info
        labels = worker_pod_labels("demo", Role(role or info.role), revision or info.revision)
        self.api.put(PODS, {"metadata": {"name": info.worker_id, "labels": labels}})
        self.show(worker, **conditions)

    def show(self, worker: FakeWorker, **conditions: bool) -> None:
        name = worker.info.worker_id
        target = {"kind": "Pod", "name": name, "namespace": "ns"}
        self.api.put(
            SLICES,
            {
                "metadata": {"name": f"demo-workers-{name}", "labels": {"kubernetes.io/service-name": "demo-workers"}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": worker.port}],
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": conditions, "targetRef": target}],
            },
        )

    def remove(self, worker: FakeWorker) -> None:
        self.api.delete(SLICES, f"demo-workers-{worker.info.worker_id}")
        self.api.delete(PODS, worker.info.worker_id)


def fake(worker_id: str, revision: str = "r1", **changes: Any) -> FakeWorker:
    role = "prefill" if worker_id.startswith("p") else "decode"
    return FakeWorker(role, WORKER_KEY, worker_id, revision=revision, **changes)


@asynccontextmanager
async def on_cluster(folder: Path, *workers: FakeWorker, **settings: Any) -> AsyncIterator[tuple[Stage, Cluster]]:
    """The gateway, its workers started but not yet in the cluster."""
    api = await FakeApi().start()
    for worker in workers:
        await worker.start()
    staged = Stage(folder, list(workers), {"mode": "disaggregated", **settings}, ["sk-test"])
    gateway = staged.gateway
    gateway.source = KubernetesSource(
        api.access, ModelPlace("demo", "tiny"), times=QUICK, on_error=gateway.discovery_failed
    )
    cluster = Cluster(api)
    staged.url = f"http://127.0.0.1:{await gateway.start()}"
    try:
        yield staged, cluster
        await until(lambda: not gateway.parts.attempts and not staged.booked())
        staged.check_quiescent()
    finally:
        await staged.client.close()
        await gateway.stop()
        await api.stop()
        for worker in workers:
            await worker.kill()


def served_by(*workers: FakeWorker) -> list[int]:
    return [len(worker.legs) for worker in workers]


async def test_it_is_ready_only_when_both_roles_are_there_and_then_serves(tmp_path: Path) -> None:
    prefill, decode = fake("p0"), fake("d0")
    async with on_cluster(tmp_path, prefill, decode) as (s, cluster):
        assert (await s.get("/ready")).status == 503 and (await s.get("/health")).status == 200
        cluster.add(decode)
        await s.routable(1)
        assert b"no_prefill_worker" in (refused := await s.get("/ready")).body and refused.status == 503
        cluster.add(prefill)
        await s.routable(2)
        assert (await s.get("/ready")).status == 200
        assert (await s.chat()).status == 200
        assert served_by(prefill, decode) == [1, 1]
        cluster.remove(prefill)
        await s.routable(1)
        assert (await s.get("/ready")).status == 503


async def test_an_endpoint_that_terminates_stays_known_and_the_worker_says_when_it_drains(tmp_path: Path) -> None:
    prefill, decode = fake("p0"), fake("d0")
    async with on_cluster(tmp_path, prefill, decode) as (s, cluster):
        cluster.add(prefill, ready=False, serving=False)  # kubelet has not looked yet, or cannot be heard
        cluster.add(decode, ready=True, serving=True)
        await s.routable(2)
        cluster.show(decode, ready=False, serving=True, terminating=True)
        cluster.show(prefill, ready=False, serving=False, terminating=True)
        await asyncio.sleep(0.1)
        assert (await s.chat()).status == 200
        decode.info = replace(decode.info, draining=True)
        await s.routable(1)
        assert s.gateway.parts.registry.states()[("decode", "draining")] == 1


async def test_a_worker_that_is_not_what_its_pod_is_labelled_gets_nothing_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefill, decode, foreign, twisted = fake("p0"), fake("d0"), fake("d1"), fake("d2")
    with caplog.at_level(logging.ERROR, "baton.gateway.discovery"):
        async with on_cluster(tmp_path, prefill, decode, foreign, twisted) as (s, cluster):
            for worker in (prefill, decode):
                cluster.add(worker)
            cluster.add(foreign, revision="r2")
            cluster.add(twisted, role="prefill")
            await s.routable(2)
            await until(lambda: len(caplog.messages) == 2)
            for _ in range(8):
                assert (await s.chat()).status == 200
            assert served_by(foreign, twisted) == [0, 0] and served_by(decode) == [8]
            assert s.gateway.parts.registry.states()[("decode", "mismatched")] == 2
            await asyncio.sleep(0.2)  # several heartbeats: said once all the same
            assert set(caplog.messages) == {
                f"worker {foreign.url} gets no requests: it serves revision 'r1' and should serve 'r2'",
                f"worker {twisted.url} gets no requests: it is a decode worker and should be prefill",
            }
            cluster.add(foreign, revision="r1")
            await s.routable(3)


async def test_in_a_rollout_no_pair_crosses_revisions(tmp_path: Path) -> None:
    old, new = [fake("p0"), fake("d0")], [fake("p1", "r2"), fake("d1", "r2")]
    async with on_cluster(tmp_path, *old, *new) as (s, cluster):
        for worker in (*old, *new):
            cluster.add(worker)
        await s.routable(4)
        assert {(await s.chat(f"{number} {'x' * 100}")).status for number in range(24)} == {200}
        legs = {leg.hand_off.transfer_id: 0 for worker in (*old, *new) for leg in worker.legs}
        for pair in (old, new):
            ids = [{leg.hand_off.transfer_id for leg in worker.legs} for worker in pair]
            assert ids[0] == ids[1], "both legs of a transfer are on one revision"
        assert len(legs) == 24
        cluster.remove(new[0])  # the new decode worker has no partner any more
        await s.routable(3)
        before = served_by(*new)
        assert {(await s.chat(f"{number} {'y' * 100}")).status for number in range(8)} == {200}
        assert served_by(*new) == before


@pytest.mark.parametrize("how", ["killed", "cut", "mute", "refusing"])
async def test_an_api_server_that_is_away_changes_nothing_about_who_is_served(tmp_path: Path, how: str) -> None:
    workers = [fake("p0"), fake("d0"), fake("d1")]
    async with on_cluster(tmp_path, *workers) as (s, cluster):
        for worker in workers:
            worker.behave = answer("a", " b", delay_s=0.01)
            cluster.add(worker)
        await s.routable(3)
        statuses: list[int] = []

        async def load() -> None:
            for number in range(30):
                statuses.append((await s.chat(f"{number} {'x' * 80}")).status)

        requests = [asyncio.create_task(load()) for _ in range(3)]
        match how:
            case "killed":
                await cluster.api.stop()
            case "cut":
                cluster.api.end_watches(Exchange.abort)
            case "mute":
                cluster.api.mute = True
            case "refusing":
                cluster.api.refuse = lambda asked: (503, [])
                cluster.api.end_watches(Exchange.abort)
        await asyncio.gather(*requests)
        assert statuses == [200] * 90 and len(s.gateway.parts.registry.routable()) == 3
        if how == "mute":
            return
        cluster.api.refuse = lambda asked: None
        cluster.remove(workers[2])
        if how == "killed":
            await cluster.api.start()
        await s.routable(2)
        if how != "cut":
            assert s.metric("baton_gateway_discovery_errors_total", reason="unreachable") >= (how == "killed")


async def test_the_model_is_known_before_the_first_list(tmp_path: Path) -> None:
    async with on_cluster(tmp_path, fake("d0")) as (s, _):
        await until(lambda: s.gateway.parts.registry.model == "tiny")
        refused = await s.post("/v1/chat/completions", {**chat_body(), "model": "other"})
        assert refused.status == 404


class Breaks:
    """A source that breaks off once before it says anything."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.runs = 0

    async def run(self, take: Take) -> None:
        self.runs += 1
        if self.runs == 1:
            raise RuntimeError("no source")
        take(self.fleet)
        await asyncio.Event().wait()


async def test_a_source_that_breaks_off_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decode = await fake("d0").start()
    staged = Stage(tmp_path, [decode], {}, ["sk-test"])
    staged.gateway.source = Breaks(fleet_of(decode.url))
    await staged.gateway.start()
    try:
        await staged.routable(1)
        assert "starting it again" in caplog.text and "no source" in caplog.text
    finally:
        await staged.client.close()
        await staged.gateway.stop()
        await decode.kill()
