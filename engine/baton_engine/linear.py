"""Matrix products with weights, each batch size by the kernel that is fastest for it on a CPU.

Measured on one Zen 3 core, float32, weight 2816 x 512 out of cache (ms, F.linear / stored transposed / oneDNN packed):
1 row 0.42 / 0.23 / 0.67; 8 rows 0.89 / 0.77 / 0.58; 32 rows 1.65 / 1.52 / 1.43; from 128 rows on they are equal.
bfloat16 on a CPU without bfloat16 instructions: 8 rows 2.4, against 0.6 for the float32 packed copy.
Hence: one row goes to the plain weight (stored transposed when out > in, see `empty_weight`), a few rows to a packed
second copy, as far as the budget for copies reaches, and many rows to the plain weight again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_FOR_ROWS = 32
"""The batch size that oneDNN is told when it packs; the packing it then chooses is good for 2 to 64 rows."""
MOST_PACKED_ROWS = 64


class CopyBudget:
    """Bytes that second copies of weights may still take."""

    def __init__(self, total_bytes: int) -> None:
        self.left_bytes = total_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether there was room; takes it."""
        if size_bytes > self.left_bytes:
            return False
        self.left_bytes -= size_bytes
        return True


class Linear:
    """x W^T + b, weight [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, budget: CopyBudget) -> None:
        self._weight, self._bias = weight, bias
        self._packed: Tensor | None = None
        self._most_packed_rows = MOST_PACKED_ROWS
        self._packed_bias = bias
        if can_pack(weight.device) and budget.take(4 * weight.numel()):
            self._pack()

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if self._packed is None or not 1 < x.shape[0] <= self._most_packed_rows:
            return F.linear(x, self._weight, self._bias)
        wide = x.to(torch.float32)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(wide, self._packed, self._packed_bias, "none", [], "")
        return result.to(x.dtype)

    def _pack(self) -> None:
        """Always float32: a bfloat16 weight is packed only where its own kernels are slow, and then for all batches."""
        if self._weight.dtype == torch.bfloat16:
            if torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return
            self._most_packed_rows = 1 << 62
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight.float().contiguous(), PACKED_FOR_ROWS)
        self._packed_bias = None if self._bias is None else self._bias.float()


def can_pack(device: torch.device) -> bool:
    """oneDNN's packed products are what torch.compile emits for CPUs; not every build has them."""
    return device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def empty_weight(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a weight [rows, columns]; on a CPU a tall float32 one is stored transposed: a product with one row
    then reads it twice as fast (in bfloat16 it would be five times slower)."""
    if device.type == "cpu" and dtype == torch.float32 and rows > columns:
        return torch.empty((columns, rows), dtype=dtype, device=device).t()
    return torch.empty((rows, columns), dtype=dtype, device=device)
