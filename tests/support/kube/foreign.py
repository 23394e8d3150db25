"""A cluster that somebody else runs: what a test needs of it, spelled as `Cluster` spells it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .cluster import called


@dataclass(frozen=True)
class ForeignCluster:
    """The one KUBECONFIG names. Its Pods are reached by port-forwarding."""

    kubeconfig: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{os.environ.get('KUBE_ASSETS', '')}:{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def inside(self, started: list[str]) -> list[str]:
        return started

    def run(self, *started: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return called(started, self.environment, stdin, timeout_s)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, timeout_s=timeout_s)

    @contextmanager
    def reach(self, namespace: str, service: str, port: int = 80) -> Iterator[str]:
        """A URL of the Service for commands started by `run`."""
        command = ["kubectl", "-n", namespace, "port-forward", f"service/{service}", f":{port}"]
        forward = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()  # Forwarding from 127.0.0.1:PORT -> ...
            yield f"http://{line.split()[2]}"
        finally:
            forward.terminate()
            forward.wait(10)
