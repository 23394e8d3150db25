"""Runs the processes of one deployment as `supervision` decides: spawns, listens, signals, reaps, tells the gateway.

Children speak JSON lines on stdout: {"progress": ..., "done": i, "total": n} while they start, then one
{"ready": true, "port": ..., "epoch": ...}; their stderr goes to a log file each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton_api.errors import BatonError
from baton_api.fleet import Fleet, FleetWorker
from baton_wire.http_client import HttpClient

from . import supervision
from .compose import Process
from .rundir import RunDir, Running, WorkerState, private, write
from .supervision import Action, Event, Exited, Kill, Phase, Policy, Publish, Spawn, State, Terminate

MAX_LINE_BYTES = 1 << 20
HEALTH_TIMEOUT_S = 3.0
UNHEALTHY = 503


@dataclass(slots=True)
class Live:
    """What is known of one process beyond its phase. `said` is its ready line."""

    process: asyncio.subprocess.Process | None = None
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a starting child is; `total` 0 when it does not know."""

    name: str
    what: str
    done: int
    total: int


def ignore(_: object) -> None:
    """No one watches."""


class Supervisor:
    """One deployment from its first spawn until nothing of it runs. `on_change` hears every new state, `on_progress`
    what starting children say."""

    def __init__(
        self,
        processes: Sequence[Process],
        run_dir: RunDir,
        model: str,
        *,
        policy: Policy | None = None,
        on_change: Callable[[State], None] = ignore,
        on_progress: Callable[[Progress], None] = ignore,
    ) -> None:
        self._processes = {process.name: process for process in processes}
        self._run_dir = run_dir
        self._model = model
        self._policy = policy or Policy()
        self._on_change = on_change
        self._on_progress = on_progress
        self._live = {name: Live() for name in self._processes}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._watchers: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        fronts = [process.name for process in processes if process.role is None]
        self.state = supervision.begin(fronts, [name for name in self._processes if name not in fronts])

    @property
    def url(self) -> str | None:
        """The front's, once it is ready."""
        return next((self._url(child.name) for child in self.state.children if child.front), None)

    def stop(self) -> None:
        """Stop in order; called again, at once."""
        self._events.put_nowait(supervision.StopAsked())

    async def run(self) -> str | None:
        """Until nothing runs any more. Returns why it stopped by itself, None when it was asked to."""
        self._publish()
        self._advance(supervision.Tick())
        asking = asyncio.create_task(self._ask_workers())
        try:
            while not self.state.over:
                self._advance(await self._next_event())
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await self._reap()
            self._ready.set()
        return self.state.failure

    async def ready(self) -> bool:
        """Waits until all children are ready (True) or the deployment is over (False)."""
        await self._ready.wait()
        return not self.state.over

    async def _next_event(self) -> Event:
        due_s = self.state.next_due_s
        left_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        try:
            return await asyncio.wait_for(self._events.get(), left_s)
        except TimeoutError:
            return supervision.Tick()

    async def _ask_workers(self) -> None:
        """Whether they can serve: nobody else would start one again whose engine stands still."""
        http = HttpClient()
        try:
            while True:
                await asyncio.sleep(self._policy.health_interval_s)
                workers = [child.name for child in self.state.children if not child.front]
                await asyncio.gather(*(self._ask(http, name, url) for name in workers if (url := self._url(name))))
        finally:
            await http.close()

    async def _ask(self, http: HttpClient, name: str, url: str) -> None:
        asked = self._live[name].process
        try:
            answer = await http.request("GET", f"{url}/health", timeout_s=HEALTH_TIMEOUT_S)
        except BatonError:
            return  # gone, which its exit says, or busy
        if answer.status in (200, UNHEALTHY) and self._live[name].process is asked:
            if answer.status == UNHEALTHY:
                self._note(name, f"unhealthy: {answer.body.decode(errors='replace')}")
            self._events.put_nowait(supervision.HealthTold(name, answer.status == 200))

    def _note(self, name: str, line: str) -> None:
        with private(self._run_dir.log_file(name), "a") as log:
            log.write(f"{line}\n".encode())

    def _advance(self, event: Event) -> None:
        self.state, actions = supervision.decide(self.state, event, time.monotonic(), self._policy)
        for action in actions:
            self._perform(action)
        self._run_dir.write_state(self.snapshot())
        if self.state.all_ready:
            self._ready.set()
        self._on_change(self.state)

    def _perform(self, action: Action) -> None:
        match action:
            case Spawn(name):
                watcher = asyncio.get_running_loop().create_task(self._watch(self._processes[name], self._live[name]))
                self._watchers.add(watcher)
                watcher.add_done_callback(self._watchers.discard)
            case Terminate(name):
                self._signal(name, signal.SIGTERM)
            case Kill(name):
                self._signal(name, signal.SIGKILL)
            case Publish():
                self._publish()

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._live[name].process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _watch(self, spec: Process, live: Live) -> None:
        """One incarnation of a child, from spawn to exit."""
        code = supervision.BAD_SETTING_EXIT
        try:
            live.process = await self._spawn(spec, live.said)
            live.said = {}
            if self.state.stopping:  # it was asked to stop before it existed
                live.process.terminate()
            await self._listen(spec.name, live)
            code = await live.process.wait()
        except OSError as error:
            self._note(spec.name, f"cannot be started: {error}")
        finally:
            live.process, live.said = None, live.said if spec.role is None else {}
            self._events.put_nowait(Exited(spec.name, code, random.random()))

    async def _spawn(self, spec: Process, said: Mapping[str, Any]) -> asyncio.subprocess.Process:
        settings = self._run_dir.settings_file(spec.name)
        # A front that comes back must come back where its clients look for it.
        kept = {"port": said["port"]} if spec.role is None and "port" in said else {}
        write(settings, json.dumps({**spec.settings, **kept}, indent=2).encode())
        with private(self._run_dir.log_file(spec.name), "a") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "baton_cli.child", str(os.getpid())),
                *(spec.module, "--settings", str(settings)),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, limit=MAX_LINE_BYTES,
                env={**os.environ, **spec.env},
                # The terminal's Ctrl-C is for the supervisor, which stops in order. No sessions of their own: Linux
                # shares cores out by session first (sched(7), autogroup), and a gateway then waits behind an engine.
                process_group=0,
            )  # fmt: skip

    async def _listen(self, name: str, live: Live) -> None:
        """Reads stdout to its end: a full pipe would block the child."""
        assert live.process is not None and live.process.stdout is not None
        while True:
            try:
                line = await live.process.stdout.readline()
            except ValueError:  # a line beyond the limit is not one of ours
                continue
            if not line:
                return
            self._hear(name, live, line)

    def _hear(self, name: str, live: Live, line: bytes) -> None:
        try:
            said = json.loads(line)
            if said.get("ready") is True and 0 < int(said["port"]) < 65536:
                live.said = said
                self._events.put_nowait(supervision.BecameReady(name))
            elif "progress" in said:
                progress = Progress(name, str(said["progress"]), int(said.get("done", 0)), int(said.get("total", 0)))
                self._events.put_nowait(supervision.Progressed(name))
                self._on_progress(progress)
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # not a line of the protocol; libraries print what they like

    def _url(self, name: str) -> str | None:
        said, spec = self._live[name].said, self._processes[name]
        if "port" not in said or self.state.child(name).phase is not Phase.READY:
            return None
        host = spec.settings.get("host", "127.0.0.1")
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{said['port']}"

    def _publish(self) -> None:
        urls = (self._url(child.name) for child in self.state.children if not child.front)
        write(self._run_dir.fleet_file, Fleet(self._model, tuple(FleetWorker(u) for u in urls if u)).to_json())

    def snapshot(self) -> Running:
        """The deployment as the state file has it."""
        workers = tuple(self._worker_state(child) for child in self.state.children)
        return Running(self._run_dir.path.name, self._model, os.getpid(), self.url, workers)

    def _worker_state(self, child: supervision.Child) -> WorkerState:
        spec, live = self._processes[child.name], self._live[child.name]
        return WorkerState(
            name=child.name,
            role=spec.role.value if spec.role else "gateway",
            phase=child.phase.value,
            restarts=child.restarts,
            pid=live.process.pid if live.process else None,
            url=self._url(child.name),
            epoch=live.said.get("epoch") if child.phase is Phase.READY else None,
        )

    async def _reap(self) -> None:
        """Whatever ended the loop, nothing is left running."""
        while self._watchers:
            for name in self._live:
                self._signal(name, signal.SIGKILL)
            await asyncio.wait(self._watchers, timeout=0.1)  # one may be spawning just now
