"""Matrix products with weights, each batch size by the kernel that is fastest for it on a CPU.

Measured on one core, out of cache (ms, F.linear / weight stored transposed / packed by oneDNN):
Zen 3, float32, weight 2816 x 512: 1 row 0.42 / 0.23 / 0.67; 8 rows 0.89 / 0.77 / 0.58; 32 rows 1.65 / 1.52 / 1.43; from
128 rows on they are equal. bfloat16 without bfloat16 instructions: 8 rows 2.4, against 0.6 for the float32 packed copy.
Sapphire Rapids, bfloat16, weight 9728 x 896: 1 row 0.97 / 1.11 / 0.72; 32 rows 1.30 / 1.51 / 0.93; 128 rows 3.2 / 2.8 /
1.6; 512 rows 7.3 / 7.1 / 6.1.
Hence in float32: one row goes to the plain weight (stored transposed when out > in, see `empty_weight`), a few rows to
a packed second copy, as far as the budget for copies reaches, and many rows to the plain weight again. In bfloat16
where the CPU multiplies it, everything goes to the packed weight, and the plain one is let go.

A packed product can also finish what follows it (times the gate, plus the residual) before its result leaves the
registers: at 512 to 1024 rows a whole MLP takes 2 to 15 % less for it, in both dtypes.

oneDNN keeps about 0.6 MiB of code and buffers for every weight shape, finish and number of rows that it has seen, for
ever (2,000 numbers of rows of one shape: 1.3 GiB, measured; ONEDNN_PRIMITIVE_CACHE_CAPACITY does not bound it). So
packed products are made with few numbers of rows: batches are filled up with zeros to the next of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .huge_pages import back_weight

PACKED_FOR_ROWS = 32
"""The batch size that oneDNN is told when it packs float32; the packing it then chooses is good for 2 to 64 rows."""
BFLOAT16_PACKED_FOR_ROWS = 512
"""The same for bfloat16: this packing was best or within 5 % of the best from 1 to 1024 rows."""
MOST_PACKED_ROWS = 64
ANY_ROWS = 1 << 62


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


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight and its bias as oneDNN wants them, and how it may be used.

    `alone`: it serves every batch as well as the plain weight does, which need not be kept.
    """

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    alone: bool

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        """[rows, in] -> [rows, out], rows as `filled` makes them; `then`: "none" or "swish" (SiLU) of the result."""
        wide = x.to(self.dtype)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(wide, self.weight, self.bias, then, [], "")
        return result.to(x.dtype)

    def combined(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """Product "add"ed to `other` [rows, out], or "mul"tiplied with it; rounded once at the end; rows as above."""
        wide, more = x.to(self.dtype), other.to(self.dtype)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(wide, more, self.weight, self.bias, how)
        return result.to(x.dtype)


def pack(weight: Tensor, bias: Tensor | None, budget: CopyBudget, *, kept: bool = False) -> Packed | None:
    """`weight` [out, in] packed, if that pays here and `budget` has room. `kept`: somebody else needs the plain weight,
    so that the packed one is a second copy even where it could stand alone."""
    if not can_pack(weight.device):
        return None
    alone = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtype = torch.bfloat16 if alone else torch.float32
    if (kept or not alone) and not budget.take(dtype.itemsize * weight.numel()):
        return None
    rows = BFLOAT16_PACKED_FOR_ROWS if alone else PACKED_FOR_ROWS
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
    back_weight(packed)
    return Packed(packed, None if bias is None else bias.to(dtype), dtype, alone)


class Linear:
    """x W^T + b, weight [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, budget: CopyBudget, *, kept: bool = False) -> None:
        """`kept`: as in `pack`."""
        self._bias = bias
        self._packed = pack(weight, bias, budget, kept=kept)
        self._weight = None if self._packed is not None and self._packed.alone else weight
        if self._weight is not None:
            back_weight(weight)
        # A bfloat16 weight is packed in float32 where its own kernels are slow, and then for all batches.
        self._most_packed_rows = MOST_PACKED_ROWS if weight.dtype == torch.float32 else ANY_ROWS

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        packed = self._for_rows(x.shape[0])
        return F.linear(x, self._plain, self._bias) if packed is None else packed(filled(x))[: x.shape[0]]

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + x W^T + b, `residual` [rows, out]."""
        packed = self._for_rows(x.shape[0])
        if packed is None:
            return F.linear(x, self._plain, self._bias).add_(residual)
        return packed.combined(filled(x), filled(residual), "add")[: x.shape[0]]

    @property
    def _plain(self) -> Tensor:
        assert self._weight is not None
        return self._weight

    def _for_rows(self, rows: int) -> Packed | None:
        if self._weight is None or 1 < rows <= self._most_packed_rows:
            return self._packed
        return None


class GatedLinear:
    """SiLU(x G^T + g) * (x U^T + u); weight [2 * inner, in] holds G over U, bias [2 * inner] or None g before u."""

    def __init__(self, weight: Tensor, bias: Tensor | None, budget: CopyBudget) -> None:
        biases = (None, None) if bias is None else bias.chunk(2)
        gate, up = (pack(half, own, budget) for half, own in zip(weight.chunk(2), biases, strict=True))
        self._packed = None if gate is None or up is None else (gate, up)
        self._weight = None if self._packed is not None and self._packed[0].alone else weight
        if self._weight is not None:
            back_weight(weight)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, inner]."""
        if self._packed is not None and (self._weight is None or x.shape[0] > 1):
            gate, up = self._packed
            full = filled(x)
            return up.combined(full, gate(full, "swish"), "mul")[: x.shape[0]]
        assert self._weight is not None
        first, second = F.linear(x, self._weight, self._bias).chunk(2, dim=-1)
        return F.silu(first).mul_(second)


def filled(x: Tensor) -> Tensor:
    """[rows, columns] with rows of zeros below, up to `rows_for`; `x` itself where none are missing."""
    missing = rows_for(x.shape[0]) - x.shape[0]
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def rows_for(rows: int) -> int:
    """With how many rows a product of `rows` rows is made: all numbers to 8, then four of every octave, from 256 on
    eight. 28 numbers to 256, 52 to 2048."""
    steps = 4 if rows <= 256 else 8
    unit = max(1, (1 << (rows - 1).bit_length()) // (2 * steps))
    return -(-rows // unit) * unit


def can_pack(device: torch.device) -> bool:
    """oneDNN's packed products are what torch.compile emits for CPUs; not every build has them."""
    return device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def empty_weight(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a weight [rows, columns]; on a CPU a tall float32 one is stored transposed: a product with one row
    then reads it twice as fast (in bfloat16 it would be five times slower)."""
    if device.type == "cpu" and dtype == torch.float32 and rows > columns:
        return torch.empty((columns, rows), dtype=dtype, device=device).t()
    return torch.empty((rows, columns), dtype=dtype, device=device)
