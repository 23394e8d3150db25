"""The control plane with its controllers, and a blocking way to ask it: what tests of the operator need.

No node: Pods stay Pending, and what a kubelet would report is written by the test.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from baton_cli.kube_config import Chosen, find_access
from baton_wire.kube_access import KubeAccess
from support.control_plane import MISSING, START_S, ControlPlane, free_port

API_QPS = 500
"""What the controller manager may ask per second; a stock one 20."""


class Cluster:
    """The one KUBECONFIG names (`plane` None), or one started here."""

    def __init__(self, kubeconfig: Path, plane: ControlPlane | None) -> None:
        self.kubeconfig = kubeconfig
        self.plane = plane
        self.access: KubeAccess = find_access(Chosen(), {**os.environ, "KUBECONFIG": str(kubeconfig)})
        self._kcm: subprocess.Popen[bytes] | None = None

    @property
    def audit_log(self) -> Path:
        assert self.plane is not None
        return self.plane.directory / "audit.log"

    def kubectl(self, *argv: str, stdin: str = "", check: bool = True) -> str:
        """What it printed, errors too."""
        program = str(self.plane.assets / "kubectl") if self.plane else "kubectl"
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            [program, *argv], env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, crds: Path) -> None:
        self.kubectl("apply", "--server-side", "-f", str(crds))
        self.kubectl("wait", "--for=condition=Established", "-f", str(crds))

    def start_controllers(self) -> None:
        """kube-controller-manager: Deployments, garbage collection, EndpointSlices, budgets."""
        assert self.plane is not None
        folder = self.plane.directory
        with (folder / "kcm.log").open("ab") as log:
            self._kcm = subprocess.Popen(
                [
                    str(self.plane.assets / "kube-controller-manager"), f"--kubeconfig={self.kubeconfig}",
                    "--leader-elect=false", f"--service-account-private-key-file={folder}/sa.key",
                    f"--root-ca-file={folder}/ca.crt", "--bind-address=127.0.0.1", f"--secure-port={free_port()}",
                    f"--cert-dir={folder}/kcm", "--use-service-account-credentials", f"--kube-api-qps={API_QPS}",
                    f"--kube-api-burst={2 * API_QPS}",
                ],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        end_s = time.monotonic() + START_S
        while "default" not in self.kubectl("get", "serviceaccount", "-o", "name", check=False):
            assert self._kcm.poll() is None and time.monotonic() < end_s, (folder / "kcm.log").read_text()[-1000:]
            time.sleep(0.1)

    def stop_controllers(self) -> None:
        if self._kcm is not None:
            self._kcm.send_signal(signal.SIGKILL)
            self._kcm.wait(30)
            self._kcm = None


@contextmanager
def cluster_for(directory: Path, crds: Path | None = None) -> Iterator[Cluster]:
    """With the CRDs of a folder (None: none of ours), there before the controllers: the garbage collector looks for new
    kinds every 30 s.

    Skips loudly when there is neither KUBECONFIG nor KUBE_ASSETS.
    """
    if given := os.environ.get("KUBECONFIG"):
        cluster = Cluster(Path(given), None)
        if crds is not None:
            cluster.install(crds)
        yield cluster
        return
    assets = os.environ.get("KUBE_ASSETS", "")
    if not Path(assets, "kube-controller-manager").is_file():
        pytest.skip(MISSING)
    audit = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
    (directory / "audit.json").write_text(json.dumps({**audit, "rules": [{"level": "Metadata"}]}))
    flags = (f"--audit-policy-file={directory}/audit.json", f"--audit-log-path={directory}/audit.log")
    plane = ControlPlane(Path(assets), directory, api_flags=flags)
    started: Cluster | None = None
    try:
        plane.up()
        started = Cluster(plane.kubeconfig, plane)
        if crds is not None:
            started.install(crds)
        started.start_controllers()
        yield started
    finally:
        if started is not None:
            started.stop_controllers()
        plane.down()


class Api:
    """Blocking: JSON in, (status, JSON) out."""

    def __init__(self, cluster: Cluster) -> None:
        access = cluster.access
        self._server = f"https://{access.host}:{access.port}{access.prefix}"
        self._bearer: Callable[[], str | None] = access.bearer
        self._tls: ssl.SSLContext | None = access.tls.context if access.tls else None

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": content_type}
        if (token := self._bearer()) is not None:
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self._server + path, data, headers, method=method)
        assert urlsplit(request.full_url).scheme == "https"
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
