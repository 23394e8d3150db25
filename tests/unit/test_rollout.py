"""The next step of a rollout: tables of single steps; whole rollouts in any order of readiness, from any state."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_api.worker import Role
from baton_operator.rollout import Count, Limits, RoleCounts, RoleStep, Step, next_step

P, D = Role.PREFILL, Role.DECODE
SURGE_1 = Limits(1, 0)


def counts(size: int, new: tuple[int, int], *old: tuple[int, int]) -> RoleCounts:
    """Old revisions are called by their place."""
    return RoleCounts(size, Count(*new), tuple(Count(*one, str(place)) for place, one in enumerate(old)))


STEPS: list[tuple[str, RoleCounts, RoleCounts, Limits, RoleStep, RoleStep]] = [
    ("first start", counts(2, (0, 0)), counts(3, (0, 0)), SURGE_1, RoleStep(2), RoleStep(3)),
    ("scaled up", counts(4, (2, 2)), counts(1, (1, 1)), SURGE_1, RoleStep(4), RoleStep(1)),
    ("scaled to nothing", counts(0, (2, 2)), counts(1, (1, 1)), SURGE_1, RoleStep(0), RoleStep(1)),
    (
        "a new revision begins with one of each role",
        *(counts(4, (0, 0), (4, 4)), counts(2, (0, 0), (2, 2)), SURGE_1, RoleStep(1, (4,)), RoleStep(1, (2,))),
    ),
    (
        "the old ones stay until a whole new pair is ready",
        *(counts(1, (1, 1), (1, 1)), counts(1, (1, 0), (1, 1)), SURGE_1, RoleStep(1, (1,)), RoleStep(1, (1,))),
    ),
    (
        "a new pair is ready: the old pair goes",
        *(counts(1, (1, 1), (1, 1)), counts(1, (1, 1), (1, 1)), SURGE_1, RoleStep(1, (0,)), RoleStep(1, (0,))),
    ),
    (
        "the old revision goes by the share of the slower role",
        *(counts(4, (1, 1), (4, 4)), counts(2, (1, 1), (2, 2)), SURGE_1, RoleStep(1, (3,)), RoleStep(1, (2,))),
    ),
    (
        "without surge an old one goes first",
        *(counts(3, (0, 0), (3, 3)), counts(3, (0, 0), (3, 3)), Limits(0, 1), RoleStep(0, (2,)), RoleStep(0, (2,))),
    ),
    (
        "of two old revisions the oldest goes first",
        *(counts(2, (1, 1), (1, 1), (1, 1)), counts(2, (1, 1), (1, 1), (1, 1)), SURGE_1),
        *(RoleStep(1, (0, 1)), RoleStep(1, (0, 1))),
    ),
    (
        "an old one that is not ready goes before one that is",
        *(counts(2, (1, 1), (1, 1), (1, 0)), counts(2, (1, 1), (1, 1), (1, 0)), SURGE_1),
        *(RoleStep(1, (1, 0)), RoleStep(1, (1, 0))),
    ),
    (
        "of an old revision that never came up the ready half goes, and the old pair stays",
        *(counts(1, (0, 0), (1, 1), (1, 1)), counts(1, (0, 0), (1, 1), (1, 0)), SURGE_1),
        *(RoleStep(0, (1, 0)), RoleStep(0, (1, 0))),
    ),
    (
        "a half pair goes before whole ones, however many",
        *(counts(2, (0, 0), (2, 2), (1, 1)), counts(3, (0, 0), (3, 3), (1, 0)), SURGE_1),
        *(RoleStep(0, (2, 0)), RoleStep(0, (3, 0))),
    ),
    (
        "a role that is not wanted any more goes at once",
        *(counts(0, (0, 0), (2, 2)), counts(1, (1, 1)), SURGE_1, RoleStep(0, (0,)), RoleStep(1)),
    ),
    (
        "back to the old revision: what is there of it is kept",
        *(counts(3, (2, 2), (1, 1)), counts(3, (2, 2), (1, 1)), SURGE_1, RoleStep(3, (1,)), RoleStep(3, (1,))),
    ),
]


@pytest.mark.parametrize(
    ("prefill", "decode", "limits", "p", "d"), [row[1:] for row in STEPS], ids=[r[0] for r in STEPS]
)
def test_the_next_step(prefill: RoleCounts, decode: RoleCounts, limits: Limits, p: RoleStep, d: RoleStep) -> None:
    assert next_step({P: prefill, D: decode}, limits).roles == {P: p, D: d}


@dataclass
class Fleet:
    """Workers by role and revision, oldest revision first; the last is the newest."""

    sizes: dict[Role, int]
    asked: dict[Role, list[int]]
    ready: dict[Role, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ready = {role: list(asked) for role, asked in self.asked.items()}
        for role in self.asked:
            self.asked[role].append(0)
            self.ready[role].append(0)

    def counts(self) -> dict[Role, RoleCounts]:
        return {
            role: RoleCounts(
                self.sizes[role],
                Count(self.asked[role][-1], self.ready[role][-1]),
                tuple(map(Count, self.asked[role][:-1], self.ready[role][:-1], map(str, range(9)))),
            )
            for role in self.asked
        }

    def take(self, step: Step) -> None:
        for role, one in step.roles.items():
            self.asked[role] = [*one.old, one.new]
            self.ready[role] = [min(pair) for pair in zip(self.ready[role], self.asked[role], strict=True)]

    def total(self, role: Role) -> int:
        return sum(self.asked[role])

    def serves(self) -> bool:
        """Some revision has a ready worker of every role."""
        return any(all(ready) for ready in zip(*self.ready.values(), strict=True))


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_any_rollout_ends_within_its_limits_and_always_serves(
    sizes: tuple[int, int], surge: int, unavailable: int, draw: object
) -> None:
    limits = Limits(surge if surge + unavailable else 1, unavailable)
    fleet = Fleet(dict(zip((P, D), sizes, strict=True)), {P: [sizes[0]], D: [sizes[1]]})
    for _ in range(200):
        step = next_step(fleet.counts(), limits)
        fleet.take(step)
        for role in (P, D):
            size = fleet.sizes[role]
            assert fleet.total(role) <= size + limits.max_surge
            assert sum(fleet.ready[role]) >= size - limits.max_unavailable
        assert fleet.serves() or limits.max_unavailable >= min(sizes)
        waiting = [role for role in (P, D) if fleet.ready[role][-1] < fleet.asked[role][-1]]
        if waiting:
            fleet.ready[draw.choice(waiting)][-1] += 1  # type: ignore[attr-defined]
        elif not next_step(fleet.counts(), limits).changes(fleet.counts()):
            break
    assert fleet.asked == {P: [0, sizes[0]], D: [0, sizes[1]]}


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=3),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.integers(0, 2),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_from_any_state_a_step_taken_twice_is_taken_once_and_the_end_is_reached(
    old: list[tuple[int, int]], sizes: tuple[int, int], surge: int, unavailable: int, draw: object
) -> None:
    """Revisions abandoned half-way, sizes changed meanwhile, old workers that broke."""
    limits = Limits(surge if surge + unavailable else 1, unavailable)
    fleet = Fleet(dict(zip((P, D), sizes, strict=True)), {P: [p for p, _ in old], D: [d for _, d in old]})
    for role in (P, D):
        fleet.ready[role] = [draw.randint(0, count) for count in fleet.asked[role]]  # type: ignore[attr-defined]
    for _ in range(200):
        before, served = {role: list(asked) for role, asked in fleet.asked.items()}, fleet.serves()
        step = next_step(fleet.counts(), limits)
        fleet.take(step)
        for role in (P, D):
            assert all(now <= was for now, was in zip(fleet.asked[role][:-1], before[role][:-1], strict=True))
        assert fleet.serves() or not served or limits.max_unavailable or not all(sizes)
        waiting = [role for role in (P, D) if fleet.ready[role][-1] < fleet.asked[role][-1]]
        if waiting:
            fleet.ready[draw.choice(waiting)][-1] += 1  # type: ignore[attr-defined]
        elif not next_step(fleet.counts(), limits).changes(fleet.counts()):
            break
    assert {role: asked[-1] for role, asked in fleet.asked.items()} == fleet.sizes
    assert not any(sum(asked[:-1]) for asked in fleet.asked.values())
