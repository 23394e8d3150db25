"""How many workers each revision has next: integers in, one step out. Stateless. Pure.

A new revision comes in beside the old ones. Prefill and decode move together, for only workers of one revision make a
pair: the old revision gives way by the share that the slower role of the new one has ready. Per role, always:

    wanted of both revisions together <= size + max_surge
    ready workers that stay           >= size - max_unavailable     (what is there to begin with)

Every call looks at what there is now, so that a step may be taken twice, be lost or be done by another operator.
The idea of moving roles in step: LeaderWorkerSet's DisaggregatedSet, KEP-766.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from baton_api.worker import Role


@dataclass(frozen=True, slots=True)
class Count:
    """Workers of one role and revision: asked for, ready."""

    asked: int
    ready: int
    revision: str = ""

    @property
    def serving(self) -> int:
        return min(self.asked, self.ready)


@dataclass(frozen=True, slots=True)
class RoleCounts:
    """`size` is what shall be when settled; `old` revisions stand oldest first."""

    size: int
    new: Count
    old: Sequence[Count] = ()

    @property
    def old_asked(self) -> int:
        return sum(count.asked for count in self.old)

    @property
    def new_ready(self) -> int:
        return self.new.serving

    def share(self, revision: str) -> Fraction:
        """How much of the role an old revision can carry, in [0, 1]."""
        found = next((count.serving for count in self.old if count.revision == revision), 0)
        return _share(found, self.size)


@dataclass(frozen=True, slots=True)
class Limits:
    max_surge: int
    max_unavailable: int


@dataclass(frozen=True, slots=True)
class RoleStep:
    """What to ask for: of the new revision, of each old one."""

    new: int
    old: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    roles: Mapping[Role, RoleStep]
    reason: str

    def changes(self, counts: Mapping[Role, RoleCounts]) -> bool:
        return any(
            step.new != counts[role].new.asked or step.old != tuple(count.asked for count in counts[role].old)
            for role, step in self.roles.items()
        )


def next_step(counts: Mapping[Role, RoleCounts], limits: Limits) -> Step:
    """From what is there to what to ask for now."""
    if not any(count.old_asked for count in counts.values()):
        roles = {role: RoleStep(count.size, tuple(0 for _ in count.old)) for role, count in counts.items()}
        return Step(roles, "every worker is of the newest revision")
    share = min(_share(count.new_ready, count.size) for count in counts.values())
    olds = {count.revision for role in counts.values() for count in role.old}
    carried = {revision: min(role.share(revision) for role in counts.values()) for revision in olds}
    roles = {role: RoleStep(_new(count, limits), _old(count, limits, share, carried)) for role, count in counts.items()}
    ready = ", ".join(f"{role.value} {count.new_ready}/{count.size}" for role, count in sorted(counts.items()))
    return Step(roles, f"ready of the new revision: {ready}; surge {limits.max_surge}")


def _share(ready: int, size: int) -> Fraction:
    """How much of a role so many workers can carry, in [0, 1]."""
    return Fraction(1) if size == 0 else min(Fraction(1), Fraction(ready, size))


def _new(count: RoleCounts, limits: Limits) -> int:
    """As many as the surge leaves room for; fewer than there are only when the size says so."""
    room = max(0, count.size + limits.max_surge - count.old_asked)
    return min(count.size, max(count.new.asked, room))


def _old(count: RoleCounts, limits: Limits, share: Fraction, carried: Mapping[str, Fraction]) -> tuple[int, ...]:
    """They keep what the new one cannot carry yet. First go workers that are not ready, then those whose revision has
    too few of another role to go with (`carried` is what each revision can carry of the whole), then the oldest: so
    the newest old revision that makes pairs keeps both sides of them."""
    in_step = ceil(count.size * (1 - share)) - limits.max_unavailable
    available = count.size - limits.max_unavailable - count.new_ready
    surplus = count.old_asked - min(max(in_step, available, 0), count.old_asked)
    left = [old.asked for old in count.old]
    paired = [min(old.serving, ceil(count.size * carried[old.revision])) for old in count.old]
    for floors in ([old.serving for old in count.old], paired, [0] * len(left)):
        for index, floor in enumerate(floors):
            gone = min(surplus, max(0, left[index] - floor))
            left[index] -= gone
            surplus -= gone
    return tuple(left)
