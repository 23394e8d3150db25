"""Where bench.operator_scale runs: a control plane, kwok in place of kubelets, and the real operator process beside it.

The chart's own rights and settings are applied; only its Deployment is left out, for the operator runs here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.kube.cluster import Cluster
from support.kube.programs import Ports

from .cpu import end_tree, resident_mb, tree_cpu_s
from .kv_perftest import free_port

REPOSITORY = Path(__file__).parents[1]
STAGES = Path(__file__).with_name("kwok") / "stages.yaml"
NAMESPACE = "baton-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:baton-operator"
FAKE = "kwok.x-k8s.io/node"
NEEDS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "helm", "kwok")
MISSING = f"set KUBE_ASSETS to a folder with {', '.join(NEEDS)}"
RUN_ELSEWHERE = ("Deployment", "Service", "ConfigMap", "Pod", "PodDisruptionBudget")
NODES, PODS_PER_NODE = 20, 500


def assets() -> Path:
    """Raises SystemExit with what is missing."""
    folder = Path(os.environ.get("KUBE_ASSETS", ""))
    lacking = [name for name in NEEDS if not (folder / name).is_file()]
    if "KUBE_ASSETS" not in os.environ or lacking:
        raise SystemExit(f"error: {MISSING}" + (f"; {folder} lacks {', '.join(lacking)}" if lacking else ""))
    return folder.resolve()


@contextmanager
def cluster_with_nodes(folder: Path) -> Iterator[Cluster]:
    """Ready, with the chart's CRDs and rights; nothing of it is left afterwards."""
    ports = Ports(*(free_port() for _ in range(5)))
    with Cluster(assets(), folder, ports=ports) as cluster:
        _install(cluster)
        cluster.stop("controllers")  # started anew they know the CRDs at once; the garbage collector looks every 30 s
        cluster.start("controllers")
        for number in range(NODES):
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(_node(f"fake-{number}")))
        with (folder / "kwok.log").open("wb") as log:
            kwok = subprocess.Popen(
                [
                    str(cluster.assets / "kwok"), f"--kubeconfig={cluster.kubeconfig}", f"--config={STAGES}",
                    f"--manage-nodes-with-annotation-selector={FAKE}=fake", "--cidr=10.89.0.0/16",
                    "--node-ip=127.0.0.1", "--node-lease-duration-seconds=40",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            cluster.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")
            yield cluster
        finally:
            end_tree(kwok.pid)
            kwok.wait()


def _install(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", NAMESPACE)
    kept = [item for item in _rendered(cluster) if item["kind"] not in RUN_ELSEWHERE]
    whole = json.dumps({"apiVersion": "v1", "kind": "List", "items": kept})
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=whole)
    cluster.kubectl("wait", "--for=condition=Established", "crd/models.baton.dev", "crd/pools.baton.dev")


def _rendered(cluster: Cluster) -> list[dict[str, Any]]:
    chart = ("helm", "template", "baton", str(REPOSITORY / "charts/baton"), f"--namespace={NAMESPACE}", "--no-hooks")
    return [item for item in yaml.safe_load_all(cluster.run(*chart)) if item]


def _node(name: str) -> dict[str, Any]:
    room = {"cpu": "4000", "memory": "16Ti", "pods": str(PODS_PER_NODE)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {FAKE: "fake"}, "labels": {"kubernetes.io/hostname": name}},
        "status": {"capacity": room, "allocatable": room},
    }


@dataclass(frozen=True, slots=True)
class OperatorProcess:
    """The operator as its Pod would run it: service account, settings file, one process."""

    pid: int

    @property
    def cpu_s(self) -> float:
        return tree_cpu_s(self.pid)

    @property
    def resident_mb(self) -> float:
        return resident_mb(self.pid)

    @property
    def peak_mb(self) -> float:
        lines = Path("/proc", str(self.pid), "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


@contextmanager
def operator_process(cluster: Cluster, profile: Path | None) -> Iterator[OperatorProcess]:
    """Leading, once the block begins. `profile`: where cProfile writes what it saw, at its end."""
    place = cluster.folder / "account"
    place.mkdir()
    token = cluster.kubectl("create", "token", "baton-operator", f"--namespace={NAMESPACE}", "--duration=6h")
    (place / "token").write_text(token.strip())
    (place / "namespace").write_text(NAMESPACE)
    (place / "ca.crt").write_bytes((cluster.folder / "ca.crt").read_bytes())
    settings = next(
        json.loads(item["data"]["settings.json"])
        for item in _rendered(cluster)
        if item["kind"] == "ConfigMap" and "settings.json" in item["data"]
    )
    settings |= {"host": "127.0.0.1", "port": 0, "service_account_dir": str(place)}
    (place / "settings.json").write_text(json.dumps(settings))
    profiled = ["-m", "cProfile", "-o", str(profile)] if profile else []
    command = [sys.executable, *profiled, "-m", "baton_operator", "--settings", str(place / "settings.json")]
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(cluster.ports.api)}
    with (cluster.folder / "operator.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **where}, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"the operator did not start: {cluster.folder}/operator.log")
        cluster.until("the operator leads", lambda: _holder(cluster))
        yield OperatorProcess(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _holder(cluster: Cluster) -> None:
    """Raises OSError while nobody holds the Lease."""
    path = "jsonpath={.spec.holderIdentity}"
    if not cluster.kubectl("get", "lease", "baton-operator", f"--namespace={NAMESPACE}", "-o", path):
        raise OSError("nobody leads yet")
