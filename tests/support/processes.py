"""Real Baton processes for tests: started, asked, killed and reaped by whoever made them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 180.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """How a process is started, where that is not as in production: another module (given the role), more environment,
    a command before it such as `ip netns exec NAME`, the address it is reached at, settings that win."""

    module: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    address: str = LOOPBACK
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Child:
    """One process, its ready line, and where its stderr went."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    log: Path
    host: str = LOOPBACK

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.ready['port']}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM and wait; a process that does not end in time is killed, and that is an error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode


@dataclass
class Processes:
    """A run directory with a secret, and the processes started in it."""

    directory: Path
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.secret = secrets.token_hex(32).encode()
        self.secret_file = self.directory / "secret"
        self.secret_file.write_bytes(self.secret)

    def start(self, module: str, name: str, settings: dict[str, Any], launch: Launch | None = None) -> Child:
        """Starts `python -m MODULE --settings FILE` and waits for its ready line; `module` may hold arguments."""
        launch = launch or Launch()
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps({"secret_file": str(self.secret_file), **settings, **launch.settings}))
        log = self.directory / f"{name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_roots()), **launch.env}
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [*launch.prefix, sys.executable, "-m", *module.split(), "--settings", str(path)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        child = Child(process, _ready(process, log), log, launch.address)
        self.children.append(child)
        return child

    def worker(self, role: str, name: str, model: Path, launch: Launch = Launch(), **changes: Any) -> Child:
        settings: dict[str, Any] = {
            "worker_id": name,
            "model_path": str(model),
            "model_name": "tiny",
            "kv": {"transport": "tcp", "num_blocks": 512},
            "engine": {"dtype": "float32", "threads": 1, "max_batched_tokens": 128},
        }
        for key, value in changes.items():
            settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
        module = f"{launch.module} {role}" if launch.module else f"baton_{role}"
        return self.start(module, name, settings, launch)

    def close(self) -> None:
        for child in self.children:
            if child.process.poll() is None:
                child.kill()
            if child.process.stdout is not None:
                child.process.stdout.close()


def _ready(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        line = process.stdout.readline()
        if not line:
            break
        said: dict[str, Any] = json.loads(line)
        if said.get("ready"):
            return said
    process.kill()
    process.wait()
    process.stdout.close()
    raise AssertionError(f"the process did not get ready:\n{log.read_text()[-4000:]}")


def _roots() -> list[str]:
    return [path for path in sys.path if path and Path(path).name in ROOTS]


ROOTS = {"api", "wire", "kv_transfer", "engine", "worker", "prefill_worker", "decode_worker", "gateway", "cli", "tests"}
