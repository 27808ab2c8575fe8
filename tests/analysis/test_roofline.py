"""MFU and MBU by hand; which cards are known; and cards that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.gpu_facts import gpu_facts
from analysis.gpu_peaks import peaks
from analysis.model_config import parse_config
from analysis.roofline import roofline
from tests.analysis.test_model_config import LLAMA_8B, MIXTRAL

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


def test_what_a_step_computed_and_read_by_hand() -> None:
    found = roofline(STEP, parse_config(LLAMA_8B), [H100], 1)
    assert found is not None
    flops_per_token = 2 * 8_030_261_248 + 4 * 32 * 4096 * 1000
    assert found["mfu_pct"] == pytest.approx(100 * 8800 * flops_per_token / 989e12)
    bytes_per_iteration = 2 * 8_030_261_248 + 16_000 * 131_072
    assert found["mbu_pct"] == pytest.approx(100 * 100 * bytes_per_iteration / 3.35e12)


def test_two_engines_read_the_weights_twice_and_have_two_cards() -> None:
    one = roofline(STEP, parse_config(LLAMA_8B), [H100], 1)
    both = STEP | {"server": {name: 2 * value for name, value in STEP["server"].items()}}
    assert roofline(both, parse_config(LLAMA_8B), [H100, H100], 2) == pytest.approx(
        one and one | {name: 2 * (value or 0) for name, value in one.items() if not name.endswith("_pct")}
    )


def test_all_experts_are_read_and_few_compute() -> None:
    config = parse_config(MIXTRAL)
    found = roofline(STEP, config, [H100, H100], 1)
    assert found is not None and found["mbu_pct"] is not None and found["mfu_pct"] is not None
    assert found["mbu_pct"] == pytest.approx(100 * 100 * (config.weights_bytes + 16_000 * 131_072) / 6.7e12)
    assert found["mfu_pct"] < 100 * 8800 * 2 * config.parameters / 1978e12 / 3


def test_without_model_or_card_there_is_none_and_without_a_batch_no_mbu() -> None:
    config = parse_config(LLAMA_8B)
    assert roofline(STEP, None, [H100], 1) is None
    assert roofline(STEP, config, [], 1) is None
    assert roofline(STEP, config, [H100, {"name": "Voodoo 2", "dram_peak_b_s": None}], 1) is None
    found = roofline(STEP | {"server": None}, config, [H100], 1)
    assert found is not None and found["mbu_pct"] is None and found["output_tokens_per_s"] == 1590


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


def test_facts_of_cards_are_read_and_damaged_ones_are_none(tmp_path: Path) -> None:
    for host, text in (
        ("a", json.dumps({"gpus": [{"uuid": "GPU-1", "index": 0, "name": "NVIDIA L4", "sm_max_mhz": "fast"}]})),
        ("b", "{"),
        ("c", json.dumps({"gpus": None})),
    ):
        folder = tmp_path / "telemetry" / host
        folder.mkdir(parents=True)
        (folder / "hello.json").write_text(text)
    [card] = gpu_facts(tmp_path)
    assert (card["host"], card["uuid"], card["name"], card["sm_max_mhz"]) == ("a", "GPU-1", "NVIDIA L4", None)
