"""What the server's resources say of a run: energy, GPU memory, roofline, bottleneck, in the order of their need.

Idle GPUs (serving.py) are in none but that of memory, whose sums are of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import vram
from analysis.bottleneck import judge_all
from analysis.energy import step_energy
from analysis.gpu_facts import gpu_facts
from analysis.model_config import ModelConfig
from analysis.roofline import roofline
from analysis.serving import Gpu, counted, idle_gpus, of_kind, only_serving


def resources(
    run_dir: Path,
    manifest: dict[str, Any],
    steps: list[dict[str, Any]],
    timeline: pd.DataFrame,
    config: ModelConfig | None,
) -> dict[str, Any]:
    """gpu_facts, vram, bottleneck of the summary; each step gets energy, vram_predicted_bytes, roofline, bottleneck."""
    known = gpu_facts(run_dir)

    def facts(gpus: Callable[[Sequence[Gpu]], Sequence[Gpu]]) -> list[dict[str, Any]]:
        uuids = {gpu["uuid"] for step in steps for gpu in gpus(step["gpus"])}
        return [card for card in known if card["uuid"] in uuids]

    idle = {gpu["uuid"] for gpu in idle_gpus(steps)}
    of_memory = vram.assess(steps, timeline, config, facts(counted))
    at_work = [card for card in facts(of_kind) if card["uuid"] not in idle]
    speedup, told = _speedup(manifest), (of_memory or {}).get("server_bytes_per_token")
    for step, serving in zip(steps, only_serving(steps), strict=True):
        step["energy"] = step_energy(serving)
        step["roofline"] = roofline(step, config, at_work, vram.engines(steps), speedup, told)
    return {"gpu_facts": facts(list), "vram": of_memory, "bottleneck": judge_all(steps, at_work)}


def _speedup(manifest: dict[str, Any]) -> float:
    """By how much the simulated cards are faster than those of their names."""
    simulator = manifest["target"].get("simulator")
    told = simulator.get("speedup") if isinstance(simulator, dict) else None
    return float(told) if isinstance(told, int | float) and told > 0 else 1.0
