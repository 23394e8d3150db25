"""What the operator remembers of the cluster when watch and answers overtake each other, and its queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from baton_operator.caches import BURIED, Cache, deployment, settings_of, whole
from baton_operator.kinds import CONFIG_MAP
from baton_operator.snapshot import Key
from baton_operator.work_queue import WorkQueue
from baton_wire.kube_api import Event, Listing

KEY = ("ns", "m")


def item(version: int, name: str = "a", uid: str = "1", model: str = "m") -> dict[str, Any]:
    labels = {"baton.dev/model": model}
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata, "version": version}


def cache() -> tuple[Cache[dict[str, Any]], list[Key]]:
    told: list[Key] = []
    return Cache(CONFIG_MAP, "", whole, told.append), told


def test_older_news_is_no_news() -> None:
    at, told = cache()
    at.put(item(5))
    at.apply(Event("MODIFIED", item(4)))
    at.apply(Event("MODIFIED", item(5)))
    assert at.of(KEY)["a"]["version"] == 5 and told == [KEY]
    assert at.version("ns", "a") == "5" and at.version("ns", "b") == ""


def test_an_answer_that_the_watch_has_overtaken_raises_nothing_from_the_dead() -> None:
    at, _ = cache()
    at.put(item(5))
    at.apply(Event("DELETED", item(7)))
    at.put(item(6))
    assert not at.of(KEY) and not len(at)
    at.put(item(8, uid="2"))
    assert at.of(KEY)["a"]["version"] == 8


def test_a_label_that_goes_and_comes_back_is_no_death() -> None:
    """A watch by label says DELETED of an object that has lost it."""
    at, _ = cache()
    at.put(item(5))
    at.apply(Event("DELETED", item(7)))
    at.put(item(8))
    assert at.of(KEY)["a"]["version"] == 8


def test_what_we_deleted_stays_deleted_though_the_watch_lags() -> None:
    at, _ = cache()
    at.put(item(5))
    at.forget("ns", "a", "1")
    at.apply(Event("MODIFIED", item(6)))
    assert not at.of(KEY)
    at.put(item(7, uid="2"))
    at.forget("ns", "a", "1")
    assert at.of(KEY)["a"]["version"] == 7
    for number in range(BURIED + 1):
        at.forget("ns", "a", f"other-{number}")
    at.apply(Event("BOOKMARK", item(9)))
    assert at.of(KEY)["a"]["version"] == 7


def test_what_is_not_listed_is_gone_and_a_new_label_moves_an_object() -> None:
    at, told = cache()
    at.put(item(5))
    at.put(item(6, "b", "2"))
    assert not at.listed
    at.replace(Listing((item(7, model="n"),), "9"))
    assert at.listed and not at.of(KEY) and at.of(("ns", "n"))["a"]["version"] == 7
    assert told[-1] == ("ns", "n") and KEY in told[2:]


def test_the_writer_is_not_told_of_its_own_answers() -> None:
    at, told = cache()
    at.put(item(5), tell=False)
    at.apply(Event("MODIFIED", item(5)))
    assert at.of(KEY)["a"]["version"] == 5 and told == []
    at.apply(Event("MODIFIED", item(6)))
    assert told == [KEY]


def with_status(number: int, **changes: Any) -> dict[str, Any]:
    metadata = {"name": "a", "namespace": "ns", "uid": "1", "resourceVersion": str(number)}
    metadata |= {"labels": {"baton.dev/model": "m"}, "managedFields": [number]}
    return {"metadata": metadata, "spec": {"replicas": 1}, "status": changes}


@pytest.mark.parametrize(
    ("keep", "before", "after", "tells"),
    [
        (deployment, {"readyReplicas": 1}, {"readyReplicas": 1, "updatedReplicas": 1}, False),
        (deployment, {"readyReplicas": 1}, {"readyReplicas": 2}, True),
        (deployment, {"replicas": 1}, {}, True),
        (deployment, {}, {"conditions": [{"type": "Progressing", "status": "True"}]}, False),
        (deployment, {}, {"conditions": [{"type": "ReplicaFailure", "status": "True"}]}, True),
        (settings_of, {"currentHealthy": 1}, {"currentHealthy": 2}, False),
        (whole, {"replicas": 1}, {"replicas": 2}, True),
        (whole, {"replicas": 1}, {"replicas": 1}, False),
    ],
)
def test_only_what_is_read_is_a_reason_to_look(
    keep: Callable[[Any], Any], before: dict[str, Any], after: dict[str, Any], tells: bool
) -> None:
    told: list[Key] = []
    at = Cache(CONFIG_MAP, "", keep, told.append)
    at.put(with_status(1, **before))
    at.put(with_status(2, **after))
    assert at.version("ns", "a") == "2" and len(told) == (2 if tells else 1)
    changed = with_status(3, **after)
    changed["spec"]["replicas"] = 2
    at.put(changed)
    assert len(told) == (3 if tells else 2)
    relabelled = with_status(4, **after)
    relabelled["spec"]["replicas"] = 2
    relabelled["metadata"]["labels"]["x"] = "y"
    at.put(relabelled)
    assert len(told) == (4 if tells else 3)


async def test_changes_while_a_model_is_looked_at_are_looked_at_afterwards_once() -> None:
    queue = WorkQueue(asyncio.get_running_loop().time)
    queue.add(KEY)
    assert await queue.get() == KEY
    queue.add(KEY, 5.0)
    queue.add(KEY)
    assert len(queue) == 1 and list(queue.busy) == [KEY]
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.done(KEY)
    assert await asyncio.wait_for(waiting, 5) == KEY
    queue.done(KEY)
    assert not len(queue)


async def test_the_sooner_of_two_wishes_counts_and_others_are_served_meanwhile() -> None:
    queue = WorkQueue(asyncio.get_running_loop().time)
    queue.add(KEY, 60.0)
    queue.add(("ns", "n"), 0.01)
    assert await asyncio.wait_for(queue.get(), 5) == ("ns", "n")
    queue.add(KEY, 0.0)
    assert await asyncio.wait_for(queue.get(), 5) == KEY
