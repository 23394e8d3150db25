"""The run directory of one deployment: settings, secret, key, logs, fleet file and state, readable by their owner only.

$XDG_RUNTIME_DIR/baton/NAME, else ~/.local/state/baton/NAME
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from baton_api.crd import MODEL_NAME
from baton_api.errors import SettingError

LOG_TAIL_LINES = 20
_OURS = re.compile(r"(gateway|(prefill|decode)-\d+)\.(json|log)|(fleet|state)\.json")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One child as the state file has it; `url` and `epoch` are None until it is ready."""

    name: str
    role: str
    phase: str
    restarts: int
    pid: int | None = None
    url: str | None = None
    epoch: str | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """What `baton status` and `baton chat` need to find a deployment. `url` None: the gateway is not ready."""

    name: str
    model: str
    pid: int
    url: str | None
    workers: tuple[WorkerState, ...]


def root() -> Path:
    """Where all run directories are."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return (Path(runtime) if runtime else Path(state)) / "baton"


class RunDir:
    """One deployment's files. Paths are absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.secret_file = self.path / "secret"
        self.api_key_file = self.path / "api-key"
        self.fleet_file = self.path / "fleet.json"
        self.state_file = self.path / "state.json"

    def settings_file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def log_file(self, name: str) -> Path:
        return self.path / f"{name}.log"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes the directory and holds its lock; what an earlier `baton` left of logs and settings goes. Raises
        SettingError when another `baton` has it, or when it cannot be made."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            opened = private(self.path / "lock", "a")
        except OSError as error:
            fix = "set XDG_RUNTIME_DIR or XDG_STATE_HOME to a directory that can be written to"
            raise SettingError("run directory", str(self.path), f"cannot be used ({error.strerror})", fix) from error
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                fix = "stop it, or give another --name"
                raise SettingError("name", self.path.name, "is running already", fix) from error
            for old in self.path.iterdir():
                if _OURS.fullmatch(old.name):
                    old.unlink()
            try:
                yield
            finally:
                self.state_file.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether a supervisor lives. The kernel drops the lock with its owner, however that died."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def make_secrets(self, api_key: str | None) -> str:
        """A fresh deployment secret, and the API key: the one given, else a fresh one. Returns the key."""
        key = api_key or f"sk-baton-{secrets.token_urlsafe(24)}"
        write(self.secret_file, secrets.token_hex(32).encode())
        write(self.api_key_file, key.encode() + b"\n")
        return key

    def write_state(self, running: Running) -> None:
        write(self.state_file, json.dumps(asdict(running), indent=2).encode())

    def read_state(self) -> Running:
        """Raises SettingError when nothing runs here."""
        try:
            raw: dict[str, Any] = json.loads(self.state_file.read_bytes())
            workers = tuple(WorkerState(**worker) for worker in raw.pop("workers"))
            if self.is_held():
                return Running(**raw, workers=workers)
        except (OSError, ValueError, TypeError, KeyError):
            pass
        raise SettingError("name", self.path.name, "is not running", "start it with `baton up`")

    def log_tail(self, name: str) -> str:
        """The last lines of a child's log, "" when there is none."""
        try:
            lines = self.log_file(name).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_TAIL_LINES:])


def named(name: str) -> RunDir:
    """That of the deployment called `name`, which is what a Model may be called. Raises SettingError."""
    if re.fullmatch(MODEL_NAME, name) is None:
        fix = "give at most 55 lower-case letters, digits and hyphens, a letter first and no hyphen last"
        raise SettingError("--name", name if len(name) < 100 else f"{name[:100]}...", "is not a name", fix)
    return RunDir(root() / name)


def find(name: str | None) -> RunDir:
    """The deployment called `name`, or the one that runs. Raises SettingError when that is none or several."""
    if name is not None:
        return named(name)
    running = sorted(run_dir.path.name for run_dir in _all() if run_dir.is_held())
    if len(running) == 1:
        return RunDir(root() / running[0])
    if running:
        raise SettingError("name", None, "could be several", f"give --name, one of {', '.join(running)}")
    raise SettingError("name", None, "names nothing: no deployment is running", "start one with `baton up`")


def _all() -> Iterator[RunDir]:
    if root().is_dir():
        yield from (RunDir(path) for path in root().iterdir() if path.is_dir())


def private(path: Path, mode: str) -> IO[bytes]:
    """Opens a file that only its owner can read, made as such. `mode` "w" or "a"."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if mode == "w" else os.O_APPEND)
    return os.fdopen(os.open(path, flags, 0o600), f"{mode}b")


def write(path: Path, data: bytes) -> None:
    """Readers see the old content or the new one, never a part of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with private(beside, "w") as file:
        file.write(data)
    beside.replace(path)
