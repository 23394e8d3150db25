"""Parses a Hugging Face config.json into what our forward pass needs, or says why it cannot be served. Pure.

Understands the layouts of transformers v4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and v5 (`rope_parameters`,
`dtype`). A feature that would change the numbers and that we do not compute is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from baton_api.errors import SettingError

Family = Literal["llama", "qwen2", "qwen3"]
RopeKind = Literal["default", "linear", "llama3"]

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. The last three fields are of kind "llama3" (transformers, modeling_rope_utils.py)."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer of the Llama, Qwen2 or Qwen3 family, checked and complete."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str
    eos_token_ids: frozenset[int]

    @property
    def q_size(self) -> int:
        """Width of the queries of one token."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys (and of the values) of one token."""
        return self.num_kv_heads * self.head_dim

    @property
    def kv_identity(self) -> dict[str, Any]:
        """The part of the config that decides KV values; what is missing here (EOS, limits) changes none of them."""
        other = {"eos_token_ids", "max_positions", "dtype", "tied_embeddings"}
        return {name: value for name, value in asdict(self).items() if name not in other}


def parse_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """`config` is config.json, `generation` generation_config.json (its EOS ids win, as in transformers).

    Raises SettingError that names the field, its value and the fix.
    """
    family = _family(config)
    _refuse_unsupported(config)
    hidden, heads = _positive(config, "hidden_size"), _positive(config, "num_attention_heads")
    kv_heads = _positive(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise SettingError("num_key_value_heads", kv_heads, f"does not divide the {heads} heads", "mend config.json")
    attention_bias = bool(config.get("attention_bias", False))
    vocab_size = _positive(config, "vocab_size")
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=_positive(config, "intermediate_size"),
        num_layers=_positive(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(config, family, hidden // heads),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config),
        max_positions=_positive(config, "max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or attention_bias,
        output_bias=family != "qwen2" and attention_bias,
        mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        dtype=_dtype(config),
        eos_token_ids=_eos(config, generation or {}, vocab_size),
    )


def _family(config: Mapping[str, Any]) -> Family:
    architectures = config.get("architectures") or []
    if len(architectures) == 1 and architectures[0] in FAMILIES:
        return FAMILIES[architectures[0]]
    raise SettingError(
        "architectures", architectures, "is not served by the native engine", f"use one of {', '.join(FAMILIES)}"
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise SettingError(
            "quantization_config.quant_method", method, "is not supported", "use float32 or bfloat16 weights"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise SettingError("hidden_act", config["hidden_act"], "is not supported", "use a model with silu")
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(field):
            raise SettingError(field, config[field], "means a mixture of experts", "use a dense model")
    windowed = config.get("use_sliding_window", False) and config.get("sliding_window") is not None
    if windowed or "sliding_attention" in (config.get("layer_types") or []):
        raise SettingError(
            "sliding_window",
            config.get("sliding_window"),
            "is in use, and the native engine has full attention only",
            "set use_sliding_window to false if the model allows it, or use another engine",
        )


def _head_dim(config: Mapping[str, Any], family: Family, derived: int) -> int:
    """Qwen2 knows no head_dim; transformers' default for Qwen3 is 128, for Llama hidden / heads."""
    default = 128 if family == "qwen3" and "head_dim" not in config else derived
    head_dim = _positive(config, "head_dim", default) if family != "qwen2" else derived
    if head_dim % 2:
        raise SettingError("head_dim", head_dim, "is odd, and rotary embedding turns pairs", "mend config.json")
    return head_dim


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    raw = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(raw.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = raw.get("rope_type", raw.get("type", "default"))
    partial = raw.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise SettingError("partial_rotary_factor", partial, "is not supported", "use a model that rotates whole heads")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig("linear", theta, _rope_number(raw, "factor"))
    if kind == "llama3":
        original = _positive(raw, "original_max_position_embeddings", _positive(config, "max_position_embeddings"))
        low, high = _rope_number(raw, "low_freq_factor"), _rope_number(raw, "high_freq_factor")
        if not low < high:
            raise SettingError("rope high_freq_factor", high, f"is not above low_freq_factor {low}", "mend config.json")
        return RopeConfig("llama3", theta, _rope_number(raw, "factor"), low, high, original)
    raise SettingError(
        "rope_type",
        kind,
        "is not supported",
        "use default, linear or llama3, or drop the scaling and its extra context",
    )


def _rope_number(raw: Mapping[str, Any], name: str) -> float:
    value = raw.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise SettingError(f"rope {name}", value, "is not a positive number", "mend config.json")
    return float(value)


def _dtype(config: Mapping[str, Any]) -> str:
    """What the weights are stored in; float16 checkpoints are served as float32 unless a setting says otherwise."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return stored if stored in DTYPES else "float32"


def _eos(config: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int) -> frozenset[int]:
    raw = generation.get("eos_token_id")
    raw = config.get("eos_token_id") if raw is None else raw
    ids = [] if raw is None else raw if isinstance(raw, list) else [raw]
    for token_id in ids:
        if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise SettingError("eos_token_id", token_id, f"is not in [0, {vocab_size})", "mend generation_config.json")
    return frozenset(ids)


def _positive(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(name, value, "is not a positive integer", "mend config.json")
    return value
