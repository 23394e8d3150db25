"""The gateway's memory: prefix index and registry."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.blocks import block_keys, tenant_salt
from baton_api.errors import SettingError
from baton_api.fleet import Fleet, FleetWorker
from baton_api.worker import Role, WorkerInfo, WorkerLoad
from baton_gateway.index import PrefixIndex
from baton_gateway.pairs import Pairs, bad_way
from baton_gateway.patience import Patience
from baton_gateway.registry import Registry

KEYS = block_keys(list(range(160)), 16, tenant_salt(b"s", "t"))
INFO = WorkerInfo("d0", Role.DECODE, "e1", "m", "r", "f", "h:1", "tcp", 16, 512, True, False)


def test_the_index_counts_leading_blocks_per_worker() -> None:
    index = PrefixIndex(100)
    index.record(KEYS[:4], "a")
    index.record(KEYS[:2], "b")
    assert index.held(KEYS, ["a", "b", "c"]) == {"a": 4, "b": 2}
    assert index.held(KEYS, ["b"]) == {"b": 2}
    assert index.held(KEYS[1:], ["a"]) == {"a": 3}
    assert index.held((), ["a"]) == {} and index.held(KEYS, []) == {}


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12), st.sampled_from("ab")), max_size=60), st.integers(2, 30)
)
def test_a_bounded_index_never_says_more_than_was_recorded_and_keeps_the_latest(
    steps: list[tuple[int, int, str]], max_keys: int
) -> None:
    prompts = [block_keys([number] * 192, 16, b"k" * 32) for number in range(5)]
    index, ever = PrefixIndex(max_keys), dict.fromkeys(((p, url) for p in range(5) for url in "ab"), 0)
    for prompt, count, url in steps:
        index.record(prompts[prompt][:count], url)
        ever[prompt, url] = max(ever[prompt, url], count)
        index.check_invariants()
        assert len(index) <= max_keys
        assert index.held(prompts[prompt], [url])[url] >= min(count, max_keys // 2)
        for (other, holder), most in ever.items():
            assert index.held(prompts[other], [holder]).get(holder, 0) <= most


def test_keys_of_another_tenant_find_nothing() -> None:
    index = PrefixIndex(100)
    index.record(KEYS, "a")
    assert index.held(block_keys(list(range(160)), 16, tenant_salt(b"s", "u")), ["a"]) == {}


def test_the_index_forgets_a_worker_at_once_and_learns_it_again() -> None:
    index = PrefixIndex(100)
    index.record(KEYS, "a")
    index.record(KEYS, "b")
    index.forget("a")
    index.forget("unknown")
    assert index.held(KEYS, ["a", "b"]) == {"b": 10}
    index.record(KEYS[:1], "a")
    assert index.held(KEYS, ["a", "b"]) == {"a": 1, "b": 10}
    index.check_invariants()


def test_the_index_is_bounded_and_drops_what_was_not_routed_again() -> None:
    index = PrefixIndex(8)
    other, third = (block_keys([number] * 64, 16, tenant_salt(b"s", "t")) for number in (7, 8))
    for keys in (KEYS[:4], other, KEYS[:4], third):
        index.record(keys, "a")
    assert len(index) == 8
    assert index.held(KEYS, ["a"]) == index.held(third, ["a"]) == {"a": 4} and index.held(other, ["a"]) == {}
    index.record(KEYS, "b")
    assert index.held(KEYS, ["b"]) == {"b": 4}, "of a prompt longer than half the index its first keys"


@given(st.lists(st.tuples(st.sampled_from("rf"), st.integers(0, 10), st.sampled_from("abc")), max_size=40))
def test_an_unbounded_index_agrees_with_a_plain_model(steps: list[tuple[str, int, str]]) -> None:
    index, model = PrefixIndex(1000), {"a": 0, "b": 0, "c": 0}
    for kind, count, url in steps:
        if kind == "r":
            index.record(KEYS[:count], url)
            model[url] = max(model[url], count)
        else:
            index.forget(url)
            model[url] = 0
        index.check_invariants()
        assert index.held(KEYS, "abc") == {url: held for url, held in model.items() if held}


def registry() -> Registry:
    made = Registry(3)
    made.set_fleet(Fleet("m", (FleetWorker("u0"), FleetWorker("u1"))))
    return made


def routable(made: Registry) -> list[str]:
    return [worker.url for worker in made.routable()]


def test_a_worker_is_routable_from_its_first_heartbeat_until_three_are_missed() -> None:
    made = registry()
    assert routable(made) == [] and made.states() == {("unknown", "unknown"): 2}
    assert made.heard("u0", INFO) == "changed" and made.heard("u0", INFO) == "none"
    assert routable(made) == ["u0"] and made.is_routable("u0") and not made.is_routable("u9")
    assert [made.missed("u0") for _ in range(4)] == ["none", "none", "lost", "none"]
    assert routable(made) == [] and made.states()[("decode", "lost")] == 1
    assert made.heard("u0", INFO) == "changed" and routable(made) == ["u0"]


@pytest.mark.parametrize(
    ("took_s", "timeout_s"),
    [([], 0.6), ([0.01] * 8, 0.6), ([1.5], 1.5), ([1.5, 0.01], 1.5), ([1.5] + [0.01] * 8, 0.6), ([9.0], 3.0)],
)
def test_a_worker_is_given_the_time_that_it_took_of_late(took_s: list[float], timeout_s: float) -> None:
    patience = Patience(0.6, 3.0)
    for answer_s in took_s:
        patience.took(answer_s)
    assert patience.timeout_s == timeout_s


def test_a_sign_of_life_starts_the_count_of_misses_anew_and_brings_no_lost_worker_back() -> None:
    made = registry()
    made.heard("u0", INFO)
    for _ in range(3):
        assert [made.missed("u0"), made.missed("u0")] == ["none", "none"]
        made.sent_something("u0")
    assert routable(made) == ["u0"]
    assert [made.missed("u0") for _ in range(3)][-1] == "lost"
    made.sent_something("u0")
    made.sent_something("unknown")
    assert routable(made) == [] and made.states()[("decode", "lost")] == 1


def test_misses_count_in_a_row_only() -> None:
    made = registry()
    for _ in range(5):
        made.heard("u0", INFO)
        made.missed("u0")
        made.missed("u0")
    assert routable(made) == ["u0"]


def test_a_refused_connection_is_a_loss_at_once() -> None:
    made = registry()
    made.heard("u0", INFO)
    assert made.refused_connection("u0") == "lost" and routable(made) == []


def test_starting_and_draining_workers_are_known_but_not_routable() -> None:
    made = registry()
    made.heard("u0", replace(INFO, ready=False))
    made.heard("u1", replace(INFO, draining=True))
    assert routable(made) == []
    assert made.states() == {("decode", "starting"): 1, ("decode", "draining"): 1}


def test_a_worker_that_served_and_is_not_ready_is_stuck_unless_it_is_going() -> None:
    made = registry()
    stuck, going = replace(INFO, ready=False), replace(INFO, ready=False, draining=True)
    assert made.heard("u0", stuck) == "changed", "it only starts"
    assert made.heard("u0", INFO) == "changed" and made.heard("u0", stuck) == "stuck"
    assert made.heard("u0", stuck) == "none" and routable(made) == []
    assert made.heard("u0", INFO) == "changed" and routable(made) == ["u0"]
    assert made.heard("u0", going) == "changed" and made.heard("u0", stuck) == "changed"
    made.heard("u0", INFO)
    assert made.heard("u0", replace(stuck, epoch="e2")) == "new_epoch"


def test_a_worker_that_is_not_what_it_should_be_is_known_but_not_routable() -> None:
    made = Registry(3)
    made.set_fleet(Fleet("m", (FleetWorker("u0", Role.DECODE, "r2"), FleetWorker("u1", Role.PREFILL))))
    for url in ("u0", "u1"):
        made.heard(url, INFO)
    assert routable(made) == [] and made.states() == {("decode", "mismatched"): 2}
    assert made.contradiction("u0") == "it serves revision 'r' and should serve 'r2'"
    assert made.contradiction("u1") == "it is a decode worker and should be prefill"
    assert made.contradiction("u9") is None
    assert made.heard("u0", replace(INFO, revision="r2")) == "changed" and routable(made) == ["u0"]
    made.set_fleet(Fleet("m", (FleetWorker("u0", revision="r3"), FleetWorker("u1", Role.DECODE, "r"))))
    assert routable(made) == ["u1"]


def test_a_fleet_says_what_a_worker_should_be_only_where_it_knows() -> None:
    fleet = Fleet("m", (FleetWorker("u0"), FleetWorker("u1", Role.DECODE, "r2")))
    assert Fleet.from_json(fleet.to_json()) == fleet and fleet.to_json().count(b"role") == 1
    for raw in (b'{"model": "m", "workers": [{"url": "u", "role": "cook"}]}', b'{"model": "m", "workers": ["u"]}'):
        with pytest.raises(SettingError, match="is not a fleet"):
            Fleet.from_json(raw)


def test_a_new_epoch_is_told_and_lifts_a_suspension() -> None:
    made = registry()
    made.heard("u0", INFO)
    made.suspend("u0", 99.0)
    assert made.routable()[0].suspended_until_s == 99.0
    assert made.heard("u0", replace(INFO, epoch="e2")) == "new_epoch"
    assert made.routable()[0].suspended_until_s == 0.0


def test_a_worker_that_leaves_the_fleet_is_gone_and_what_comes_late_is_ignored() -> None:
    made = registry()
    made.heard("u0", INFO)
    before = made.load("u0", 5)
    assert made.set_fleet(Fleet("m2", (FleetWorker("u1"),))) == ("u0",)
    assert made.urls == ("u1",) and made.model == "m2"
    assert made.heard("u0", INFO) == made.missed("u0") == "none"
    made.suspend("u0", 1.0)
    made.load("u0", 5).close()
    made.set_fleet(Fleet("m", (FleetWorker("u0"),)))
    before.close()
    made.check_quiescent()


def test_load_is_booked_while_it_lasts() -> None:
    made = registry()
    made.heard("u0", INFO)
    first, second = made.load("u0", 5), made.load("u0", 7)
    assert (made.routable()[0].in_flight, made.routable()[0].in_flight_tokens) == (2, 12)
    made.heard("u0", replace(INFO, load=WorkerLoad(running=1)))
    assert made.routable()[0].in_flight == 2, "news of a worker do not touch what is booked on it"
    first.close()
    first.close()
    assert (made.routable()[0].in_flight, made.routable()[0].in_flight_tokens) == (1, 7)
    second.close()
    made.check_quiescent()
    assert made.block_sizes == {16}


PAIR = ("http://p0", "http://d0")


def test_a_pair_rests_after_a_loss_then_one_request_at_a_time_tries_it_until_one_comes_through() -> None:
    pairs = Pairs(rest_s=2.0)
    pairs.tried(PAIR, 0.0)
    assert pairs.apart(0.0) == frozenset()
    assert pairs.told(PAIR, bad=True, now_s=1.0) and not pairs.told(PAIR, bad=True, now_s=1.5)
    assert pairs.apart(3.4) == {PAIR} and pairs.apart(3.6) == frozenset()
    pairs.tried(PAIR, 3.6)
    assert pairs.apart(3.7) == {PAIR}
    pairs.told(PAIR, bad=False, now_s=4.0)
    assert pairs.apart(4.0) == frozenset()


def test_a_pair_is_forgotten_with_either_worker_and_a_trial_that_never_ends_does_not_close_it_for_ever() -> None:
    pairs = Pairs(rest_s=2.0)
    for gone in PAIR:
        pairs.told(PAIR, bad=True, now_s=1.0)
        pairs.forget(gone)
        assert pairs.apart(1.0) == frozenset()
    pairs.told(PAIR, bad=True, now_s=1.0)
    pairs.tried(PAIR, 4.0)
    assert pairs.apart(8.9) == {PAIR} and pairs.apart(9.1) == frozenset()


@pytest.mark.parametrize(
    ("header", "bad"),
    [
        ('reserve;dur=1, lost_transfer;dur=5;desc="peer_lost"', True),
        ('reserve;dur=1, lost_transfer;dur=5;desc="transfer_deadline"', True),
        ('reserve;dur=1, lost_transfer;dur=5;desc="checksum_mismatch"', False),
        ('reserve;dur=1, prefill;dur=5, transfer;dur=1;desc="64 B tcp"', False),
        ('prefill;dur=5;desc="queue 1.0 ms compute 200.0 ms 1 chunks 0 cached", transfer;dur=1500.0', True),
        ('prefill;dur=5;desc="queue 1.0 ms compute 400.0 ms 1 chunks 0 cached", transfer;dur=1500.0', False),
        ('prefill;dur=5;desc="queue 1.0 ms compute 2.0 ms 1 chunks 0 cached", transfer;dur=900.0', False),
        ('prefill;dur=5;desc="64 prompt tokens computed here"', None),
        ("", None),
    ],
)
def test_what_decode_says_of_the_way_is_understood(header: str, bad: bool | None) -> None:
    assert bad_way(header, 1.0) is bad
