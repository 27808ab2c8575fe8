"""Energy of a step: the mean power of all its GPUs by what they brought in its measuring window. Pure.

    J per output token = W / (output tokens/s)        J per request = W / QPS

Power is the energy counters' growth where the driver has them (gpus.py). Idle power is in it, and failed requests'
work too: it is what the answers cost, not what each needed.
"""

from __future__ import annotations

from typing import Any


def step_energy(step: dict[str, Any]) -> dict[str, float | None] | None:
    """j_per_output_token, output_tokens_per_j and j_per_request of OK requests; each None where nothing was brought.

    None when a GPU of the step has no power figure, or there is none.
    """
    power_w = step["gpu_total"]["power_w"]
    if power_w is None or not power_w > 0:
        return None
    tokens_per_s, qps = step["output_tokens_per_s"], step["qps"]
    return {
        "j_per_output_token": power_w / tokens_per_s if tokens_per_s else None,
        "output_tokens_per_j": tokens_per_s / power_w if tokens_per_s else None,
        "j_per_request": power_w / qps if qps else None,
    }
