"""Sides of a comparison with known figures: summaries and manifests made here, without a run behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.sides import Member, RunSet
from tests.analysis import synthetic as syn


def step(level: float, ttft_p95: float | str = 100.0, qps: float = 50.0, **changes: Any) -> dict[str, Any]:
    """A step of 1000 requests, whose intervals reach 5 % to either side; infinite is so for sure."""
    ends = [ttft_p95, ttft_p95] if isinstance(ttft_p95, str) else [0.95 * ttft_p95, 1.05 * ttft_p95]
    return {
        "level": level,
        "unit": "users",
        "requests": 1000,
        "ok": 1000,
        "cancelled": 0,
        "success_pct": 100.0,
        "success_pct_ci95": [99.6, 100.0],
        "qps": qps,
        "qps_ci95": [0.95 * qps, 1.05 * qps],
        "output_tokens_per_s": None,
        "in_flight_mean": level,
        "in_flight_http_error": 0.0,
        "resident_tokens_mean": None,
        "gpus": [],
        "ttft_ms": {"p95": ttft_p95},
        "ttft_ms_ci95": {"p95": ends},
    } | changes


def unanswered(level: float, **changes: Any) -> dict[str, Any]:
    """A step of 1000 requests none of which was answered, as a summary has it."""
    nothing = {"ok": 0, "success_pct": 0.0, "success_pct_ci95": [0.0, 0.4], "qps": 0.0, "qps_ci95": [0.0, 0.2]}
    return step(level, "inf", **nothing, itl_ms={"p95": None}, itl_ms_ci95={"p95": [None, None]}) | changes


def hanging(level: float, users: float = 10, **changes: Any) -> dict[str, Any]:
    """A step whose requests never end: all of them were cut off when it was over."""
    nothing = {"success_pct": None, "success_pct_ci95": None, "in_flight_mean": users, "resident_tokens_mean": 0.0}
    cut = {
        "requests": int(users),
        "cancelled": int(users),
        "ttft_ms": {"p95": None},
        "ttft_ms_ci95": {"p95": [None] * 2},
    }
    return unanswered(level) | nothing | cut | changes


def member(name: str, steps: Sequence[dict[str, Any]], **changes: Any) -> Member:
    """`changes` are of the manifest."""
    manifest = syn.manifest([one["level"] for one in steps], **changes)
    simulated = bool(manifest["target"]["simulated"])
    return Member(Path("/runs") / name, manifest, {"simulated_gpu": simulated, "steps": list(steps), "damage": []})


def side(name: str, runs: Sequence[Sequence[dict[str, Any]]], **changes: Any) -> RunSet:
    """A run for each list of steps, made one after the other."""
    day = "2026-01-01" if name == "BASE" else "2026-01-02"
    created = [changes | {"created": f"{day}T{hour:02d}:00:00Z"} for hour in range(len(runs))]
    made = [member(f"{name}-{k}", steps, **facts) for k, (steps, facts) in enumerate(zip(runs, created, strict=True))]
    return RunSet(name, name.lower(), tuple(made))


def repeats(name: str, *ttft_p95: float | str, level: float = 10, **changes: Any) -> RunSet:
    """Runs of one step each, with these figures."""
    return side(name, [[step(level, value)] for value in ttft_p95], **changes)
