"""What the server's resources say of a run: GPU memory, roofline, bottleneck, in the order of their need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis import vram
from analysis.bottleneck import judge_all
from analysis.gpu_facts import gpu_facts
from analysis.model_config import ModelConfig
from analysis.roofline import roofline


def resources(
    run_dir: Path,
    manifest: dict[str, Any],
    steps: list[dict[str, Any]],
    timeline: pd.DataFrame,
    config: ModelConfig | None,
) -> dict[str, Any]:
    """gpu_facts, vram and bottleneck of the summary; each step gets roofline, vram_predicted_bytes and bottleneck."""
    known = gpu_facts(run_dir)
    watched = {gpu["uuid"] for step in steps for gpu in step["gpus"]}
    cards = [card for card in known if card["uuid"] in watched]
    of_memory = vram.assess(steps, timeline, config, cards)
    speedup = _speedup(manifest)
    for step in steps:
        step["roofline"] = roofline(step, config, cards, vram.engines(steps), speedup)
    return {"gpu_facts": cards, "vram": of_memory, "bottleneck": judge_all(steps, cards)}


def _speedup(manifest: dict[str, Any]) -> float:
    """By how much the simulated cards are faster than those of their names."""
    simulator = manifest["target"].get("simulator")
    told = simulator.get("speedup") if isinstance(simulator, dict) else None
    return float(told) if isinstance(told, int | float) and told > 0 else 1.0
