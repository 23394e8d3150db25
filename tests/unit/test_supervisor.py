"""The supervisor against real child processes that start, crash, hang and die. They speak the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton_api.errors import SettingError
from baton_api.fleet import Fleet
from baton_api.worker import Role
from baton_cli import rundir
from baton_cli.compose import Process
from baton_cli.rundir import RunDir
from baton_cli.supervision import Phase, Policy
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


@contextlib.asynccontextmanager
async def up(scene: Scene) -> AsyncIterator[asyncio.Task[str | None]]:
    """Runs the scene; afterwards nothing of it is left, whatever the test did."""
    running = asyncio.create_task(scene.supervisor.run())
    try:
        yield running
    finally:
        scene.supervisor.stop()
        scene.supervisor.stop()
        await asyncio.wait_for(running, WAIT_S)
        assert not any(alive(pid) for _, _, pid in scene.events)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_all_come_up_and_the_fleet_file_names_the_workers_only(run_dir: RunDir) -> None:
    scene = Scene(run_dir, prefill_0={}, decode_0={}, gateway={})
    async with up(scene):
        assert await scene.supervisor.ready()
        state = {worker.name: worker for worker in json_state(run_dir).workers}
        assert sorted(scene.fleet()) == sorted(str(state[name].url) for name in ("prefill_0", "decode_0"))
        assert state["decode_0"].epoch == f"epoch-{state['decode_0'].pid}"
        assert json_state(run_dir).url == scene.supervisor.url
        assert [(p.done, p.total) for p in scene.progress if p.name == "decode_0"] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("on_term", ["exit", "hang"])
async def test_a_worker_that_says_it_is_unhealthy_is_started_again(run_dir: RunDir, on_term: str) -> None:
    policy = replace(QUICK, health_interval_s=0.05, unhealthy_grace_s=0.2)
    sick = {"health": 503, "on_term": on_term}
    scene = Scene(run_dir, policy, prefill_0={"health": 200}, decode_0=sick, gateway={"health": 503})
    async with up(scene):
        await scene.until(lambda: len(scene.said("decode_0", "ready")) == 2)
        first = scene.said("decode_0", "spawned")[0]
        assert scene.said("decode_0", "term")[0] == first and not alive(first)
        assert len(scene.said("prefill_0", "spawned")) == len(scene.said("gateway", "spawned")) == 1
        assert run_dir.log_file("decode_0").read_text().count("unhealthy: ") >= policy.max_unhealthy


async def test_a_worker_that_does_not_answer_is_busy(run_dir: RunDir) -> None:
    scene = Scene(run_dir, replace(QUICK, health_interval_s=0.02), decode_0={}, gateway={})
    async with up(scene):
        assert await scene.supervisor.ready()
        await asyncio.sleep(0.5)
        assert scene.said("decode_0", "term") == [] and len(scene.fleet()) == 1


def json_state(run_dir: RunDir) -> rundir.Running:
    raw = json.loads(run_dir.state_file.read_bytes())
    return rundir.Running(**{**raw, "workers": tuple(rundir.WorkerState(**worker) for worker in raw["workers"])})


async def test_the_gateway_ends_before_any_worker_is_asked_to(run_dir: RunDir) -> None:
    scene = Scene(run_dir, prefill_0={}, decode_0={}, gateway={})
    async with up(scene) as running:
        assert await scene.supervisor.ready()
        scene.supervisor.stop()
        assert await asyncio.wait_for(running, WAIT_S) is None
        order = [(who, what) for who, what, _ in scene.events if what in ("term", "exit")]
        assert order[:2] == [("gateway", "term"), ("gateway", "exit")]
        assert sorted(order[2:]) == sorted(
            (who, what) for who in ("prefill_0", "decode_0") for what in ("term", "exit")
        )


async def test_the_terminal_s_signals_miss_the_children_and_the_scheduler_sees_one_session(run_dir: RunDir) -> None:
    scene = Scene(run_dir, prefill_0={}, decode_0={}, gateway={})
    async with up(scene):
        assert await scene.supervisor.ready()
        pids = [pid for _, what, pid in scene.events if what == "ready"]
        assert [os.getpgid(pid) for pid in pids] == pids and len(pids) == 3
        assert {os.getsid(pid) for pid in pids} == {os.getsid(0)}


async def test_a_dead_worker_leaves_the_fleet_file_and_comes_back_as_a_new_epoch(run_dir: RunDir) -> None:
    scene = Scene(run_dir, prefill_0={}, decode_0={}, gateway={})
    async with up(scene):
        assert await scene.supervisor.ready()
        before = {worker.name: worker for worker in json_state(run_dir).workers}["decode_0"]
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        await scene.until(lambda: before.url not in scene.fleet())
        await scene.until(lambda: len(scene.fleet()) == 2)
        after = {worker.name: worker for worker in json_state(run_dir).workers}["decode_0"]
        assert (after.restarts, after.phase) == (1, Phase.READY)
        assert after.epoch != before.epoch


async def test_the_gateway_comes_back_on_the_port_it_had(run_dir: RunDir) -> None:
    scene = Scene(run_dir, decode_0={}, gateway={"port": 0})
    async with up(scene):
        assert await scene.supervisor.ready()
        url, (pid,) = scene.supervisor.url, scene.said("gateway", "ready")
        os.kill(pid, signal.SIGKILL)
        await scene.until(lambda: len(scene.said("gateway", "ready")) == 2 and scene.supervisor.url is not None)
        assert scene.supervisor.url == url


async def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace(run_dir: RunDir) -> None:
    scene = Scene(run_dir, decode_0={"on_term": "hang"}, gateway={})
    async with up(scene) as running:
        assert await scene.supervisor.ready()
        scene.supervisor.stop()
        await asyncio.wait_for(running, WAIT_S)
        assert scene.said("decode_0", "term") and not scene.said("decode_0", "exit")


async def test_a_second_stop_does_not_wait(run_dir: RunDir) -> None:
    patient = Policy(front_grace_s=600.0, worker_grace_s=600.0)
    scene = Scene(run_dir, patient, decode_0={"on_term": "hang"}, gateway={"on_term": "hang"})
    async with up(scene) as running:
        assert await scene.supervisor.ready()
        scene.supervisor.stop()
        await scene.until(lambda: scene.said("gateway", "term"))
        scene.supervisor.stop()
        await asyncio.wait_for(running, 5.0)


@pytest.mark.parametrize(
    ("start", "spawns", "why"),
    [("bad_setting", 1, "decode_0 refused its settings"), ("crash", 2, "ended 2 times before it was ready")],
)
async def test_a_child_that_cannot_start_stops_everything_and_says_why(
    run_dir: RunDir, start: str, spawns: int, why: str
) -> None:
    scene = Scene(run_dir, decode_0={"start": start}, prefill_0={}, gateway={})
    async with up(scene) as running:
        assert not await scene.supervisor.ready()
        assert why in (await asyncio.wait_for(running, WAIT_S) or "")
        assert len(scene.said("decode_0", "spawned")) == spawns
        assert "decode_0 says this on stderr" in run_dir.log_tail("decode_0")


async def test_a_crash_loop_after_a_good_start_is_tried_again_and_again(run_dir: RunDir) -> None:
    scene = Scene(run_dir, decode_0={"crash_after_s": 0.05}, gateway={})
    async with up(scene) as running:
        await scene.until(lambda: len(scene.said("decode_0", "spawned")) >= 5)
        assert not running.done()
        assert scene.supervisor.state.failure is None


async def test_a_child_that_never_gets_ready_is_killed_and_given_up(run_dir: RunDir) -> None:
    scene = Scene(run_dir, Policy(start_timeout_s=0.5, first_delay_s=0.01), decode_0={"start": "silent"})
    async with up(scene) as running:
        assert "signal 9" in (await asyncio.wait_for(running, WAIT_S) or "")


async def test_noise_on_stdout_is_not_taken_for_readiness(run_dir: RunDir) -> None:
    scene = Scene(run_dir, decode_0={"start": "noise"}, gateway={})
    async with up(scene):
        assert await scene.supervisor.ready()
        assert scene.supervisor.state.child("decode_0").restarts == 0


async def test_a_cancelled_supervisor_leaves_no_process(run_dir: RunDir) -> None:
    scene = Scene(run_dir, decode_0={"on_term": "hang"}, gateway={})
    running = asyncio.create_task(scene.supervisor.run())
    await scene.supervisor.ready()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    pids = [pid for _, what, pid in scene.events if what == "spawned"]
    assert len(pids) == 2 and not any(map(alive, pids))


KILLED_LATER = """
import asyncio, sys
from pathlib import Path
from baton_api.worker import Role
from baton_cli.compose import Process
from baton_cli.rundir import RunDir
from baton_cli.supervisor import Supervisor

told = {"events": sys.argv[1] + "/events", "name": "orphan", "on_term": "hang"}
processes = [Process("orphan", "support.stand_in", told, Role.DECODE), Process("front", "support.stand_in", told)]
asyncio.run(Supervisor(processes, RunDir(Path(sys.argv[1])), "demo").run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    events = tmp_path / "events"
    with subprocess.Popen([sys.executable, "-c", KILLED_LATER, str(tmp_path)]) as supervisor:
        until(lambda: events.exists() and events.read_text().count("ready") == 2)
        pids = {int(line.split()[2]) for line in events.read_text().splitlines()}
        assert all(map(alive, pids)) and len(pids) == 2
        supervisor.kill()
    until(lambda: not any(map(alive, pids)))


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


def test_a_run_directory_is_cleared_of_what_baton_left_and_of_nothing_else(run_dir: RunDir) -> None:
    theirs, ours = (
        ("package.json", "my.log", "notes.txt"),
        ("gateway.log", "decode-12.json", "fleet.json", "state.json"),
    )
    for name in (*theirs, *ours):
        (run_dir.path / name).write_text("x")
    with run_dir.held():
        assert {path.name for path in run_dir.path.iterdir()} == {*theirs, "lock"}


@pytest.mark.parametrize("name", ["/etc", "../up", "Upper", "a/b", "a-", "", "a" * 56, "x" * 300])
def test_a_deployment_has_a_name_that_a_model_may_have(name: str) -> None:
    with pytest.raises(SettingError, match="is not a name"):
        rundir.find(name)


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="set XDG_RUNTIME_DIR"), RunDir(tmp_path / "file/demo").held():
        pass
