"""The gateway on a real Kubernetes API server, as its own service account, under load while that server is killed.

It runs in a network namespace of its own, because EndpointSlices refuse loopback addresses: workers listen on an
address that exists only there. BATON_OUTAGE_S says how long the API server stays away.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton_api.kubernetes import worker_pod_labels
from baton_api.worker import Role
from baton_gateway.kube_source import KubernetesSource, ModelPlace
from baton_wire.kube_access import in_cluster
from support.control_plane import ControlPlane, require_control_plane
from support.fake_worker import FakeWorker, answer
from support.gateways import WORKER_KEY, Stage, until

ADDRESS = "10.77.0.1"
OUTAGE_S = float(os.environ.get("BATON_OUTAGE_S", "3"))
LIMIT_S = 240 + 2 * OUTAGE_S
INSIDE = os.environ.get("BATON_TEST_NAMESPACE") == "1"
inside = pytest.mark.skipif(not INSIDE, reason="runs inside the network namespace that the first test makes")


@pytest.mark.skipif(INSIDE, reason="runs outside")
@pytest.mark.timeout(LIMIT_S)
def test_all_of_this_file_passes_in_a_network_namespace() -> None:
    if os.geteuid() or not all(shutil.which(tool) for tool in ("unshare", "ip", "openssl")):
        pytest.skip("needs root, unshare, ip and openssl")
    if not Path(os.environ.get("KUBE_ASSETS", ""), "kube-apiserver").is_file():
        pytest.skip("needs KUBE_ASSETS with etcd, kube-apiserver and kubectl: this test stops the API server")
    script = (
        f'ip link set lo up && ip addr add {ADDRESS}/32 dev lo && exec "$0" -m pytest -q -s -p no:cacheprovider "$1"'
    )
    argv = ["unshare", "-n", "sh", "-c", script, sys.executable, __file__]
    environment = {**os.environ, "BATON_TEST_NAMESPACE": "1"}
    environment.pop("KUBECONFIG", None)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S - 10, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = require_control_plane(tmp_path_factory.mktemp("plane"))
    yield plane
    plane.down()


def grant(plane: ControlPlane, folder: Path) -> Path:
    """What the operator makes for a gateway: a service account that may get, list and watch the two kinds, and no more.
    Returns the folder that a Pod would have mounted."""
    api = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    ]
    who = {"kind": "ServiceAccount", "name": "tiny-gateway", "namespace": "default"}
    role = {"apiGroup": api, "kind": "Role", "name": "tiny-gateway"}
    for kind, version, body in (
        ("ServiceAccount", "v1", {}),
        ("ServiceAccount", "v1", {"name": "default"}),
        ("Role", f"{api}/v1", {"rules": rules}),
        ("RoleBinding", f"{api}/v1", {"subjects": [who], "roleRef": role}),
    ):
        name = body.pop("name", "tiny-gateway")
        plane.kubectl(
            "apply", "-f", "-", stdin={"apiVersion": version, "kind": kind, "metadata": {"name": name}, **body}
        )
    (folder / "token").write_text(plane.kubectl("create", "token", "tiny-gateway"))
    (folder / "ca.crt").write_bytes(plane.authority.read_bytes())
    (folder / "namespace").write_text("default")
    return folder


def put_pod(plane: ControlPlane, name: str, role: Role, revision: str) -> None:
    container = {"name": "c", "image": "localhost/none:1"}
    metadata = {"name": name, "labels": worker_pod_labels("tiny", role, revision)}
    plane.kubectl(
        "apply", "-f", "-",
        stdin={"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}},
    )  # fmt: skip


def put_slice(plane: ControlPlane, worker: FakeWorker, **conditions: bool) -> None:
    name = worker.info.worker_id
    endpoint: dict[str, Any] = {"addresses": [ADDRESS], "conditions": conditions}
    endpoint["targetRef"] = {"kind": "Pod", "name": name, "namespace": "default"}
    plane.kubectl(
        "apply", "-f", "-",
        stdin={
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"tiny-workers-{name}", "labels": {"kubernetes.io/service-name": "tiny-workers"}},
            "ports": [{"name": "http", "port": worker.port}], "endpoints": [endpoint],
        },
    )  # fmt: skip


@inside
@pytest.mark.timeout(LIMIT_S)
async def test_workers_come_and_go_and_a_killed_api_server_fails_no_request(
    plane: ControlPlane, tmp_path: Path
) -> None:
    folder = tmp_path / "account"
    folder.mkdir()
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(plane.port)}
    access = in_cluster(environment, str(grant(plane, folder)))
    workers = [
        FakeWorker("prefill", WORKER_KEY, "p0"), FakeWorker("decode", WORKER_KEY, "d0"),
        FakeWorker("decode", WORKER_KEY, "d1"), FakeWorker("decode", WORKER_KEY, "d2"),
    ]  # fmt: skip
    for worker in workers:
        worker.host = ADDRESS
        await worker.start()
    staged = Stage(tmp_path, workers, {"mode": "disaggregated"}, ["sk-test"])
    staged.gateway.source = KubernetesSource(
        access, ModelPlace("tiny", "tiny"), on_error=staged.gateway.discovery_failed
    )
    staged.url = f"http://127.0.0.1:{await staged.gateway.start()}"
    try:
        await story(plane, staged, workers)
    finally:
        await staged.client.close()
        await staged.gateway.stop()
        for worker in workers:
            await worker.kill()


async def story(plane: ControlPlane, staged: Stage, workers: list[FakeWorker]) -> None:
    do = asyncio.to_thread
    states = staged.gateway.parts.registry.states
    for worker in workers[:3]:
        worker.behave = answer("a", " b", delay_s=0.005)
        await do(put_pod, plane, worker.info.worker_id, worker.info.role, "r1")
        await do(put_slice, plane, worker, ready=True)
    await until(lambda: states()[("decode", "ready")] == 2 and states()[("prefill", "ready")] == 1, 60)
    assert (await staged.get("/ready")).status == 200

    await do(put_pod, plane, "d2", Role.DECODE, "r2")
    await do(put_slice, plane, workers[3], ready=True)
    await until(lambda: states()[("decode", "mismatched")] == 1, 60)

    statuses: list[int] = []
    stop = asyncio.Event()

    async def load(number: int) -> None:
        while not stop.is_set():
            statuses.append((await staged.chat(f"{number} {len(statuses)} {'x' * 64}")).status)
            await asyncio.sleep(0.05)

    loads = [asyncio.create_task(load(number)) for number in range(2)]
    loop = asyncio.get_running_loop()
    gone_s = loop.time()
    await do(plane.stop_api)
    await asyncio.sleep(OUTAGE_S)
    failures = staged.metric("baton_gateway_discovery_errors_total", reason="unreachable")
    assert 2 <= failures <= 5 * (loop.time() - gone_s) + 2, "at most 5 a second, and one of each watch at once"
    await do(plane.start_api)
    back_s = loop.time()
    await do(plane.kubectl, "delete", "endpointslice", "tiny-workers-d1")
    await until(lambda: len(staged.gateway.parts.registry.urls) == 3, 60)
    stop.set()
    await asyncio.gather(*loads)
    print(f"outage {OUTAGE_S:g} s: {len(statuses)} requests, {len(statuses) - statuses.count(200)} failed;", end=" ")
    print(f"{failures:g} failed looks at the API; the next change seen {loop.time() - back_s:.2f} s after it was back")
    assert statuses and set(statuses) == {200}
    staged.check_quiescent()
