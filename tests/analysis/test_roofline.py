"""MFU and MBU by hand; which cards are known; and cards that cannot be told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.gpu_facts import gpu_facts
from analysis.gpu_peaks import peaks
from analysis.model_config import parse_config
from analysis.roofline import roofline
from tests.analysis.test_model_config import LLAMA_8B, MIXTRAL

QWEN_30B_A3B = LLAMA_8B | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}

H100 = {"name": "NVIDIA H100 80GB HBM3", "dram_peak_b_s": None}
STEP: dict[str, Any] = {
    "output_tokens_per_s": 1590.0,
    "tokens": {"prompt_mean": 900.0, "output_mean": 200.0, "prompt_per_s": 7000.0},
    "server": {
        "running": 16.0,
        "kv_used_tokens": 16_000.0,
        "prompt_tokens_per_s": 7200.0,
        "generation_tokens_per_s": 1600.0,
    },
}


def flops(tokens: float, context: float) -> float:
    """The embedding is looked up."""
    return tokens * (2 * (8_030_261_248 - 128_256 * 4096) + 4 * 32 * 4096 * context)


def with_server(**values: float) -> dict[str, Any]:
    return STEP | {"server": STEP["server"] | values}


def test_what_a_step_computed_and_read_by_hand() -> None:
    found = roofline(STEP, parse_config(LLAMA_8B), [H100], 1)
    assert found is not None
    assert found["mfu_pct"] == pytest.approx(100 * (flops(7200, 450) + flops(1600, 1000)) / 989e12)
    assert found["why"] is None
    bytes_per_iteration = 2 * 8_030_261_248 + 16_000 * 131_072
    assert found["mbu_pct"] == pytest.approx(100 * 100 * bytes_per_iteration / 3.35e12)


def test_two_engines_read_the_weights_twice_and_have_two_cards() -> None:
    one: dict[str, Any] = roofline(STEP, parse_config(LLAMA_8B), [H100], 1) or {}
    both = STEP | {"server": {name: 2 * value for name, value in STEP["server"].items()}}
    assert roofline(both, parse_config(LLAMA_8B), [H100, H100], 2) == pytest.approx(
        one | {name: 2 * value for name, value in one.items() if "_per_s" in name or "_flops" in name}
    )


def test_all_experts_are_read_and_few_compute() -> None:
    config = parse_config(MIXTRAL)
    found: dict[str, Any] = roofline(STEP, config, [H100] * 4, 1) or {}
    assert found["mbu_pct"] == pytest.approx(100 * 100 * (config.weights_read(16) + 16_000 * 131_072) / 13.4e12)
    assert config.weights_read(16) == pytest.approx(config.weights_bytes, rel=0.01)
    assert found["mfu_pct"] < 100 * 8800 * 2 * config.parameters / 3956e12 / 3


def test_without_model_or_card_there_is_none_and_without_a_batch_no_mbu() -> None:
    config = parse_config(LLAMA_8B)
    assert roofline(STEP, None, [H100], 1) is None
    assert roofline(STEP, config, [], 1) is None
    assert roofline(STEP, config, [H100, {"name": "Voodoo 2", "dram_peak_b_s": None}], 1) is None
    found = roofline(STEP | {"server": None}, config, [H100], 1)
    assert found is not None and found["mbu_pct"] is None and found["output_tokens_per_s"] == 1590
    assert found["why"] == "MBU is not known: the server does not tell how many requests run at once"


@pytest.mark.parametrize(
    ("told", "computed"),
    [
        ({"prefix_hit_pct": 80.0, "computed_prompt_tokens_per_s": 1440.0}, 1440),
        ({"prefix_hit_pct": 80.0}, 1440),
        ({"prefix_hit_pct": 80.0, "computed_prompt_tokens_per_s": 7200.0}, 7200),
    ],
)
def test_what_a_prefix_cache_had_was_not_computed(told: dict[str, float], computed: float) -> None:
    """The tokens that were are the last of their prompts."""
    found = roofline(with_server(**told), parse_config(LLAMA_8B), [H100], 1)
    assert found is not None
    context = (0.8 * 900 + 900) / 2
    assert found["mfu_pct"] == pytest.approx(100 * (flops(computed, context) + flops(1600, 1000)) / 989e12)


def test_the_servers_cache_is_read_as_it_is_and_not_as_the_config_says() -> None:
    found = roofline(STEP, parse_config(LLAMA_8B), [H100], 1, told=65_536)
    assert found is not None
    assert found["mbu_pct"] == pytest.approx(100 * 100 * (2 * 8_030_261_248 + 16_000 * 65_536) / 3.35e12)


def test_a_share_that_no_card_can_have_is_refused_with_its_reason() -> None:
    found = roofline(with_server(prompt_tokens_per_s=800_000.0, running=2.0), parse_config(LLAMA_8B), [H100], 1)
    assert found is not None and (found["mfu_pct"], found["mbu_pct"]) == (None, None)
    assert isinstance(found["why"], str)
    for name in ("MFU", "MBU"):
        assert re.search(rf"{name} came out as \d{{3,}} %, which no card can do", found["why"])


def test_one_request_of_an_expert_model_reads_those_that_it_is_sent_to() -> None:
    """Qwen3-30B-A3B at 200 tokens a second on an H200: with all experts it would be 254 %."""
    config = parse_config(QWEN_30B_A3B)
    step = STEP | {"server": {"running": 1.0, "generation_tokens_per_s": 200.0, "prompt_tokens_per_s": 100.0}}
    found = roofline(step, config, [{"name": "NVIDIA H200", "dram_peak_b_s": None}], 1)
    assert found is not None and isinstance(found["mbu_pct"], float)
    assert 25 < found["mbu_pct"] < 30


@pytest.mark.parametrize(
    ("name", "tera_flops", "tera_bytes"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 3.35),
        ("NVIDIA H100 PCIe", 756, 2.0),
        ("NVIDIA H200", 989, 4.8),
        ("NVIDIA A100-SXM4-80GB", 312, 2.039),
        ("NVIDIA A100-PCIE-40GB", 312, 1.555),
        ("A100-80G", 312, 2.039),
        ("NVIDIA L4", 121, 0.3),
        ("NVIDIA L40S", 362, 0.864),
        ("NVIDIA B200", 2250, 8.0),
    ],
)
def test_cards_by_their_names(name: str, tera_flops: float, tera_bytes: float) -> None:
    found = peaks(name)
    assert found is not None
    assert (found.flops_16, found.bytes_per_s) == pytest.approx((tera_flops * 1e12, tera_bytes * 1e12))


def test_an_unknown_card_has_no_peaks() -> None:
    assert peaks("Voodoo 2") is None and peaks(None) is None


def test_a_part_of_a_card_has_not_the_peaks_of_the_card() -> None:
    assert peaks("NVIDIA A100-SXM4-80GB MIG 1g.10gb") is None


def test_facts_of_cards_are_read_and_damaged_ones_are_none(tmp_path: Path) -> None:
    for host, text in (
        (
            "a",
            json.dumps(
                {
                    "gpus": [
                        {"uuid": "GPU-1", "index": 0, "name": "NVIDIA L4", "sm_max_mhz": "fast", "mem_total_b": 1e999}
                    ]
                }
            ),
        ),
        ("b", "{"),
        ("c", json.dumps({"gpus": None})),
        ("d", json.dumps({"gpus": 5, "simulated": False})),
        ("e", "[" * 100_000),
        ("f", json.dumps({"gpus": [5, None]})),
    ):
        folder = tmp_path / "telemetry" / host
        folder.mkdir(parents=True)
        (folder / "hello.json").write_text(text)
    [card] = gpu_facts(tmp_path)
    assert (card["host"], card["uuid"], card["name"]) == ("a", "GPU-1", "NVIDIA L4")
    assert (card["sm_max_mhz"], card["mem_total_b"]) == (None, None)
