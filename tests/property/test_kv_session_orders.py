"""Any order of events: the tables keep their invariants and end exactly once; two of them together move every block."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from baton_api.errors import PeerLost, TransferDeadline
from baton_kv import session_pull as pull
from baton_kv import session_send as send
from baton_kv.copy_plan import CopyPlan

_PULL_EVENTS = st.one_of(
    st.builds(pull.Offered, st.integers(0, 4), st.lists(st.integers(0, 9), max_size=4).map(tuple)),
    st.builds(pull.FinishHeard, st.integers(0, 4)),
    st.builds(pull.Broken, st.just(TransferDeadline("late")), st.booleans()),
)


@given(st.lists(_PULL_EVENTS, max_size=12), st.integers(0, 4), st.integers(1, 3), st.data())
def test_a_pull_ends_once_and_only_when_nothing_can_land(
    events: list[pull.Event], held: int, window: int, data: st.DataObject
) -> None:
    session = pull.PullSession(CopyPlan((0, 1, 2, 3), held), window)
    posted: list[int] = []
    reading: list[int] = []
    ends = 0

    def perform(event: pull.Event) -> None:
        nonlocal ends
        for action in session.handle(event):
            match action:
                case pull.Post():
                    assert ends == 0
                    posted.extend(action.ordinals)
                case pull.Verify():
                    reading.append(action.ordinal)
                case pull.Ended():
                    ends += 1
                    assert not posted and not reading
        session.check_invariants()

    for event in [*events, pull.Broken(PeerLost("gone"), peer_gone=True)]:
        perform(event)
        while (posted or reading) and data.draw(st.booleans()):
            step(posted, reading, data, perform)
    while posted or reading:
        step(posted, reading, data, perform)
    assert ends == 1


def step(posted: list[int], reading: list[int], data: st.DataObject, perform) -> None:  # type: ignore[no-untyped-def]
    """One posted receive ends, or one block is verified."""
    if posted and (not reading or data.draw(st.booleans())):
        perform(pull.Landed(posted.pop(data.draw(st.integers(0, len(posted) - 1))), data.draw(st.booleans())))
    else:
        perform(pull.Verified(reading.pop(), data.draw(st.booleans())))


_SEND_EVENTS = st.one_of(
    st.builds(send.Posted, st.integers(0, 4), st.integers(0, 4), st.integers(0, 100)),
    st.just(send.Acked()),
    st.just(send.Aborted()),
    st.just(send.PeerGone()),
    st.just(send.Failed("failed", "prefill_failed", "m")),
    st.just(send.Failed("expired", "transfer_deadline", "m")),
    st.just("open"),
    st.just("join"),
    st.integers(0, 4),
)


@given(st.lists(_SEND_EVENTS, max_size=16), st.integers(0, 5), st.data())
def test_a_lease_ends_once_and_only_when_nothing_reads_its_blocks(
    events: list[object], held: int, data: st.DataObject
) -> None:
    session = send.SendSession(seal_blocks=2)
    busy: list[send.Event] = []
    seen = {"open": 0, "join": 0, "end": 0, "forget": 0, "computed": 0}

    def perform(event: send.Event) -> None:
        for action in session.handle(event):
            match action:
                case send.Seal():
                    busy.append(send.Sealed())
                case send.Send():
                    busy.extend(send.SendOver() for _ in action.blocks)
                case send.End():
                    seen["end"] += 1
                    assert not busy
                case send.Forget():
                    seen["forget"] += 1
        session.check_invariants()

    def happen(event: object) -> None:
        if event in ("open", "join"):
            seen[str(event)] += 1
            if seen[str(event)] == 1:
                perform(send.Opened(4) if event == "open" else send.Joined(held))
        elif isinstance(event, int):
            if seen["open"] and not session.complete and event >= seen["computed"]:
                seen["computed"] = event
                perform(send.Computed(tuple(range(event)), complete=event == 4))
        else:
            perform(event)  # type: ignore[arg-type]

    for event in [*events, send.PeerGone()]:
        happen(event)
        while busy and data.draw(st.booleans()):
            perform(busy.pop(data.draw(st.integers(0, len(busy) - 1))))
    while busy:
        perform(busy.pop())
    assert seen["end"] == (1 if seen["open"] else 0)
    assert seen["forget"] == 1


@dataclass
class Wire:
    """Both tables joined by two ordered control directions and a data link that delivers in any order."""

    sender: send.SendSession
    puller: pull.PullSession
    to_decode: list[send.Action] = field(default_factory=list)
    to_prefill: list[send.Event] = field(default_factory=list)
    seals: list[send.Seal] = field(default_factory=list)
    sends: list[tuple[int, bool]] = field(default_factory=list)
    verifying: list[int] = field(default_factory=list)
    tags: dict[int, int] = field(default_factory=dict)
    ended: list[pull.Ended] = field(default_factory=list)
    lease: list[str] = field(default_factory=list)

    def prefill(self, event: send.Event) -> None:
        for action in self.sender.handle(event):
            match action:
                case send.Seal():
                    self.seals.append(action)
                case send.Offer() | send.SayFinish() | send.Refuse():
                    self.to_decode.append(action)
                case send.Send():
                    self.sends.extend((tag, True) for tag, _ in action.blocks)
                case send.Void():
                    self.sends.extend((tag, False) for tag in action.tags)
                case send.End():
                    self.lease.append(action.outcome)
        self.sender.check_invariants()

    def decode(self, event: pull.Event) -> None:
        for action in self.puller.handle(event):
            match action:
                case pull.Post():
                    for ordinal in action.ordinals:
                        tag = len(self.tags)
                        self.tags[tag] = ordinal
                        self.to_prefill.append(send.Posted(ordinal, 1, tag))
                case pull.Verify():
                    self.verifying.append(action.ordinal)
                case pull.Ack():
                    self.to_prefill.append(send.Acked())
                case pull.Abort():
                    self.to_prefill.append(send.Aborted())
                case pull.Ended():
                    self.ended.append(action)
        self.puller.check_invariants()

    def moves(self) -> list[str]:
        """What could happen next."""
        pending = {
            "seal": self.seals,
            "to_decode": self.to_decode,
            "to_prefill": self.to_prefill,
            "land": self.sends,
            "verify": self.verifying,
        }
        return [name for name, queue in pending.items() if queue]

    def move(self, name: str, pick: int, matches: bool) -> None:
        match name:
            case "seal":
                self.seals.pop(0)
                self.prefill(send.Sealed())
            case "to_decode":
                self.heard(self.to_decode.pop(0))
            case "to_prefill":
                self.prefill(self.to_prefill.pop(0))
            case "land":
                tag, block = self.sends.pop(pick % len(self.sends))
                self.decode(pull.Landed(self.tags[tag]))
                if block:
                    self.prefill(send.SendOver())
            case "verify":
                self.decode(pull.Verified(self.verifying.pop(pick % len(self.verifying)), matches))

    def heard(self, message: send.Action) -> None:
        match message:
            case send.Offer():
                self.decode(pull.Offered(message.first_ordinal, (1,) * message.count))
            case send.SayFinish():
                self.decode(pull.FinishHeard(message.total_blocks))
            case send.Refuse():
                self.decode(pull.Broken(TransferDeadline(message.message)))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 3),
    st.sampled_from(["well", "fails", "cancels", "corrupts"]),
    st.data(),
)
def test_two_tables_together_always_end_on_both_sides_without_dropping_the_link(
    blocks: int, held: int, window: int, story: str, data: st.DataObject
) -> None:
    held = min(held, blocks)
    wire = Wire(send.SendSession(2), pull.PullSession(CopyPlan(tuple(range(blocks)), held), window))
    halves: list[send.Event] = [send.Opened(blocks), send.Joined(held)]
    if data.draw(st.booleans()):
        halves.reverse()
    script: list[send.Event | pull.Event] = [send.Computed(tuple(range(n)), n == blocks) for n in range(1, blocks + 1)]
    if story == "fails":
        script.insert(data.draw(st.integers(0, blocks)), send.Failed("failed", "prefill_failed", "m"))
    if story == "cancels":
        script.insert(data.draw(st.integers(0, blocks)), pull.Broken(TransferDeadline("late")))
    for event in halves:
        wire.prefill(event)
    while script or wire.moves():
        name = data.draw(st.sampled_from([*wire.moves(), *(["script"] if script else [])]))
        if name != "script":
            wire.move(name, data.draw(st.integers(0, 5)), story != "corrupts" or data.draw(st.booleans()))
        elif isinstance(event := script.pop(0), pull.Broken):
            wire.decode(event)
        else:
            wire.prefill(event)  # type: ignore[arg-type]
    assert len(wire.ended) == len(wire.lease) == 1
    if story == "well":
        assert (wire.ended[0].error, wire.lease) == (None, ["acked"])
    # A prefill that fails after its Finish may cross with a good pull, never the other way round.
    assert wire.lease != ["acked"] or wire.ended[0].error is None
