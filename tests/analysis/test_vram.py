"""GPU memory with known answers: the slope that was put in comes out, queues and full caches do not bend it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import vram
from analysis.model_config import parse_config
from tests.analysis.test_model_config import LLAMA_8B

PER_TOKEN = 131_072
POOL_TOKENS = 40_000
BASE = 17e9
HELD = 400.0
STEP_S = 10


def steps_and_seconds(*running: float, limit: float = POOL_TOKENS / HELD, noise: float = 0.01) -> tuple[Any, Any]:
    """Steps of so many users, each with a request in the engine; above `limit` the rest waits."""
    rng = np.random.default_rng(3)
    steps, rows = [], []
    for number, users in enumerate(running):
        here = min(users, limit)
        tokens = here * HELD
        usage = tokens / POOL_TOKENS
        server = {
            "running": here,
            "waiting": users - here,
            "kv_usage_ratio": usage,
            "kv_used_tokens": tokens,
            "kv_pool_bytes": float(POOL_TOKENS * PER_TOKEN),
            "preemptions_per_s": 2.0 if users > limit else 0.0,
            "running_max": here,
            "engines": 1,
        }
        effective = BASE + PER_TOKEN * tokens
        steps.append(
            {
                "level": users,
                "rate": None,
                "qps": here,
                "qps_ci95": [0.99 * here, 1.01 * here],
                "in_flight_mean": float(users),
                "begin_s": STEP_S * number,
                "end_s": STEP_S * (number + 1),
                "server": server,
                "gpu_total": {"vram_effective_bytes": effective, "vram_used_bytes": BASE + POOL_TOKENS * PER_TOKEN},
                "gpus": [],
                "resident_tokens_mean": tokens - 8 * here,
                "tokens": {"prompt_mean": 300.0, "output_mean": 184.0},
            }
        )
        for second in range(STEP_S):
            now = tokens * (1 + noise * rng.standard_normal())
            rows.append(
                {
                    "t_s": float(STEP_S * number + second),
                    "resident_tokens": (now - 8 * here) if users <= limit else 2 * now,
                    "running": here,
                    "kv_usage_ratio": now / POOL_TOKENS,
                    "vram_effective_b": BASE + PER_TOKEN * now,
                    "vram_used_b": BASE + POOL_TOKENS * PER_TOKEN,
                }
            )
    return steps, pd.DataFrame(rows)


def test_the_slope_is_found_whatever_waits_or_is_preempted() -> None:
    steps, seconds = steps_and_seconds(10, 40, 85, 300)
    found = vram.fit(seconds, steps)
    assert found is not None and found.signal == "effective VRAM" and found.seconds == 30
    assert found.slope.value == pytest.approx(PER_TOKEN, rel=0.02)
    assert found.slope.low is not None and found.slope.high is not None
    assert found.slope.low < PER_TOKEN < found.slope.high
    assert found.base.value == pytest.approx(BASE, rel=0.02)


def test_without_a_pool_memory_that_grows_tells_the_slope() -> None:
    steps, seconds = steps_and_seconds(10, 40, 90)
    seconds = seconds.assign(vram_used_b=seconds["vram_effective_b"], vram_effective_b=np.nan, kv_usage_ratio=np.nan)
    for step in steps:
        step["server"] = None
    found = vram.fit(seconds, steps)
    assert found is not None and found.signal == "used VRAM"
    assert found.slope.value == pytest.approx(PER_TOKEN, rel=0.05)  # half a block a request is not known without a pool


@pytest.mark.parametrize("spoilt", ["flat", "few", "no tokens", "no spread"])
def test_where_there_is_no_line_there_is_no_fit(spoilt: str) -> None:
    steps, seconds = steps_and_seconds(10, 40, 90) if spoilt != "no spread" else steps_and_seconds(40, 41)
    if spoilt == "flat":
        seconds = seconds.assign(vram_effective_b=np.nan, kv_usage_ratio=np.nan)
    elif spoilt == "few":
        seconds = seconds[:5]
    elif spoilt == "no tokens":
        seconds = seconds.assign(resident_tokens=np.nan)
    assert vram.fit(seconds, steps) is None


def test_the_load_that_fills_the_cache_is_told_beside_what_was_seen() -> None:
    steps, seconds = steps_and_seconds(10, 40, 85, 300)
    found = vram.assess(steps, seconds, parse_config(LLAMA_8B), [{"mem_total_b": 80e9}])
    assert found is not None
    assert (found["source"], found["bytes_per_token"]) == ("config", PER_TOKEN)
    assert found["exhausted_at_running"] == pytest.approx(POOL_TOKENS / HELD, rel=0.01)
    assert found["exhausted_at_level"] == pytest.approx(100, rel=0.01)
    assert (found["queue_from"], found["preemptions_from"], found["full_from"], found["knee_from"]) == (300,) * 4
    assert found["weights_bytes"] == 2 * 8_030_261_248
    assert found["rest_bytes"] == pytest.approx(BASE - 2 * 8_030_261_248)
    assert [step["vram_predicted_bytes"] for step in steps] == pytest.approx(
        [BASE + PER_TOKEN * HELD * users for users in (10, 40, 85, 100)], rel=0.001
    )
    assert "full at 100 running requests of 400 tokens each; it was full from the step of 300" in found["text"]


def test_without_a_config_the_server_tells_what_a_token_costs() -> None:
    steps, seconds = steps_and_seconds(10, 40)
    found = vram.assess(steps, seconds, None, [])
    assert found is not None and found["source"] == "server"
    assert found["bytes_per_token"] == pytest.approx(PER_TOKEN)
    assert found["fitted_bytes_per_token"] == pytest.approx(PER_TOKEN, rel=0.05)
    assert (found["full_from"], found["limit_bytes"], found["model"]) == (None, None, None)


def test_nothing_measured_is_nothing_said() -> None:
    steps, seconds = steps_and_seconds(10)
    for step in steps:
        step |= {"server": None, "gpu_total": dict.fromkeys(("vram_effective_bytes", "vram_used_bytes"))}
    empty = seconds.assign(**dict.fromkeys(("vram_effective_b", "vram_used_b", "kv_usage_ratio"), np.nan))
    assert vram.assess(steps, empty, None, []) is None
    assert steps[0]["vram_predicted_bytes"] is None
