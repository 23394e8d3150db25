"""A real Kubernetes API server for tests: the one KUBECONFIG names, or etcd and kube-apiserver from KUBE_ASSETS.

Only 127.0.0.1 is used. Without either the tests skip, and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

START_S = 120.0
"""Long for a crowded machine; 4 s is usual."""
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_STARTER = ThreadPoolExecutor(1, "control plane")
"""A child's parent, whose death the kernel tells it, is the thread that started it: this one stays."""
MISSING = "no cluster: set KUBECONFIG to one, or KUBE_ASSETS to a folder with etcd and kube-apiserver"


def require_kubeconfig(directory: Path) -> tuple[Path, ControlPlane | None]:
    """The kubeconfig to use, and the control plane if it was started here."""
    if given := os.environ.get("KUBECONFIG"):
        return Path(given), None
    plane = require_control_plane(directory)
    return plane.kubeconfig, plane


def require_control_plane(directory: Path) -> ControlPlane:
    assets = os.environ.get("KUBE_ASSETS", "")
    if not Path(assets, "kube-apiserver").is_file() or not Path(assets, "etcd").is_file():
        pytest.skip(MISSING)
    plane = ControlPlane(Path(assets), directory)
    plane.up()
    return plane


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class ControlPlane:
    """etcd and the API server, without controllers: what is there is what a test put there."""

    assets: Path
    directory: Path
    port: int = field(default_factory=free_port)
    api_flags: tuple[str, ...] = ()
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "admin.kubeconfig"

    @property
    def authority(self) -> Path:
        return self.directory / "ca.crt"

    def up(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._certificates()
        self._etcd, peer = free_port(), free_port()
        etcd, there = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{peer}"
        self._start(
            "etcd", "--name", "t", "--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync",
            "--log-level", "warn", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
            "--listen-peer-urls", there, "--initial-advertise-peer-urls", there, "--initial-cluster", f"t={there}",
        )  # fmt: skip
        self.start_api()

    def start_api(self) -> None:
        """And waits until it answers."""
        self._start(
            "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self._etcd}", f"--secure-port={self.port}",
            "--bind-address=127.0.0.1", "--advertise-address=10.88.0.1", "--authorization-mode=RBAC",
            "--tls-cert-file=api.crt", "--tls-private-key-file=api.key", "--client-ca-file=ca.crt",
            "--service-account-key-file=sa.pub", "--service-account-signing-key-file=sa.key",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16",
            *self.api_flags,
        )  # fmt: skip
        end_s = time.monotonic() + START_S
        while not self._is_ready():
            assert self._running["kube-apiserver"].poll() is None, self._log("kube-apiserver")
            assert time.monotonic() < end_s, self._log("kube-apiserver")
            time.sleep(0.1)

    def stop_api(self) -> None:
        self._stop("kube-apiserver", signal.SIGKILL)

    def down(self) -> None:
        for name in ("kube-apiserver", "etcd"):
            self._stop(name, signal.SIGKILL)

    def kubectl(self, *argv: str, stdin: object = None) -> str:
        """Its stdout; a failure is an AssertionError with its stderr. `stdin` goes in as JSON."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        given = b"" if stdin is None else json.dumps(stdin).encode()
        done = subprocess.run(
            [str(self.assets / "kubectl"), *argv],
            env=environment, input=given, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _is_ready(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.directory / "admin.crt", self.directory / "admin.key")
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{self.port}/readyz", timeout=2, context=context):
                return True
        except OSError:
            return False

    def _start(self, name: str, *argv: str) -> None:
        """It dies with this process, however that dies: a killed test leaves nothing running."""
        bound = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self.directory / f"{name}.log").open("ab") as log:
            command = [*bound, str(self.assets / name), *argv]
            begin = partial(subprocess.Popen, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._running[name] = _STARTER.submit(begin, command, cwd=self.directory).result()

    def _stop(self, name: str, number: signal.Signals) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def _log(self, name: str) -> str:
        return f"{name} did not get ready:\n" + (self.directory / f"{name}.log").read_text()[-3000:]

    def _certificates(self) -> None:
        ca = ("-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=test-ca")
        self._openssl("req", "-x509", *NEW_KEY, *ca, "-addext", "basicConstraints=critical,CA:TRUE")
        names = "subjectAltName=IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc"
        for name, subject, extra in (("api", "/CN=kube-apiserver", names), ("admin", "/O=system:masters/CN=admin", "")):
            self._openssl("req", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
            (self.directory / "ext").write_text(f"extendedKeyUsage=serverAuth,clientAuth\n{extra}\n")
            signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "ext")
            self._openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signer)
        self._openssl("genrsa", "-out", "sa.key", "2048")
        self._openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        server = f"{{server: 'https://127.0.0.1:{self.port}', certificate-authority: ca.crt}}"
        self.kubeconfig.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n"
            f"clusters: [{{name: c, cluster: {server}}}]\n"
            "users: [{name: u, user: {client-certificate: admin.crt, client-key: admin.key}}]\n"
            "contexts: [{name: test, context: {cluster: c, user: u}}]\n"
        )

    def _openssl(self, *argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=self.directory, check=True, capture_output=True)
