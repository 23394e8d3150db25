"""The operator on a real API server with its controllers: what comes of a Model, and what does not happen."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from baton_api.errors import KubernetesError
from baton_operator import kinds
from baton_operator.process import Operator
from baton_wire.kube_api import MERGE, KubeApi
from support.fuzzed_models import fuzzed
from support.kube_cluster import Cluster
from support.operators import (
    MODELS,
    Kubelets,
    children,
    condition,
    eventually,
    model,
    operator_settings,
    running,
)  # fmt: skip

Json = dict[str, Any]


@dataclass
class Stage:
    """One namespace with an operator and kubelets of the test's."""

    api: KubeApi
    namespace: str
    operator: Operator
    kubelets: Kubelets

    async def create(self, name: str = "m", **spec: Any) -> Json:
        return await self.api.call("POST", MODELS.format(self.namespace), body=model(name, self.namespace, **spec))

    async def get(self, name: str = "m") -> Json:
        return await self.api.call("GET", f"{MODELS.format(self.namespace)}/{name}")

    async def change(self, spec: Json, name: str = "m") -> Json:
        path = f"{MODELS.format(self.namespace)}/{name}"
        return await self.api.call("PATCH", path, body={"spec": spec}, content_type=MERGE)

    async def until_settled(self, name: str = "m") -> Json:
        """Ready, of this generation, and nothing left to do."""

        async def settled() -> Json | None:
            raw = await self.get(name)
            ready, moving = condition(raw, "Ready"), condition(raw, "Progressing")
            is_so = ready.get("status") == "True" and moving.get("status") == "False"
            return raw if is_so and ready["observedGeneration"] == raw["metadata"]["generation"] else None

        found: Json = await eventually(settled, what=f"Model {name} settled")
        return found


@asynccontextmanager
async def stage(cluster: Cluster, namespace: str, **settings: Any) -> AsyncIterator[Stage]:
    api = KubeApi(cluster.access)
    kubelets = Kubelets(api, namespace)
    task = asyncio.create_task(kubelets.run())
    try:
        given = operator_settings(watch_namespaces=(namespace,), **settings)
        async with running(cluster.access, given) as operator:
            yield Stage(api, namespace, operator, kubelets)
    finally:
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        await api.close()
    assert isinstance(done[0], asyncio.CancelledError), done


OBJECTS = [
    *("ConfigMap m-gateway", "Deployment m-gateway", "PodDisruptionBudget m-gateway", "Role m-gateway"),
    *("RoleBinding m-gateway", "Service m-gateway", "ServiceAccount m-gateway", "Service m-workers", "NetworkPolicy m"),
    *("Pool m-decode", "Pool m-prefill", "PodDisruptionBudget m-decode", "PodDisruptionBudget m-prefill"),
    *("Secret m-api-key", "Secret m-secret"),
]


STRANGERS: list[tuple[kinds.Kind, str, Json]] = [
    (kinds.NETWORK_POLICY, "m", {"spec": {"podSelector": {}}}),
    (kinds.SERVICE, "m-gateway", {"spec": {"ports": [{"port": 443}]}}),
    (kinds.SERVICE, "m-workers", {"spec": {"type": "ExternalName", "externalName": "x.example"}}),
    (kinds.ROLE, "m-gateway", {"rules": []}),
    (kinds.CONFIG_MAP, "m-gateway", {"data": {"mine": "yes"}}),
    (kinds.SERVICE_ACCOUNT, "m-gateway", {}),
    (kinds.BUDGET, "m-decode", {"spec": {}}),
    (kinds.POOL, "m-decode", {"spec": {"role": "decode", "model": "m", "replicas": 3}}),
]
"""Most of them lack the very fields that ours have: nothing that an apply could be in conflict with."""


async def test_what_others_made_under_a_models_names_is_not_touched_and_said(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        paths = {kind.path(namespace, name): f"{kind.kind} {name}" for kind, name, _ in STRANGERS}
        for kind, name, fields in STRANGERS:
            body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, **fields}
            await at.api.call("POST", kind.path(namespace), body=body)
        before = {path: (await at.api.call("GET", path)).get("spec") for path in paths}
        await at.create()

        async def taken() -> Json | None:
            ready = condition(await at.get(), "Ready")
            return ready if ready.get("reason") == "NameTaken" else None

        said = (await eventually(taken))["message"]
        assert all(f"{what} exists and is not Baton's" in said for what in paths.values())
        cluster.kubectl("delete", "model", "m", "-n", namespace, "--cascade=foreground", "--timeout=20s")
        for path in paths:
            found = await at.api.call("GET", path)
            assert found.get("spec") == before[path] and not found["metadata"].get("ownerReferences")
            assert not found["metadata"].get("labels")
        config = await at.api.call("GET", kinds.CONFIG_MAP.path(namespace, "m-gateway"))
        assert config["data"] == {"mine": "yes"}


async def test_a_gateway_rollout_that_is_stuck_or_paused_is_said(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        deployment = kinds.DEPLOYMENT.path(namespace, "m-gateway")
        await at.api.call("PATCH", deployment, body={"spec": {"paused": True}}, content_type=MERGE)
        await at.change({"routing": {"maxInFlight": 77}})

        async def paused() -> bool:
            moving = condition(await at.get(), "Progressing")
            return moving.get("reason") == "RollingOut" and "is paused: kubectl rollout resume" in moving["message"]

        await eventually(paused)
        await at.api.call("PATCH", deployment, body={"spec": {"paused": None}}, content_type=MERGE)
        await at.until_settled()


async def test_the_smallest_model_comes_up_with_all_its_objects(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        raw = await at.until_settled()
        status = raw["status"]
        made = await children(at.api, namespace, "m")
        revision = status["revision"]
        workers = [
            f"{kind} m-{role}-{revision}" for kind in ("ConfigMap", "Deployment") for role in ("prefill", "decode")
        ]
        assert sorted(made) == sorted([*OBJECTS, *workers])
        assert all(item["metadata"]["ownerReferences"][0]["controller"] for item in made.values())
        assert (status["prefill"]["summary"], status["decode"]["summary"], status["gateway"]) == ("1/1", "1/1", "1/1")
        assert status["endpoint"] == f"http://m-gateway.{namespace}.svc"
        assert status["observedGeneration"] == raw["metadata"]["generation"]
        assert not condition(raw, "Reconciling") and not condition(raw, "Stalled")
        lines = cluster.kubectl("get", "models,pools", "-n", namespace, "-o", "wide")
        assert "Serving" in lines and "AsWanted" in lines
        cluster.kubectl("wait", "--for=condition=Ready", "model/m", "-n", namespace, "--timeout=5s")
        assert "Serving" in cluster.kubectl("get", "events", "-n", namespace)


async def test_deleting_the_model_takes_everything_away(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        cluster.kubectl("delete", "model", "m", "-n", namespace)

        async def nothing() -> bool:
            return not await children(at.api, namespace, "m")

        await eventually(nothing, what="no object left")


async def owners(api: KubeApi, namespace: str) -> dict[str, str | None]:
    """The uid of each object's first owner."""
    found: dict[str, str | None] = {}
    for kind in kinds.CHILDREN:
        for item in (await api.list(kind.path(namespace), {"labelSelector": "baton.dev/model=m"})).items:
            references = item["metadata"].get("ownerReferences") or [{}]
            found[f"{kind.kind} {item['metadata']['name']}"] = references[0].get("uid")
    return found


async def test_what_an_orphaning_deletion_left_belongs_to_the_next_model_of_that_name(
    cluster: Cluster, namespace: str
) -> None:
    """Its Secrets keep their content, and in the end all of it goes, but for the Secret that its user made."""
    cluster.kubectl("create", "secret", "generic", "m-api-key", "-n", namespace, "--from-literal=api-key=mine")
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        before = await owners(at.api, namespace)
        signing = await at.api.call("GET", kinds.SECRET.path(namespace, "m-secret"))
        cluster.kubectl("delete", "model", "m", "-n", namespace, "--cascade=orphan")
        await at.create()
        uid = (await at.until_settled())["metadata"]["uid"]

        async def adopted() -> bool:
            return await owners(at.api, namespace) == dict.fromkeys(before, uid) | {"Secret m-api-key": None}

        await eventually(adopted, what="all objects are the new Model's")
        assert (await at.api.call("GET", kinds.SECRET.path(namespace, "m-secret")))["data"] == signing["data"]
        cluster.kubectl("delete", "model", "m", "-n", namespace)

        async def only_the_users() -> bool:
            return list(await owners(at.api, namespace)) == ["Secret m-api-key"]

        await eventually(only_the_users, what="only the user's Secret is left")


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_kubectl_scale_of_a_pool_is_followed_and_kept(cluster: Cluster, namespace: str, role: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        cluster.kubectl("scale", "pool", f"m-{role}", "-n", namespace, "--replicas=3")

        async def three() -> bool:
            return bool((await at.until_settled())["status"][role].get("summary") == "3/3")

        await eventually(three)
        await at.change({"routing": {"indexKeys": 1000}})
        assert (await at.until_settled())["status"][role]["summary"] == "3/3"
        await at.change({role: {"replicas": 2}})

        async def two() -> bool:
            return bool((await at.until_settled())["status"][role].get("summary") == "2/2")

        await eventually(two)


async def test_a_pool_is_held_within_its_limits(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create(decode={"replicas": 1, "maxReplicas": 2})
        await at.until_settled()
        cluster.kubectl("scale", "pool", "m-decode", "-n", namespace, "--replicas=5")

        async def clamped() -> bool:
            raw = await at.api.call("GET", f"/apis/baton.dev/v1alpha1/namespaces/{namespace}/pools/m-decode")
            ready = condition(raw, "Ready")
            return ready.get("reason") == "ScaleClamped" and raw["status"].get("readyReplicas") == 2

        await eventually(clamped)


async def test_a_new_revision_moves_prefill_and_decode_together_and_always_serves(
    cluster: Cluster, namespace: str
) -> None:
    """Watched by the Deployments' own numbers: never above size + surge, never fewer ready than size, a pair always."""
    async with stage(cluster, namespace) as at:
        await at.create(prefill={"replicas": 2}, decode={"replicas": 3})
        old = (await at.until_settled())["status"]["revision"]
        seen: list[dict[tuple[str, str], tuple[int, int]]] = []

        async def look() -> dict[tuple[str, str], tuple[int, int]]:
            items = (await at.api.list(f"/apis/apps/v1/namespaces/{namespace}/deployments")).items
            labels = [(item["metadata"]["labels"], item) for item in items]
            return {
                (given["baton.dev/role"], given["baton.dev/revision"]): (
                    item["spec"]["replicas"],
                    item.get("status", {}).get("readyReplicas", 0),
                )
                for given, item in labels
                if "baton.dev/role" in given
            }

        await at.change({"kv": {"blockTokens": 32}})

        async def done() -> bool:
            seen.append(await look())
            return len(seen[-1]) == 2 and all(revision != old for _, revision in seen[-1])

        await eventually(done, 60.0, "one revision left")
        await at.until_settled()
        for now in seen:
            for role, size in (("prefill", 2), ("decode", 3)):
                mine = [counts for (of, _), counts in now.items() if of == role]
                assert sum(asked for asked, _ in mine) <= size + 1, now
                assert sum(ready for _, ready in mine) >= size, now
            revisions = {revision for _, revision in now}
            ready = [[now.get((role, one), (0, 0))[1] for role in ("prefill", "decode")] for one in revisions]
            assert any(all(pair) for pair in ready), now
        made = await children(at.api, namespace, "m")
        assert not [name for name in made if old in name]


async def test_a_revision_that_never_gets_ready_leaves_the_old_one_serving(cluster: Cluster, namespace: str) -> None:
    async with stage(cluster, namespace) as at:
        await at.create()
        old = (await at.until_settled())["status"]["revision"]
        at.kubelets.verdict = lambda pod: pod["metadata"]["labels"].get("baton.dev/revision") in (None, old)
        await at.change({"engine": {"image": "localhost/broken:1"}})

        async def rolling() -> Json | None:
            raw = await at.get()
            return raw if condition(raw, "Progressing").get("reason") == "RollingOut" else None

        raw = await eventually(rolling)
        await asyncio.sleep(1.0)
        raw = await at.get()
        assert condition(raw, "Ready")["status"] == "True"
        assert raw["status"]["plan"]["step"] == "rollout"
        assert {(one["role"], one["ready"]) for one in raw["status"]["revisions"] if one["revision"] == old} == {
            ("prefill", 1),
            ("decode", 1),
        }
        await at.change({"engine": {"image": ""}})
        raw = await at.until_settled()
        assert raw["status"]["revision"] == old and len(raw["status"]["revisions"]) == 2


async def test_nothing_is_written_while_nothing_changes(cluster: Cluster, namespace: str) -> None:
    """By resource versions, which the API server alone moves; the second operator starts from nothing."""

    async def versions(api: KubeApi) -> dict[str, str]:
        found = {}
        for plural in ("models", "pools"):
            for item in (await api.list(f"/apis/baton.dev/v1alpha1/namespaces/{namespace}/{plural}")).items:
                found[f"{plural}/{item['metadata']['name']}"] = item["metadata"]["resourceVersion"]
        for item in (await api.list(f"/apis/apps/v1/namespaces/{namespace}/deployments")).items:
            found[item["metadata"]["name"]] = item["metadata"]["resourceVersion"]
        return found

    def requests(operator: Operator) -> float:
        text = operator.telemetry.exposition(0, ()).decode()
        lines = [line for line in text.splitlines() if line.startswith("baton_operator_writes_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    limits = {
        "resources": {"requests": {"cpu": "1000m", "memory": "1.5Gi"}, "limits": {"cpu": "2", "memory": "2048Mi"}}
    }
    async with stage(cluster, namespace, resync_s=1.0) as at:
        await at.create(prefill=limits, decode=limits, engine={"env": {"A": ""}})
        await at.until_settled()
        await asyncio.sleep(0.5)
        before, written = await versions(at.api), requests(at.operator)
        print(f"writes for one Model: {written:g}")
        assert written <= 1.5 * 19 + 4
        await asyncio.sleep(2.5)
        assert await versions(at.api) == before and requests(at.operator) == written
    async with stage(cluster, namespace) as at:
        await eventually(lambda: at.operator.observer.ready)
        await asyncio.sleep(1.0)
        assert await versions(at.api) == before and requests(at.operator) == 0


@pytest.mark.parametrize("source", ["pvc://claim/m", "hf://org/name@v1", "oci://registry.example/m:1"])
async def test_every_source_and_every_override_makes_pods_that_the_api_server_takes(
    cluster: Cluster, namespace: str, source: str
) -> None:
    """In a namespace that enforces Pod Security restricted: the Pods exist, so admission has let them in."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    async with stage(cluster, namespace) as at:
        await at.create(
            source=source,
            engine={"image": "localhost/mine:1", "env": {"A": "1"}},
            decode={
                "resources": {"requests": {"cpu": "500m"}, "limits": {"nvidia.com/gpu": 1, "memory": "1Gi"}},
                "nodeSelector": {"gpu": "yes"},
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
                "labels": {"team": "a"},
                "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
            },
        )
        raw = await at.until_settled()
        assert raw["status"]["decode"]["summary"] == "1/1"


async def test_an_affinity_that_is_none_is_said(cluster: Cluster, namespace: str) -> None:
    """The one part of the spec that only the API server itself can judge."""
    async with stage(cluster, namespace) as at:
        await at.create(decode={"affinity": {"nodeAffinity": {"wrong": 1}}})

        async def stalled() -> Json | None:
            raw = await at.get()
            return raw if condition(raw, "Stalled").get("status") == "True" else None

        raw = await eventually(stalled)
        assert condition(raw, "Ready")["reason"] == "RefusedByApiServer"
        assert "affinity" in condition(raw, "Ready")["message"]
        await at.change({"decode": {"affinity": None}})
        await at.until_settled()


async def test_an_api_server_that_is_away_stops_nothing_for_good(cluster: Cluster, namespace: str) -> None:
    if cluster.plane is None:
        pytest.skip("NO OWN CONTROL PLANE: this test stops the API server; set KUBE_ASSETS")
    async with stage(cluster, namespace) as at:
        await at.create()
        await at.until_settled()
        at.kubelets.paused = True
        await asyncio.sleep(0.2)
        cluster.plane.stop_api()
        await asyncio.sleep(3.0)
        await asyncio.to_thread(cluster.plane.start_api)
        at.kubelets.paused = False
        await at.change({"decode": {"replicas": 2}})

        async def two() -> bool:
            return bool((await at.until_settled())["status"]["decode"].get("summary") == "2/2")

        await eventually(two, 40.0)


MONITORS = (("PodMonitor", "podmonitors"), ("ServiceMonitor", "servicemonitors"))


async def test_monitors_are_made_where_their_crds_are(cluster: Cluster, namespace: str) -> None:
    def crd(kind: str, plural: str) -> Json:
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        version = {"name": "v1", "served": True, "storage": True, "schema": schema}
        names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.monitoring.coreos.com"},
            "spec": {"group": "monitoring.coreos.com", "scope": "Namespaced", "names": names, "versions": [version]},
        }

    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [crd(*pair) for pair in MONITORS]})
    cluster.kubectl("apply", "-f", "-", stdin=text)
    try:
        cluster.kubectl("wait", "--for=condition=Established", "-f", "-", stdin=text)
        async with stage(cluster, namespace, resync_s=1.0) as at:
            await at.create()

            async def made() -> bool:
                lists = [f"/apis/monitoring.coreos.com/v1/namespaces/{namespace}/{plural}" for _, plural in MONITORS]
                return all([(await at.api.list(path)).items for path in lists])

            await eventually(made)
            await at.until_settled()
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=text)


FUZZED = 500
REAL_AT_ONCE = 25


@pytest.mark.timeout(300)
async def test_fuzzed_models_are_refused_or_reach_a_steady_status_with_a_reason_and_can_be_deleted(
    cluster: Cluster, namespace: str
) -> None:
    draw = random.Random(5)
    async with stage(cluster, namespace) as at:
        accepted, reasons = 0, set()
        for start in range(0, FUZZED, REAL_AT_ONCE):
            names = []
            for number in range(start, start + REAL_AT_ONCE):
                body = fuzzed(draw)
                body["metadata"] = {"name": f"m{number}", "namespace": namespace}
                refusal = await refused(at, body)
                if refusal is None:
                    names.append(body["metadata"]["name"])
                else:
                    assert refusal.status in (400, 422) and "spec" in refusal.message, refusal.message
            found = await asyncio.gather(*(steady(at, name) for name in names))
            reasons |= set(found)
            accepted += len(names)
            for name in names:
                await at.api.call("DELETE", f"{MODELS.format(namespace)}/{name}")
        print(f"{FUZZED} fuzzed, {accepted} accepted: {sorted(reasons)}")
        assert accepted > FUZZED / 10 and reasons >= {"Serving", "NotSupported"}

        async def nothing() -> bool:
            items = (await at.api.list(f"/apis/apps/v1/namespaces/{namespace}/deployments")).items
            return not items

        await eventually(nothing, 60.0, "every child gone")
        text = at.operator.telemetry.exposition(0, ()).decode()
        assert 'outcome="internal"' not in text


async def refused(at: Stage, body: Json) -> KubernetesError | None:
    try:
        query = {"fieldValidation": "Strict"}
        await at.api.call("POST", MODELS.format(at.namespace), query=query, body=body)
    except KubernetesError as error:
        return error
    return None


async def steady(at: Stage, name: str) -> str:
    """The Ready condition's reason once it is settled, stalled or degraded."""

    async def found() -> str | None:
        raw = await at.get(name)
        ready, moving = condition(raw, "Ready"), condition(raw, "Progressing")
        stuck = [condition(raw, kind).get("status") for kind in ("Stalled", "Degraded")]
        return str(ready["reason"]) if ready and (moving.get("status") == "False" or "True" in stuck) else None

    reason: str = await eventually(found, 60.0, f"{name} steady", poll_s=0.2)
    return reason
