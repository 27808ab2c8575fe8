"""Energy of a step: the mean power of the GPUs that serve by what they brought in its measuring window. Pure.

    J per output token = W / (output tokens/s)        J per request = W / QPS

Power is the energy counters' growth where the driver has them (gpus.py). Idle power is in it, and failed requests'
work too: it is what the answers cost, not what each needed.
"""

from __future__ import annotations

from typing import Any

from analysis.gpus import gpu_total


def step_energy(step: dict[str, Any]) -> dict[str, float | None] | None:
    """power_w, and j_per_output_token, output_tokens_per_j and j_per_request of OK requests; None: nothing was brought.

    The step's GPUs are those that serve (serving.only_serving). None when one of them has no power figure, or there is
    none.
    """
    power_w = gpu_total(step["gpus"])["power_w"]
    if power_w is None or not power_w > 0:
        return None
    tokens_per_s, qps = step["output_tokens_per_s"], step["qps"]
    return {
        "power_w": power_w,
        "j_per_output_token": power_w / tokens_per_s if tokens_per_s else None,
        "output_tokens_per_j": tokens_per_s / power_w if tokens_per_s else None,
        "j_per_request": power_w / qps if qps else None,
    }
