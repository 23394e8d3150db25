"""The two state tables of a transfer, row by row: event in, actions out."""

from __future__ import annotations

import pytest

from baton_api.errors import ChecksumMismatch, PeerLost, TransferAborted, TransferDeadline
from baton_kv import session_pull as pull
from baton_kv import session_send as send
from baton_kv.copy_plan import CopyPlan

LATE = TransferDeadline("late")
GONE = PeerLost("gone")


def pulling(blocks: int = 3, held: int = 0, window: int = 8) -> pull.PullSession:
    return pull.PullSession(CopyPlan(tuple(range(100, 100 + blocks)), held), window)


def play(session: pull.PullSession, *events: pull.Event) -> list[pull.Action]:
    """The actions of the last event."""
    actions: list[pull.Action] = []
    for event in events:
        actions = session.handle(event)
        session.check_invariants()
    return actions


def kinds(actions: list[pull.Action] | list[send.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_pull_posts_what_is_offered_verifies_what_lands_and_acknowledges_the_end() -> None:
    session = pulling()
    assert play(session, pull.Offered(0, (10, 11))) == [pull.Post((0, 1))]
    assert play(session, pull.Landed(1)) == [pull.Verify(1, 11)]
    assert play(session, pull.Verified(1, True)) == []
    assert play(session, pull.Landed(0), pull.Verified(0, True)) == []
    assert play(session, pull.Offered(2, (12,))) == [pull.Post((2,))]
    assert play(session, pull.FinishHeard(3)) == []
    assert play(session, pull.Landed(2), pull.Verified(2, True)) == [pull.Ack(), pull.Ended(None)]
    assert play(session, pull.Broken(LATE)) == []


def test_finish_after_everything_is_verified_ends_the_pull() -> None:
    session = pulling(1)
    play(session, pull.Offered(0, (1,)), pull.Landed(0), pull.Verified(0, True))
    assert play(session, pull.FinishHeard(1)) == [pull.Ack(), pull.Ended(None)]


def test_a_pull_of_nothing_waits_for_finish_only() -> None:
    assert play(pulling(3, held=3), pull.FinishHeard(3)) == [pull.Ack(), pull.Ended(None)]


def test_held_blocks_are_not_asked_for() -> None:
    assert play(pulling(3, held=2), pull.Offered(2, (5,))) == [pull.Post((2,))]


def test_the_window_bounds_posted_receives() -> None:
    session = pulling(5, window=2)
    assert play(session, pull.Offered(0, (1, 2, 3, 4, 5))) == [pull.Post((0, 1))]
    assert play(session, pull.Landed(0)) == [pull.Verify(0, 1)]
    assert play(session, pull.Verified(0, True)) == [pull.Post((2,))]


def test_a_corrupt_block_is_asked_for_once_more_and_then_ends_the_pull() -> None:
    session = pulling(2)
    play(session, pull.Offered(0, (1, 2)), pull.Landed(0))
    assert play(session, pull.Verified(0, False)) == [pull.Post((0,))]
    actions = play(session, pull.Landed(0), pull.Verified(0, False))
    assert actions == [pull.Abort("checksum_mismatch"), pull.Drain()]
    (ended,) = play(session, pull.Landed(1))
    assert isinstance(ended, pull.Ended) and isinstance(ended.error, ChecksumMismatch)
    assert session.checksum_failures == 2


@pytest.mark.parametrize("peer_gone", [False, True])
def test_a_break_ends_only_when_no_receive_is_posted_and_no_block_is_read(peer_gone: bool) -> None:
    session = pulling(3)
    play(session, pull.Offered(0, (1, 2, 3)), pull.Landed(0))
    first = play(session, pull.Broken(LATE, peer_gone))
    assert first == ([pull.DropLink()] if peer_gone else [pull.Abort("transfer_deadline"), pull.Drain()])
    assert play(session, pull.Landed(1, whole=False), pull.Landed(2)) == []
    assert play(session, pull.Verified(0, True)) == [pull.Ended(LATE)]


def test_the_first_error_is_the_one_that_is_raised_and_a_lost_peer_still_drops_the_link() -> None:
    session = pulling(1)
    play(session, pull.Offered(0, (1,)), pull.Broken(LATE))
    assert play(session, pull.Broken(GONE, peer_gone=True)) == [pull.DropLink()]
    assert play(session, pull.Landed(0, whole=False)) == [pull.Ended(LATE)]


def test_a_break_before_anything_is_posted_ends_at_once() -> None:
    assert play(pulling(), pull.Broken(LATE)) == [pull.Abort("transfer_deadline"), pull.Ended(LATE)]
    assert play(pulling(), pull.Broken(GONE, peer_gone=True)) == [pull.Ended(GONE)]


def test_offers_and_finish_after_a_break_change_nothing() -> None:
    session = pulling(2)
    play(session, pull.Offered(0, (1,)), pull.Broken(LATE))
    assert play(session, pull.Offered(1, (2,))) == []
    assert play(session, pull.FinishHeard(2)) == []


@pytest.mark.parametrize(
    "events",
    [
        [pull.Offered(1, (1,))],
        [pull.Offered(0, (1, 2, 3, 4))],
        [pull.FinishHeard(3)],
        [pull.Offered(0, (1, 2, 3)), pull.FinishHeard(2)],
        [pull.Offered(0, (1, 2, 3)), pull.FinishHeard(3), pull.FinishHeard(3)],
        [pull.Offered(0, (1, 2, 3)), pull.FinishHeard(3), pull.Offered(3, ())],
        [pull.Landed(0)],
        [pull.Offered(0, (1,)), pull.Landed(0, whole=False)],
    ],
)
def test_a_prefill_that_breaks_the_protocol_ends_the_pull(events: list[pull.Event]) -> None:
    session = pulling(3)
    play(session, *events)
    assert isinstance(session.error, TransferAborted)
    assert session.error.code == "protocol"


def sending(seal_blocks: int = 8) -> send.SendSession:
    return send.SendSession(seal_blocks)


def run(session: send.SendSession, *events: send.Event) -> list[send.Action]:
    actions: list[send.Action] = []
    for event in events:
        actions = session.handle(event)
        session.check_invariants()
    return actions


OPEN, JOIN = send.Opened(3), send.Joined(0)
ALL = send.Computed((7, 8, 9), complete=True)
FAILED = send.Failed("failed", "prefill_failed", "broken", "oom")


@pytest.mark.parametrize("halves", [(OPEN, JOIN), (JOIN, OPEN)])
def test_both_halves_in_any_order_then_offers_sends_and_the_end(halves: tuple[send.Event, send.Event]) -> None:
    session = sending()
    assert run(session, *halves) == []
    assert run(session, send.Computed((7, 8))) == [send.Seal(0, (7, 8))]
    assert run(session, ALL) == []
    assert run(session, send.Sealed()) == [send.Offer(0, 2), send.Seal(2, (9,))]
    assert run(session, send.Sealed()) == [send.Offer(2, 1), send.SayFinish(3)]
    assert run(session, send.Posted(0, 2, 40)) == [send.Send(((40, 7), (41, 8)))]
    assert run(session, send.SendOver(), send.SendOver()) == []
    assert run(session, send.Posted(2, 1, 42)) == [send.Send(((42, 9),))]
    assert run(session, send.SendOver()) == []
    assert run(session, send.Acked()) == [send.End("acked"), send.Forget()]


def test_a_seal_holds_no_more_than_its_bound() -> None:
    session = sending(seal_blocks=2)
    assert run(session, OPEN, JOIN, ALL) == [send.Seal(0, (7, 8))]
    assert run(session, send.Sealed()) == [send.Offer(0, 2), send.Seal(2, (9,))]


def test_blocks_are_sealed_before_decode_comes_and_then_offered_at_once() -> None:
    session = sending(seal_blocks=2)
    assert run(session, OPEN, ALL) == [send.Seal(0, (7, 8))]
    assert run(session, send.Sealed()) == [send.Seal(2, (9,))]
    assert run(session, send.Sealed()) == []
    assert run(session, send.Joined(1)) == [send.Offer(1, 2), send.SayFinish(3)]


def test_decode_that_comes_in_the_middle_of_a_seal_is_offered_only_what_it_does_not_hold() -> None:
    session = sending(seal_blocks=1)
    assert run(session, OPEN, ALL) == [send.Seal(0, (7,))]
    assert run(session, send.Joined(2)) == []
    assert run(session, send.Sealed()) == [send.Seal(2, (9,))]
    assert run(session, send.Sealed()) == [send.Offer(2, 1), send.SayFinish(3)]


def test_a_long_prompt_is_offered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "MAX_OFFER", 2)
    run(session := sending(), OPEN, ALL, send.Sealed())
    assert run(session, JOIN) == [send.Offer(0, 2), send.Offer(2, 1), send.SayFinish(3)]


def test_blocks_that_decode_holds_are_not_offered() -> None:
    session = sending()
    assert run(session, OPEN, send.Joined(2), send.Computed((7, 8))) == []
    assert run(session, ALL) == [send.Seal(2, (9,))]
    assert run(session, send.Sealed()) == [send.Offer(2, 1), send.SayFinish(3)]


def test_everything_held_is_finish_only() -> None:
    assert run(sending(), OPEN, send.Joined(3), ALL) == [send.SayFinish(3)]


def test_more_held_than_there_is_ends_the_transfer() -> None:
    assert kinds(run(sending(), OPEN, send.Joined(4))) == ["Refuse", "End"]


def test_the_lease_ends_only_when_no_send_reads_its_blocks() -> None:
    session = sending()
    run(session, OPEN, JOIN, ALL, send.Sealed(), send.Posted(0, 2, 0))
    assert run(session, FAILED) == [send.Refuse("prefill_failed", "broken", "oom"), send.Drain()]
    assert run(session, send.SendOver()) == []
    assert run(session, send.SendOver()) == [send.End("failed")]
    assert run(session, send.Aborted()) == [send.Forget()]


def test_the_lease_ends_only_when_no_checksum_reads_its_blocks() -> None:
    session = sending()
    run(session, OPEN, JOIN, ALL)
    assert kinds(run(session, FAILED)) == ["Refuse"]
    assert run(session, send.Sealed()) == [send.End("failed")]


def test_receives_posted_after_the_end_are_answered_empty_once_decode_aborts() -> None:
    session = sending()
    run(session, OPEN, JOIN, ALL, send.Sealed(), FAILED)
    assert run(session, send.Posted(0, 2, 70)) == []
    assert run(session, send.Posted(2, 1, 72)) == []
    assert run(session, send.Aborted()) == [send.Void((70, 71, 72)), send.Forget()]


def test_a_lost_peer_drops_the_link_under_sends_and_owes_nothing() -> None:
    session = sending()
    run(session, OPEN, JOIN, ALL, send.Sealed(), send.Posted(0, 1, 0))
    assert run(session, send.PeerGone()) == [send.DropLink()]
    assert run(session, send.SendOver()) == [send.End("peer_lost"), send.Forget()]


def test_a_peer_that_leaves_before_the_lease_is_forgotten_and_a_late_lease_ends_at_once() -> None:
    session = sending()
    assert run(session, JOIN, send.Aborted()) == [send.Forget()]
    assert run(session, OPEN) == [send.End("aborted")]


def test_a_lease_that_fails_before_its_peer_came_leaves_word() -> None:
    assert run(sending(), OPEN, FAILED) == [
        send.Bequeath("prefill_failed", "broken", "oom"),
        send.End("failed"),
        send.Forget(),
    ]


def test_an_early_ack_is_an_abort() -> None:
    assert run(sending(), OPEN, JOIN, send.Acked()) == [send.End("aborted"), send.Forget()]


def test_an_ack_that_overtakes_the_end_of_a_send_waits_for_it() -> None:
    session = sending()
    run(session, OPEN, JOIN, ALL, send.Sealed(), send.Posted(0, 3, 0), send.SendOver(), send.SendOver())
    assert run(session, send.Acked()) == [send.Drain()]
    assert run(session, send.SendOver()) == [send.End("acked"), send.Forget()]


@pytest.mark.parametrize("posted", [send.Posted(2, 1, 0), send.Posted(0, 3, 0), send.Posted(0, 2**32 - 1, 0)])
def test_blocks_that_were_not_offered_cannot_be_had(posted: send.Posted) -> None:
    session = sending()
    run(session, OPEN, send.Joined(1), send.Computed((7, 8)), send.Sealed())
    assert kinds(run(session, posted)) == ["Refuse", "End"]
    assert kinds(run(session, send.Aborted())) == ["Void", "Forget"]


def test_a_block_can_be_had_twice_and_no_more() -> None:
    session = sending()
    run(session, OPEN, JOIN, ALL, send.Sealed())
    for tag in (0, 1):
        assert kinds(run(session, send.Posted(0, 1, tag))) == ["Send"]
    assert kinds(run(session, send.Posted(0, 1, 2))) == ["Refuse", "Drain"]


def test_what_is_owed_is_bounded() -> None:
    session = sending()
    run(session, OPEN, JOIN, FAILED)
    for _ in range(3):
        run(session, send.Posted(0, 60_000, 0))
    (void, _) = run(session, send.Aborted())
    assert isinstance(void, send.Void) and len(void.tags) == send.MAX_OWED


def test_events_after_the_end_change_nothing() -> None:
    session = sending()
    run(session, OPEN, JOIN, FAILED, send.Aborted())
    for event in (ALL, FAILED, send.Acked(), send.PeerGone()):
        assert run(session, event) == []


@pytest.mark.parametrize(
    "computed",
    [
        send.Computed((1, 2, 3, 4)),
        send.Computed((1, 2), complete=True),
        send.Computed((9,)),
    ],
)
def test_a_prefill_leg_that_contradicts_itself_is_an_error(computed: send.Computed) -> None:
    session = sending()
    run(session, OPEN, send.Computed((1,)))
    with pytest.raises(ValueError, match="block"):
        session.handle(computed)
