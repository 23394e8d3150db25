"""What a node's programs read: containerd, its bridge network, kubelet, kube-proxy, CoreDNS, and the pause image.

JSON stands where YAML is read: it is a subset.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

BRIDGE = "10.88.0.1"
PODS = "10.88.0.0/16"
SERVICES = "10.96.0.0/16"
DOMAIN = "cluster.local"
PAUSE = "localhost/pause:1"
CNI_PROGRAMS = "/usr/lib/cni"
PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }
"""


def write(folder: Path, node: str, control_group: str) -> None:
    for name in ("kubelet/pki", "cni"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "containerd.toml").write_text(_containerd(folder))
    (folder / "cni/10-bridge.conflist").write_text(json.dumps(_network(folder)))
    (folder / "kubelet.yaml").write_text(json.dumps(_kubelet(folder, control_group)))
    (folder / "proxy.yaml").write_text(json.dumps(_proxy(folder, node)))
    (folder / "Corefile").write_text(_dns(folder))
    search = f"default.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    (folder / "resolv.conf").write_text(f"nameserver {BRIDGE}\nsearch {search}\noptions ndots:5\n")


def pause_image(folder: Path) -> Path:
    """The only image that the node itself needs: one static program that sleeps and reaps. Needs gcc."""
    archive = folder / "pause.tar"
    if archive.exists():
        return archive
    subprocess.run(
        ["gcc", "-O1", "-static", "-x", "c", "-o", f"{folder}/pause", "-"], input=PAUSE_SOURCE.encode(), check=True
    )
    layer = _tar({"pause": (folder / "pause").read_bytes()}, mode=0o755)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/pause"]}, "rootfs": rootfs}
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    texts = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    archive.write_bytes(_tar({**texts, "layer.tar": layer}, mode=0o644))
    return archive


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _containerd(folder: Path) -> str:
    """`restrict_oom_score_adj`: a node inside a container may not lower OOM scores."""
    return f"""version = 3
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "{folder}/containerd.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{CNI_PROGRAMS}"]
    conf_dir = "{folder}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def _network(folder: Path) -> dict[str, Any]:
    ranges = {"ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}
    addresses = {"type": "host-local", "dataDir": f"{folder}/cni-data", **ranges}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _kubelet(folder: Path, control_group: str) -> dict[str, Any]:
    """For a host with cgroup v1 as well; a full disk of the host shall evict nobody."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{folder}/ca.crt"}},
        "tlsCertFile": f"{folder}/node.crt",
        "tlsPrivateKeyFile": f"{folder}/node.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{control_group}",
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "failSwapOn": False,
        "clusterDNS": [BRIDGE],
        "clusterDomain": DOMAIN,
        "resolvConf": "",
        "podLogsDir": f"{folder}/pod-logs",
        "registerNode": True,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 250,
        "serializeImagePulls": False,
    }


def _proxy(folder: Path, node: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clusterCIDR": PODS,
        "clientConnection": {"kubeconfig": f"{folder}/proxy.kubeconfig"},
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "",
        "metricsBindAddress": "127.0.0.1:10249",
    }


def _dns(folder: Path) -> str:
    cluster = f"kubernetes {DOMAIN} {{\n    kubeconfig {folder}/dns.kubeconfig\n  }}"
    return f".:53 {{\n  bind {BRIDGE}\n  errors\n  cache 5\n  {cluster}\n}}\n"
