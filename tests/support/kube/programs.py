"""The command of each program of a test cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .node_files import BRIDGE, SERVICES

CONTROL_PLANE = ("etcd", "apiserver", "controllers", "scheduler")
NODE_PROGRAMS = ("containerd", "kubelet", "proxy", "dns")
NODE_GRACE_S = 150
"""50 by default: an API server that is away for longer may cost every Service its endpoints when it is back, until the
controller manager has heard of the node again. A cluster that shall survive 60 s of that waits longer."""
API_QPS = 500  # what controllers and scheduler may ask per second; a stock cluster gives them 20 and 50


@dataclass(frozen=True)
class Ports:
    """On 127.0.0.1 of the host, or of the cluster's own network when it has a node."""

    etcd: int = 12379
    etcd_peer: int = 12380
    api: int = 16443
    controllers: int = 20257
    scheduler: int = 20259


def command(name: str, assets: Path, folder: Path, ports: Ports, node: str | None) -> list[str]:
    """`node` is its name, None for a control plane alone. Raises KeyError for a name that is no program."""
    commands = {
        "etcd": _etcd(folder, ports),
        "apiserver": _apiserver(folder, ports, everywhere=node is not None),
        "controllers": _controllers(ports),
        "scheduler": _scheduler(ports),
        "containerd": ["containerd", f"--config={folder}/containerd.toml"],
        "kubelet": _kubelet(folder, node or ""),
        "proxy": ["kube-proxy", "--config=proxy.yaml"],
        "dns": ["coredns", "-conf", f"{folder}/Corefile"],
    }
    program, *arguments = commands[name]
    return [str(assets / program), *arguments]


def _etcd(folder: Path, ports: Ports) -> list[str]:
    client, peer = f"http://127.0.0.1:{ports.etcd}", f"http://127.0.0.1:{ports.etcd_peer}"
    return [
        *("etcd", "--name=test", f"--data-dir={folder}/etcd", "--unsafe-no-fsync", "--log-level=warn"),
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"),
        *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}"),
    ]


def _apiserver(folder: Path, ports: Ports, *, everywhere: bool) -> list[str]:
    """The advertised address may not be loopback, or the Endpoints of `kubernetes` are refused."""
    return [
        *("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{ports.etcd}", f"--secure-port={ports.api}"),
        *(f"--bind-address={'0.0.0.0' if everywhere else '127.0.0.1'}", f"--advertise-address={BRIDGE}"),
        *("--tls-cert-file=apiserver.crt", "--tls-private-key-file=apiserver.key", "--client-ca-file=ca.crt"),
        *("--authorization-mode=Node,RBAC", f"--service-cluster-ip-range={SERVICES}", "--allow-privileged=true"),
        *("--service-account-key-file=sa.pub", "--service-account-signing-key-file=sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc",
        *("--kubelet-client-certificate=admin.crt", "--kubelet-client-key=admin.key"),
        "--kubelet-preferred-address-types=InternalIP",
        *("--audit-policy-file=audit-policy.yaml", f"--audit-log-path={folder}/audit.log", "--v=1"),
    ]


def _controllers(ports: Ports) -> list[str]:
    return [
        *("kube-controller-manager", "--kubeconfig=controllers.kubeconfig", "--use-service-account-credentials"),
        *("--service-account-private-key-file=sa.key", "--root-ca-file=ca.crt"),
        *("--cluster-signing-cert-file=ca.crt", "--cluster-signing-key-file=ca.key", "--leader-elect=false"),
        *("--bind-address=127.0.0.1", f"--secure-port={ports.controllers}"),
        *(f"--kube-api-qps={API_QPS}", f"--kube-api-burst={2 * API_QPS}"),
        f"--node-monitor-grace-period={NODE_GRACE_S}s",
    ]


def _scheduler(ports: Ports) -> list[str]:
    return [
        *("kube-scheduler", "--kubeconfig=scheduler.kubeconfig", "--leader-elect=false", "--bind-address=127.0.0.1"),
        *(f"--secure-port={ports.scheduler}", f"--kube-api-qps={API_QPS}", f"--kube-api-burst={2 * API_QPS}"),
    ]


def _kubelet(folder: Path, node: str) -> list[str]:
    return [
        *("kubelet", "--config=kubelet.yaml", "--kubeconfig=node.kubeconfig", f"--hostname-override={node}"),
        *(f"--node-ip={BRIDGE}", f"--root-dir={folder}/kubelet", f"--cert-dir={folder}/kubelet/pki"),
    ]
