"""KvLayout: what makes two workers' blocks byte-compatible. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from .errors import SettingError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class KvLayout:
    """One block's KV of all layers is one contiguous region of `block_bytes` (block-major).

    `arrangement` names the order of axes inside a block and whatever else decides its bytes (packing, engine);
    `model_digest` covers weights and everything in the config that changes KV values (RoPE, norms).
    """

    model_digest: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: str
    arrangement: str
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        for field in ("num_layers", "num_kv_heads", "head_dim", "block_tokens", "tensor_parallel"):
            value = getattr(self, field)
            if value < 1:
                raise SettingError(f"layout.{field}", value, "is below 1", "use a positive integer")
        if self.dtype not in DTYPE_BYTES:
            raise SettingError("layout.dtype", self.dtype, "is unknown", f"use one of {sorted(DTYPE_BYTES)}")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K and V over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers, K and V."""
        return self.token_bytes * self.block_tokens

    @property
    def fingerprint(self) -> str:
        """32 hex digits; two workers may exchange blocks only if theirs are equal (invariant I4)."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]
