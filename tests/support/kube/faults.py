"""What can befall Pods and their node, done to them; and what a load may lose by it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .cluster import Cluster
from .load import Seen
from .release import Deployed, eventually

Pod = Any
GATEWAY_GONE_S = 5.0
"""Until readiness and kube-proxy have taken a dead gateway out of the Service."""


@dataclass(frozen=True)
class Scene:
    """A Model under load, on a cluster whose programs can be stopped."""

    cluster: Cluster
    demo: Deployed
    operators: Deployed

    def pod(self, component: str) -> Pod:
        pods = (self.operators if component == "operator" else self.demo).pods(component)
        return pods[0]

    def pid(self, pod: Pod) -> int:
        """Of its container's first process, as this machine sees it."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        tasks = [line.split() for line in self.cluster.ctr("tasks", "ls").splitlines()]
        return next(int(task[1]) for task in tasks if task[0] == container)

    def whole(self) -> bool:
        """Whether every Pod of the Model is Ready again, and the Model says so."""
        pods = [pod for component in ("prefill", "decode", "gateway") for pod in self.demo.pods(component)]
        return (
            len(pods) == 6
            and all(is_so(pod, "Ready") for pod in pods)
            and is_so(self.demo.get("model", "demo"), "Ready")
        )


def is_so(thing: Any, condition: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


@dataclass(frozen=True)
class Excuse:
    """Why requests may fail, and which: `covers(request, when the fault befell)`."""

    why: str
    covers: Callable[[Seen, float], bool]


def at_a_gateway(seen: Seen, at_s: float) -> bool:
    """Under way at the fault, or begun before the gateway was left out."""
    return seen.began_s < at_s + GATEWAY_GONE_S and seen.began_s + seen.took_s >= at_s


DEAD = Excuse(
    "connections of clients end in that process: those under way break, new ones are refused until it is left out",
    at_a_gateway,
)
STOPPED = Excuse("connections of clients end in that process: they wait as long as it is stopped", at_a_gateway)


@dataclass(frozen=True)
class Fault:
    """Without an excuse no request may fail."""

    name: str
    befall: Callable[[Scene], None]
    excuse: Excuse | None = None

    def allows(self, seen: Seen, at_s: float) -> bool:
        return self.excuse is not None and self.excuse.covers(seen, at_s)


def kill(component: str) -> Callable[[Scene], None]:
    """And waits until the kubelet has noticed."""

    def befall(scene: Scene) -> None:
        pod = scene.pod(component)
        os.kill(scene.pid(pod), signal.SIGKILL)
        eventually("the container is started again", lambda: restarts(scene, pod) > restarts_of(pod), 60)

    return befall


def restarts(scene: Scene, pod: Pod) -> int:
    metadata = pod["metadata"]
    found = scene.cluster.kubectl("-n", metadata["namespace"], "get", "pod", metadata["name"], "-o", "json")
    return restarts_of(json.loads(found))


def restarts_of(pod: Pod) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def freeze(component: str, for_s: float = 10.0) -> Callable[[Scene], None]:
    def befall(scene: Scene) -> None:
        pid = scene.pid(scene.pod(component))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(for_s)
        os.kill(pid, signal.SIGCONT)

    return befall


def delete(component: str) -> Callable[[Scene], None]:
    """At once: the API server forgets it before the kubelet has ended it."""

    def befall(scene: Scene) -> None:
        metadata = scene.pod(component)["metadata"]
        now = ("--grace-period=0", "--force")
        scene.cluster.kubectl("-n", metadata["namespace"], "delete", "pod", metadata["name"], *now)

    return befall


def stop(program: str, for_s: float) -> Callable[[Scene], None]:
    def befall(scene: Scene) -> None:
        scene.cluster.stop(program, signal.SIGKILL)
        time.sleep(for_s)
        scene.cluster.start(program)
        if program == "apiserver":
            scene.cluster.until("the API server answers", lambda: scene.cluster.kubectl("get", "--raw", "/readyz"), 60)

    return befall


def evict_all(scene: Scene) -> None:
    """Every Pod of the Model, one by one, as `kubectl drain` does it: a refusal of a budget is tried again."""
    for component in ("prefill", "decode", "gateway"):
        for pod in scene.demo.pods(component):
            name = pod["metadata"]["name"]
            eventually(f"{name} may be evicted", lambda name=name: evict(scene, name), 120, 1)
    eventually("the evicted Pods are replaced", scene.whole, 120)


def evict(scene: Scene, name: str) -> bool:
    namespace = scene.demo.namespace
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    return scene.cluster.succeeds("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def of_a_gateway(who: str, excuse: Excuse) -> Excuse | None:
    return excuse if who == "gateway" else None


FAULTS = (
    *(
        Fault(f"kill -9 of {who}", kill(who), of_a_gateway(who, DEAD))
        for who in ("prefill", "decode", "gateway", "operator")
    ),
    *(
        Fault(f"SIGSTOP of {who}, 10 s", freeze(who), of_a_gateway(who, STOPPED))
        for who in ("prefill", "decode", "gateway", "operator")
    ),
    *(
        Fault(f"{who} Pod deleted with grace 0", delete(who), of_a_gateway(who, DEAD))
        for who in ("prefill", "decode", "gateway", "operator")
    ),
    Fault("API server stopped, 60 s", stop("apiserver", 60)),
    Fault("kubelet stopped, 60 s", stop("kubelet", 60)),
    Fault("DNS stopped, 20 s", stop("dns", 20)),
    Fault("every Pod evicted, one by one", evict_all),
)
