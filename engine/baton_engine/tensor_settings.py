"""The settings of the tensor half. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.errors import SettingError
from baton_api.settings import setting

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class TensorSettings:
    device: str = setting("auto", "auto, cpu, cuda or cuda:<index>", pattern=r"auto|cpu|cuda(:\d+)?")
    dtype: str = setting(
        "auto",
        "dtype of weights and KV; auto: float32 on a CPU, else the checkpoint's",
        choices=("auto", "float32", "bfloat16"),
    )
    block_tokens: int = setting(16, "tokens of a KV block", low=1, high=1024)
    kv_bytes: int = setting(GIB, "bytes of KV cache; num_blocks wins when both are given", low=1)
    num_blocks: int | None = setting(None, "blocks of KV cache", low=1)
    max_model_len: int | None = setting(None, "longest prompt plus output in tokens; default: the model's own", low=1)
    packed_weights_bytes: int = setting(
        4 * GIB, "bytes for second copies of weights that make small batches faster on a CPU; 0 for none", low=0
    )
    threads: int | None = setting(None, "threads of one tensor operation on a CPU; default: torch's", low=1)

    def blocks(self, block_bytes: int) -> int:
        """How many blocks of `block_bytes` there will be. Raises SettingError when there would be none."""
        count = self.num_blocks if self.num_blocks is not None else self.kv_bytes // block_bytes
        if count < 1:
            raise SettingError("kv_bytes", self.kv_bytes, f"holds no block of {block_bytes} bytes", "use more")
        return count
