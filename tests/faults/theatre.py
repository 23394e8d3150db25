"""Performs stories: a fleet of real processes, a crowd, the events at their moments, and what everybody held after."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from support.faulty_worker import VARIABLE
from support.network import Network
from support.processes import Child
from support.stack import Stack

from .cases import cases_of, harder
from .checker import check
from .client import Crowd, references
from .launches import launches_of, network_of
from .story import (
    Break,
    Case,
    Cut,
    EndLoad,
    Event,
    Freeze,
    Held,
    Hold,
    Kill,
    Restart,
    Round,
    Seen,
    Serves,
    Shim,
    Starve,
    Story,
    Terminate,
    Wait,
)

QUIET_S = 20.0
LAST_LINES = 30  # of a log
CASES_SEED = 1  # the same cases in every run: a round is known by its own seed alone


@contextmanager
def theatre(story: Story, model: Path, directory: Path) -> Iterator[Theatre]:
    """The fleet of a story, warmed up, with the references taken."""
    timeout = {"request_timeout_s": story.load.deadline_s - 2.0}
    changes = {"worker": dict(story.worker), "gateway": {**timeout, **story.gateway}}
    directory.mkdir(parents=True, exist_ok=True)
    with network_of(story) as network:
        launches = launches_of(story, directory, network)
        fleet = {"prefill": story.prefill, "decode": story.decode, "launches": launches, "transport": story.transport}
        with Stack.up(model, directory, **fleet, **changes) as stack:
            cases = cases_of(story.load, CASES_SEED)
            answers = references(stack.url, cases)
            if story.load.hard:
                cases = harder(cases, answers)
                answers = references(stack.url, cases)
            yield Theatre(story, stack, cases, answers, network)


class Theatre:
    """`play(seed)` performs one round; the fleet is whole again afterwards."""

    def __init__(
        self,
        story: Story,
        stack: Stack,
        cases: Sequence[Case],
        reference: Sequence[Seen],
        network: Network | None = None,
    ) -> None:
        self.story, self.stack, self.network = story, stack, network
        self._cases, self._reference = cases, reference
        self._down: list[str] = []
        self._restarted = ""
        self._new: dict[str, Held] = {}
        self._warm()

    def _warm(self) -> None:
        """One faultless minute's worth of connections, so that the baseline is that of a fleet in use."""
        crowd = Crowd(self.stack.url, self.story.load, self._cases, 0)
        crowd.start()
        time.sleep(1.0)
        crowd.stop()
        self._quiet()

    def play(self, seed: int, events: Sequence[Event] | None = None) -> Round:
        """One round of the story, or of other events on its fleet."""
        rng, round_ = random.Random(seed), Round(seed)
        round_.before, counters = self._baseline(), self._counters()
        crowd = Crowd(self.stack.url, self.story.load, self._cases, seed)
        crowd.start()
        began = datetime.now()
        try:
            for event in self.story.events if events is None else events:
                self._perform(event, rng, round_, crowd)
        finally:
            crowd.stop()
        round_.seen = crowd.seen
        round_.marks.setdefault("end", time.monotonic())
        round_.quiet_s = self._quiet()
        fallen = list(self._fallen())
        round_.unfired = list(self._unfired())
        round_.notices_s = [self._monotonic(at) for at in self._notices() if at >= began]
        round_.apart_s = [self._monotonic(at) for at in self._told("does not get through") if at >= began]
        round_.again_s = [self._monotonic(at) for at in self._told("KV from", ": again") if at >= began]
        round_.losses_s = [self._monotonic(at) for at in self._told(": lost") if at >= began]
        self._perform(Restart(), rng, round_, crowd)
        round_.after = self._held()
        round_.counted = _growth(counters, self._counters())
        round_.after_hold = _growth(round_.after_hold, self._counters()) if round_.after_hold else {}
        story = self.story
        round_.violations = fallen
        round_.violations += check(round_, self._reference, may_break=story.may_break, streams=story.load.streams)
        return round_

    def _perform(self, event: object, rng: random.Random, round_: Round, crowd: Crowd) -> None:
        marks = round_.marks
        match event:
            case Wait(low_s, high_s):
                time.sleep(rng.uniform(low_s, high_s))
            case Kill(role):
                name, child = self._pick(role, rng)
                marks["kill"] = time.monotonic()
                child.kill()
                self._down.append(name)
            case Terminate(role):
                name, child = self._pick(role, rng)
                marks["leases"] = self._worker(name).leases
                marks["terminate"] = time.monotonic()
                round_.exits.append(child.stop(90.0))
                marks["exit"] = time.monotonic()
                self._down.append(name)
            case Freeze(role, for_s):
                _, child = self._pick(role, rng)
                marks["freeze"] = time.monotonic()
                child.process.send_signal(signal.SIGSTOP)
                time.sleep(for_s)
                child.process.send_signal(signal.SIGCONT)
                marks["thaw"] = time.monotonic()
            case Starve(role, stopped_s, running_s, times):
                _, child = self._pick(role, rng)
                marks["freeze"] = time.monotonic()
                for _ in range(times):
                    child.process.send_signal(signal.SIGSTOP)
                    time.sleep(stopped_s)
                    child.process.send_signal(signal.SIGCONT)
                    time.sleep(running_s)
                marks["thaw"] = time.monotonic()
            case Break(kind, steps, exits):
                name, child = self._pick("decode", rng)
                fault = Path(self.stack.launches[name].env[VARIABLE])
                fault.with_suffix(".new").write_text(f"{kind} {steps}")
                marks["break"] = time.monotonic()
                fault.with_suffix(".new").replace(fault)
                if exits:
                    round_.exits.append(child.process.wait(30.0))
                    marks["exit"] = time.monotonic()
                    fault.unlink(missing_ok=True)
                    self._down.append(name)
                else:
                    wait_gone(fault)
            case Cut():
                self._cut(event, rng, marks)
            case Shim(for_s):
                folder = self.stack.processes.directory
                already = _lines(folder / "told")
                (folder / "on").touch()
                marks["break"] = time.monotonic()
                time.sleep(for_s)
                (folder / "on").unlink()
                marks["injected"] = _lines(folder / "told") - already
            case Hold():
                crowd.end()
                self._all_begun(crowd)
                round_.after_hold = self._counters()
            case Restart():
                self._restart(marks)
            case Serves(for_s):
                self._serves(for_s, marks)
            case EndLoad():
                crowd.stop()
                marks["end"] = time.monotonic()

    def _cut(self, cut: Cut, rng: random.Random, marks: dict[str, float]) -> None:
        assert self.network is not None
        if cut.what == "gateway":
            at, peers = "gateway", list(self.stack.workers)
        else:
            at, peers = self._pick("decode", rng)[0], [self._pick("prefill", rng)[0]]
        self.network.cut(at, peers, incoming=cut.towards_decode, outgoing=cut.towards_prefill)
        marks["cut"] = time.monotonic()
        try:
            time.sleep(cut.for_s)
        finally:
            self.network.heal(at)
        marks["heal"] = time.monotonic()

    @staticmethod
    def _all_begun(crowd: Crowd, timeout_s: float = 30.0) -> None:
        end_s = time.monotonic() + timeout_s
        while any(seen.ending == "open" and seen.streamed and not seen.tokens for seen in crowd.seen):
            assert time.monotonic() < end_s, "a stream has no first token"
            time.sleep(0.01)

    def _pick(self, role: str, rng: random.Random) -> tuple[str, Child]:
        if role == "gateway":
            assert self.stack.gateway is not None
            return "gateway", self.stack.gateway
        alive = sorted(name for name in self.stack.workers if name.startswith(role) and name not in self._down)
        name = rng.choice(alive)
        return name, self.stack.workers[name]

    def _restart(self, marks: dict[str, float]) -> None:
        """On the old ports: the epoch is what tells them apart."""
        for name in self._down:
            self.stack.restart_worker(name, **dict(self.story.worker))
            marks["restart"] = time.monotonic()
            self._restarted = name
        if self._down:
            self.stack.wait_routable()
        self._down.clear()

    def _serves(self, for_s: float, marks: dict[str, float]) -> None:
        """Its counters began at zero when it started."""
        acked = ("baton_kv_transfers_total", 'side="prefill"', 'outcome="acked"')
        while time.monotonic() < marks["restart"] + for_s:
            if self.stack.metric(self._restarted, *acked) > 0:
                marks["served"] = time.monotonic()
                return
            time.sleep(0.02)

    def _quiet(self) -> float | None:
        end_s = time.monotonic() + QUIET_S
        while time.monotonic() < end_s:
            up = [name for name, child in self.stack.workers.items() if child.process.poll() is None]
            try:
                if all(_is_quiet(self._worker(name)) for name in up):
                    return time.monotonic()
            except OSError:
                pass  # ends at this moment, or hangs: then it never gets quiet
            time.sleep(0.02)
        return None

    def _fallen(self) -> Iterator[str]:
        """Workers that ended though nothing asked them to, with the last they said; they are started again."""
        for name, child in self.stack.workers.items():
            if child.process.poll() is not None and name not in self._down:
                self._down.append(name)
                last = child.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
                yield "\n    ".join((f"{name} ended by itself, exit code {child.process.returncode}; its log:", *last))

    def _unfired(self) -> Iterator[str]:
        """Workers whose Break is still to come; they are spared it."""
        for name, launch in self.stack.launches.items():
            if VARIABLE in launch.env and (fault := Path(launch.env[VARIABLE])).exists():
                fault.unlink()
                yield name

    def _baseline(self) -> dict[str, Held]:
        """What each process held at the start of its first round."""
        for name, held in self._held().items():
            if name not in self._new or self._new[name].epoch != held.epoch:
                self._new[name] = held
        return dict(self._new)

    def _held(self) -> dict[str, Held]:
        held = {name: self._worker(name) for name in self.stack.workers}
        assert self.stack.gateway is not None
        return {**held, "gateway": Held(**_process(self.stack.gateway.process.pid))}

    def _worker(self, name: str) -> Held:
        info, child = self.stack.info(name), self.stack.workers[name]
        leases = int(self.stack.metric(name, "baton_kv_leases"))
        load = info.load
        return Held(
            load.free_blocks,
            load.total_blocks,
            load.running,
            load.waiting,
            leases,
            epoch=info.epoch,
            **_process(child.process.pid),
        )

    def _counters(self) -> dict[str, float]:
        """X1's numbers of the gateway; of each living worker, transfers and recomputes."""
        posts = 'route="/v1/completions"'
        found = {
            "gateway requests": self.stack.metric("gateway", "baton_gateway_requests_total", posts),
            "gateway ok": self.stack.metric("gateway", "baton_gateway_requests_total", posts, 'code="200"'),
            "gateway tokens": self.stack.metric("gateway", "baton_gateway_tokens_total", 'direction="completion"'),
            "gateway in_flight": self.stack.metric("gateway", "baton_gateway_in_flight") - 1,  # this very question
            "gateway resumed": self.stack.metric("gateway", "baton_gateway_resumes_total", 'outcome="resumed"'),
            "retries": self.stack.metric("gateway", "baton_gateway_retries_total"),
        }
        for name in self.stack.workers:
            if name in self._down:
                continue
            for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
                label = f'source="{source}"'
                found[f"{name} {source}"] = self.stack.metric(name, "vllm:prompt_tokens_by_source_total", label)
            if name.startswith("decode"):
                found[f"{name} recomputes"] = self.stack.metric(name, "baton_worker_kv_recomputes_total")
        return found

    def _notices(self) -> Iterator[datetime]:
        """When decode workers wrote that a transfer failed."""
        for name, child in self.stack.workers.items():
            if name.startswith("decode"):
                yield from _moments(child, " failed (", "prefilling here")

    def _told(self, *words: str) -> Iterator[datetime]:
        """When the gateway wrote a line with these words."""
        assert self.stack.gateway is not None
        return _moments(self.stack.gateway, *words)

    @staticmethod
    def _monotonic(at: datetime) -> float:
        return time.monotonic() - (datetime.now() - at).total_seconds()


def wait_gone(fault: Path, timeout_s: float = 20.0) -> None:
    """Until the step that was to fail has failed: the worker may have none to do at this moment."""
    end_s = time.monotonic() + timeout_s
    while fault.exists() and time.monotonic() < end_s:
        time.sleep(0.01)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _moments(child: Child, *words: str) -> Iterator[datetime]:
    """When the process logged lines with these words."""
    for line in child.log.read_text(errors="replace").splitlines():
        if all(word in line for word in words):
            yield datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


def _is_quiet(held: Held) -> bool:
    return held.free_blocks == held.total_blocks and not (held.running or held.waiting or held.leases)


def _growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What counted up; a process that was restarted counts from zero. Gauges stay as they are."""
    gauges = ("gateway in_flight",)
    return {
        name: value if name in gauges or value < before.get(name, 0.0) else value - before.get(name, 0.0)
        for name, value in after.items()
    }


def _process(pid: int) -> dict[str, int]:
    """Sockets, file descriptors and threads of a process, as Linux counts them."""
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    sockets = sum(link.startswith("socket:") for link in links)
    return {"sockets": sockets, "fds": len(links), "threads": len(os.listdir(f"/proc/{pid}/task"))}
