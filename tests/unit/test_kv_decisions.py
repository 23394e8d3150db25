"""The smaller pure decisions of the KV transfer: plan, checksums, leases, tickets, pulse, ucx profiles, wire form."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.errors import (
    EpochMismatch,
    LayoutMismatch,
    PeerLost,
    PrefillFailed,
    TicketRefused,
    TransferError,
)
from baton_api.sampling import SampledToken
from baton_api.tickets import Ticket, sign_ticket
from baton_api.timing import PrefillTimeline
from baton_kv import wire_form
from baton_kv.admission import Gate, check_prompt
from baton_kv.checksums import bind, block_digests, transfer_seed
from baton_kv.copy_plan import plan_copy, runs
from baton_kv.leases import LeaseTerm, Obituaries, TicketBook
from baton_kv.pulse import Pulse
from baton_kv.settings import PrefillIdentity
from baton_kv.transports import ucx_env
from baton_kv.transports.interfaces import interface_of
from baton_wire.pb import control_pb2 as pb


def test_a_plan_moves_what_is_not_held() -> None:
    plan = plan_copy(33, 16, [4, 2, 9], 1, 10)
    assert (plan.total_blocks, plan.moving_blocks, plan.block_ids) == (3, 2, (4, 2, 9))


@pytest.mark.parametrize(
    ("num_tokens", "block_ids", "held", "why"),
    [
        (33, [4, 2], 0, "need 3 blocks"),
        (33, [4, 2, 9], 4, "held_blocks"),
        (33, [4, 2, 9], -1, "held_blocks"),
        (33, [4, 2, 4], 0, "twice"),
        (33, [4, 2, 10], 0, "outside"),
        (33, [4, 2, -1], 0, "outside"),
    ],
)
def test_a_destination_that_cannot_be_right_is_an_error(
    num_tokens: int, block_ids: list[int], held: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        plan_copy(num_tokens, 16, block_ids, held, 10)


@given(st.sets(st.integers(0, 50)))
def test_runs_cover_exactly_the_ordinals_and_never_touch_each_other(ordinals: set[int]) -> None:
    found = list(runs(sorted(ordinals)))
    assert [ordinal for first, count in found for ordinal in range(first, first + count)] == sorted(ordinals)
    assert all(first + count < following for (first, count), (following, _) in pairwise(found))


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10_000))
def test_one_flipped_bit_another_place_or_another_transfer_never_verifies(block: bytes, bit: int) -> None:
    flipped = bytearray(block)
    flipped[bit // 8 % len(block)] ^= 1 << bit % 8
    right, wrong = block_digests([memoryview(block), memoryview(flipped)])
    seed = transfer_seed("ticket-a")
    good = bind(right, seed, 3)
    assert good != bind(wrong, seed, 3)
    assert good != bind(right, seed, 4)
    assert good != bind(right, transfer_seed("ticket-b"), 3)
    assert bind(block_digests([memoryview(bytes(block))])[0], seed, 3) == good


def test_a_lease_lives_until_the_deadline_while_prefill_computes_and_by_signs_of_life_afterwards() -> None:
    term = LeaseTerm(deadline_s=100.0, lease_s=10.0)
    term.renew(5.0)
    assert term.expires_at_s == 100.0
    term.finished(20.0)
    assert (term.expired(29.9), term.expired(30.0)) == (False, True)
    term.renew(29.0)
    assert term.expires_at_s == 39.0
    term.renew(95.0)
    assert (term.expires_at_s, term.expired(99.9), term.expired(100.0)) == (100.0, False, True)


def test_time_in_which_the_holder_of_a_lease_did_not_run_is_not_counted_but_the_deadline_stands() -> None:
    term = LeaseTerm(deadline_s=100.0, lease_s=10.0)
    term.stood_still(15.0, 15.0)
    assert term.expires_at_s == 100.0
    term.finished(20.0)
    term.stood_still(15.0, 36.0)
    term.renew(21.0)  # heard before it stood still
    assert term.expires_at_s == 45.0
    term.renew(37.0)
    term.stood_still(30.0, 38.0)  # heard in the middle of it: silent for no longer than until now
    assert term.expires_at_s == 48.0
    term.stood_still(90.0, 130.0)
    assert term.expires_at_s == 100.0


def test_a_ticket_is_used_once_and_forgotten_when_it_has_expired_by_itself() -> None:
    book = TicketBook(capacity=2)
    book.use("a", 10.0, 0.0)
    with pytest.raises(TicketRefused) as replay:
        book.use("a", 10.0, 9.9)
    assert replay.value.code == "ticket_replayed"
    book.use("b", 20.0, 1.0)
    with pytest.raises(TicketRefused) as full:
        book.use("c", 30.0, 2.0)
    assert full.value.code == "ticket_book_full"
    book.use("c", 30.0, 10.0)
    assert (book.was_used("a"), book.was_used("b"), book.was_used("c"), len(book)) == (False, True, True, 2)


def test_why_a_lease_ended_is_told_once_and_the_oldest_makes_room() -> None:
    obituaries = Obituaries(capacity=2)
    errors = {name: PrefillFailed(name) for name in "abc"}
    for name, error in errors.items():
        obituaries.add(name, error)
    assert len(obituaries) == 2
    assert [obituaries.take(name) for name in "abcc"] == [None, errors["b"], errors["c"], None]


def test_a_peer_is_lost_after_the_allowed_silent_beats() -> None:
    pulse = Pulse(allowed_misses=2)
    assert [pulse.beat(), pulse.beat()] == [True, True]
    pulse.heard()
    assert [pulse.beat(), pulse.beat(), pulse.beat()] == [True, True, False]


KEY = b"k" * 32
GATE = Gate(PrefillIdentity("p0", "e1"), "f1", KEY)
GOOD = Ticket("t1", "p0", "e1", "host:1", "d0", "f1", "ab", 33, 100.0)


def test_the_gate_admits_a_good_ticket() -> None:
    assert GATE.admit(sign_ticket(GOOD, KEY), "t1", "d0", 99.9) == GOOD
    check_prompt(GOOD, "ab", 33)


@pytest.mark.parametrize(
    ("change", "key", "now_s", "error", "code"),
    [
        ({}, b"x" * 32, 1.0, TicketRefused, "ticket_forged"),
        ({}, KEY, 100.0, TicketRefused, "ticket_expired"),
        ({"transfer_id": "t2"}, KEY, 1.0, TicketRefused, "ticket_wrong_transfer"),
        ({"decode_id": "d1"}, KEY, 1.0, TicketRefused, "ticket_wrong_decode"),
        ({"prefill_id": "p1"}, KEY, 1.0, TicketRefused, "ticket_wrong_prefill"),
        ({"prefill_epoch": "e2"}, KEY, 1.0, EpochMismatch, None),
        ({"fingerprint": "f2"}, KEY, 1.0, LayoutMismatch, None),
    ],
)
def test_the_gate_refuses(
    change: dict[str, str], key: bytes, now_s: float, error: type[TransferError], code: str | None
) -> None:
    with pytest.raises(error) as caught:
        GATE.admit(sign_ticket(replace(GOOD, **change), key), "t1", "d0", now_s)
    assert caught.value.code == code


@pytest.mark.parametrize(("digest", "num_tokens"), [("cd", 33), ("ab", 34)])
def test_a_ticket_opens_only_the_prompt_it_names(digest: str, num_tokens: int) -> None:
    with pytest.raises(TicketRefused) as caught:
        check_prompt(GOOD, digest, num_tokens)
    assert caught.value.code == "ticket_wrong_prompt"


@pytest.mark.parametrize(
    ("lanes", "name"),
    [
        (("tcp", "tcp"), "ucx/tcp"),
        (("sysv", "posix", "tcp"), "ucx/shm"),
        (("cma",), "ucx/shm"),
        (("rc_mlx5", "tcp"), "ucx/rdma"),
        (("posix", "dc_mlx5"), "ucx/rdma"),
        ((), "ucx/tcp"),
    ],
)
def test_the_best_lane_names_the_link(lanes: tuple[str, ...], name: str) -> None:
    assert ucx_env.negotiated(lanes) == name


def test_ucx_profiles_keep_shared_memory_usable_and_give_way_to_the_operator() -> None:
    assert ucx_env.options("ucx/tcp", {}) == {"TLS": "tcp", "KEEPALIVE_INTERVAL": "500ms"}
    for profile in ("ucx", "ucx/shm"):
        options = ucx_env.options(profile, {"UCX_KEEPALIVE_INTERVAL": "1s", "HOME": "/"})
        assert options["POSIX_ERROR_HANDLING"] == options["SYSV_ERROR_HANDLING"] == "y"
        assert "KEEPALIVE_INTERVAL" not in options
    assert "TLS" not in ucx_env.options("ucx", {})


def test_ucx_uses_the_interface_it_is_reached_on_and_no_other() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert [interface_of(host) for host in ("0.0.0.0", "example.invalid", "::1", "192.0.2.7")] == [None] * 4
    pinned = {profile: ucx_env.options(profile, {}, "eth0").get("NET_DEVICES") for profile in ucx_env.PROFILES}
    assert pinned == {"ucx": None, "ucx/tcp": "eth0", "ucx/shm": "eth0"}, "RDMA devices are interfaces of their own"
    assert ucx_env.options("ucx", {}, "lo")["NET_DEVICES"] == "lo"
    assert "NET_DEVICES" not in ucx_env.options("ucx/tcp", {"UCX_NET_DEVICES": "all"}, "lo")


@pytest.mark.parametrize("error", [TicketRefused("no", code="x"), EpochMismatch("old"), PeerLost("gone")])
def test_errors_survive_the_wire(error: TransferError) -> None:
    heard = wire_form.refusal_error(wire_form.refused("t1", error).refused)
    assert (type(heard), heard.message, heard.code) == (type(error), error.message, error.code or error.reason)


def test_an_unknown_reason_is_a_plain_transfer_error() -> None:
    heard = wire_form.refusal_error(pb.Refused(reason="tired"))
    assert (type(heard), heard.message, heard.code) == (TransferError, "tired", None)


_TOKENS = st.builds(
    SampledToken,
    st.integers(0, 2**32 - 1),
    st.none() | st.floats(allow_nan=False),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(allow_nan=False)), max_size=3).map(tuple),
)


@given(st.lists(_TOKENS, max_size=8), st.floats(0, 1e6), st.integers(0, 2**32 - 1))
def test_first_tokens_and_timeline_survive_the_wire(tokens: list[SampledToken], seconds: float, count: int) -> None:
    timeline = PrefillTimeline(seconds, seconds / 2, count, count)
    message = pb.FromPrefill.FromString(wire_form.finish_message("t", 3, tokens, timeline).SerializeToString()).finish
    assert wire_form.first_tokens(message) == tuple(tokens)
    assert (wire_form.prefill_timeline(message), message.total_blocks) == (timeline, 3)
