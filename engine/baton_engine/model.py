"""The forward pass of Llama, Qwen2 and Qwen3 over a flat batch of tokens, in transformers' numerics.

Norms and rotary angles are computed in float32 and rounded where transformers rounds them, so that bfloat16 results
differ from it by the order of sums, and where packed weights finish a product (see linear.py) by a rounding left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import AttentionPlan, PagedAttention
from .config import ModelConfig
from .linear import CopyBudget, GatedLinear, Linear, can_pack
from .rope import rope_table, rotate
from .weights import LayerWeights, ModelWeights


class Layer:
    """One layer's weights, ready for products: norms are vectors, matrices `Linear`s."""

    def __init__(self, config: ModelConfig, weights: LayerWeights, budget: CopyBudget) -> None:
        self.input_norm, self.post_norm = weights.input_norm, weights.post_norm
        self.qk_norm = None if weights.qk_norm is None else _per_head(config, weights.qk_norm)
        self.qkv = Linear(weights.qkv, weights.qkv_bias, budget)
        self.output = Linear(weights.output, weights.output_bias, budget)
        self.gated = GatedLinear(weights.gate_up, weights.gate_up_bias, budget)
        self.down = Linear(weights.down, weights.down_bias, budget)


class Model:
    """Weights, rotary tables and attention; stateless but for the KV pool behind `attention`.

    It takes the layers out of `weights`: where a packed weight replaces a plain one, the plain one is freed at once.
    """

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, attention: PagedAttention, positions: int, budget: CopyBudget
    ) -> None:
        self._config, self._attention = config, attention
        self._embedding, self._final_norm = weights.embedding, weights.final_norm
        self._layers = [Layer(config, layer, budget) for layer in _taken(weights.layers)]
        tied = weights.lm_head is weights.embedding
        self._lm_head = Linear(_own_head(weights, budget), None, budget, kept=tied)
        self._cos, self._sin = rope_table(config, positions, self._embedding.dtype, self._embedding.device)

    def hidden(self, token_ids: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        """`token_ids`, `positions` [num_tokens] int64 -> [num_tokens, hidden_size] before the final norm."""
        x = F.embedding(token_ids, self._embedding)
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        for index, layer in enumerate(self._layers):
            queries, kv = self._qkv(layer, x, cos, sin)
            attended = self._attention.attend(plan, index, queries, kv)
            x = layer.output.plus(attended, x)
            x = layer.down.plus(layer.gated(self._norm(x, layer.post_norm)), x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden_size] -> [rows, vocab_size] float32."""
        return self._lm_head(self._norm(hidden, self._final_norm)).float()

    def _qkv(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [num_tokens, heads, head_dim] and KV [num_tokens, 2, kv_heads, head_dim], rotated."""
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        qkv = layer.qkv(self._norm(x, layer.input_norm))
        qkv = qkv.view(x.shape[0], heads + 2 * kv_heads, self._config.head_dim)
        turned = qkv[:, : heads + kv_heads]
        if layer.qk_norm is not None:
            turned = self._norm(turned, layer.qk_norm)
        qkv[:, : heads + kv_heads] = rotate(turned, cos, sin)
        return qkv[:, :heads], qkv[:, heads:].view(-1, 2, kv_heads, self._config.head_dim)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (arXiv:1910.07467) over the last axis; the product with the weight is in the dtype of `x`."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(self._config.rms_norm_eps).rsqrt_()
        scaled: Tensor = (wide * scale).to(x.dtype)
        return scaled.mul_(weight)


def _per_head(config: ModelConfig, norm: Tensor) -> Tensor:
    """[2 * head_dim] (queries' norm, keys' norm) -> [heads + kv_heads, head_dim]: one call norms both."""
    query, key = norm.chunk(2)
    return torch.cat((query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1)))


def _taken(layers: list[LayerWeights]) -> Iterator[LayerWeights]:
    while layers:
        yield layers.pop(0)


def _own_head(weights: ModelWeights, budget: CopyBudget) -> Tensor:
    """Embeddings are stored for look-up; a tied float32 head on a CPU gets a transposed copy when there is room."""
    head = weights.lm_head
    wants = head is weights.embedding and head.dtype == torch.float32 and can_pack(head.device)
    if wants and budget.take(head.numel() * head.element_size()):
        return head.t().contiguous().t()
    return head
