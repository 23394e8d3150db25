"""The gateways of bench.gateway: Baton's and its peers', each in front of the same two mock workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton_api.fleet import Fleet, FleetWorker
from baton_api.worker import Role, WorkerInfo

from .kv_perftest import free_port

REPOSITORY = Path(__file__).parent.parent
PEERS = REPOSITORY / ".venv-bench-gateway/bin"
DYNAMO = REPOSITORY / ".venv-bench-dynamo/bin/python"
MODEL = REPOSITORY / "examples/demo_model/model"
KEY = "sk-bench"


@dataclass(frozen=True, slots=True)
class Started:
    name: str
    pid: int
    port: int


class Stage:
    """Mock workers and gateways; `close` ends each by its process group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        for program in ("worker", "load"):
            source = REPOSITORY / "bench/mock" / f"{program}.c"
            subprocess.run(["gcc", "-O2", "-Wall", "-o", str(folder / program), str(source), "-lm"], check=True)

    def run(self, name: str, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        self._running.append(process)
        return process

    def worker(self, name: str, role: Role) -> str:
        """Its URL."""
        port = free_port()
        info = WorkerInfo(name, role, "e1", "bench", "r", "f", "127.0.0.1:1", "tcp", 16, 32768, True, False)
        path = self._folder / f"{name}.json"
        path.write_bytes(info.to_json())
        self.run(name, [str(self._folder / "worker"), str(port), str(path)])
        return f"http://127.0.0.1:{port}"

    def baton(self, name: str, workers: Sequence[str], **settings: Any) -> Started:
        """Baton's gateway: keys, metrics, prefix index, Server-Timing on, as in production."""
        fleet, port = self._folder / f"{name}.fleet", free_port()
        fleet.write_bytes(Fleet("bench", tuple(FleetWorker(url) for url in workers)).to_json())
        chosen = {"fleet_file": str(fleet), "model_path": str(MODEL), "port": port, "api_keys": [KEY], **settings}
        path = self._folder / f"{name}.settings"
        path.write_text(json.dumps(chosen))
        command = [sys.executable, "-m", "baton_gateway", "--settings", str(path)]
        return self._ready(name, self.run(name, command, BATON_SECRET="s" * 32), port, "/ready")

    def sglang(self, name: str, policy: str, workers: Sequence[str]) -> Started:
        return self._peer(name, [str(PEERS / "sglang-router"), "launch"], policy, workers)

    def vllm(self, name: str, policy: str, workers: Sequence[str]) -> Started:
        return self._peer(name, [str(PEERS / "vllm-router")], policy, workers)

    def dynamo(self, name: str) -> Started:
        """Dynamo's frontend in kv mode before two mockers of its own: it speaks to no other worker. Its tokenizer is
        the same as ours; discovery by files, requests by tcp, KV events by ZeroMQ, all on this host."""
        port, state = free_port(), self._folder / f"{name}.state"
        state.mkdir()
        environment = {
            "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(state), "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq", "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_EVENT_PLANE_HOST": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        mocker = ["--model-path", str(MODEL), "--model-name", "bench", "--num-workers", "2", "--speedup-ratio", "0"]
        self.run(f"{name} mocker", [str(DYNAMO), "-m", "dynamo.mocker", *mocker], **environment)
        frontend = ["--http-host", "127.0.0.1", "--http-port", str(port), "--router-mode", "kv"]
        process = self.run(name, [str(DYNAMO), "-m", "dynamo.frontend", *frontend], **environment)
        return self._ready(name, process, port, "/v1/models/bench/ready")

    def _peer(self, name: str, program: list[str], policy: str, workers: Sequence[str]) -> Started:
        """Tried three times: between finding a free port and a peer's listening there somebody else may take it."""
        for left in (2, 1, 0):
            port = free_port()
            command = [*program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *workers]
            command += ["--policy", policy, "--prometheus-port", str(free_port())]
            try:
                return self._ready(name, self.run(name, command), port, "/readiness")
            except RuntimeError:
                if not left:
                    raise
        raise AssertionError

    def _ready(self, name: str, process: subprocess.Popen[bytes], port: int, path: str) -> Started:
        give_up_s = time.monotonic() + 90
        while time.monotonic() < give_up_s:
            if process.poll() is not None:
                break
            if _answers(f"http://127.0.0.1:{port}{path}"):
                return Started(name, process.pid, port)
            time.sleep(0.2)
        log = (self._folder / f"{name}.log").read_text(errors="replace")
        raise RuntimeError(f"{name} did not start:\n{log[-2000:]}")

    def load(
        self, port: int, connections: int, requests: int, max_tokens: int, *, streamed: bool, prefixes: int, seed: int
    ) -> Load:
        given = (port, connections, requests, max_tokens, int(streamed), 4096, prefixes, seed)
        command = [str(self._folder / "load"), *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        return Load(**json.loads(done.stdout))

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True, slots=True)
class Load:
    """What the driver saw."""

    requests: int
    events: int
    errors: int
    wall_s: float
    p50_us: float
    p99_us: float


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
