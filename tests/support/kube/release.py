"""Baton on a cluster as a user has it: the chart installed, Models applied, asked, looked at."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Cluster
from .foreign import ForeignCluster

REPOSITORY = Path(__file__).resolve().parents[3]
CHART = REPOSITORY / "charts/baton"
ASK = Path(__file__).with_name("ask.py")
CRDS = ("models.baton.dev", "pools.baton.dev")
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
UNTRACKED = (
    *("events", "events.events.k8s.io", "endpoints", "endpointslices.discovery.k8s.io", "componentstatuses"),
    "apiservices.apiregistration.k8s.io",
)
"""What comes and goes by itself; the API server makes an APIService for every CRD's version."""
OF_A_NAMESPACE = ("/kube-root-ca.crt", "/default")
"""Names of what every namespace is given after a moment."""


def eventually(what: str, holds: Callable[[], object], within_s: float = 60, every_s: float = 0.3) -> Any:
    """The first true result. Raises AssertionError with the last one."""
    end_s = time.monotonic() + within_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end_s, f"not after {within_s:g} s: {what}; last {found!r}"
        time.sleep(every_s)


@dataclass(frozen=True)
class Release:
    """One `helm install` in a namespace of its own."""

    cluster: Cluster | ForeignCluster
    helm: str
    namespace: str
    options: tuple[str, ...]
    name: str = "baton"

    def install(self) -> None:
        self._helm("install", str(CHART), *self.options, "--wait", "--timeout=180s")

    def test(self) -> str:
        """Helm 3 asks for the log of a Pod that it has just deleted, and fails: it gets no --logs."""
        return self._helm("test", *(["--logs"] if self.helm == "helm" else []), "--timeout=120s")

    def uninstall(self) -> None:
        self._helm("uninstall", "--wait", "--timeout=120s")

    def remove_crds(self) -> None:
        """Which `uninstall` leaves."""
        self.cluster.kubectl("delete", "crd", *CRDS, "--timeout=60s")

    def _helm(self, verb: str, *arguments: str) -> str:
        return self.cluster.run(self.helm, verb, self.name, *arguments, "--namespace", self.namespace, timeout_s=240)


@dataclass(frozen=True)
class Deployed:
    """One Model of a namespace."""

    cluster: Cluster | ForeignCluster
    namespace: str
    name: str = "demo"

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin, timeout_s=timeout_s)

    def apply(self, path: Path) -> None:
        self.kubectl("apply", "-f", str(path))

    def until_ready(self, within_s: int = 180) -> None:
        """Raises CalledProcessError, with what the Model and its Pods say of themselves."""
        waiting = ("wait", "--for=condition=Ready", f"model/{self.name}", f"--timeout={within_s}s")
        try:
            self.kubectl(*waiting, timeout_s=within_s + 10)
        except subprocess.CalledProcessError as error:
            error.add_note(self.kubectl("get", "models,pools,pods", "-o", "wide"))
            error.add_note(self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-2000:])
            raise

    def get(self, kind: str, name: str = "") -> Any:
        return json.loads(self.kubectl("get", kind, *([name] if name else []), "-o", "json"))

    @property
    def api_key(self) -> str:
        found: str = self.get("secret", f"{self.name}-api-key")["data"]["api-key"]
        return base64.b64decode(found).decode().split()[0]

    def ask(self, *questions: str) -> list[dict[str, Any]]:
        """Answers of the openai client, through the gateway's Service."""
        with self.cluster.reach(self.namespace, f"{self.name}-gateway") as url:
            command = ("env", f"BATON_API_KEY={self.api_key}", sys.executable, str(ASK), url, self.name)
            answers: list[dict[str, Any]] = json.loads(self.cluster.run(*command, stdin=json.dumps(questions)))
        return answers

    def pods(self, component: str) -> list[Any]:
        """Of prefill, decode, gateway or operator; those that are ending left out."""
        labels = f"app.kubernetes.io/component={component}"
        labels += "" if component == "operator" else f",baton.dev/model={self.name}"
        items = json.loads(self.kubectl("get", "pods", "-l", labels, "-o", "json"))["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def metrics(self, pod: str) -> dict[str, float]:
        """A worker's series and their values, asked through the API server."""
        text = self.kubectl("get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:9000/proxy/metrics")
        return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)}

    def total(self, component: str, series: str) -> float:
        """A series summed over a role's Pods."""
        return sum(self.metrics(pod["metadata"]["name"]).get(series, 0) for pod in self.pods(component))

    def left(self) -> list[str]:
        """Whatever is still labelled as this Model's."""
        return [line for line in objects(self.cluster, f"baton.dev/model={self.name}") if f"/{self.namespace}/" in line]


def objects(cluster: Cluster | ForeignCluster, selector: str = "") -> set[str]:
    """Everything that is in the cluster, as "resource/namespace/name"."""
    listed = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    resources = ",".join(name for name in listed if name not in UNTRACKED)
    line = '{range .items[*]}{.apiVersion}|{.kind}/{.metadata.namespace}/{.metadata.name}{"\\n"}{end}'
    chosen = ("-l", selector) if selector else ()
    found = cluster.kubectl("get", resources, "--all-namespaces", *chosen, "-o", f"jsonpath={line}")
    return {one for one in found.split("\n") if one and not one.endswith(OF_A_NAMESPACE)}


@contextmanager
def namespace(cluster: Cluster | ForeignCluster, name: str) -> Iterator[str]:
    """With Pod Security "restricted" enforced; gone at the end, with all that is in it."""
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, RESTRICTED)
    try:
        yield name
    finally:
        try:
            cluster.kubectl("delete", "namespace", name, "--timeout=60s")
        except subprocess.CalledProcessError:
            print(cluster.kubectl("get", "namespace", name, "-o", "yaml"))
            raise
