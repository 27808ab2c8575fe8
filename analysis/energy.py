"""Energy of a step: the mean power of the GPUs that serve by what they brought in its measuring window. Pure.

    J per output token = W / (output tokens/s)        J per request = W / QPS

Power is the energy counters' growth where the driver has them (gpus.py). Idle power is in it, and failed requests'
work too: it is what the answers cost, not what each needed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from analysis.gpus import gpu_total


def step_energy(step: dict[str, Any], idle: Collection[str] = ()) -> dict[str, float | None] | None:
    """power_w, and j_per_output_token, output_tokens_per_j and j_per_request of OK requests; None: nothing was brought.

    `idle` are the uuids of GPUs that stand beside those that serve. None when a GPU that serves has no power figure, or
    there is none.
    """
    power_w = step["gpu_total"]["power_w"]
    if idle:
        power_w = gpu_total([gpu for gpu in _counted(step["gpus"]) if gpu["uuid"] not in idle])["power_w"]
    if power_w is None or not power_w > 0:
        return None
    tokens_per_s, qps = step["output_tokens_per_s"], step["qps"]
    return {
        "power_w": power_w,
        "j_per_output_token": power_w / tokens_per_s if tokens_per_s else None,
        "output_tokens_per_j": tokens_per_s / power_w if tokens_per_s else None,
        "j_per_request": power_w / qps if qps else None,
    }


def _counted(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without real GPUs beside simulated ones, and without MIG devices beside their GPU, as totals are (gpus.py)."""
    simulated = any(gpu["simulated"] for gpu in gpus)
    whole = {(gpu["host"], gpu["index"]) for gpu in gpus if gpu["gi_id"] is None}
    return [
        gpu
        for gpu in gpus
        if gpu["simulated"] == simulated and (gpu["gi_id"] is None or (gpu["host"], gpu["index"]) not in whole)
    ]
