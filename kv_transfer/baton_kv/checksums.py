"""Per-block checksums: xxh3-64 seeded by the transfer's ticket and the block's ordinal. Pure.

The seed comes from the whole signed ticket, which only gateway and the two workers have: another transfer's bytes, or
the right bytes in the wrong block, do not verify. xxh3 is no MAC; it meets corruption and mix-ups at memory speed
(https://github.com/Cyan4973/xxHash), authenticity of peers is the control channel's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import xxhash

_MASK = (1 << 64) - 1


def transfer_seed(wire_ticket: str) -> int:
    """The 64-bit seed of all checksums of the transfer that `wire_ticket` opens."""
    return int.from_bytes(hashlib.blake2b(wire_ticket.encode(), digest_size=8, person=b"baton-kv").digest(), "little")


def block_checksum(block: memoryview, seed: int, ordinal: int) -> int:
    """xxh3-64 of one block's bytes, bound to the transfer and to the block's place in the prompt."""
    return xxhash.xxh3_64_intdigest(block, seed=(seed + ordinal) & _MASK)


def block_checksums(blocks: Iterable[memoryview], seed: int, first_ordinal: int) -> tuple[int, ...]:
    """Checksums of consecutive blocks, the first of which has `first_ordinal`."""
    return tuple(block_checksum(block, seed, first_ordinal + i) for i, block in enumerate(blocks))
