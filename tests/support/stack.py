"""The whole slice as real processes: workers, fleet file, gateway; a client key; what the pools hold."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton_api.blocks import derive_key
from baton_api.fleet import Fleet, FleetWorker
from baton_api.worker import WorkerInfo
from support.processes import Child, Launch, Processes

API_KEY = "sk-test-0123456789abcdef"


@dataclass
class Stack:
    """`with Stack.up(model, dir, prefill=1, decode=1) as stack:` then talk to `stack.url` with `API_KEY`."""

    processes: Processes
    model: Path
    transport: str
    launches: dict[str, Launch] = field(default_factory=dict)
    workers: dict[str, Child] = field(default_factory=dict)
    gateway: Child | None = None

    @classmethod
    def up(
        cls,
        model: Path,
        directory: Path,
        *,
        prefill: int = 1,
        decode: int = 1,
        transport: str = "tcp",
        launches: dict[str, Launch] | None = None,
        **changes: Any,
    ) -> Stack:
        """`launches`: by name, for processes that are not started as in production."""
        stack = cls(Processes(directory), model, transport, launches or {})
        try:
            for role, count in (("prefill", prefill), ("decode", decode)):
                for number in range(count):
                    stack.start_worker(role, f"{role}-{number}", **changes.get("worker", {}))
            stack.start_gateway(**changes.get("gateway", {}))
            stack.wait_ready()
        except BaseException:
            stack.processes.close()
            raise
        return stack

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.processes.close()

    @property
    def url(self) -> str:
        assert self.gateway is not None
        return self.gateway.url

    def start_worker(self, role: str, name: str, **changes: Any) -> Child:
        kv = {"transport": self.transport, **changes.pop("kv", {})}
        launch = self.launches.get(name, Launch())
        self.workers[name] = self.processes.worker(role, name, self.model, launch, kv=kv, **changes)
        self.write_fleet()
        return self.workers[name]

    def write_fleet(self) -> None:
        fleet = Fleet("tiny", tuple(FleetWorker(child.url) for child in self.workers.values()))
        path = self.processes.directory / "fleet.json"
        path.with_suffix(".new").write_bytes(fleet.to_json())
        path.with_suffix(".new").replace(path)

    def start_gateway(self, *, name: str = "gateway", **changes: Any) -> Child:
        """From now on `gateway`; an earlier one runs on."""
        settings = {
            "fleet_file": str(self.processes.directory / "fleet.json"),
            "model_path": str(self.model),
            "port": 0,
            "api_keys": [API_KEY],
            "mode": "disaggregated",
            "min_remote_prefill_tokens": 1,
            **changes,
        }
        launch = self.launches.get("gateway", Launch())
        self.gateway = self.processes.start("baton_gateway", name, settings, launch)
        return self.gateway

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the gateway did not get ready")

    def restart_worker(self, name: str, **changes: Any) -> Child:
        """Starts a worker that has ended again, on its old ports, so that the fleet file stays as it is."""
        old = self.workers[name].ready
        ports = {"port": old["port"], "control_port": old["control_port"]}
        return self.start_worker(old["role"], name, **ports, **changes)

    def wait_routable(self, timeout_s: float = 10.0) -> None:
        """Until the gateway knows every worker as ready."""
        end_s = time.monotonic() + timeout_s
        while self.metric("gateway", "baton_gateway_workers", 'state="ready"') != len(self.workers):
            assert time.monotonic() < end_s, "the gateway does not take the restarted worker in"
            time.sleep(0.05)

    def info(self, name: str) -> WorkerInfo:
        key = derive_key(self.processes.secret, "worker-http").hex()
        request = urllib.request.Request(
            f"{self.workers[name].url}/baton/v1/worker", headers={"authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            return WorkerInfo.from_json(response.read())

    def metric(self, name: str, metric: str, *labels: str) -> float:
        """The sum of the samples of "gateway" or a worker that have these labels."""
        child = self.gateway if name == "gateway" else self.workers[name]
        assert child is not None
        with urllib.request.urlopen(f"{child.url}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        wanted = (line for line in lines if re.match(rf"{re.escape(metric)}[ {{]", line))
        return sum(float(line.rsplit(" ", 1)[1]) for line in wanted if all(label in line for label in labels))

    def wait_quiet(self, timeout_s: float = 15.0) -> None:
        """Until no live worker holds a block (I3); fails with what is left."""
        end_s = time.monotonic() + timeout_s
        left: dict[str, Any] = {}
        while time.monotonic() < end_s:
            alive = [name for name, child in self.workers.items() if child.process.poll() is None]
            left = {
                name: load for name in alive if (load := self.info(name).load).kv_usage or load.running or load.waiting
            }
            if not left:
                return
            time.sleep(0.05)
        raise AssertionError(f"blocks or requests left: {left}")

    def post(
        self, path: str, body: dict[str, Any], *, key: str | None = API_KEY, timeout_s: float = 60.0
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON body, errors included."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
