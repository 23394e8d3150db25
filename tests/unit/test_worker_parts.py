"""The pure and small parts of a worker: event stream, KV journal, telemetry."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_api.errors import InternalError
from baton_api.metrics import ALL
from baton_api.sampling import SampledToken
from baton_engine.nouns import EngineStats, Failed, Finished, KvBlockRemoved, KvBlockStored, KvEvent, Sampled
from baton_worker.event_stream import FULL_EVENTS, ROOM_EVENTS, EventStream
from baton_worker.kv_journal import KvJournal
from baton_worker.quarantine import Quarantine
from baton_worker.telemetry import Telemetry


def never() -> None:
    raise AssertionError("a few events are no reason to pause")


@pytest.mark.parametrize("choices", [1, 20])
async def test_a_reader_that_does_not_keep_up_pauses_the_engine_until_there_is_room(choices: int) -> None:
    told: list[str] = []
    stream = EventStream(lambda: told.append("pause"), lambda: told.append("resume"), choices)
    full, room = FULL_EVENTS * choices, ROOM_EVENTS * choices
    for _ in range(full - 1):
        stream.put(Sampled(0, (SampledToken(1),)))
    assert not told
    for _ in range(10):
        stream.put(Sampled(0, (SampledToken(1),)))
    assert told == ["pause"]
    for left in reversed(range(full + 9)):
        await stream.next()
        assert told == (["pause"] if left > room else ["pause", "resume"])
    for _ in range(full):
        stream.put(Sampled(0, (SampledToken(1),)))
    assert told == ["pause", "resume", "pause"]


async def test_events_come_out_in_order_and_a_failure_is_raised() -> None:
    stream = EventStream(never, never)
    waiting = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0)
    stream.put(Finished())
    stream.put(Failed(InternalError("boom")))
    assert await waiting == Finished()
    with pytest.raises(InternalError, match="boom"):
        await stream.next()
    assert stream.ended


def stored(number: int) -> KvBlockStored:
    return KvBlockStored((number.to_bytes(16, "big"),), None)


def apply(known: set[bytes], events: tuple[KvEvent, ...]) -> None:
    for event in events:
        if isinstance(event, KvBlockStored):
            known.update(event.keys)
        elif isinstance(event, KvBlockRemoved):
            known.difference_update(event.keys)
        else:
            known.clear()


@given(
    steps=st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=4), max_size=20),
    capacity=st.integers(1, 12),
    seen_at=st.integers(0, 20),
)
def test_a_watcher_that_resumes_anywhere_ends_up_knowing_the_cache(
    steps: list[list[tuple[bool, int]]], capacity: int, seen_at: int
) -> None:
    cache: set[bytes] = set()
    journal = KvJournal(lambda: [(key, None) for key in sorted(cache)], capacity)
    known: set[bytes] = set()
    sequence: int | None = None
    for step, changes in enumerate(steps):
        events: tuple[KvEvent, ...] = tuple(
            stored(n) if add else KvBlockRemoved((n.to_bytes(16, "big"),)) for add, n in changes
        )
        apply(cache, events)
        journal.record(events)
        if step == seen_at:
            known, sequence = set(cache), journal.sequence
    for batch in journal.since(sequence):
        if batch.snapshot:
            known.clear()
        apply(known, batch.events)
        sequence = batch.sequence
    assert known == cache
    assert sequence in (None, journal.sequence)


def test_a_watcher_ahead_of_the_journal_gets_a_snapshot() -> None:
    journal = KvJournal(lambda: [(b"k" * 16, None)], 4)
    assert [batch.snapshot for batch in journal.since(99)] == [True]


def test_the_exposition_has_vllm_names_and_counters_grow_once() -> None:
    telemetry = Telemetry("demo")
    stats = EngineStats(1, 2, 10, 5, 1, 3, 9, 100, 50, 25, 7, 150, 50)
    telemetry.exposition(stats, False)
    text = telemetry.exposition(stats, False).decode()
    assert 'vllm:num_requests_running{model_name="demo"} 1.0' in text
    assert 'vllm:prompt_tokens_by_source_total{model_name="demo",source="local_compute"} 100.0' in text
    assert 'vllm:kv_cache_usage_perc{model_name="demo"} 0.5' in text


def test_a_leg_that_computed_no_prompt_counts_as_queued_but_not_as_prefilled() -> None:
    telemetry = Telemetry("demo")
    telemetry.started(0.5, None)
    telemetry.started(0.25, 2.0)
    text = telemetry.metrics.text().decode()
    assert 'vllm:request_queue_time_seconds_count{model_name="demo"} 2.0' in text
    assert 'vllm:request_queue_time_seconds_sum{model_name="demo"} 0.75' in text
    assert 'vllm:request_prefill_time_seconds_count{model_name="demo"} 1.0' in text
    assert 'vllm:request_prefill_time_seconds_sum{model_name="demo"} 2.0' in text


def test_metric_names_are_unique_and_colons_stay_in_the_vllm_set() -> None:
    names = [metric.name for metric in ALL]
    assert len(names) == len(set(names))
    assert all(name.startswith(("vllm:", "baton_")) for name in names)


def test_only_the_transport_in_force_is_exported_and_legs_are_counted_by_outcome() -> None:
    telemetry = Telemetry("demo")
    telemetry.on_link("ucx", "ucx")
    telemetry.on_link("ucx", "ucx/shm")
    telemetry.leg_ended("decode", "ok")
    text = telemetry.metrics.text().decode()
    assert 'baton_kv_transport_info{asked="ucx",negotiated="ucx/shm"} 1.0' in text
    assert 'negotiated="ucx"}' not in text
    assert 'baton_worker_requests_total{leg="decode",outcome="ok"} 1.0' in text


@pytest.mark.parametrize(
    ("most", "failures_s", "answers"),
    [
        (3, (0, 30, 60), (False, False, True)),
        (3, (0, 30, 61), (False, False, False)),
        (3, (0, 30, 61, 89), (False, False, False, True)),
        (1, (5,), (True,)),
        (0, (1, 1, 1, 1), (False, False, False, False)),
    ],
)
def test_a_worker_is_quarantined_at_so_many_failures_within_the_window(
    most: int, failures_s: tuple[float, ...], answers: tuple[bool, ...]
) -> None:
    quarantine = Quarantine(most, 60.0)
    assert tuple(quarantine.failed(at_s) for at_s in failures_s) == answers
