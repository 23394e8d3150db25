"""The supervisor against real child processes that start, crash, hang and die. They speak the real protocol."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton_api.errors import SettingError
from baton_api.fleet import Fleet
from baton_api.worker import Role
from baton_cli import rundir
from baton_cli.compose import Process
from baton_cli.rundir import RunDir
from baton_cli.supervision import Policy
from baton_cli.supervisor import Progress, Supervisor

QUICK = Policy(
    first_delay_s=0.05, max_delay_s=0.2, stable_s=5.0, start_timeout_s=10.0, front_grace_s=0.5, worker_grace_s=0.5
)
WAIT_S = 15.0


@pytest.fixture(autouse=True)
def _children_find_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run" / "demo")
    made.path.mkdir(parents=True)
    return made


class Scene:
    """A deployment of stand-ins and what it did."""

    def __init__(self, run_dir: RunDir, policy: Policy = QUICK, **children: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.events_file = run_dir.path / "events"
        self.progress: list[Progress] = []
        processes = [self._process(name, settings) for name, settings in children.items()]
        self.supervisor = Supervisor(processes, run_dir, "demo", policy=policy, on_progress=self.progress.append)

    def _process(self, name: str, settings: dict[str, Any]) -> Process:
        role = None if name == "gateway" else Role(name.split("_")[0])
        told = {"events": str(self.events_file), "name": name, **settings}
        return Process(name, "support.stand_in", told, role)

    @property
    def events(self) -> list[tuple[str, str, int]]:
        if not self.events_file.exists():
            return []
        return [(a, b, int(c)) for a, b, c in (line.split() for line in self.events_file.read_text().splitlines())]

    def said(self, name: str, what: str) -> list[int]:
        """The pids for which that happened."""
        return [pid for who, event, pid in self.events if (who, event) == (name, what)]

    def fleet(self) -> list[str]:
        return [worker.url for worker in Fleet.from_json(self.run_dir.fleet_file.read_bytes()).workers]

    async def until(self, what: Callable[[], object]) -> None:
        end_s = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end_s, (self.events, self.supervisor.state)
            await asyncio.sleep(0.01)


def until(what: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_what_a_run_directory_holds_is_for_its_owner_only(run_dir: RunDir) -> None:
    with run_dir.held():
        key = run_dir.make_secrets(None)
        assert run_dir.api_key_file.read_text().strip() == key
        assert len(run_dir.secret_file.read_bytes()) >= 32
        assert run_dir.path.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in run_dir.path.iterdir()} == {0o600}


def test_a_run_directory_is_held_once_and_says_so(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run_dir.path.parent))
    with pytest.raises(SettingError, match="no deployment is running"):
        rundir.find(None)
    mine = RunDir(rundir.root() / "demo")
    with mine.held():
        assert rundir.find(None).path == mine.path
        with pytest.raises(SettingError, match="is running already"), RunDir(mine.path).held():
            pass
        with RunDir(rundir.root() / "other").held(), pytest.raises(SettingError, match="demo, other"):
            rundir.find(None)
    assert not mine.is_held()
    with pytest.raises(SettingError, match="is not running"):
        mine.read_state()
