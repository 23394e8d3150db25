"""The operator against the API server in this process: convergence from every crash point, faults, drift, quiet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import pytest

from baton_operator import kinds
from baton_operator.process import _main
from support.fake_api import NAMESPACE, WRITES, FakeCluster
from support.fake_watch import Asked
from support.operators import KillAt, condition, eventually, model, operator_settings, running
from support.settling import is_settled, quiet, settings_of, settled, stalled_ready, state

Json = dict[str, Any]


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster.up() as fake:
        yield fake


async def test_a_model_comes_up(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        found = await settled(cluster)
    assert len(found) == 20
    assert found["Model m"]["status"]["reason"] == "Serving"


async def test_nothing_is_written_while_nothing_changes_nor_by_the_next_operator(cluster: FakeCluster) -> None:
    cluster.create(kinds.MODEL, model("m", NAMESPACE))
    async with running(cluster.access, settings_of(resync_s=1.0)):
        await settled(cluster)
        await quiet(cluster)
        assert await quiet(cluster, 1.5) == 0
    async with running(cluster.access, settings_of()) as second:
        counted = second.telemetry.metrics.counter("baton_operator_reconciles_total", outcome="ok")
        await eventually(lambda: counted._value.get() >= 1)
        assert await quiet(cluster) == 0


async def run_until(cluster: FakeCluster, number: int, after: bool, done: Callable[[], bool]) -> int:
    """An operator that dies at its write `number`, or ends when `done`: the writes it began."""
    async with running(cluster.access, settings_of()) as operator:
        kill = KillAt(operator, number, after=after)
        dead = asyncio.create_task(kill.died.wait())
        try:
            await eventually(lambda: dead.done() or done(), 10.0, "settled or dead")
        finally:
            dead.cancel()
    return kill.writes


PHASES: dict[str, tuple[Callable[[FakeCluster], Any], Callable[[FakeCluster], Any]]] = {
    "create": (lambda cluster: None, lambda cluster: cluster.create(kinds.MODEL, model("m", NAMESPACE))),
    "new revision": (
        lambda cluster: cluster.create(kinds.MODEL, model("m", NAMESPACE, decode={"replicas": 2})),
        lambda cluster: cluster.change(kinds.MODEL, "m", {"spec": {"kv": {"blockTokens": 32}}}),
    ),
    "scale": (
        lambda cluster: cluster.create(kinds.MODEL, model("m", NAMESPACE)),
        lambda cluster: cluster.change(kinds.MODEL, "m", {"spec": {"decode": {"replicas": 3}}}),
    ),
    "without prefill": (
        lambda cluster: cluster.create(kinds.MODEL, model("m", NAMESPACE)),
        lambda cluster: cluster.change(kinds.MODEL, "m", {"spec": {"mode": "aggregated"}}),
    ),
}


async def begin(phase: str) -> FakeCluster:
    """A cluster in the state from which the phase starts."""
    cluster = FakeCluster()
    await cluster.start()
    before, _ = PHASES[phase]
    before(cluster)
    if cluster.of(kinds.MODEL):
        async with running(cluster.access, settings_of()):
            await settled(cluster)
    return cluster


async def some_at_once(runs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them, four at a time: they wait more than they compute."""
    gate = asyncio.Semaphore(4)

    async def let_in(run: Coroutine[Any, Any, None]) -> None:
        async with gate:
            await run

    async with asyncio.TaskGroup() as group:
        for run in runs:
            group.create_task(let_in(run))


@pytest.mark.parametrize("phase", PHASES)
async def test_an_operator_killed_at_any_write_leaves_what_the_next_one_completes(phase: str) -> None:
    """Every write of the phase, before and after it reached the API server: the same objects in the end."""
    _, change = PHASES[phase]
    origin = await begin(phase)
    await origin.stop()
    cluster = await origin.copy().start()
    change(cluster)
    writes = await run_until(cluster, 10**9, False, lambda: is_settled(cluster))
    wanted = state(cluster)
    await cluster.stop()
    assert writes > 2

    async def killed(number: int, after: bool) -> None:
        cluster = await origin.copy().start()
        change(cluster)
        await run_until(cluster, number, after, lambda: is_settled(cluster))
        async with running(cluster.access, settings_of()):
            assert await settled(cluster) == wanted, f"killed at write {number}, after={after}"
            await quiet(cluster, 0.05)
        await cluster.stop()

    await some_at_once(killed(number, after) for number in range(1, writes + 1) for after in (False, True))


async def test_a_model_deleted_at_any_moment_of_its_making_leaves_nothing() -> None:
    cluster = await begin("create")
    PHASES["create"][1](cluster)
    writes = await run_until(cluster, 10**9, False, lambda: is_settled(cluster))
    await cluster.stop()

    async def deleted(number: int) -> None:
        cluster = await begin("create")
        PHASES["create"][1](cluster)
        await run_until(cluster, number, True, lambda: is_settled(cluster))

        def nothing() -> bool:
            cluster.settle()
            return not any(cluster.of(kind) for kind in (*kinds.CHILDREN, kinds.POD))

        async with running(cluster.access, settings_of()):
            cluster.remove(kinds.MODEL, "m")
            await eventually(nothing, what=f"nothing left after write {number}")
        await cluster.stop()

    await some_at_once(deleted(number) for number in range(1, writes + 1))


@pytest.mark.parametrize("status", [409, 429, 500, 503, 504])
async def test_every_write_may_fail_once_and_the_end_is_the_same(status: int) -> None:
    cluster = await begin("create")
    refused: set[str] = set()

    def refuse(asked: Asked) -> tuple[int, list[tuple[str, str]]] | None:
        place = f"{asked.method} {asked.path}"
        if asked.method not in WRITES or place in refused:
            return None
        refused.add(place)
        return status, [("retry-after", "0")] if status == 429 else []

    cluster.refuse = refuse
    async with running(cluster.access, settings_of()):
        PHASES["create"][1](cluster)
        found = await settled(cluster, 30.0)
    assert len(found) == 20 and len(refused) > 19
    await cluster.stop()


async def test_retry_after_is_kept_to(cluster: FakeCluster) -> None:
    cluster.refuse = lambda asked: (429, [("retry-after", "1")]) if asked.method == "PATCH" else None
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await eventually(lambda: any(asked.method == "PATCH" for asked in cluster.asked))
        await asyncio.sleep(0.1)
        before = len([asked for asked in cluster.asked if asked.method in WRITES])
        await asyncio.sleep(0.5)
        assert len([asked for asked in cluster.asked if asked.method in WRITES]) == before
        cluster.refuse = lambda asked: None
        await settled(cluster)


async def test_what_the_api_server_refuses_for_good_is_said_and_not_repeated(cluster: FakeCluster) -> None:
    def refuse(asked: Asked) -> tuple[int, list[tuple[str, str]]] | None:
        return (422, []) if asked.method == "PATCH" and "/services/m-gateway" in asked.path else None

    cluster.refuse = refuse
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await eventually(lambda: condition(cluster.of(kinds.MODEL)["m"], "Stalled").get("status") == "True")
        ready = condition(cluster.of(kinds.MODEL)["m"], "Ready")
        assert ready["reason"] == "RefusedByApiServer" and "Service m-gateway" in ready["message"]
        await quiet(cluster)
        asked = len([one for one in cluster.asked if one.method in WRITES])
        await asyncio.sleep(0.5)
        assert len([one for one in cluster.asked if one.method in WRITES]) == asked
        assert "Deployment m-gateway" in state(cluster)


async def test_what_can_be_retried_is_said_and_holds_up_only_what_needs_it(cluster: FakeCluster) -> None:
    """As a webhook that does not answer."""
    failing = ("/pools", "/roles/", "/configmaps/m-gateway")

    def refuse(asked: Asked) -> tuple[int, list[tuple[str, str]]] | None:
        fails = asked.method in WRITES and any(part in asked.path for part in failing) and "status" not in asked.path
        return (500, []) if fails else None

    cluster.refuse = refuse
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await eventually(lambda: condition(cluster.of(kinds.MODEL)["m"], "Progressing").get("reason") == "WritesFail")
        moving = condition(cluster.of(kinds.MODEL)["m"], "Progressing")
        assert moving["status"] == "True" and "Pool m-decode: HTTP 500: no" in moving["message"]
        await eventually(lambda: "Pool m-decode: HTTP 500: no" in str(stalled_ready(cluster, "Creating")))
        made = state(cluster)
        assert {"NetworkPolicy m", "PodDisruptionBudget m-decode", "Service m-gateway"} <= set(made)
        assert not {"RoleBinding m-gateway", "Deployment m-gateway"} & set(made)
        cluster.refuse = lambda asked: None
        assert len(await settled(cluster)) == 20


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (403, 1)])
async def test_a_status_that_is_not_written_is_logged_once_and_keeps_no_other_from_being_written(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture, status: int, tries: int
) -> None:
    def refuse(asked: Asked) -> tuple[int, list[tuple[str, str]]] | None:
        return (status, []) if asked.path.endswith("/pools/m-decode/status") else None

    cluster.refuse = refuse
    async with running(cluster.access, settings_of()) as operator:
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        asked = lambda: [one for one in cluster.asked if one.path.endswith("/pools/m-decode/status")]  # noqa: E731
        await eventually(lambda: len(asked()) >= tries)
        if status == 403:
            await quiet(cluster)
            before = len(asked())
            await quiet(cluster, 1.0)
            assert len(asked()) == before
        said = [entry.getMessage() for entry in caplog.records if "pools/status" in entry.getMessage()]
        assert said == [f"pools/status ns/m-decode is not written: HTTP {status}: no"]
        text = operator.telemetry.metrics.text().decode()
        assert 'baton_operator_errors_total{reason="Refused",what="pools/status"} 1.0' in text


async def test_an_operator_that_breaks_says_of_what(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("the token is a teapot")

    cluster.client_token = broken
    assert await asyncio.wait_for(_main(settings_of(port=0), cluster.access), 10.0) == 1
    (said,) = [entry for entry in caplog.records if entry.levelname == "CRITICAL"]
    assert "teapot" in str(said.exc_text or said.exc_info)


async def test_an_outage_stops_nothing_for_good(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        await cluster.stop()
        cluster.change(kinds.MODEL, "m", {"spec": {"decode": {"replicas": 2}}})
        await asyncio.sleep(0.5)
        await cluster.start()
        await eventually(lambda: is_settled(cluster) and "2/2" in str(cluster.of(kinds.MODEL)["m"]["status"]), 20.0)


@pytest.mark.parametrize("fault", ["cut", "gone", "mute"])
async def test_watches_may_be_cut_expire_or_fall_silent(cluster: FakeCluster, fault: str) -> None:
    async with running(cluster.access, settings_of(watch_silence_s=1.0)):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        if fault == "gone":
            cluster.compact()
            cluster.error_event(410)
        cluster.mute = fault == "mute"
        if fault == "cut":
            cluster.end_watches()
        cluster.change(kinds.MODEL, "m", {"spec": {"decode": {"replicas": 2}}})
        await asyncio.sleep(0.2)
        cluster.mute = False
        await eventually(lambda: is_settled(cluster) and "2/2" in str(cluster.of(kinds.MODEL)["m"]["status"]), 20.0)


async def test_a_model_that_cannot_be_served_says_why_and_what_serves_goes_on(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        before = await settled(cluster)
        cluster.change(kinds.MODEL, "m", {"spec": {"engine": {"type": "vllm"}}})
        await eventually(lambda: condition(cluster.of(kinds.MODEL)["m"], "Stalled").get("status") == "True")
        ready = condition(cluster.of(kinds.MODEL)["m"], "Ready")
        assert ready["reason"] == "NotSupported" and "spec.engine.type" in ready["message"]
        now = state(cluster)
        assert {name: item for name, item in now.items() if name != "Model m"} == {
            name: item for name, item in before.items() if name != "Model m"
        }


async def test_a_namespace_that_gives_no_rights_stops_no_other(cluster: FakeCluster) -> None:
    def refuse(asked: Asked) -> tuple[int, list[tuple[str, str]]] | None:
        return (403, []) if "/namespaces/gone/" in asked.path else None

    cluster.refuse = refuse
    async with running(cluster.access, operator_settings(watch_namespaces=("gone", NAMESPACE))) as operator:
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        assert operator.observer.ready and not operator.observer.is_listed("gone")
