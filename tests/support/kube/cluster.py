"""A real Kubernetes for a test run, from static binaries in KUBE_ASSETS: control plane, and a node if wanted.

With a node everything lives in a mount and a network namespace of its own: Pod and Service addresses exist only there,
so whoever talks to Pods runs there too (`Cluster.run`). Without one only 127.0.0.1 is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import certificates, control_groups, node_files
from .programs import CONTROL_PLANE, NODE_PROGRAMS, Ports, command

NODE = "node-1"
NODE_NEEDS = ("runc", "nft", "conntrack", "gcc", "nsenter", "unshare", "ip")
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
# The bridge stands before the API server: it advertises the bridge's address.
NAMESPACES = f"""set -e
ip link set lo up
ip link add cni0 type bridge; ip addr add {node_files.BRIDGE}/16 dev cni0; ip link set cni0 up
ip route add default dev cni0
echo 1 >/proc/sys/net/ipv4/ip_forward
mount -t tmpfs tmpfs /run; mkdir -p /run/netns
mount -t tmpfs tmpfs /var/log; mkdir -p /var/log/pods /var/log/containers
mount --bind "$1/resolv.conf" /etc/resolv.conf
echo $$ >"$1/namespaces.part"; mv "$1/namespaces.part" "$1/namespaces"
exec sleep infinity
"""


def node_lacks() -> list[str]:
    """What a node needs and this machine has not."""
    lacking = [tool for tool in NODE_NEEDS if shutil.which(tool) is None]
    if not Path(node_files.CNI_PROGRAMS, "bridge").exists():
        lacking.append("containernetworking-plugins")
    return [*lacking, *(["root"] if os.geteuid() else [])]


@dataclass
class Cluster:
    """Use as a context manager: whatever happens, nothing of it is left."""

    assets: Path
    folder: Path
    node: bool = False
    ports: Ports = field(default_factory=Ports)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    namespaces: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def control_group(self) -> str:
        return f"baton-test-{os.getpid()}"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def up(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        api_url = f"https://127.0.0.1:{self.ports.api}"
        certificates.make(self.folder, NODE, node_files.BRIDGE, api_url)
        (self.folder / "audit-policy.yaml").write_text(json.dumps(AUDIT_POLICY))
        if self.node:
            self._open_namespaces()
            self.start("containerd")
        for name in CONTROL_PLANE[:2]:
            self.start(name)
        self.until("the API server answers", lambda: self.kubectl("get", "--raw", "/readyz"))
        for name in CONTROL_PLANE[2:]:
            self.start(name)
        self.until("the controllers work", lambda: self.kubectl("get", "serviceaccount", "default"))
        if self.node:
            self._add_node()

    def _open_namespaces(self) -> None:
        control_groups.make(self.control_group)
        node_files.write(self.folder, NODE, self.control_group)
        script = ["unshare", "--mount", "--net", "bash", "-c", NAMESPACES, "namespaces", str(self.folder)]
        with (self.folder / "namespaces.log").open("wb") as log:
            self.namespaces = subprocess.Popen(
                script, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.until("the namespaces are there", (self.folder / "namespaces").read_text, 10)

    def _add_node(self) -> None:
        watched = "endpoints,endpointslices.discovery.k8s.io,services,pods,namespaces"
        self.kubectl("create", "clusterrole", "dns", "--verb=list,watch", f"--resource={watched}")
        for name, role in (("dns", "dns"), ("proxy", "system:node-proxier")):
            user = certificates.SUBJECTS[name].removeprefix("/CN=")
            self.kubectl("create", "clusterrolebinding", name, f"--clusterrole={role}", f"--user={user}")
        self.load(node_files.pause_image(self.folder))
        for name in NODE_PROGRAMS[1:]:
            self.start(name)
        self.until("the node is ready", lambda: self.kubectl("wait", "--for=condition=Ready", "node", NODE), 90)

    # Programs

    def start(self, name: str) -> None:
        """Starts one of CONTROL_PLANE or NODE_PROGRAMS, again after `stop`."""
        started = command(name, self.assets, self.folder, self.ports, NODE if self.node else None)
        environment = self.environment | {"AWS_EC2_METADATA_DISABLED": "true"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.inside(started, self.folder),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str, number: int = signal.SIGTERM, wait_s: float = 5.0) -> None:
        """A fault, or the end. The program's whole process group gets the signal."""
        process = self.running.pop(name, None)
        if process is None:
            return
        for sent in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
                return

    def down(self) -> None:
        for name in ("dns", "proxy", "kubelet", *reversed(CONTROL_PLANE)):
            self.stop(name, signal.SIGKILL)
        if self.namespaces is not None:
            self._remove_containers()
            self.stop("containerd")
            self.namespaces.kill()
            self.namespaces.wait()
            self.namespaces = None
            control_groups.remove(self.control_group)
        for name in ("etcd", "kubelet", "containerd", "cni-data", "pod-logs", "namespaces"):
            path = self.folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    def _remove_containers(self) -> None:
        for kind, remove in (("tasks", ("rm", "-f")), ("containers", ("rm",))):
            with contextlib.suppress(subprocess.CalledProcessError):
                for name in self.ctr(kind, "ls", "-q").split():
                    with contextlib.suppress(subprocess.CalledProcessError):
                        self.ctr(kind, *remove, name)

    # Talking to it

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.assets}:{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def inside(self, started: Sequence[str], directory: Path | None = None) -> list[str]:
        """The command as it is run where the cluster lives."""
        if self.namespaces is None:
            return list(started)
        target = ("nsenter", f"--target={self.namespaces.pid}", "--mount", "--net")
        return [*target, f"--wdns={directory or Path.cwd()}", "--", *started]

    def run(self, *started: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """A command beside the Pods, with KUBECONFIG and the binaries; its stdout."""
        return called(self.inside(started), self.environment, stdin, timeout_s)

    def succeeds(self, *started: str, stdin: str | None = None) -> bool:
        try:
            self.run(*started, stdin=stdin)
        except subprocess.CalledProcessError:
            return False
        return True

    @contextmanager
    def reach(self, namespace: str, service: str, port: int = 80) -> Iterator[str]:
        """A URL of the Service, by its DNS name, for commands started by `run`."""
        yield f"http://{service}.{namespace}.svc" + (f":{port}" if port != 80 else "")

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, timeout_s=timeout_s)

    def ctr(self, *arguments: str) -> str:
        return self.run(*shlex.split(self._ctr_line), *arguments)

    @property
    def _ctr_line(self) -> str:
        return shlex.join(("ctr", "--address", f"{self.folder}/containerd.sock", "--namespace", "k8s.io"))

    def load(self, images: Path) -> None:
        """Images of an archive, or of a folder in OCI layout, into the node."""
        self.until("containerd answers", lambda: self.ctr("version"), 20)
        if images.is_dir():
            self.run("bash", "-c", f'tar -C "{images}" -c . | {self._ctr_line} images import -', timeout_s=300)
        else:
            self.ctr("images", "import", str(images))

    def until(self, what: str, ready: Callable[[], object], within_s: float = 60) -> None:
        """Raises TimeoutError, or RuntimeError at once when a program of the cluster died."""
        end_s = time.monotonic() + within_s
        while True:
            try:
                ready()
                return
            except (subprocess.CalledProcessError, OSError) as error:
                last = error
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}: {self.folder}/{name}.log")
            if time.monotonic() > end_s:
                raise TimeoutError(f"gave up after {within_s:g} s: {what}; logs are in {self.folder}") from last
            time.sleep(0.2)


def called(command: Sequence[str], environment: dict[str, str], stdin: str | None, timeout_s: float) -> str:
    """A command's stdout. Raises CalledProcessError with its stderr as a note."""
    ended = subprocess.run(
        command, check=False, env=environment, input=stdin, text=True, capture_output=True, timeout=timeout_s
    )
    if ended.returncode:
        error = subprocess.CalledProcessError(ended.returncode, command, ended.stdout, ended.stderr)
        error.add_note(f"{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
        raise error
    return ended.stdout
