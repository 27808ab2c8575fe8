"""GPU memory with known answers: the slope that was put in comes out, queues and full caches do not bend it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import kv_pool, vram, vram_fit
from analysis.model_config import parse_config
from tests.analysis.test_model_config import LLAMA_8B, LLAMA_70B

PER_TOKEN = 131_072
POOL_TOKENS = 40_000
BASE = 17e9
HELD = 400.0
STEP_S = 10


def gpu(used_b: float, index: int = 0) -> dict[str, Any]:
    used = {"mean": used_b, "max": used_b}
    busy = {"mean": 60.0, "max": 60.0}
    names = {"host": "here", "index": index, "gi_id": None, "uuid": f"GPU-{index}", "simulated": False}
    return names | {"vram_used_bytes": used, "util_pct": busy, "sm_pct": None}


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
                "gpus": [gpu(BASE + POOL_TOKENS * PER_TOKEN)],
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
    found = vram_fit.fit(seconds, steps)
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
    found = vram_fit.fit(seconds, steps)
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
    assert vram_fit.fit(seconds, steps) is None


def test_the_load_that_fills_the_cache_is_told_beside_what_was_seen() -> None:
    steps, seconds = steps_and_seconds(10, 40, 85, 300)
    found = vram.assess(steps, seconds, parse_config(LLAMA_8B), [{"mem_total_b": 80e9}])
    assert found is not None
    assert (found["source"], found["bytes_per_token"]) == ("server", pytest.approx(PER_TOKEN))
    assert found["config_bytes_per_token"] == PER_TOKEN
    assert found["exhausted_at_running"] == pytest.approx(POOL_TOKENS / HELD, rel=0.01)
    assert found["exhausted_at_level"] == pytest.approx(100, rel=0.01)
    assert (found["queue_from"], found["preemptions_from"], found["full_from"], found["knee_from"]) == (300,) * 4
    assert found["weights_bytes"] == 2 * 8_030_261_248
    assert found["rest_bytes"] == pytest.approx(BASE - 2 * 8_030_261_248)
    assert [step["vram_predicted_bytes"] for step in steps] == pytest.approx(
        [BASE + PER_TOKEN * HELD * users for users in (10, 40, 85, 100)], rel=0.001
    )
    assert "full at 100 running requests of 400 tokens each; it was full from the step of 300" in found["text"]
    assert "by the model's config" not in found["text"] and "no GPU" not in found["text"]


SPREAD_TOKENS = 524_288


def spread(of_cards: int, pool_b: float, tokens: float = SPREAD_TOKENS, engines: int = 1) -> Any:
    """Requests of 527.5 tokens; `pool_b` on each GPU of an engine, and beside them one empty and one idle GPU."""
    steps, seconds = steps_and_seconds(10, 40)
    for step in steps:
        used = 527.5 * step["server"]["running"]
        step["server"] |= {"kv_pool_bytes": pool_b * engines, "kv_used_tokens": used, "engines": engines}
        step["server"]["kv_usage_ratio"] = used / tokens
        idle = gpu(75e9, 9) | {"util_pct": {"mean": 0.0, "max": 0.0}}
        step["gpus"] = [*(gpu(75e9, index) for index in range(of_cards)), gpu(0.5e9, of_cards), idle]
    return steps, seconds


@pytest.mark.parametrize("config", [None, LLAMA_70B])
@pytest.mark.parametrize(("cards", "engines"), [(4, 1), (4, 2), (1, 1)])
def test_a_pool_is_on_every_gpu_of_an_engine(config: dict[str, Any] | None, cards: int, engines: int) -> None:
    """The server tells the bytes of one of them and the tokens of all."""
    steps, seconds = spread(cards, SPREAD_TOKENS * 327_680 / cards, engines=engines)
    found = vram.assess(steps, seconds, None if config is None else parse_config(config), [])
    assert found is not None and found["source"] == "server"
    assert found["pool_bytes"] == pytest.approx(SPREAD_TOKENS * 327_680)
    assert found["bytes_per_token"] == pytest.approx(327_680)
    assert found["pool_tokens"] == pytest.approx(SPREAD_TOKENS)
    assert found["exhausted_at_running"] == pytest.approx(994, abs=0.5)
    assert "by the model's config" not in found["text"]


def test_a_gpu_in_parts_is_counted_once_and_none_watched_is_one_each() -> None:
    steps, seconds = spread(1, 20e9)
    steps[0]["gpus"] += [gpu(40e9) | {"gi_id": part} for part in (1, 2)]
    assert kv_pool.largest_pool(steps) == 20e9
    for step in steps:
        step["gpus"] = []
    found = vram.assess(steps, seconds, None, [])
    assert found is not None and found["pool_bytes"] == 20e9
    assert "no GPU was watched: each engine's cache is taken to be on one" in found["text"]


@pytest.mark.parametrize("busy", [None, {"mean": 0.0, "max": 0.0}])
def test_a_pool_on_gpus_that_nobody_saw_at_work_is_doubted(busy: dict[str, float] | None) -> None:
    steps, seconds = spread(2, 20e9)
    for step in steps:
        step["gpus"] = [entry | {"util_pct": busy} for entry in step["gpus"][:2]]
    found = vram.assess(steps, seconds, None, [])
    assert found is not None and found["pool_bytes"] == 40e9
    assert "no GPU is known to have run anything: the cache is taken to be on all" in found["text"]


def test_the_cache_that_runs_counts_and_not_what_the_config_says() -> None:
    tokens = 655_360.0
    steps, seconds = spread(1, tokens * 65_536, tokens)
    found = vram.assess(steps, seconds, parse_config(LLAMA_8B), [])
    assert found is not None and found["source"] == "server"
    assert (found["bytes_per_token"], found["pool_tokens"]) == pytest.approx((65_536, tokens))
    assert found["exhausted_at_running"] == pytest.approx(tokens / 527.5)
    assert "a token takes 65,536 B by the server's own figures and 131,072 B by the model's config" in found["text"]


def test_beyond_their_window_layers_hold_no_more() -> None:
    """A server that tells its pool's bytes and no tokens; half of the layers have a window of 100 tokens."""
    kinds = ["sliding_attention", "full_attention"] * 16
    config = parse_config(LLAMA_8B | {"sliding_window": 100, "layer_types": kinds})
    steps, seconds = steps_and_seconds(10, 40)
    for step in steps:
        step["resident_tokens_mean"] = HELD * step["level"]
        step["server"]["kv_used_tokens"] = None
        step["gpu_total"]["vram_effective_bytes"] = BASE + step["level"] * 16 * 4096 * (HELD + 100)
    found = vram.assess(steps, seconds, config, [])
    of_one = 16 * 4096 * (HELD + 100)
    assert found is not None and found["source"] == "config"
    assert found["config_bytes_per_token"] == PER_TOKEN
    assert found["bytes_per_token"] == pytest.approx(of_one / HELD)
    assert found["exhausted_at_running"] == pytest.approx(POOL_TOKENS * PER_TOKEN / of_one)
    assert found["base_bytes"] == pytest.approx(BASE)
    predicted = [step["vram_predicted_bytes"] for step in steps]
    assert predicted == pytest.approx([BASE + users * of_one for users in (10, 40)])
    steps[1]["resident_tokens_mean"] *= 2  # longer requests there, whose tokens cost less
    steps[1]["gpu_total"]["vram_effective_bytes"] = longer = BASE + 40 * 16 * 4096 * (2 * HELD + 100)
    vram.assess(steps, seconds, config, [])
    assert steps[1]["vram_predicted_bytes"] == pytest.approx(longer)


def test_tokens_that_cost_more_than_the_memory_make_no_base_below_nothing() -> None:
    steps, seconds = steps_and_seconds(10, 40)
    for step in steps:
        step["server"]["kv_used_tokens"] *= 100
        step["server"]["kv_usage_ratio"] *= 100
    found = vram.assess(steps, seconds, None, [])
    assert found is not None and found["base_bytes"] is None
    assert "cost more than the memory in use" in found["text"]
    assert [step["vram_predicted_bytes"] for step in steps] == [None, None]


def test_what_a_config_leaves_open_is_said() -> None:
    steps, seconds = steps_and_seconds(10, 40)
    found = vram.assess(steps, seconds, parse_config(LLAMA_8B | {"kv_cache_dtype": "nvfp4"}), [])
    assert found is not None and (found["source"], found["config_bytes_per_token"]) == ("server", None)
    assert "it has a KV cache in the data type 'nvfp4', which is unknown" in found["text"]


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
