"""The decode side of one transfer as a state table: events in, actions out. Pure.

    Offered       -> Post what fits into the window
    Landed        -> Verify
    Verified ok   -> Post more; with Finish heard and every block verified: Ack, Ended
    Verified bad  -> Post that block once more, then give up with ChecksumMismatch
    Broken        -> Abort; wait until no receive is posted (Drain, or DropLink when the peer is gone); Ended

`Ended` is the only way out and is returned exactly once, when no receive is posted and no block is being read: the
transfer is terminal (invariant I5). Tests run every order of events against `check_invariants`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from baton_api.errors import ChecksumMismatch, TransferAborted, TransferError

from .copy_plan import CopyPlan


@dataclass(frozen=True, slots=True)
class Offered:
    """Prefill says these blocks are final, with their checksums."""

    first_ordinal: int
    checksums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FinishHeard:
    """Prefill ended and says how many blocks the prompt has."""

    total_blocks: int


@dataclass(frozen=True, slots=True)
class Landed:
    """A posted receive is over. `whole` False: it ended without its bytes."""

    ordinal: int
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Verified:
    ordinal: int
    matches: bool


@dataclass(frozen=True, slots=True)
class Broken:
    """The transfer cannot go on. `peer_gone`: nobody is there to end the posted receives; the link has to go."""

    error: TransferError
    peer_gone: bool = False


Event = Offered | FinishHeard | Landed | Verified | Broken


@dataclass(frozen=True, slots=True)
class Post:
    """Post receives for these ascending ordinals, then tell prefill."""

    ordinals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verify:
    ordinal: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Tell prefill that every block arrived: its lease ends."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Tell prefill to send nothing more and to end the receives that are posted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Receives are still posted: drop the link if they do not end within the grace time."""


@dataclass(frozen=True, slots=True)
class DropLink:
    """Receives are still posted and nobody will end them: drop the link now."""


@dataclass(frozen=True, slots=True)
class Ended:
    """`error` None: every block is verified."""

    error: TransferError | None


Action = Post | Verify | Ack | Abort | Drain | DropLink | Ended


class PullSession:
    """One pull. `window_blocks` bounds the receives that are posted at a time."""

    def __init__(self, plan: CopyPlan, window_blocks: int) -> None:
        self.plan = plan
        self.window_blocks = window_blocks
        self.error: TransferError | None = None
        self.ended = False
        self.finish_heard = False
        self.landed_blocks = 0
        self.checksum_failures = 0
        self._offered_to = plan.held_blocks
        self._checksums: dict[int, int] = {}
        self._ready: deque[int] = deque()
        self._posted: set[int] = set()
        self._reading: set[int] = set()
        self._asked_again: set[int] = set()
        self._verified = 0

    def handle(self, event: Event) -> list[Action]:
        """What to do about `event`. Once ended, nothing."""
        if self.ended:
            return []
        match event:
            case Offered():
                return self._offered(event)
            case FinishHeard():
                return self._finish(event)
            case Landed():
                return self._landed(event)
            case Verified():
                return self._verified_block(event)
            case Broken():
                return self._break(event.error, event.peer_gone)

    def _offered(self, event: Offered) -> list[Action]:
        if self.error is not None:
            return []
        end = event.first_ordinal + len(event.checksums)
        if event.first_ordinal != self._offered_to or end > self.plan.total_blocks or self.finish_heard:
            return self._violation(f"offer of blocks [{event.first_ordinal}, {end}) after {self._offered_to}")
        self._offered_to = end
        self._checksums.update(enumerate(event.checksums, event.first_ordinal))
        self._ready.extend(range(event.first_ordinal, end))
        return self._post()

    def _finish(self, event: FinishHeard) -> list[Action]:
        if self.error is not None:
            return []
        complete = event.total_blocks == self.plan.total_blocks == self._offered_to
        if not complete or self.finish_heard:
            return self._violation(f"finish with {event.total_blocks} blocks, {self._offered_to} offered")
        self.finish_heard = True
        return self._settle()

    def _landed(self, event: Landed) -> list[Action]:
        if event.ordinal not in self._posted:
            return self._violation(f"block {event.ordinal} landed but was not asked for")
        self._posted.discard(event.ordinal)
        if self.error is not None:
            return self._settle()
        if not event.whole:
            return self._violation(f"block {event.ordinal} ended without its bytes")
        self._reading.add(event.ordinal)
        return [Verify(event.ordinal, self._checksums[event.ordinal])]

    def _verified_block(self, event: Verified) -> list[Action]:
        self._reading.discard(event.ordinal)
        if self.error is not None:
            return self._settle()
        if not event.matches:
            return self._mismatch(event.ordinal)
        del self._checksums[event.ordinal]
        self._verified += 1
        self.landed_blocks += 1
        return [*self._post(), *self._settle()]

    def _mismatch(self, ordinal: int) -> list[Action]:
        self.checksum_failures += 1
        if ordinal in self._asked_again:
            return self._break(ChecksumMismatch(f"block {ordinal} arrived corrupted twice"), peer_gone=False)
        self._asked_again.add(ordinal)
        self._ready.appendleft(ordinal)
        return self._post()

    def _post(self) -> list[Action]:
        """What fits, but not block by block: each Post costs a message."""
        room = min(self.window_blocks - len(self._posted), len(self._ready))
        if room < min(len(self._ready), max(1, self.window_blocks // 8)) or not room:
            return []
        ordinals = tuple(sorted(self._ready.popleft() for _ in range(room)))
        self._posted.update(ordinals)
        return [Post(ordinals)]

    def _violation(self, what: str) -> list[Action]:
        return self._break(TransferAborted(f"prefill broke the protocol: {what}", code="protocol"), peer_gone=False)

    def _break(self, error: TransferError, peer_gone: bool) -> list[Action]:
        actions: list[Action] = []
        if self.error is None:
            self.error = error
            self._ready.clear()
            if not peer_gone:
                actions.append(Abort(error.reason))
        if self._posted:
            actions.append(DropLink() if peer_gone else Drain())
        return [*actions, *self._settle()]

    def _settle(self) -> list[Action]:
        if self._posted or self._reading:
            return []
        if self.error is not None:
            self.ended = True
            return [Ended(self.error)]
        if self.finish_heard and self._verified == self.plan.moving_blocks:
            self.ended = True
            return [Ack(), Ended(None)]
        return []

    def check_invariants(self) -> None:
        """Raises AssertionError when the table broke one of its promises."""
        assert len(self._posted) <= self.window_blocks
        assert not self._posted & self._reading
        assert not (self.ended and (self._posted or self._reading)), "ended with a block in use"
        assert self._verified <= self.plan.moving_blocks
        assert all(self.plan.held_blocks <= ordinal < self._offered_to for ordinal in self._posted)
