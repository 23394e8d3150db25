"""The prefill side of one transfer as a state table: events in, actions out. Pure.

A transfer has two halves that may come in either order: the lease (the prefill leg) and the peer (decode's Open).
With both there:

    Computed           -> Seal the new blocks (one batch at a time, whether or not the peer is there)
    Sealed             -> Offer them, and after the last one SayFinish
    Posted             -> Send those blocks
    Acked              -> End "acked"
    Failed, Expired, Closed, Aborted, PeerGone -> stop sending; Refuse if the peer does not know; End

Every receive that decode posted is answered by exactly one message: its block, or, after decode's Abort, an empty one
(Void). So decode can end its receives on transports that cannot cancel one, and the link goes on serving others.
`End` is returned exactly once per lease, when nothing reads the blocks any more. `Forget` drops the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["acked", "expired", "aborted", "peer_lost", "failed", "closed"]
MAX_ASKS = 2  # a block is asked for again once, after a checksum mismatch
MAX_OWED = 65536  # the largest window a decode worker can be set to
MAX_OFFER = 65536  # blocks; half a MiB of checksums


@dataclass(frozen=True, slots=True)
class Opened:
    """The prefill leg is here: the lease begins."""

    total_blocks: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The decode worker is here with a good ticket; it holds the first `held_blocks` already."""

    held_blocks: int


@dataclass(frozen=True, slots=True)
class Computed:
    """Blocks that are final, from ordinal 0 on, growing. `complete`: these are all, partial last included."""

    block_ids: tuple[int, ...]
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """The checksums of the last Seal are computed."""


@dataclass(frozen=True, slots=True)
class Posted:
    """Decode posted receives for these ordinals under consecutive tags."""

    first_ordinal: int
    count: int
    first_tag: int


@dataclass(frozen=True, slots=True)
class SendOver:
    """One send is over, well or not: its block is not being read any more."""


@dataclass(frozen=True, slots=True)
class Acked:
    pass


@dataclass(frozen=True, slots=True)
class Aborted:
    """Decode gave up."""


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The stream or the link to decode broke."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Prefill cannot deliver; `reason` is an errors.BatonError.reason, `code` says more."""

    outcome: Outcome
    reason: str
    message: str
    code: str = ""


Event = Opened | Joined | Computed | Sealed | Posted | SendOver | Acked | Aborted | PeerGone | Failed


@dataclass(frozen=True, slots=True)
class Seal:
    """Compute the checksums of these blocks and keep them; then say Sealed."""

    first_ordinal: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """Announce these sealed blocks with their checksums."""

    first_ordinal: int
    count: int


@dataclass(frozen=True, slots=True)
class SayFinish:
    total_blocks: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send each block to its tag: (tag, block id); a SendOver follows for each."""

    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Void:
    """Send an empty message to each tag."""

    tags: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell decode why this transfer is over."""

    reason: str
    message: str
    code: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Sends are in flight: drop the link if they do not end within the grace time."""


@dataclass(frozen=True, slots=True)
class DropLink:
    """Sends are in flight to a peer that is gone: drop the link now."""


@dataclass(frozen=True, slots=True)
class Bequeath:
    """Prefill ended before its decode worker came: keep why, for when it comes."""

    reason: str
    message: str
    code: str


@dataclass(frozen=True, slots=True)
class End:
    """The lease is over and nothing reads its blocks."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Forget:
    """Neither half needs the record any more."""


Action = Seal | Offer | SayFinish | Send | Void | Refuse | Bequeath | Drain | DropLink | End | Forget


class SendSession:
    """One transfer on the prefill side. `seal_blocks` bounds what one Seal holds."""

    def __init__(self, seal_blocks: int) -> None:
        self.seal_blocks = seal_blocks
        self.outcome: Outcome | None = None
        self.leased = False
        self.joined = False
        self.complete = False
        self.lease_ended = False
        self._total = 0
        self._held = 0
        self._blocks: tuple[int, ...] = ()
        self._sealing_to: int | None = None
        self._sealed_to = 0
        self._offered_to = 0
        self._finish_said = False
        self._asks: dict[int, int] = {}
        self._owed: list[int] = []
        self._sending = 0
        self._forgotten = False

    def handle(self, event: Event) -> list[Action]:
        """What to do about `event`."""
        match event:
            case Opened():
                self.leased, self._total = True, event.total_blocks
                return self._go_on()
            case Joined():
                self.joined, self._held, self._offered_to = True, event.held_blocks, event.held_blocks
                self._sealed_to = max(self._sealed_to, self._held)  # what decode holds needs no checksum
                return self._go_on()
            case Computed():
                return self._computed(event)
            case Sealed():
                self._sealed_to, self._sealing_to = max(self._sealed_to, self._sealing_to or 0), None
                return self._go_on()
            case Posted():
                return self._posted(event)
            case SendOver():
                self._sending -= 1
                return self._settle()
            case Acked():
                return self._acked()
            case Aborted():
                return self._aborted()
            case PeerGone():
                return self._peer_gone()
            case Failed():
                return self._failed(event)

    def _computed(self, event: Computed) -> list[Action]:
        if self.outcome is not None:
            return []
        if event.block_ids[: len(self._blocks)] != self._blocks or self.complete:
            raise ValueError("computed blocks must grow from ordinal 0 and stop with finish()")
        if len(event.block_ids) > self._total or (event.complete and len(event.block_ids) != self._total):
            raise ValueError(f"{len(event.block_ids)} blocks computed of a prompt with {self._total}")
        self._blocks, self.complete = event.block_ids, event.complete
        return self._go_on()

    def _go_on(self) -> list[Action]:
        if self.outcome is not None:
            return self._settle()
        if self.leased and self.joined and self._held > self._total:
            return self._failed(Failed("aborted", "ticket_refused", "more blocks held than the prompt has", "protocol"))
        return [*self._offer(), *self._seal()] if self.leased else []

    def _offer(self) -> list[Action]:
        if not self.joined:
            return []
        offers: list[Action] = []
        while self._offered_to < self._sealed_to:
            count = min(self._sealed_to - self._offered_to, MAX_OFFER)
            offers.append(Offer(self._offered_to, count))
            self._offered_to += count
        if self.complete and self._offered_to == self._total and not self._finish_said:
            self._finish_said = True
            offers.append(SayFinish(self._total))
        return offers

    def _seal(self) -> list[Action]:
        first = self._sealed_to
        if self._sealing_to is not None or first >= len(self._blocks):
            return []
        self._sealing_to = min(len(self._blocks), first + self.seal_blocks)
        return [Seal(first, self._blocks[first : self._sealing_to])]

    def _posted(self, event: Posted) -> list[Action]:
        ordinals = range(event.first_ordinal, event.first_ordinal + event.count)
        tags = range(event.first_tag, event.first_tag + event.count)
        if self.outcome is not None:
            return self._owe(tags)
        allowed = event.first_ordinal >= self._held and ordinals.stop <= self._offered_to
        if not allowed or any(self._asks.get(ordinal, 0) >= MAX_ASKS for ordinal in ordinals):
            self._owe(tags)
            return self._failed(
                Failed("aborted", "transfer_aborted", f"blocks {ordinals} may not be asked for", "protocol")
            )
        for ordinal in ordinals:
            self._asks[ordinal] = self._asks.get(ordinal, 0) + 1
        self._sending += event.count
        return [Send(tuple((tag, self._blocks[ordinal]) for tag, ordinal in zip(tags, ordinals, strict=True)))]

    def _owe(self, tags: range) -> list[Action]:
        self._owed.extend(tags[: MAX_OWED - len(self._owed)])
        return []

    def _acked(self) -> list[Action]:
        if self.outcome is None and self._finish_said:
            self.outcome = "acked"
        self.joined = False
        return self._end("aborted")

    def _aborted(self) -> list[Action]:
        owed, self._owed = tuple(self._owed), []
        self.joined = False
        return [*([Void(owed)] if owed else []), *self._end("aborted")]

    def _peer_gone(self) -> list[Action]:
        self._owed.clear()
        self.joined = False
        drop: list[Action] = [DropLink()] if self._sending else []
        return [*drop, *self._end("peer_lost", drain=False)]

    def _failed(self, event: Failed) -> list[Action]:
        tell: list[Action] = []
        if self.outcome is None:
            kind = Refuse if self.joined else Bequeath
            tell.append(kind(event.reason, event.message, event.code))
        return [*tell, *self._end(event.outcome)]

    def _end(self, outcome: Outcome, *, drain: bool = True) -> list[Action]:
        if self.outcome is None:
            self.outcome = outcome
        waiting: list[Action] = [Drain()] if drain and self._sending else []
        return [*waiting, *self._settle()]

    def _settle(self) -> list[Action]:
        if self.outcome is None or self._sending or self._sealing_to is not None:
            return []
        actions: list[Action] = []
        if self.leased and not self.lease_ended:
            self.lease_ended = True
            actions.append(End(self.outcome))
        if not self.joined and not self._forgotten:
            self._forgotten = True
            actions.append(Forget())
        return actions

    def check_invariants(self) -> None:
        """Raises AssertionError when the table broke one of its promises."""
        assert self._sending >= 0
        assert self._held <= self._offered_to
        reading = self._sending or self._sealing_to is not None
        assert not (self.lease_ended and reading), "lease ended while its blocks are read"
        assert not self.joined or self._offered_to <= self._sealed_to
        assert self.outcome is not None or not self._forgotten
        assert self.outcome is not None or not self._owed, "receives are left unanswered"
