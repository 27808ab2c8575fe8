"""Models whose sizes are published: parameters to the last one, KV bytes a token, and files that are no config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.model_config import parse_config, read_config
from loadgen.errors import UsageError

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
LLAMA_1B = LLAMA_8B | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
QWEN_7B = LLAMA_8B | {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "sliding_window": 131072,
    "use_sliding_window": False,
}
GEMMA_7B = LLAMA_8B | {
    "model_type": "gemma",
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "vocab_size": 256000,
    "tie_word_embeddings": None,
}
GEMMA_2_9B = GEMMA_7B | {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "sliding_window": 128,
}
MAVERICK = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8192,
    "vocab_size": 202048,
}
MIXTRAL = LLAMA_8B | {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "torch_dtype": "bfloat16",
}


JAMBA = {
    "model_type": "jamba",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "tie_word_embeddings": False,
    "vocab_size": 65536,
}
QWEN_NEXT = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("fields", "parameters", "kv_bytes"),
    [
        (LLAMA_8B, 8_030_261_248, 131_072),
        (LLAMA_70B, 70_553_706_496, 327_680),
        (LLAMA_1B, 1_235_814_400, 32_768),
        (QWEN_7B, 7_615_616_512, 57_344),
        (MIXTRAL, 46_702_792_704, 131_072),
        (GEMMA_7B, 8_537_680_896, 458_752),
        (GEMMA_2_9B, 9_241_705_984, 344_064),
    ],
)
def test_dense_and_expert_models_to_the_last_parameter(fields: dict[str, Any], parameters: int, kv_bytes: int) -> None:
    config = parse_config(fields)
    assert (config.parameters, config.kv_bytes_per_token) == (parameters, kv_bytes)
    assert config.weights_bytes == 2 * parameters


def test_dense_layers_between_those_with_experts_and_an_expert_for_every_token() -> None:
    config = parse_config({"model_type": "llama4", "text_config": MAVERICK})
    assert config.parameters == pytest.approx(400.7e9, rel=0.001)
    assert config.active_parameters == pytest.approx(17.18e9 - 202048 * 5120, rel=0.001)
    scout = parse_config(MAVERICK | {"num_local_experts": 16, "interleave_moe_layer_step": 1})
    assert scout.parameters == pytest.approx(107.77e9, rel=0.001)


def test_a_token_is_sent_to_few_of_the_experts() -> None:
    """Without the embedding, which is looked up."""
    assert parse_config(MIXTRAL).active_parameters == pytest.approx(12.88e9 - 32000 * 4096, rel=0.001)
    deepseek = parse_config(DEEPSEEK_V3)
    assert deepseek.parameters == pytest.approx(671.03e9, rel=0.0001)
    assert deepseek.active_parameters == pytest.approx(37.55e9 - 129280 * 7168, rel=0.001)
    assert parse_config(GPT_OSS).active_parameters == pytest.approx(3.61e9, rel=0.001)


def test_a_small_batch_reads_few_of_the_experts() -> None:
    config = parse_config(MIXTRAL)
    one, many = config.weights_read(1), config.weights_read(200)
    assert one == pytest.approx(2 * (config.active_parameters + 32000 * 4096))
    assert many == pytest.approx(config.weights_bytes)
    assert config.weights_read(2) == pytest.approx(config.weights_bytes - 0.75**2 * config.expert_bytes)
    dense = parse_config(LLAMA_8B)
    assert dense.weights_read(1) == dense.weights_bytes


def test_latent_attention_keeps_one_vector_a_token() -> None:
    config = parse_config(DEEPSEEK_V3)
    assert config.kv_bytes_per_token == 61 * (512 + 64) * 2
    assert (config.qk_dim, config.v_dim) == (192, 128)
    assert config.attention_flops(0, 1000) == 2 * 128 * (192 + 128) * 61 * 500


def test_attention_sees_half_of_a_prompt_and_no_more_than_the_window() -> None:
    per_token = 4 * 32 * 4096
    assert parse_config(LLAMA_8B).attention_flops(0, 3000) == per_token * 1500
    windowed = parse_config(LLAMA_8B | {"model_type": "mistral", "sliding_window": 1000})
    assert windowed.attention_flops(0, 3000) == pytest.approx(per_token * (500 * 1000 + 1000 * 2000) / 3000)
    assert windowed.attention_flops(0, 800) == pytest.approx(per_token * 400)
    assert windowed.attention_flops(2000, 3000) == windowed.attention_flops(3000, 3000) == per_token * 1000


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
            8,
        ),
        ({"quant_method": "mxfp4"}, 4.25),
    ],
)
def test_quantized_matrices_leave_embeddings_as_they_are(quantization: dict[str, Any], bits: float) -> None:
    config = parse_config(LLAMA_8B | {"quantization_config": quantization})
    rest = 2 * 128256 * 4096 + 65 * 4096
    assert config.weights_bytes == pytest.approx((8_030_261_248 - rest) * bits / 8 + 2 * rest, rel=1e-9)
    assert config.kv_bytes_per_token == 131_072


def test_a_cache_in_8_bits_is_half_as_large() -> None:
    assert parse_config(LLAMA_8B | {"kv_cache_dtype": "fp8"}).kv_bytes_per_token == 65_536
    in_file = LLAMA_8B | {"quantization_config": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    assert parse_config(in_file).kv_bytes_per_token == 65_536
    assert parse_config(LLAMA_8B | {"torch_dtype": "float32"}).kv_bytes_per_token == 262_144


def test_a_window_bounds_what_its_layers_hold() -> None:
    all_layers = parse_config(LLAMA_8B | {"model_type": "mistral", "sliding_window": 4096})
    assert all_layers.kv_bytes(1000) == 1000 * 131_072
    assert all_layers.kv_bytes(9000) == 4096 * 131_072
    some = parse_config(
        LLAMA_8B | {"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 16}
    )
    assert some.kv_bytes(3000) == (16 * 3000 + 16 * 1024) * 4096
    hybrid = parse_config(LLAMA_8B | {"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8})
    assert hybrid.kv_bytes_per_token == 8 * 4096


@pytest.mark.parametrize(
    ("fields", "kv_bytes", "parameters"),
    [
        (JAMBA, 16_384, 51.57e9),
        (JAMBA | {"attn_layer_offset": 7, "expert_layer_offset": 0}, 16_384, 51.57e9),
        (QWEN_NEXT, 24_576, 79.67e9),
    ],
)
def test_few_layers_of_a_period_hold_tokens_and_have_experts(
    fields: dict[str, Any], kv_bytes: int, parameters: float
) -> None:
    """The others are taken to have as many parameters as attention has, which is not far off."""
    config = parse_config(fields)
    assert (config.kv_bytes_per_token, config.kv_why) == (kv_bytes, None)
    assert config.parameters == pytest.approx(parameters, rel=0.04)
    assert config.active_parameters < 0.25 * parameters


@pytest.mark.parametrize(
    ("fields", "full", "windowed"),
    [
        (GEMMA_2_9B, 21, 21),
        (GPT_OSS, 12, 12),
        (MAVERICK, 12, 36),
        (GEMMA_2_9B | {"model_type": "gemma3_text"}, 7, 35),
        (LLAMA_8B | {"model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"}, 8, 24),
        (QWEN_7B, 28, 0),
        (LLAMA_8B | {"attn_type_list": [1] * 32}, 32, 0),
        (LLAMA_8B | {"attn_type_list": [*[0] * 7, 1] * 4}, 4, 0),
        (QWEN_7B | {"use_sliding_window": None, "max_window_layers": 20}, 28, 0),
        (QWEN_7B | {"use_sliding_window": True, "max_window_layers": 20}, 20, 8),
        (LLAMA_8B | {"model_type": "mistral", "sliding_window": 4096, "use_sliding_window": None}, 0, 32),
    ],
)
def test_which_layers_have_the_window(fields: dict[str, Any], full: int, windowed: int) -> None:
    config = parse_config(fields)
    assert (config.layers_full, config.layers_windowed, config.kv_why) == (full, windowed, None)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sliding_window": 4096}, "does not say which layers"),
        ({"hybrid_override_pattern": "M-M*" * 8}, "has hybrid_override_pattern, by which its layers differ"),
        ({"attn_type_list": [2] * 32}, "has attn_type_list, by which its layers differ"),
        ({"num_kv_shared_layers": 8, "layer_types": ["full_attention"] * 32}, "has num_kv_shared_layers"),
        ({"layer_types": ["sliding_attention"] * 32}, "does not say how large"),
        ({"quantization_config": {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}}, "'NVFP4', which is unknown"),
    ],
)
def test_a_cache_of_unknown_size_is_not_known_and_the_weights_are(fields: dict[str, Any], why: str) -> None:
    config = parse_config(LLAMA_8B | fields)
    assert (config.kv_bytes_per_token, config.kv_bytes(100)) == (None, None)
    assert config.kv_why is not None and why in config.kv_why
    assert config.parameters == 8_030_261_248


def test_the_text_part_of_a_model_that_sees() -> None:
    inner = {key: value for key, value in LLAMA_8B.items() if key != "torch_dtype"}
    config = parse_config({"model_type": "llava", "dtype": "bfloat16", "text_config": inner})
    assert (config.name, config.parameters) == ("llava", 8_030_261_248)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no JSON object"),
        ("{}", "has no num_hidden_layers"),
        (json.dumps(LLAMA_8B | {"hidden_size": "big"}), "has hidden_size 'big', which is no count"),
        (json.dumps(LLAMA_8B | {"torch_dtype": "int3"}), "has the data type 'int3', which is unknown"),
        (json.dumps(LLAMA_8B | {"quantization_config": {"quant_method": "x"}}), "does not tell its bits"),
        *(
            (json.dumps(LLAMA_8B | {"quantization_config": {"config_groups": {"g": group}}}), "does not tell its bits")
            for group in (5, None, {"weights": 4})
        ),
        (json.dumps(LLAMA_8B | {"layer_types": [["full_attention"]] * 32}), "not a name for each layer"),
        (json.dumps(LLAMA_8B | {"layer_types": ["full_attention"]}), "not a name for each layer"),
        ("[" * 100_000, "is no JSON"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_config_is_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_config(path)
    message = str(caught.value)
    assert said in message and message.endswith("give the config.json of the model's folder") and "\n" not in message
