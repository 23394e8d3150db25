"""The block pool: references, prefix cache, eviction, events."""

import pytest

from baton_api.blocks import ROOT, block_keys
from baton_engine.block_pool import BlockPool
from baton_engine.nouns import KvBlockRemoved, KvBlockStored, KvCleared

K = block_keys(list(range(32)), 4, b"salt")


def filled(num_blocks: int = 4, cached: int = 3) -> tuple[BlockPool, list[int]]:
    """A pool with one chain of `cached` blocks that nobody references."""
    pool = BlockPool(num_blocks)
    blocks = pool.allocate(cached)
    pool.register(blocks, K[:cached], ROOT)
    pool.release(blocks)
    pool.check_invariants()
    pool.take_events()
    return pool, blocks


def test_a_pool_gives_each_block_once_and_refuses_more() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    assert sorted(blocks) == [0, 1, 2] and pool.free_blocks == 0
    assert pool.can_allocate(0) and not pool.can_allocate(1)
    with pytest.raises(ValueError, match="asked for 1 blocks, 0 of 3 are free"):
        pool.allocate(1)
    pool.check_invariants([blocks])
    pool.release(blocks)
    pool.check_invariants()
    assert pool.free_blocks == 3


def test_a_block_released_twice_is_an_error() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="block 0 is released more often"):
        pool.release(blocks)


def test_only_the_unbroken_prefix_matches() -> None:
    pool, blocks = filled()
    assert pool.match(K) == blocks
    assert pool.match([K[1]]) == [blocks[1]]
    assert pool.match([K[0], K[5], K[1]]) == blocks[:1]
    assert pool.match([]) == []


def test_shared_blocks_are_freed_by_their_last_holder() -> None:
    pool, blocks = filled()
    pool.share(blocks)
    pool.share(blocks[:1])
    pool.check_invariants([blocks, blocks[:1]])
    assert pool.free_blocks == 1 and pool.references(blocks[0]) == 2
    pool.release(blocks)
    assert pool.free_blocks == 3
    pool.release(blocks[:1])
    pool.check_invariants()
    assert pool.free_blocks == 4 and pool.cached_blocks == 3


def test_blocks_about_to_be_shared_do_not_count_as_free() -> None:
    pool, blocks = filled(num_blocks=4, cached=3)
    assert pool.can_allocate(4) and pool.can_allocate(1, blocks) and not pool.can_allocate(2, blocks)
    pool.share(blocks)
    assert pool.can_allocate(1, blocks)


def test_the_tail_of_a_chain_is_evicted_before_its_head_and_the_oldest_chain_first() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.register(first, K[:2], ROOT)
    pool.register(second, K[4:6], ROOT)
    pool.release(first)
    pool.release(second)
    pool.take_events()
    assert pool.allocate(3) == [first[1], first[0], second[1]]
    assert pool.take_events() == [KvBlockRemoved((K[1], K[0], K[5]))]
    assert pool.cached_blocks == 1


def test_using_a_chain_again_keeps_it() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.register(first, K[:1], ROOT)
    pool.register(second, K[4:5], ROOT)
    pool.release(first)
    pool.release(second)
    pool.share(first)
    pool.release(first)
    assert pool.allocate(1) == second


def test_free_blocks_are_used_before_cached_ones() -> None:
    pool, blocks = filled(num_blocks=4, cached=3)
    assert pool.allocate(1)[0] not in blocks
    assert pool.take_events() == []


def test_a_key_keeps_its_first_block_and_its_twin_stays_unfindable() -> None:
    pool = BlockPool(4)
    first, twin = pool.allocate(2), pool.allocate(2)
    pool.register(first[:1], K[:1], ROOT)
    pool.register(twin, K[:2], ROOT)
    assert pool.match(K[:2]) == [first[0], twin[1]]
    assert pool.is_cached(twin[1]) and not pool.is_cached(twin[0])
    assert pool.take_events() == [KvBlockStored(K[:1], None), KvBlockStored(K[1:2], K[0])]
    pool.release(twin)
    pool.check_invariants([first])
    assert pool.free_blocks == 2


def test_a_run_broken_by_a_known_key_is_told_in_two_events() -> None:
    pool = BlockPool(6)
    pool.register(pool.allocate(1), K[1:2], K[0])
    pool.take_events()
    pool.register(pool.allocate(4), K[:4], ROOT)
    assert pool.take_events() == [KvBlockStored(K[:1], None), KvBlockStored(K[2:4], K[1])]


def test_forgotten_blocks_are_free_and_unfindable_whoever_holds_them() -> None:
    pool, blocks = filled()
    pool.share(blocks[:1])
    pool.forget([*blocks, 3])
    pool.check_invariants([blocks[:1]])
    assert pool.match(K) == [] and pool.free_blocks == 3
    assert pool.take_events() == [KvBlockRemoved(K[:3])]
    pool.forget(blocks)
    assert pool.take_events() == []
    pool.release(blocks[:1])
    assert pool.free_blocks == 4 and pool.cached_blocks == 0


def test_clearing_forgets_every_key_and_no_holder() -> None:
    pool, blocks = filled()
    pool.share(blocks[:1])
    pool.clear()
    pool.check_invariants([blocks[:1]])
    assert pool.cached_blocks == 0 and pool.take_events() == [KvCleared()]


def test_a_snapshot_names_parents_before_children() -> None:
    pool = BlockPool(6)
    fork = block_keys([*range(4), 9, 9, 9, 9], 4, b"salt")
    pool.register(pool.allocate(1), K[2:3], K[1])
    pool.register(pool.allocate(1), K[1:2], K[0])
    pool.register(pool.allocate(1), K[:1], ROOT)
    pool.register(pool.allocate(1), fork[1:], fork[0])
    assert pool.cached_keys() == [(K[0], None), (K[1], K[0]), (K[2], K[1]), (fork[1], K[0])]


def test_a_snapshot_keeps_a_child_whose_parent_was_evicted() -> None:
    pool = BlockPool(2)
    pool.register(pool.allocate(1), K[1:2], K[0])
    assert pool.cached_keys() == [(K[1], K[0])]


@pytest.mark.parametrize("count", [-1, 1])
def test_a_wrong_reference_count_is_found(count: int) -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    with pytest.raises(AssertionError, match="1 references"):
        pool.check_invariants([blocks] * (1 + count))
