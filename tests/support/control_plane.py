"""A real Kubernetes API for tests: the one that KUBECONFIG names, or etcd, kube-apiserver and kube-controller-manager
started from KUBE_ASSETS on 127.0.0.1, or a skip that says so.

No node: Pods stay Pending, and what a kubelet would report is written by the test. `API_QPS` is what the controller
manager may ask per second (a stock one 20).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

API_QPS = 500
START_S = 60.0


@dataclass
class ControlPlane:
    """`stop` and `start` of "apiserver", "etcd" and "kcm" are the faults; a cluster of KUBECONFIG has none."""

    folder: Path
    kubeconfig: Path
    assets: Path | None
    commands: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            self.commands[name], stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )
        log.close()

    def stop(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait(timeout=30)

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """What it printed, errors too."""
        program = str(self.assets / "kubectl") if self.assets else "kubectl"
        done = subprocess.run(
            [program, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0 or not check, output
        return output

    def get(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, "-o", "json", *arguments))
        items: list[dict[str, Any]] = found["items"]
        return items


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Skips loudly when there is neither KUBECONFIG nor KUBE_ASSETS."""
    if os.environ.get("KUBECONFIG") and shutil.which("kubectl"):
        yield ControlPlane(folder, Path(os.environ["KUBECONFIG"]), None)
        return
    if not os.environ.get("KUBE_ASSETS"):
        pytest.skip("NO KUBERNETES: set KUBECONFIG, or KUBE_ASSETS to a folder with kube-apiserver, etcd and kubectl")
    plane = _prepared(folder, Path(os.environ["KUBE_ASSETS"]))
    try:
        for name in plane.commands:
            plane.start(name)
        _wait_until_it_answers(plane)
        yield plane
    finally:
        for name in tuple(plane.running):
            plane.stop(name)


def _prepared(folder: Path, assets: Path) -> ControlPlane:
    etcd, peers, api, kcm = _free_ports(4)
    for name in ("sa.key", "sa.pub"):
        make = ["genrsa", "-out", "sa.key", "2048"] if name == "sa.key" else ["rsa", "-in", "sa.key", "-pubout"]
        made = subprocess.run(["openssl", *make], cwd=folder, check=True, capture_output=True)
        if name == "sa.pub":
            (folder / name).write_bytes(made.stdout)
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,1,system:masters\n")
    audit = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
    (folder / "audit.yaml").write_text(yaml.safe_dump({**audit, "rules": [{"level": "Metadata"}]}))
    kubeconfig = folder / "kubeconfig"
    cluster = {"server": f"https://127.0.0.1:{api}", "certificate-authority": str(folder / "pki/apiserver.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "tests", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    url, peer = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peers}"
    commands = {
        "etcd": [
            str(assets / "etcd"), "--name=t", f"--data-dir={folder}/etcd", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=t={peer}",
        ],
        "apiserver": [
            str(assets / "kube-apiserver"), f"--etcd-servers={url}", f"--secure-port={api}", "--bind-address=127.0.0.1",
            "--advertise-address=10.88.0.1", f"--cert-dir={folder}/pki", f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC", f"--service-account-key-file={folder}/sa.pub",
            f"--service-account-signing-key-file={folder}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={folder}/audit.yaml", f"--audit-log-path={folder}/audit.log", "--v=1",
        ],
        "kcm": [
            str(assets / "kube-controller-manager"), f"--kubeconfig={kubeconfig}", "--leader-elect=false",
            f"--service-account-private-key-file={folder}/sa.key", "--bind-address=127.0.0.1", f"--secure-port={kcm}",
            f"--cert-dir={folder}/kcm-pki", "--use-service-account-credentials", f"--kube-api-qps={API_QPS}",
            f"--kube-api-burst={2 * API_QPS}",
        ],
    }  # fmt: skip
    return ControlPlane(folder, kubeconfig, assets, commands)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _wait_until_it_answers(plane: ControlPlane) -> None:
    end_s = time.monotonic() + START_S
    while "default" not in plane.kubectl("get", "serviceaccount", "-o", "name", check=False):
        for name, process in plane.running.items():
            if process.poll() is not None and name != "kcm":
                pytest.fail(f"{name} ended: {(plane.folder / f'{name}.log').read_text()[-500:]}")
            if process.poll() is not None:  # it ends when the API server is not there yet
                plane.start(name)
        assert time.monotonic() < end_s, f"no answer from the API server in {START_S:g} s; logs in {plane.folder}"
        time.sleep(0.2)


class Api:
    """The test's own way to the API server, blocking: JSON in, (status, JSON) out."""

    def __init__(self, plane: ControlPlane) -> None:
        config = yaml.safe_load(plane.kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        authority, data = cluster.get("certificate-authority"), cluster.get("certificate-authority-data")
        text = base64.b64decode(data).decode() if data else None
        self._tls = ssl.create_default_context(cafile=authority, cadata=text)
        if "client-certificate" in user:
            self._tls.load_cert_chain(user["client-certificate"], user["client-key"])
        self._token = user.get("token", "")

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": content_type, "authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self.server + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
