"""Block keys: chained keyed 128-bit hashes of the tokens up to and including a block. Pure.

key[i] = blake2b-128(key=salt, parent || tokens of block i as little-endian u32), parent of block 0 is 16 zero bytes.
The salt is derived from the tenant by the server (invariant I6), so keys of different tenants never meet.
"""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Sequence
from typing import TypeAlias

KEY_BYTES = 16
ROOT = bytes(KEY_BYTES)
NO_TENANT = ""

BlockKey: TypeAlias = bytes
TextKey: TypeAlias = int
"""Of `text_keys`: of this process and those forked from it only."""


def derive_key(secret: bytes, purpose: str) -> bytes:
    """32-byte key for one purpose ("ticket", "worker-http", "tenant:NAME"), HMAC-SHA256 of the deployment's secret."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


def tenant_salt(secret: bytes, tenant: str) -> bytes:
    """The 32-byte salt of a tenant's block keys. A client can never choose it."""
    return derive_key(secret, f"tenant:{tenant}")


def chain(parent: BlockKey, tokens: Sequence[int], salt: bytes) -> BlockKey:
    """Key of the block that holds `tokens` and follows the block with key `parent`. Tokens are in [0, 2**32)."""
    return hashlib.blake2b(parent + _packed(tokens), digest_size=KEY_BYTES, key=salt).digest()


def _packed(tokens: Sequence[int]) -> bytes:
    packed = array("I", tokens)
    if packed.itemsize != 4:  # pragma: no cover - no such platform is supported
        raise RuntimeError("array('I') is not 32-bit on this platform")
    return packed.tobytes()


def block_keys(tokens: Sequence[int], block_tokens: int, salt: bytes) -> tuple[BlockKey, ...]:
    """Keys of the whole blocks of `tokens`; a partial last block has none."""
    # `chain`, with the salt absorbed once: a third of the time.
    packed, block_bytes = _packed(tokens), 4 * block_tokens
    salted = hashlib.blake2b(digest_size=KEY_BYTES, key=salt)
    keys: list[BlockKey] = []
    parent = ROOT
    for start in range(0, len(packed) - block_bytes + 1, block_bytes):
        block = salted.copy()
        block.update(parent + packed[start : start + block_bytes])
        parent = block.digest()
        keys.append(parent)
    return tuple(keys)


def text_keys(text: bytes, block_bytes: int, salt: bytes) -> list[TextKey]:
    """Keys of the whole blocks of `text`, `block_bytes` each, for a gateway's own memory of what it routed where.

    key[i] = hash((key[i - 1], block i)), key[-1] = salt, with Python's keyed hash (SipHash-1-3 under a secret that a
    process shares with its forked children only): 64 bits, five times cheaper than blake2b. They name no KV; two texts
    of one key would only be thought to share a prefix.
    """
    keys: list[TextKey] = []
    parent: int | bytes = salt
    for start in range(0, len(text) - block_bytes + 1, block_bytes):
        parent = hash((parent, text[start : start + block_bytes]))
        keys.append(parent)
    return keys


def prompt_digest(tokens: Sequence[int], block_tokens: int, salt: bytes) -> bytes:
    """Names a whole prompt, partial last block included: what a ticket is bound to."""
    return digest_after(block_keys(tokens, block_tokens, salt), tokens, block_tokens, salt)


def digest_after(keys: Sequence[BlockKey], tokens: Sequence[int], block_tokens: int, salt: bytes) -> bytes:
    """`prompt_digest(tokens, ...)` for who has the keys of its whole blocks already."""
    tail = tokens[len(keys) * block_tokens :]
    parent = keys[-1] if keys else ROOT
    return chain(parent, tail, salt) if tail else parent


def blocks_for(num_tokens: int, block_tokens: int) -> int:
    """How many blocks hold `num_tokens`, the partial last one included."""
    return -(-num_tokens // block_tokens)
