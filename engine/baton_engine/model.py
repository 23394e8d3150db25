"""The forward pass of Llama, Qwen2 and Qwen3 over a flat batch of tokens, in transformers' numerics.

Norms and rotary angles are computed in float32 and rounded where transformers rounds them, so that bfloat16 results
differ from it only by the order of sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import AttentionPlan, PagedAttention
from .config import ModelConfig
from .rope import rope_table, rotate
from .weights import LayerWeights, ModelWeights


class Model:
    """Weights, rotary tables and attention; stateless but for the KV pool behind `attention`."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, attention: PagedAttention, positions: int) -> None:
        self._config, self._weights, self._attention = config, weights, attention
        embedding = weights.embedding
        self._cos, self._sin = rope_table(config, positions, embedding.dtype, embedding.device)
        self._qk_norms = [self._per_head(layer.qk_norm) for layer in weights.layers]

    def hidden(self, token_ids: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        """`token_ids`, `positions` [num_tokens] int64 -> [num_tokens, hidden_size] before the final norm."""
        x = F.embedding(token_ids, self._weights.embedding)
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        for index, layer in enumerate(self._weights.layers):
            queries, kv = self._qkv(index, layer, x, cos, sin)
            attended = self._attention.attend(plan, index, queries, kv)
            x = x + F.linear(attended, layer.output, layer.output_bias)
            x = x + self._mlp(layer, self._norm(x, layer.post_norm))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden_size] -> [rows, vocab_size] float32."""
        return F.linear(self._norm(hidden, self._weights.final_norm), self._weights.lm_head).float()

    def _qkv(self, index: int, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [num_tokens, heads, head_dim] and KV [num_tokens, 2, kv_heads, head_dim], rotated."""
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        qkv = F.linear(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(x.shape[0], heads + 2 * kv_heads, self._config.head_dim)
        turned = qkv[:, : heads + kv_heads]
        norm = self._qk_norms[index]
        if norm is not None:
            turned = self._norm(turned, norm)
        qkv[:, : heads + kv_heads] = rotate(turned, cos, sin)
        return qkv[:, :heads], qkv[:, heads:].view(-1, 2, kv_heads, self._config.head_dim)

    def _mlp(self, layer: LayerWeights, x: Tensor) -> Tensor:
        gate, up = F.linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (arXiv:1910.07467) over the last axis; the product with the weight is in the dtype of `x`."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(self._config.rms_norm_eps))
        return scaled.to(x.dtype).mul_(weight)

    def _per_head(self, norm: Tensor | None) -> Tensor | None:
        """[2 * head_dim] (queries' norm, keys' norm) -> [heads + kv_heads, head_dim]: one call norms both."""
        if norm is None:
            return None
        query, key = norm.chunk(2)
        return torch.cat((query.expand(self._config.num_heads, -1), key.expand(self._config.num_kv_heads, -1)))
