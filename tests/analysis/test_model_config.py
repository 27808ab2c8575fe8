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


@pytest.mark.parametrize(
    ("fields", "parameters", "kv_bytes"),
    [
        (LLAMA_8B, 8_030_261_248, 131_072),
        (LLAMA_70B, 70_553_706_496, 327_680),
        (LLAMA_1B, 1_235_814_400, 32_768),
        (QWEN_7B, 7_615_616_512, 57_344),
        (MIXTRAL, 46_702_792_704, 131_072),
    ],
)
def test_dense_and_expert_models_to_the_last_parameter(fields: dict[str, Any], parameters: int, kv_bytes: int) -> None:
    config = parse_config(fields)
    assert (config.parameters, config.kv_bytes_per_token) == (parameters, kv_bytes)
    assert config.weights_bytes == 2 * parameters


def test_a_token_is_sent_to_few_of_the_experts() -> None:
    assert parse_config(MIXTRAL).active_parameters == pytest.approx(12.88e9, rel=0.001)
    deepseek = parse_config(DEEPSEEK_V3)
    assert deepseek.parameters == pytest.approx(671.03e9, rel=0.0001)
    assert deepseek.active_parameters == pytest.approx(37.55e9, rel=0.001)


def test_latent_attention_keeps_one_vector_a_token() -> None:
    assert parse_config(DEEPSEEK_V3).kv_bytes_per_token == 61 * (512 + 64) * 2


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
    all_layers = parse_config(LLAMA_8B | {"sliding_window": 4096})
    assert all_layers.kv_bytes(1000) == 1000 * 131_072
    assert all_layers.kv_bytes(9000) == 4096 * 131_072
    some = parse_config(
        LLAMA_8B | {"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 16}
    )
    assert some.kv_bytes(3000) == (16 * 3000 + 16 * 1024) * 4096
    hybrid = parse_config(LLAMA_8B | {"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8})
    assert hybrid.kv_bytes_per_token == 8 * 4096


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
