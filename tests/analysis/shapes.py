"""Tables as the figures take them, of made-up runs: so many steps, so many GPUs, with failures or without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.checks import SIMULATED_GPU
from analysis.distributions import Distributions
from analysis.tables import STEP_COLUMNS
from analysis.windows import Window
from loadgen.record import Outcome

GIB = 2**30
STEP_S = 20.0
SLO = [
    {"text": "ttft_p99<800ms", "metric": "ttft", "stat": "p99", "limit": 800.0, "unit": "ms"},
    {"text": "e2e_p50<3s", "metric": "e2e", "stat": "p50", "limit": 3000.0, "unit": "ms"},
    {"text": "itl_p99<60ms", "metric": "itl", "stat": "p99", "limit": 60.0, "unit": "ms"},
    {"text": "error_rate<2%", "metric": "error_rate", "stat": "", "limit": 2.0, "unit": "%"},
]


def steps(count: int, **columns: Any) -> pd.DataFrame:
    """`count` steps of a server that is full at the tenth, with all figures; p99 is infinite in the last one."""
    level = np.arange(1, count + 1) * 10.0
    frame = pd.DataFrame({column.name: np.ones(count) for column in STEP_COLUMNS})
    qps = np.minimum(level, 100 - level / 100)
    frame = frame.assign(level=level, qps=qps, failed_qps=0.1, gpu_source=SIMULATED_GPU)
    for name in ("qps", "goodput_qps"):
        factor = 1 if name == "qps" else 0.8
        for suffix, by in (("", 1.0), ("_ci95_low", 0.9), ("_ci95_high", 1.1)):
            frame[name + suffix] = by * factor * qps
    for metric, base in (("ttft", 100.0), ("e2e", 1000.0), ("itl", 10.0), ("tpot", 10.0)):
        for stat, factor in (("p50", 1.0), ("p90", 1.5), ("p99", 2.0)):
            value = base * factor * (1 + level / 50)
            frame[f"{metric}_{stat}_ms"] = value
            for end, by in (("low", 0.9), ("high", 1.15)):
                frame[f"{metric}_{stat}_ms_ci95_{end}"] = by * value
        if count > 1:
            frame.loc[count - 1, [f"{metric}_p99_ms", f"{metric}_p99_ms_ci95_high"]] = [np.inf, np.nan]
    power_w = 400 + 20 * np.minimum(level, 100)
    frame = frame.assign(
        power_w=power_w,
        output_tokens_per_s=100 * qps,
        j_per_output_token=power_w / qps / 100,
        j_per_request=power_w / qps,
        vram_predicted_b=(51 + 0.08 * level) * GIB,
    )
    return frame.assign(unit="users", client_lag_source="read_lag", client_lag_limit_ms=50.0, **columns)


def gpus(frame: pd.DataFrame, count: int, **columns: Any) -> pd.DataFrame:
    """As host_tables.gpus_frame has them: the k-th GPU is 2 k % less busy than the first, and has k / 4 GiB more."""
    rows = []
    for number, level in enumerate(frame["level"]):
        for k in range(count):
            busy = min(100.0, level) - 2 * k
            rows.append(
                {"step": number, "level": level, "host": f"host-{k // 4}", "uuid": f"GPU-{k}", "index": k}
                | {"gi_id": pd.NA, "vram_total_bytes": 80.0 * GIB, "gpu_source": frame["gpu_source"].iloc[0]}
                | {f"{name}_pct_mean": busy * by for name, by in (("util", 1), ("sm", 0.8), ("tensor", 0.4))}
                | {"dram_pct_mean": 0.9 * busy, "power_w_mean": 100 + 5 * busy, "sm_mhz_mean": 1980 - busy}
                | {"temp_c_max": 40 + busy / 3, "throttled_power_share": busy / 400, "throttled_heat_share": 0.0}
                | {"vram_used_bytes_mean": (72 + k / 4) * GIB}
                | {"vram_effective_bytes_mean": (50 + 0.075 * level + k / 4) * GIB}
            )
    return pd.DataFrame(rows).astype({"gi_id": "Int64"}).assign(**columns)


def hosts(frame: pd.DataFrame) -> pd.DataFrame:
    shares = dict.fromkeys(("cpu_pct", "busiest_cpu_pct_mean", "psi_cpu_some_pct", "iowait_pct"), 20.0)
    return pd.DataFrame({"level": frame["level"], "host": "a-host", "source": "measured"} | shares)


def windows(count: int, unit: str = "users") -> list[Window]:
    """Steps of STEP_S one after the other; the last 15 of 20 s are measured."""
    return [
        Window(n, 10 * (n + 1), unit, STEP_S * n, STEP_S * n, STEP_S * n + 5, STEP_S * (n + 1), ended=True)
        for n in range(count)
    ]


def requests(count: int, each: int = 400, failing: float = 0.1, seed: int = 1) -> pd.DataFrame:
    """`each` requests a step, slower at a higher level and for a longer prompt; a share of the last half fails."""
    random = np.random.default_rng(seed)
    total = count * each
    intended = np.sort(random.uniform(0, STEP_S * count, total))
    level = 1 + intended // STEP_S
    prompts = np.round(2 ** random.uniform(5, 12, total))
    ttft = random.lognormal(np.log(60 + 6 * level + prompts / 20), 0.35)
    failed = (level > count / 2) & (random.uniform(size=total) < failing)
    cancelled = ~failed & (random.uniform(size=total) < 0.02)
    return pd.DataFrame(
        {
            "intended_s": intended,
            "ttft_ms": np.where(failed, np.nan, ttft),
            "e2e_ms": ttft + random.lognormal(np.log(900 + 40 * level), 0.2),
            "ok": ~failed & ~cancelled,
            "failed": failed,
            "cancelled": cancelled,
            "prompt_tokens": np.where(failed, np.nan, prompts),
        }
    )


def spread(count: int, **changes: Any) -> Distributions:
    found = Distributions(windows(count), STEP_S * count)
    found.add(requests(count, **changes))
    return found


def over_time(count: int, telemetry: bool = True) -> pd.DataFrame:
    """A timeline of steps with bins of 1 s; p99 is infinite for 5 s in the last step."""
    t = np.arange(STEP_S * count)
    level = 10.0 * (1 + t // STEP_S)
    frame = pd.DataFrame({"t_s": t, "users": level, "in_flight": 0.9 * level, "due_qps": level, "qps": 0.8 * level})
    frame["failed_qps"] = np.where(t % 37 == 0, 3.0, 0.0)
    frame["ttft_p50_ms"] = 100 + level + 5 * np.sin(t)
    frame["ttft_p99_ms"] = np.where(t >= t.size - 5, np.inf, 3 * frame["ttft_p50_ms"])
    seen = 1.0 if telemetry else np.nan
    for name, value in {
        "gpu_util_pct": np.minimum(level, 98),
        "gpu_sm_pct": np.minimum(0.8 * level, 90),
        "gpu_dram_pct": np.minimum(0.7 * level, 95),
        "vram_used_b": 300.0 * GIB + 0 * t,
        "vram_effective_b": (200 + 0.3 * level) * GIB,
        "power_w": 400 + 5 * level,
        "running": np.minimum(level, 64),
        "waiting": np.maximum(level - 64, 0),
        "kv_usage_ratio": np.minimum(level / 100, 1),
        "busiest_cpu_pct": np.minimum(30 + level / 4, 100),
    }.items():
        frame[name] = seen * value
    return frame


def failures(count: int, outcomes: int = len(Outcome) - 2) -> tuple[pd.DataFrame, float]:
    """As failures.over_time has them, of so many of the ways to fail, and the width of its bins."""
    width_s = max(1.0, np.ceil(STEP_S * count / 90))
    t = np.arange(0, STEP_S * count, width_s)
    names = [outcome for outcome in Outcome if outcome not in (Outcome.OK, Outcome.CANCELLED)][:outcomes]
    return pd.DataFrame({"t_s": t} | {name: (t / 7 + n) % 5 for n, name in enumerate(names)}), width_s


EVENTS = [
    *((3.0 + k, "samples_lost") for k in range(4)),
    (11.0, "xid"),
    (11.2, "gpu_lost"),
    (30.0, "worker_lost"),
    (31.0, "clock_step"),
    (55.0, "agent_silent"),
    (57.0, "agent_heard"),
    (-4.0, "agent_started"),
]
