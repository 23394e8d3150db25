"""Loads a checkpoint into the fused weights of the forward pass: q, k, v in one matrix, gate and up in another.

Files are memory-mapped and each tensor is copied once, straight into its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from baton_api.errors import SettingError

from .checkpoint import TensorFile
from .config import ModelConfig
from .linear import empty_weight

Progress = Callable[[int, int], None]
"""Called after each tensor with (bytes read so far, bytes in all)."""

STORED_DTYPES = ("F32", "BF16", "F16")
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One transformer layer. Matrices are [out, in], as F.linear takes them; a bias is None where there is none."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    """[2 * head_dim]: the query norm's weight, then the key norm's."""
    output: Tensor
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """`lm_head` is `embedding` itself when they are tied."""

    embedding: Tensor
    layers: list[LayerWeights]
    final_norm: Tensor
    lm_head: Tensor


Places = dict[str, Tensor]
"""Checkpoint name -> the part of a fused weight that it fills (a view)."""


def load_weights(
    config: ModelConfig, files: list[TensorFile], dtype: torch.dtype, device: torch.device, progress: Progress | None
) -> ModelWeights:
    """Raises SettingError when a tensor is missing, unknown, of the wrong shape or of a dtype we do not read."""
    places: Places = {}
    weights = _allocate(config, _Allocator(dtype, device, places))
    wanted = dict(places)
    total_bytes, done_bytes = sum(entry.end - entry.begin for f in files for entry in f.tensors.values()), 0
    for file in files:
        for name, tensor in _tensors(file):
            _fill(config, wanted, name, tensor, file.path)
            done_bytes += tensor.nbytes
            if progress is not None:
                progress(done_bytes, total_bytes)
    if wanted:
        raise SettingError(
            "model", sorted(wanted)[:4], f"{len(wanted)} tensors are missing", "download the model again"
        )
    return weights


def _tensors(file: TensorFile) -> Iterator[tuple[str, Tensor]]:
    for name, entry in file.tensors.items():
        if entry.dtype not in STORED_DTYPES:
            raise SettingError("model", name, f"is stored as {entry.dtype}", f"use one of {', '.join(STORED_DTYPES)}")
    with safe_open(file.path, framework="pt", device="cpu") as opened:
        for name in file.tensors:
            yield name, opened.get_tensor(name)


def _fill(config: ModelConfig, wanted: Places, name: str, tensor: Tensor, path: Path) -> None:
    place = wanted.pop(name, None)
    if place is None:
        if name.endswith(IGNORED_SUFFIXES) or (name == "lm_head.weight" and config.tied_embeddings):
            return
        raise SettingError("model", name, f"in {path} is unknown or there twice", "is config.json of this model?")
    if tensor.shape != place.shape:
        raise SettingError(
            "model", name, f"has shape {list(tensor.shape)}, not {list(place.shape)}", "is config.json of this model?"
        )
    place.copy_(tensor)


class _Allocator:
    """Makes fused tensors and notes which checkpoint tensor fills which part."""

    def __init__(self, dtype: torch.dtype, device: torch.device, places: Places) -> None:
        self._dtype, self._device, self._places = dtype, device, places

    def vector(self, sizes: dict[str, int]) -> Tensor:
        """A tensor [sum of sizes]; each name fills as many elements as its size says, in order."""
        return self._placed(sizes, torch.empty(sum(sizes.values()), dtype=self._dtype, device=self._device))

    def matrix(self, sizes: dict[str, int], columns: int) -> Tensor:
        """A weight [sum of sizes, columns]; each name fills as many rows as its size says, in order."""
        return self._placed(sizes, empty_weight(sum(sizes.values()), columns, self._dtype, self._device))

    def table(self, name: str, rows: int, columns: int) -> Tensor:
        """A row-major [rows, columns], to look rows up in."""
        return self._placed({name: rows}, torch.empty((rows, columns), dtype=self._dtype, device=self._device))

    def _placed(self, sizes: dict[str, int], whole: Tensor) -> Tensor:
        for name, part in zip(sizes, torch.split(whole, list(sizes.values())), strict=True):
            self._places[name] = part
        return whole

    def linear(self, prefix: str, sizes: dict[str, int], columns: int, bias: bool) -> tuple[Tensor, Tensor | None]:
        names = {f"{prefix}.{name}": size for name, size in sizes.items()}
        weight = self.matrix({f"{name}.weight": size for name, size in names.items()}, columns)
        return weight, self.vector({f"{name}.bias": size for name, size in names.items()}) if bias else None


def _allocate(config: ModelConfig, make: _Allocator) -> ModelWeights:
    hidden = config.hidden_size
    embedding = make.table("model.embed_tokens.weight", config.vocab_size, hidden)
    return ModelWeights(
        embedding=embedding,
        layers=[_allocate_layer(config, make, f"model.layers.{i}") for i in range(config.num_layers)],
        final_norm=make.vector({"model.norm.weight": hidden}),
        lm_head=embedding if config.tied_embeddings else make.matrix({"lm_head.weight": config.vocab_size}, hidden),
    )


def _allocate_layer(config: ModelConfig, make: _Allocator, prefix: str) -> LayerWeights:
    hidden, inner, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv, qkv_bias = make.linear(attention, {"q_proj": q, "k_proj": kv, "v_proj": kv}, hidden, config.qkv_bias)
    output, output_bias = make.linear(attention, {"o_proj": hidden}, q, config.output_bias)
    gate_up, gate_up_bias = make.linear(mlp, {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias)
    down, down_bias = make.linear(mlp, {"down_proj": hidden}, inner, config.mlp_bias)
    return LayerWeights(
        input_norm=make.vector({f"{prefix}.input_layernorm.weight": hidden}),
        qkv=qkv,
        qkv_bias=qkv_bias,
        qk_norm=make.vector(
            {f"{attention}.q_norm.weight": config.head_dim, f"{attention}.k_norm.weight": config.head_dim}
        )
        if config.qk_norm
        else None,
        output=output,
        output_bias=output_bias,
        post_norm=make.vector({f"{prefix}.post_attention_layernorm.weight": hidden}),
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=down,
        down_bias=down_bias,
    )
