"""The operator as its own processes, with exactly the rights it needs: leadership, health, what the audit log saw."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton_wire.kube_api import MERGE, KubeApi
from support.kube_cluster import Cluster
from support.operators import MODELS, Kubelets, condition, eventually, model

Json = dict[str, Any]
CHANGE = ["list", "watch", "create", "patch", "delete"]
RULES: list[Json] = [
    {"apiGroups": ["baton.dev"], "resources": ["models"], "verbs": ["list", "watch"]},
    {"apiGroups": ["baton.dev"], "resources": ["models/status", "pools/status"], "verbs": ["patch"]},
    {"apiGroups": ["baton.dev"], "resources": ["pools"], "verbs": CHANGE},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": CHANGE},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": CHANGE},
    {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": CHANGE},
    {"apiGroups": [""], "resources": ["services", "serviceaccounts"], "verbs": ["list", "watch", "create", "patch"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "watch", "create", "patch"]},
    {
        "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles", "rolebindings"],
        "verbs": ["list", "watch", "create", "patch"],
    },
    {
        "apiGroups": ["networking.k8s.io"],
        "resources": ["networkpolicies"],
        "verbs": ["list", "watch", "create", "patch"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
]
"""Deletes are of what a Model may stop needing: a role, an old revision. What the gateway's own Role gives has to be
held by who gives it: `GIVEN`."""
GIVEN: list[Json] = [
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]
CREATED_BY_APPLY = {"configmaps", "deployments", "networkpolicies", "poddisruptionbudgets", "rolebindings", "roles"}
CREATED_BY_APPLY |= {"serviceaccounts", "services"}
"""An apply that makes an object needs the right to create, and is a patch in the audit log."""


@dataclass
class Running:
    process: Process
    port: int

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    @property
    def leads(self) -> bool:
        return "baton_operator_leader 1.0" in self.get("/metrics")[1]


class Account:
    """A service account directory as kubelet mounts it."""

    def __init__(self, cluster: Cluster, namespace: str, folder: Path) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        bound = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": [*RULES, *GIVEN]}
        who = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"operator-{namespace}"}
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "subjects": [who]}
        name = {"metadata": {"name": f"operator-{namespace}"}}
        cluster.kubectl("create", "serviceaccount", "operator", "-n", namespace)
        for item in (bound | name, binding | name | {"roleRef": role}):
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(item))
        folder.joinpath("token").write_text(cluster.kubectl("create", "token", "operator", "-n", namespace))
        config = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
        authority = Path(cluster.kubeconfig.parent, config["certificate-authority"])
        folder.joinpath("ca.crt").write_bytes(authority.read_bytes())
        folder.joinpath("namespace").write_text(namespace)

    @asynccontextmanager
    async def operator(self, **settings: Any) -> AsyncIterator[Running]:
        access = self.cluster.access
        given = {
            "prefill_image": "p:1",
            "decode_image": "d:1",
            "gateway_image": "g:1",
            "host": "127.0.0.1",
            "port": 0,
            "service_account_dir": str(self.folder),
            "watch_namespaces": [self.namespace],
            "leader": {"duration_s": 3, "renew_s": 0.5},
            **settings,
        }
        file = self.folder / f"settings-{os.urandom(4).hex()}.json"
        file.write_text(json.dumps(given))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "baton_operator", "--settings", str(file)),
            stdout=PIPE,
            env={
                **os.environ,
                "KUBERNETES_SERVICE_HOST": access.host,
                "KUBERNETES_SERVICE_PORT": str(access.port),
            },
        )
        try:
            assert process.stdout is not None
            said = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
            yield Running(process, said["port"])
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
def account(cluster: Cluster, namespace: str, tmp_path: Path) -> Account:
    if cluster.plane is None:
        pytest.skip("NO OWN CONTROL PLANE: this test reads the API server's audit log; set KUBE_ASSETS")
    return Account(cluster, namespace, tmp_path)


async def settled(api: KubeApi, namespace: str, summary: str) -> None:
    async def is_so() -> bool:
        raw = await api.call("GET", f"{MODELS.format(namespace)}/m")
        moving = condition(raw, "Progressing")
        if moving.get("observedGeneration") != raw["metadata"]["generation"]:
            return False
        return moving["status"] == "False" and raw["status"]["decode"].get("summary") == summary

    await eventually(is_so, 30.0, summary, poll_s=0.1)


async def test_two_replicas_one_works_with_no_more_rights_than_it_uses(
    cluster: Cluster, account: Account, namespace: str
) -> None:
    api = KubeApi(cluster.access)
    kubelets = asyncio.create_task(Kubelets(api, namespace).run())
    try:
        async with account.operator() as first, account.operator() as second:
            await eventually(lambda: first.leads or second.leads, 30.0, "a leader", poll_s=0.1)
            leader, other = (first, second) if first.leads else (second, first)
            await eventually(lambda: leader.get("/ready")[0] == 200 == other.get("/ready")[0], 30.0, poll_s=0.1)
            assert leader.get("/health")[0] == 200 and leader.get("/nowhere")[0] == 404
            cluster.kubectl("create", "secret", "generic", "m-api-key", "-n", namespace, "--from-literal=api-key=mine")
            await api.call("POST", MODELS.format(namespace), body=model("m", namespace))
            await settled(api, namespace, "1/1")
            assert 'baton_operator_models{reason="Serving"} 1.0' in leader.get("/metrics")[1]
            assert not other.leads
            leader.process.send_signal(signal.SIGKILL)
            change = {"spec": {"decode": {"replicas": 2}}}
            await api.call("PATCH", f"{MODELS.format(namespace)}/m", body=change, content_type=MERGE)
            await settled(api, namespace, "2/2")
            assert other.leads
            cluster.kubectl("delete", "lease", "baton-operator", "-n", namespace)
            await api.call(
                "PATCH", f"{MODELS.format(namespace)}/m", body={"spec": {"mode": "aggregated"}}, content_type=MERGE
            )
            await settled(api, namespace, "2/2")
            other.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(other.process.wait(), 10) == 0
            lease = await api.call("GET", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/baton-operator")
            assert not lease["spec"].get("holderIdentity")
    finally:
        kubelets.cancel()
        await asyncio.gather(kubelets, return_exceptions=True)
        await api.close()
    assert used(cluster, namespace) == granted()


def granted() -> set[tuple[str, str, str]]:
    return {
        (rule["apiGroups"][0], resource, verb)
        for rule in RULES
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(cluster: Cluster, namespace: str) -> set[tuple[str, str, str]]:
    """From the API server's audit log; nothing may have been forbidden."""
    found = set()
    for line in cluster.audit_log.read_text().splitlines():
        entry = json.loads(line)
        if entry["user"]["username"] != f"system:serviceaccount:{namespace}:operator" or "objectRef" not in entry:
            continue
        about = entry["objectRef"]
        assert entry.get("responseStatus", {}).get("code") != 403, entry
        resource = about["resource"] + (f"/{about['subresource']}" if "subresource" in about else "")
        found.add((about.get("apiGroup", ""), resource, entry["verb"]))
        if entry["verb"] == "patch" and resource in CREATED_BY_APPLY:
            found.add((about.get("apiGroup", ""), resource, "create"))
    return found


async def test_a_bad_setting_stops_the_start_by_name(account: Account) -> None:
    file = account.folder / "settings.json"
    file.write_text(json.dumps({"prefill_image": "p:1", "decode_image": "d:1", "gateway_image": "g:1", "workers": 0}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baton_operator", "--settings", str(file)), stderr=PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2 and b"workers: 0 is below 1" in said
