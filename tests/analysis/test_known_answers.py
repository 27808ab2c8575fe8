"""What the simulator's model knows is recovered within 5 %: bytes a token, the knee, energy a token.

The model is driven by a clock of its own, so that a minute of a GPU takes a moment: users who send again at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from analysis import operating, vram
from analysis.energy import step_energy
from analysis.overlap import grown, occupied
from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import Engine, engine
from loadgen.simulator.telemetry import WINDOW_S, GpuMeter

S = 1_000_000_000
WITHIN = 0.05


class Driven(NamedTuple):
    """A step of so many users, of `length_s` after as long again: figures of its window, and its seconds."""

    step: dict[str, Any]
    seconds: pd.DataFrame


def work_ns(model: Engine, prompt: int, output: int) -> tuple[float, float]:
    """Of a request: reading the weights, which all share, and reading its own context and computing its prompt."""
    per_token = model.decode_ns(1) - model.decode_ns(0)
    own_ns = output * per_token * (prompt + (output + 1) / 2) + prompt * model.prefill_ns_per_token
    return output * model.decode_ns(0), own_ns


def drive(model: Engine, users: int, prompt: int, output: int, length_s: int) -> Driven:
    replica: Replica[Sequence] = Replica(model, 0.02, "known")
    meter = GpuMeter(replica, 0)
    begin_ns, end_ns = length_s * S, 2 * length_s * S
    first_s: dict[int, float] = {}
    done: list[tuple[float, float, float]] = []
    samples = [begin_ns + k * S + S // 2 for k in range(length_s)]
    usage, running, waiting = [], [], []
    energy_j: dict[int, float] = {}
    read_ns = 0
    shared_ns, own_ns = work_ns(model, prompt, output)
    # Evenly over the time of one request, or they would all end at once for ever.
    starts = [round(user * (shared_ns / users + own_ns)) for user in range(users)]
    last_ns = end_ns + shared_ns + users * own_ns  # what is in flight at the window's end, ends
    while (due_ns := replica.due_ns) is None or due_ns < last_ns:
        if starts and (due_ns is None or starts[0] <= due_ns):
            replica.submit(Sequence(received_ns=starts.pop(0), prompt_tokens=prompt, max_tokens=output))
            continue
        assert due_ns is not None
        now_ns = due_ns
        while samples and samples[0] <= now_ns:
            usage.append(1 - replica.pool.free / replica.pool.blocks)
            running.append(replica.running)
            waiting.append(len(replica.queue))
            samples.pop(0)
        if now_ns - read_ns >= WINDOW_S * S:
            meter.advance(now_ns)
            energy_j[now_ns], read_ns = meter.energy_j, now_ns
        for sequence in replica.step():
            if sequence.generated == 1:
                first_s[id(sequence)] = now_ns / S
            if sequence.generated == output:
                done.append((sequence.received_ns / S, first_s.pop(id(sequence)), now_ns / S))
                replica.submit(Sequence(received_ns=now_ns, prompt_tokens=prompt, max_tokens=output))
    edges = np.arange(length_s, 2 * length_s + 1, dtype=float)
    received, first, ended = np.array(done).T
    heights = np.full(first.size, float(output))
    resident = occupied(first, ended, edges, np.full(first.size, float(prompt))) + grown(first, ended, heights, edges)
    inside = (ended >= length_s) & (ended < 2 * length_s)
    at = [now_ns for now_ns in energy_j if begin_ns <= now_ns < end_ns]
    qps = float(inside.sum()) / length_s
    power_w = (energy_j[at[-1]] - energy_j[at[0]]) / ((at[-1] - at[0]) / S)
    kept = slice(0, len(usage))
    pool_b = float(model.blocks * model.block_b)
    step = {
        "level": users,
        "rate": None,
        "qps": qps,
        "in_flight_mean": float(users),
        "begin_s": float(length_s),
        "end_s": 2.0 * length_s,
        "output_tokens_per_s": qps * output,
        "gpu_total": {"power_w": power_w, "vram_effective_bytes": None, "vram_used_bytes": float(model.vram_used_b)},
        "gpus": [],
        "server": {
            "running": float(np.mean(running)),
            "waiting": float(np.mean(waiting)),
            "kv_usage_ratio": float(np.mean(usage)),
            "kv_pool_bytes": pool_b,
            "preemptions_per_s": replica.preemptions * S / last_ns,
        },
        "tokens": {"prompt_mean": float(prompt), "output_mean": float(output)},
        "resident_tokens_mean": float(resident.mean()),
        "e2e_ms": {"p50": 1e3 * float(np.median((ended - received)[inside]))},
    }
    seconds = pd.DataFrame(
        {
            "t_s": edges[:-1][kept],
            "resident_tokens": resident[kept],
            "running": np.array(running, dtype=float),
            "kv_usage_ratio": usage,
            "vram_effective_b": np.nan,
            "vram_used_b": float(model.vram_used_b),
        }
    )
    return Driven(step, seconds)


@pytest.mark.parametrize(
    ("model", "prompt", "output"),
    [
        (engine("L4", "8b", "bf16", 256), 200, 300),
        (engine("H100", "70b", "fp8", 256), 120, 100),
    ],
)
def test_kv_bytes_a_token_and_the_load_that_fills_the_cache(model: Engine, prompt: int, output: int) -> None:
    full = model.blocks * 16 / (prompt + output / 2 + 8)
    driven = [drive(model, max(1, round(share * full)), prompt, output, 30) for share in (0.1, 0.3, 0.6, 0.9, 2.0)]
    seconds = pd.concat(
        [one.seconds.assign(t_s=one.seconds["t_s"] + 1000 * number) for number, one in enumerate(driven)]
    )
    steps = [
        one.step | {name: one.step[name] + 1000 * number for name in ("begin_s", "end_s")}
        for number, one in enumerate(driven)
    ]
    found = vram.assess(steps, seconds, None, [])
    assert found is not None
    assert found["fitted_bytes_per_token"] == pytest.approx(model.model.kv_bytes_per_token, rel=WITHIN)
    assert found["exhausted_at_running"] is None  # nobody told the size of the pool in tokens
    for step in steps:
        step["server"]["kv_used_tokens"] = step["server"]["kv_usage_ratio"] * model.blocks * 16
    found = vram.assess(steps, seconds, None, [])
    assert found is not None
    assert found["bytes_per_token"] == pytest.approx(model.model.kv_bytes_per_token, rel=1e-6)
    assert found["exhausted_at_running"] == pytest.approx(full, rel=WITHIN)
    assert found["full_from"] == found["queue_from"] == found["knee_from"] == driven[-1].step["level"]


@pytest.mark.parametrize(
    ("model", "prompt", "output"),
    [
        (engine("H100", "8b", "bf16", 512), 400, 300),
        (engine("A100-80G", "8b", "bf16", 512), 300, 500),
    ],
)
def test_the_knee_of_the_plan(model: Engine, prompt: int, output: int) -> None:
    """A request takes shared + own x users, so power X / R is highest where both are the same."""
    shared_ns, own_ns = work_ns(model, prompt, output)
    knee = shared_ns / own_ns
    levels = [round(knee * share) for share in (0.1, 0.25, 0.5, 1, 2, 4)]
    at = operating.working(
        [
            operating.Step(step["level"], step["in_flight_mean"], step["qps"], step)
            for step in (drive(model, level, prompt, output, 40).step for level in levels)
        ],
        "users",
    )
    found = operating.knee(at, [])
    assert found["knee"] == pytest.approx(knee, rel=WITHIN)
    assert found["knee_low"] is not None and found["knee_high"] is not None


@pytest.mark.parametrize("users", [4, 32])
def test_energy_a_token(users: int) -> None:
    model = engine("H100", "8b", "bf16", 64)
    step = drive(model, users, 100, 100, 20).step
    gpu = dict.fromkeys(("util_pct", "vram_used_bytes", "vram_effective_bytes"))
    found = step_energy(step | {"gpus": [gpu | {"power_w": {"mean": step["gpu_total"]["power_w"]}}]})
    memory_ns = model.decode_ns(0) + users * 150.5 * (model.decode_ns(1) - model.decode_ns(0))
    compute_ns = users / 100 * 100 * model.prefill_ns_per_token
    compute_w, memory_w = model.dynamic_w
    energy_j = (model.gpu.idle_w * (memory_ns + compute_ns) + compute_w * compute_ns + memory_w * memory_ns) / S
    assert found is not None and found["j_per_output_token"] == pytest.approx(energy_j / users, rel=WITHIN)


RECORDED = Path(__file__).with_name("data") / "bottlenecks.json"


@pytest.mark.parametrize(("name", "gpu"), [("batch-of-16", "H100"), ("batch-of-8", "L4")])
def test_energy_a_token_of_a_real_run(name: str, gpu: str) -> None:
    """As recorded: a full batch that reads the weights draws what memory does, and gives so many tokens."""
    case = next(case for case in json.loads(RECORDED.read_text()) if case["name"] == name)
    step, model = case["steps"][-1], engine(gpu, "8b", "bf16" if gpu == "H100" else "fp8", 16, speedup=case["speedup"])
    batch = step["server"]["running"]
    tokens = step["server"]["kv_used_tokens"]
    found = step["gpus"][0]["power_w"]["mean"] / step["server"]["generation_tokens_per_s"]
    memory_ns = model.decode_ns(tokens)
    prompts = step["server"]["prompt_tokens_per_s"] / step["server"]["generation_tokens_per_s"] * batch
    compute_ns = prompts * model.prefill_ns_per_token
    compute_w, memory_w = model.dynamic_w
    energy_j = (model.gpu.idle_w * (memory_ns + compute_ns) + compute_w * compute_ns + memory_w * memory_ns) / S
    assert found == pytest.approx(energy_j / batch, rel=WITHIN)
