"""config.json of every served shape is understood; everything else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from baton_api.errors import SettingError
from baton_engine.config import RopeConfig, parse_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": 4096}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "head_dim": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def test_llama_has_no_bias_and_no_norm_of_queries() -> None:
    config = parse_config(LLAMA)
    assert (config.family, config.head_dim, config.q_size, config.kv_size) == ("llama", 16, 64, 32)
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm or config.tied_embeddings)
    assert config.rope == RopeConfig() and config.eos_token_ids == {2} and config.dtype == "float32"


def test_a_llama_with_biases_has_them_in_attention_and_mlp() -> None:
    config = parse_config({**LLAMA, "attention_bias": True, "mlp_bias": True})
    assert config.qkv_bias and config.output_bias and config.mlp_bias


def test_qwen2_has_biases_on_queries_keys_and_values_only() -> None:
    config = parse_config({**QWEN2, "head_dim": 99})
    assert (config.qkv_bias, config.output_bias, config.head_dim) == (True, False, 16)


def test_qwen3_norms_queries_and_keys_and_names_its_head_dim() -> None:
    assert parse_config(QWEN3).qk_norm and parse_config(QWEN3).head_dim == 32
    assert parse_config(without(QWEN3, "head_dim")).head_dim == 128


def test_kv_heads_default_to_heads() -> None:
    assert parse_config(without(LLAMA, "num_key_value_heads")).num_kv_heads == 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(theta=5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, RopeConfig(theta=1e6)),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 7.0}, RopeConfig("linear", 7.0, 2.0)),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5},
            RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 512),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 512),
        ),
    ],
)
def test_rope_is_read_as_v4_and_as_v5_of_transformers_write_it(fields: dict[str, Any], expected: RopeConfig) -> None:
    assert parse_config({**LLAMA, **fields}).rope == expected


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, None, {2}),
        ([2, 5], None, {2, 5}),
        (2, {"eos_token_id": [7, 8]}, {7, 8}),
        (2, {"temperature": 0.6}, {2}),
        (None, None, set()),
    ],
)
def test_eos_ids_come_from_the_generation_config_first(
    config_eos: Any, generation: dict[str, Any] | None, expected: set[int]
) -> None:
    assert parse_config({**LLAMA, "eos_token_id": config_eos}, generation).eos_token_ids == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "torch.float32"}, "float32"),
        ({"torch_dtype": "float16"}, "float32"),
    ],
)
def test_the_dtype_is_the_stored_one_if_we_compute_in_it(fields: dict[str, Any], expected: str) -> None:
    assert parse_config({**LLAMA, **fields}).dtype == expected


@pytest.mark.parametrize(
    ("base", "fields", "named"),
    [
        (LLAMA, {"architectures": ["MixtralForCausalLM"]}, "architectures"),
        (LLAMA, {"architectures": None}, "architectures"),
        (LLAMA, {"architectures": ["LlamaForCausalLM", "Other"]}, "architectures"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA, {"num_local_experts": 8}, "num_local_experts"),
        (QWEN2, {"use_sliding_window": True}, "sliding_window"),
        (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "rope factor"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope factor"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "rope high_freq_factor"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads"),
        (LLAMA, {"head_dim": 15}, "head_dim"),
        (LLAMA, {"hidden_size": None}, "hidden_size"),
        (LLAMA, {"vocab_size": 0}, "vocab_size"),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers"),
        (LLAMA, {"eos_token_id": 1000}, "eos_token_id"),
        (LLAMA, {"eos_token_id": ["2"]}, "eos_token_id"),
    ],
)
def test_what_is_not_served_is_refused_by_field(base: dict[str, Any], fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_config({**base, **fields})
    assert caught.value.field == named


def test_the_kv_identity_moves_with_what_changes_kv_and_with_nothing_else() -> None:
    same = [{**LLAMA, "eos_token_id": 9}, {**LLAMA, "max_position_embeddings": 99}, {**LLAMA, "dtype": "bfloat16"}]
    other = [{**LLAMA, "rope_theta": 5e5}, {**LLAMA, "rms_norm_eps": 1e-6}, {**LLAMA, "num_hidden_layers": 3}, QWEN2]
    identity = parse_config(LLAMA).kv_identity
    assert all(parse_config(config).kv_identity == identity for config in same)
    assert all(parse_config(config).kv_identity != identity for config in other)
