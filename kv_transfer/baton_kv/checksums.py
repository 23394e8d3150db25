"""Per-block checksums: xxh3-64 of the bytes, bound to the transfer and to the block's place in the prompt. Pure.

The digest of the bytes is taken once, when the block is final, and serves whatever transfer asks for it. What goes over
the wire is that digest hashed with the transfer's seed and the block's ordinal: an offer of another transfer, or of the
right bytes for the wrong block, does not verify. The seed comes from the whole signed ticket, which only gateway and
the two workers have. xxh3 is no MAC; it meets corruption and mix-ups at memory speed
(https://github.com/Cyan4973/xxHash), authenticity of peers is the control channel's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import xxhash

_BOUND = struct.Struct("<QQQ")


def transfer_seed(wire_ticket: str) -> int:
    """The 64-bit seed of all checksums of the transfer that `wire_ticket` opens."""
    return int.from_bytes(hashlib.blake2b(wire_ticket.encode(), digest_size=8, person=b"baton-kv").digest(), "little")


def block_digests(blocks: Iterable[memoryview]) -> list[int]:
    """xxh3-64 of each block's bytes. Lets go of the interpreter's lock for each block."""
    return [xxhash.xxh3_64_intdigest(block) for block in blocks]


def digest_as_it_lands(pieces: Iterable[memoryview]) -> int:
    """The digest of a block whose pieces are landed one by one by the iterator: each is read while the cache has it."""
    running = xxhash.xxh3_64()
    for piece in pieces:
        running.update(piece)
    return running.intdigest()


def bind(digest: int, seed: int, ordinal: int) -> int:
    """The checksum that is offered for the block with this digest in the place `ordinal` of a transfer."""
    return xxhash.xxh3_64_intdigest(_BOUND.pack(digest, seed, ordinal))
