"""The supervisor's decisions against a simulated machine on which processes start, die and hang as they like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton_cli import supervision
from baton_cli.supervision import (
    BecameReady,
    Event,
    Exited,
    HealthTold,
    Kill,
    Phase,
    Policy,
    Progressed,
    Publish,
    Spawn,
    State,
    StopAsked,
    Terminate,
    Tick,
    begin,
    decide,
)

POLICY = Policy(
    first_delay_s=1.0, max_delay_s=8.0, jitter=0.5, stable_s=20.0, start_timeout_s=50.0, front_grace_s=5.0,
    worker_grace_s=3.0, max_first_failures=3, unhealthy_grace_s=2.0,
)  # fmt: skip
WORKERS = ("prefill-0", "decode-0")
FRONT = "gateway"
NAMES = (*WORKERS, FRONT)


class Machine(RuleBasedStateMachine):
    """Which processes run is the world's truth here; the supervisor only hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.state = begin([FRONT], WORKERS)
        self.alive: set[str] = set()
        self.killed: set[str] = set()
        self.sick: str | None = None
        self.published: set[str] = set()
        self.ended_s: dict[str, float] = {}
        self.send(Tick())

    def send(self, event: Event) -> None:
        self.state, actions = decide(self.state, event, self.now_s, POLICY)
        for action in actions:
            self.perform(action)

    def perform(self, action: supervision.Action) -> None:
        match action:
            case Spawn(name):
                assert name not in self.alive, "two incarnations of one child"
                assert not self.state.stopping, "a start while everything is being stopped"
                waited_s = self.now_s - self.ended_s.get(name, -1e9)
                assert waited_s >= POLICY.first_delay_s * (1 - POLICY.jitter) - 1e-6, "no back-off"
                self.alive.add(name)
            case Terminate(name):
                if self.sick == name:
                    return
                assert self.state.stopping
                assert name == FRONT or FRONT not in self.alive, "a worker is stopped before the gateway has drained"
            case Kill(name):
                assert name in self.alive
                self.killed.add(name)
            case Publish():
                assert self.published != self.ready_workers(), "told twice"
                self.published = self.ready_workers()

    def ready_workers(self) -> set[str]:
        return {child.name for child in self.state.children if child.phase is Phase.READY and not child.front}

    def exit(self, name: str, code: int, draw: float = 0.5) -> None:
        self.alive.discard(name)
        self.killed.discard(name)
        self.ended_s[name] = self.now_s
        self.send(Exited(name, code, draw))

    @rule(seconds=st.floats(0.01, 60.0))
    def time_passes(self, seconds: float) -> None:
        """Never beyond what is due: the shell wakes up in time."""
        due_s = self.state.next_due_s
        self.now_s = self.now_s + seconds if due_s is None else max(self.now_s, min(self.now_s + seconds, due_s))
        self.send(Tick())

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 2, -9]), draw=st.floats(0, 0.999))
    def one_dies(self, data: st.DataObject, code: int, draw: float) -> None:
        self.exit(data.draw(st.sampled_from(sorted(self.alive))), code, draw)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def one_gets_ready(self, data: st.DataObject) -> None:
        self.send(BecameReady(data.draw(st.sampled_from(sorted(self.alive)))))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def one_makes_progress(self, data: st.DataObject) -> None:
        self.send(Progressed(data.draw(st.sampled_from(sorted(self.alive)))))

    @rule(name=st.sampled_from(WORKERS), times=st.integers(1, 4), healthy=st.booleans())
    def one_says_how_it_is(self, name: str, times: int, healthy: bool) -> None:
        self.sick = None if healthy else name
        for _ in range(times):
            self.send(HealthTold(name, healthy))
        self.sick = None

    @rule()
    def the_user_wants_to_stop(self) -> None:
        asked_before = self.state.stopping
        self.send(StopAsked())
        assert not asked_before or self.killed == self.alive

    @invariant()
    def what_runs_is_known(self) -> None:
        assert {child.name for child in self.state.children if child.phase in supervision.RUNNING} == self.alive
        assert self.published == self.ready_workers()
        assert self.state.over == (self.state.stopping and not self.alive)

    def teardown(self) -> None:
        """Asked to stop, it ends within both graces even if no process ever obeys SIGTERM."""
        if not self.state.stopping:
            self.send(StopAsked())
        begun_s = self.now_s
        while not self.state.over:
            if self.killed:
                self.exit(min(self.killed), -9)
                continue
            due_s = self.state.next_due_s
            assert due_s is not None, (self.state, "nothing will ever happen")
            self.now_s = max(self.now_s, due_s)
            self.send(Tick())
        slack_s = POLICY.start_timeout_s if self.state.failure else 0.0
        rounding_s = 1e-6
        assert self.now_s - begun_s <= POLICY.front_grace_s + POLICY.worker_grace_s + slack_s + rounding_s
        assert not self.alive


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def run(*events: tuple[float, Event], names: tuple[str, ...] = ("decode-0",)) -> tuple[State, list[Any]]:
    state, done = begin([], names), []
    for now_s, event in events:
        state, actions = decide(state, event, now_s, POLICY)
        done.append(actions)
    return state, done


@given(failures=st.integers(1, 10**6), draw=st.floats(0, 0.999))
@settings(max_examples=100)
def test_a_delay_is_never_above_its_cap_nor_below_the_jittered_first(failures: int, draw: float) -> None:
    low_s = POLICY.first_delay_s * (1 - POLICY.jitter)
    assert low_s <= POLICY.delay_s(failures, draw) <= POLICY.max_delay_s


@pytest.mark.parametrize(("failures", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (5000, 8.0)])
def test_delays_double_up_to_the_cap(failures: int, delay_s: float) -> None:
    assert POLICY.delay_s(failures, 0.0) == delay_s
    assert POLICY.delay_s(failures, 0.5) == delay_s * 0.75


def crash(at_s: float, lived_s: float) -> list[tuple[float, Event]]:
    """One life that began at `at_s`."""
    end_s = at_s + lived_s
    return [(at_s, Tick()), (at_s, BecameReady("decode-0")), (end_s, Tick()), (end_s, Exited("decode-0", 1, 0.0))]


def test_crashes_in_a_row_wait_longer_and_longer() -> None:
    state, _ = run(*crash(0.0, 1.0), *crash(2.0, 1.0), *crash(5.0, 1.0))
    assert (state.child("decode-0").failures, state.child("decode-0").due_s) == (3, 6.0 + 4.0)


def test_a_stable_life_forgets_earlier_crashes() -> None:
    state, _ = run(*crash(0.0, 1.0), *crash(2.0, 1.0), *crash(5.0, POLICY.stable_s))
    assert (state.child("decode-0").failures, state.child("decode-0").due_s) == (1, 25.0 + 1.0)
    assert state.child("decode-0").restarts == 3


def test_only_unhealthy_answers_in_a_row_end_a_worker_by_force_if_need_be_and_it_starts_again() -> None:
    ready, sick, well = (
        ((0.0, Tick()), (0.0, BecameReady("decode-0"))),
        HealthTold("decode-0", healthy=False),
        HealthTold("decode-0", healthy=True),
    )
    _, done = run(*ready, *((1.0, told) for told in (sick, sick, well, sick, sick)))
    assert done[2:] == [()] * 5
    state, done = run(*ready, *((1.0, sick) for _ in range(4)), (3.0, Tick()), (3.1, Exited("decode-0", -9, 0.0)))
    assert done[2:] == [(), (), (Terminate("decode-0"), Publish()), (), (Kill("decode-0"),), ()]
    assert (state.child("decode-0").phase, state.child("decode-0").due_s) == (Phase.WAITING, 4.1)


def test_progress_puts_the_start_timeout_off() -> None:
    started = ((0.0, Tick()), (49.0, Progressed("decode-0")))
    assert run(*started, (98.0, Tick()))[1][-1] == ()
    assert run(*started, (99.0, Tick()))[1][-1] == (Kill("decode-0"),)


def test_what_was_ready_once_is_not_given_up_for_a_bad_setting() -> None:
    state, _ = run((0.0, Tick()), (1.0, BecameReady("decode-0")), (2.0, Exited("decode-0", 2, 0.0)))
    assert not state.stopping


def test_a_child_that_has_not_started_yet_is_not_waited_for() -> None:
    state, done = run((0.0, StopAsked()))
    assert state.over and done == [()]


def test_a_worker_that_dies_while_the_gateway_drains_is_not_started_again() -> None:
    state, now_s = begin([FRONT], WORKERS), 0.0
    for event in (Tick(), *(BecameReady(name) for name in NAMES), StopAsked(), Exited("decode-0", 0, 0.0)):
        state, _ = decide(state, event, now_s, POLICY)
    assert [state.child(name).phase for name in NAMES] == [Phase.READY, Phase.ENDED, Phase.STOPPING]
