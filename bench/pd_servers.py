"""What bench.pd compares, each as real processes behind one port: Baton P+D, Baton aggregated, vLLM P/D over NIXL."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton_api.fleet import Fleet, FleetWorker

from .cpu import end_tree, tree_cpu_s
from .engine import VLLM, VLLM_ENVIRONMENT
from .kv_perftest import free_port
from .pd_client import Target

KEY = "sk-bench"
START_S = 600.0
KV_BYTES = 1 << 30
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass
class Servers:
    """The processes of one contender; `workers`: name -> HTTP port."""

    name: str
    folder: Path
    target: Target = Target(0)
    workers: dict[str, int] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        with (self.folder / f"{self.name}-{name}.log".replace(" ", "-")).open("wb") as log:
            self.running.append(subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log))

    @property
    def cpu_s(self) -> float:
        return sum(tree_cpu_s(process.pid) for process in self.running)

    def wait_ready(self, path: str) -> None:
        give_up_s = time.monotonic() + START_S
        for port in (*self.workers.values(), self.target.port):
            while not _answers(f"http://127.0.0.1:{port}{path if port == self.target.port else '/health'}"):
                if time.monotonic() > give_up_s or any(process.poll() is not None for process in self.running):
                    raise RuntimeError(f"{self.name} did not start; see its logs in {self.folder}")
                time.sleep(0.3)

    def total(self, worker: str, metric: str) -> float:
        """The sum over all series of `metric` that a worker exports."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.workers[worker]}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((metric + "{", metric + " ")))

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                end_tree(process.pid)
            process.wait()


def start_baton(servers: Servers, model: Path, roles: Sequence[str], mode: str) -> None:
    """A gateway in `mode` before one worker of each of `roles`, one torch thread each."""
    servers.target = Target(free_port(), KEY)
    place = servers.folder / servers.name.replace(" ", "-")
    place.mkdir()
    secret = place / "secret"
    secret.write_text(secrets.token_hex(32))
    for index, role in enumerate(roles):
        worker = f"{role}-{index}"
        servers.workers[worker] = free_port()
        settings: dict[str, Any] = {
            "worker_id": worker, "model_path": str(model), "model_name": "bench", "secret_file": str(secret),
            "port": servers.workers[worker], "kv": {"kv_bytes": KV_BYTES},
            "engine": {"dtype": "float32", "threads": 1},
        }  # fmt: skip
        servers.run(worker, _command(f"baton_{role}", place / f"{worker}.json", settings), ONE_THREAD)
    fleet = place / "fleet.json"
    urls = (FleetWorker(f"http://127.0.0.1:{port}") for port in servers.workers.values())
    fleet.write_bytes(Fleet("bench", tuple(urls)).to_json())
    settings = {
        "fleet_file": str(fleet), "model_path": str(model), "port": servers.target.port, "api_keys": [KEY],
        "secret_file": str(secret), "mode": mode,
    }  # fmt: skip
    servers.run("gateway", _command("baton_gateway", place / "gateway.json", settings), {})


def start_vllm_pair(servers: Servers, model: Path) -> None:
    """A producer and a consumer with NixlConnector over UCX, behind bench.pd_proxy; eager, one thread each."""
    servers.target = Target(free_port())
    for worker, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        port = servers.workers[worker] = free_port()
        transfer = {
            "kv_connector": "NixlConnector", "kv_role": role, "engine_id": worker,
            "kv_connector_extra_config": {"backends": ["UCX"], "num_threads": 1},
        }  # fmt: skip
        command = [
            str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
            "--max-model-len", "4096", "--dtype", "float32", "--block-size", "32",
            "--kv-transfer-config", json.dumps(transfer),
        ]  # fmt: skip
        environment = {
            **ONE_THREAD, **VLLM_ENVIRONMENT, "VLLM_CACHE_ROOT": str(servers.folder / worker), "UCX_TLS": "tcp,sm,self",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        }  # fmt: skip
        servers.run(worker, command, environment)
    ports = [str(servers.target.port), *map(str, servers.workers.values())]
    servers.run("proxy", [sys.executable, "-m", "bench.pd_proxy", *ports], {})


def _command(module: str, path: Path, settings: Mapping[str, Any]) -> list[str]:
    path.write_text(json.dumps(settings))
    return [sys.executable, "-m", module, "--settings", str(path)]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
