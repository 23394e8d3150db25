"""Rotary position embedding: the angle tables and the rotation, in transformers' numerics.

RoFormer (arXiv:2104.09864) with the halves layout of GPT-NeoX; scaling as transformers' modeling_rope_utils.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ModelConfig, RopeConfig


def rope_table(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each [positions, head_dim] in `dtype`; angles are computed in float32.

    The first half of sin carries the minus sign of rotate_half, so that `rotate` only has to swap halves.
    """
    frequencies = inverse_frequencies(config.rope, config.head_dim)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    table = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return table[0].to(device, dtype), table[1].to(device, dtype)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2] float32, radians per position."""
    frequencies = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    return frequencies


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    context = rope.original_max_positions
    wavelengths = 2 * math.pi / frequencies
    long, short = wavelengths > context / rope.low_freq_factor, wavelengths < context / rope.high_freq_factor
    scaled = torch.where(long, frequencies / rope.factor, frequencies)
    smooth = (context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where(~long & ~short, between, scaled)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [num_tokens, heads, head_dim] turned by cos and signed sin [num_tokens, 1, head_dim] of the same dtype.

    Products are rounded to the dtype before they are added, as transformers does.
    """
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1).mul_(sin))
