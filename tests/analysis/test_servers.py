"""Figures of model servers with known answers: sums and means over engines, counters that become rates, and gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from tests.analysis import synthetic as syn

SECONDS = range(21)


def figures(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + 0.015 * k) for k in range(1000)])
    syn.write_table(run, "here", "server", rows)
    server: dict[str, Any] = summarise(run)["steps"][0]["server"]
    return server


def counting(t: int, engine: str, times: float = 1.0, **values: Any) -> dict[str, Any]:
    counters = {"preemptions": 2, "prompt_tokens": 3000, "generation_tokens": 500, "prefix_queries_tok": 3000}
    grown = {name: times * rate * t for name, rate in counters.items()} | {"prefix_hits_tok": times * 600 * t}
    return syn.server(float(t), engine) | grown | {"kv_used_tokens": 1000.0 * times} | values


def test_of_two_engines_sums_means_and_the_fullest(tmp_path: Path) -> None:
    rows = [counting(t, "0", kv_usage_ratio=0.2, running=4.0 + t % 2) for t in SECONDS]
    rows += [counting(t, "1", 2.0, kv_usage_ratio=0.8, waiting=6.0) for t in SECONDS]
    found = figures(tmp_path, rows)
    assert found["engines"] == 2
    assert (found["running"], found["waiting"]) == pytest.approx((12.5, 8), rel=0.02)
    assert (found["running_max"], found["waiting_max"]) == (13, 8)
    assert (found["kv_usage_ratio"], found["kv_usage_max"]) == pytest.approx((0.5, 0.8))
    assert (found["kv_used_tokens"], found["kv_pool_bytes"]) == (3000, 80 * syn.GIB)
    rates = [found[name] for name in ("preemptions_per_s", "prompt_tokens_per_s", "generation_tokens_per_s")]
    assert rates == pytest.approx([6, 9000, 1500])
    assert found["prefix_hit_pct"] == pytest.approx(20)


@pytest.mark.parametrize("left_out", [False, True])
def test_prompt_tokens_that_the_cache_had_are_left_out_once(tmp_path: Path, left_out: bool) -> None:
    """llama.cpp's counter is without them already."""
    prompts = 2400 if left_out else 3000
    found = figures(tmp_path, [counting(t, "0", prompt_tokens=prompts * t) for t in SECONDS])
    assert found["prompt_tokens_per_s"] == pytest.approx(prompts)
    assert found["computed_prompt_tokens_per_s"] == pytest.approx(2400)


def test_a_counter_that_went_back_has_no_rate_and_what_is_not_told_is_null(tmp_path: Path) -> None:
    rows = [counting(t % 10, "0") | syn.server(float(t), "0") for t in SECONDS]
    found = figures(tmp_path, [row | {"kv_used_tokens": None, "kv_pool_b": None} for row in rows])
    assert found["running"] == 8
    unknown = ("preemptions_per_s", "generation_tokens_per_s", "prefix_hit_pct", "kv_used_tokens", "kv_pool_bytes")
    assert [found[name] for name in unknown] == [None] * 5


def test_a_server_that_tells_nothing_of_these_has_no_figures(tmp_path: Path) -> None:
    silent = dict.fromkeys(("running", "waiting", "kv_usage_ratio"))
    assert figures(tmp_path, [counting(t, "0") | silent for t in SECONDS]) is None
