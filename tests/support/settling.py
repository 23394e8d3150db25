"""When a Model and all that the operator makes for it have come to rest, on an API server in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from baton_operator import kinds
from baton_operator.settings import OperatorSettings

from .fake_api import NAMESPACE, FakeCluster
from .operators import condition, eventually, operator_settings, stripped

Json = dict[str, Any]


def settings_of(**changes: Any) -> OperatorSettings:
    return operator_settings(watch_namespaces=(NAMESPACE,), **changes)


def is_settled(cluster: FakeCluster, name: str = "m") -> bool:
    raw = cluster.of(kinds.MODEL)[name]
    ready, moving = condition(raw, "Ready"), condition(raw, "Progressing")
    is_so = ready.get("status") == "True" and moving.get("status") == "False"
    return is_so and ready["observedGeneration"] == raw["metadata"]["generation"]


def state(cluster: FakeCluster) -> dict[str, Json]:
    """Every object that the operator makes, and what it says of them; no Secret's content, no times."""
    found = {}
    for kind in kinds.CHILDREN:
        for name, item in cluster.of(kind).items():
            found[f"{kind.kind} {name}"] = stripped(item | {"kind": kind.kind})
    for name, item in cluster.of(kinds.MODEL).items():
        status = json.loads(json.dumps(item.get("status", {})))
        for said in status.get("conditions", []):
            said.pop("lastTransitionTime")
        found[f"Model {name}"] = {"spec": item["spec"], "status": status}
    return found


async def settled(cluster: FakeCluster, timeout_s: float = 10.0) -> dict[str, Json]:
    await eventually(lambda: is_settled(cluster), timeout_s, "the Model settled")
    return state(cluster)


async def quiet(cluster: FakeCluster, seconds: float = 0.3) -> int:
    """Writes while nothing changes."""
    before = len(cluster.writes)
    await asyncio.sleep(seconds)
    return len(cluster.writes) - before


def stalled_ready(cluster: FakeCluster, reason: str) -> str | None:
    ready = condition(cluster.of(kinds.MODEL)["m"], "Ready")
    return str(ready["message"]) if ready.get("reason") == reason else None
