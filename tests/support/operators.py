"""An operator in the test's own loop, against a real API server or the fake one; and a stand-in for the kubelets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from baton_api.crd import API_VERSION, KIND
from baton_api.errors import KubernetesError
from baton_operator import kinds
from baton_operator.process import Operator
from baton_operator.settings import LeaderSettings, OperatorSettings
from baton_wire.kube_access import KubeAccess
from baton_wire.kube_api import MERGE, KubeApi

Json = dict[str, Any]
MODELS = "/apis/baton.dev/v1alpha1/namespaces/{}/models"
VOLATILE = ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink")


def operator_settings(**changes: Any) -> OperatorSettings:
    given: dict[str, Any] = {
        "prefill_image": "localhost/baton-prefill:test",
        "decode_image": "localhost/baton-decode:test",
        "gateway_image": "localhost/baton-gateway:test",
        "leader": LeaderSettings(enabled=False),
        "settle_s": 0.01,
        "progress_s": 0.1,
        "retry_base_s": 0.05,
        "retry_max_s": 0.5,
        "request_timeout_s": 10.0,
    }
    return OperatorSettings(**(given | changes))


@asynccontextmanager
async def running(access: KubeAccess, settings: OperatorSettings) -> AsyncIterator[Operator]:
    """Until the end of the block; a failure of the operator fails the test."""
    operator = Operator(settings, access, "test")
    task = asyncio.create_task(operator.run())
    try:
        yield operator
    finally:
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not ended, task.exception()


def model(name: str, namespace: str, **spec: Any) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"source": "demo_model/model", **spec},
    }


class Kubelets:
    """Makes every Pod of a namespace ready (or not, as `verdict` says of it), every `poll_s`. `seen` has the name of
    each Pod's Deployment by the Pod's uid, of those too that are gone."""

    def __init__(self, api: KubeApi, namespace: str, verdict: Callable[[Json], bool] = lambda pod: True) -> None:
        self._api = api
        self._path = kinds.POD.path(namespace)
        self.verdict = verdict
        self.paused = False
        self.seen: dict[str, str] = {}

    async def run(self, poll_s: float = 0.05) -> None:
        while True:
            if not self.paused:
                await self.look()
            await asyncio.sleep(poll_s)

    async def look(self) -> None:
        for pod in (await self._api.list(self._path)).items:
            self.seen[pod["metadata"]["uid"]] = pod["metadata"]["name"].rsplit("-", 2)[0]
            wanted = "True" if self.verdict(pod) else "False"
            conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions") or []}
            if conditions.get("Ready") != wanted:
                status = {"phase": "Running", "conditions": [{"type": "Ready", "status": wanted}]}
                path = f"{self._path}/{pod['metadata']['name']}/status"
                await self._report(path, status)

    async def _report(self, path: str, status: Json) -> None:
        try:
            await self._api.call("PATCH", path, body={"status": status}, content_type=MERGE)
        except KubernetesError as error:
            if error.status not in (404, 409):
                raise


async def eventually(check: Callable[[], Any], timeout_s: float = 20.0, what: str = "", poll_s: float = 0.01) -> Any:
    """The first true answer of `check` (which may be a coroutine function's)."""
    loop = asyncio.get_running_loop()
    end_s, found = loop.time() + timeout_s, None
    while loop.time() < end_s:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(poll_s)
    raise AssertionError(f"not in {timeout_s:g} s: {what or check}; at last {found!r}")


async def children(api: KubeApi, namespace: str, name: str) -> dict[str, Json]:
    """Every object with the Model's label, without what differs between two runs."""
    found = {}
    for kind in kinds.CHILDREN:
        for item in (await api.list(kind.path(namespace), {"labelSelector": f"baton.dev/model={name}"})).items:
            found[f"{kind.kind} {item['metadata']['name']}"] = stripped(item)
    return found


def stripped(item: Json) -> Json:
    copy: Json = json.loads(json.dumps(item))
    for name in VOLATILE:
        copy["metadata"].pop(name, None)
    for owner in copy["metadata"].get("ownerReferences") or []:
        owner.pop("uid")
    for name in ("data", "status"):
        if name == "status" or copy.get("kind") == "Secret" or "type" in copy:
            copy.pop(name, None)
    annotations = copy["metadata"].get("annotations") or {}
    for name in ("deployment.kubernetes.io/revision", "baton.dev/applied"):
        annotations.pop(name, None)
    return copy


def condition(raw: Json, kind: str) -> Json:
    conditions = (raw.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == kind), {})


class KillAt:
    """From its write number `number` on the operator does nothing more, as if killed then: before the API server has
    seen that write, or after it. Then `died` is set, and the test cancels it."""

    def __init__(self, operator: Operator, number: int, *, after: bool) -> None:
        self._call, self._number, self._after = operator.api.call, number, after
        self.writes = 0
        self.died = asyncio.Event()
        operator.api.call = self.call  # type: ignore[method-assign]

    async def call(self, method: str, path: str, **given: Any) -> Json:
        if method == "GET":
            return await self._call(method, path, **given)
        self.writes += 1
        if self.writes < self._number:
            return await self._call(method, path, **given)
        if self._after and self.writes == self._number:
            await self._call(method, path, **given)
        self.died.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody wakes it")
