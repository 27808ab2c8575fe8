"""The whole report of one fixed run: every figure of its summary, and every word of its page.

When a change is meant, look at the difference and take it over: .venv/bin/python -m tests.analysis.test_golden
"""

from __future__ import annotations

import difflib
import html
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from analysis.report.build import build
from loadgen import rundir
from tests.analysis import synthetic as syn

GOLDEN = Path(__file__).with_name("data") / "golden"
_STEP_S = 30.0
_LEVELS = (4, 16, 40)
# Seconds of an answer by users; from 16 users on there is no more throughput.
_TTFT_MS = {4: 80, 16: 120, 40: 900}
_GAP_MS = {4: 20, 16: 30, 40: 60}


def write(run: Path) -> Path:
    """Three steps past a knee on two GPUs of a host, with its server; some requests fail, a host has another clock."""
    counts = {"requests": 0, "failures": 0}
    syn.make(
        run,
        _LEVELS,
        _STEP_S,
        workers=2,
        label="golden",
        ended_ns=syn.at(91),
        options={
            "agents": "local,far.example",
            "slo": "ttft_p99<500ms,error_rate<5%",
        },
    )
    for worker in (0, 1):
        rows = [row for number, level in enumerate(_LEVELS) for row in _served(number, level, worker)]
        counts["requests"] += len(rows)
        counts["failures"] += sum(row["outcome"] != "OK" for row in rows)
        syn.write_requests(run, rows, worker)
        syn.example(run, worker, "HTTP_ERROR", "HTTP 503: overloaded", '{"error": "overloaded <b>"}', 61.0)
        syn.write_health(run, [syn.health(float(t)) for t in range(91)], worker)
        lags = [syn.histogram(float(t), "read_lag", {0.1: 990, 1.0: 10}) for t in range(1, 91)]
        syn.write_histograms(run, lags, worker)
    manifest = json.loads((run / rundir.MANIFEST).read_text())
    rundir.write_manifest(run, manifest | {"locust": counts, "recorded": counts})

    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in range(91)])
    syn.write_table(run, "here", "agent", [syn.agent(float(t)) for t in range(91)])
    syn.hello(run, "here")
    far = syn.Far(run, 1000.0)
    far.probes(times=(-1, 30, 60, 91))
    far.table("gpu_fast", [_gpu(k / 5, index) for k in range(455) for index in (0, 1)])
    far.table("gpu_slow", [syn.slow(float(t), index) for t in range(91) for index in (0, 1)])
    far.table("host", [syn.host(float(t), 0.2) for t in range(91)])
    far.table("agent", [syn.agent(float(t)) for t in range(91)])
    far.table("process", [syn.process(float(t)) for t in range(91)])
    far.table("server", [_server(float(t)) for t in range(91)])
    syn.hello(run, "far", gpus=2)
    probe = {"t0_ns": syn.at(0), "t1_ns": syn.at(0) + 1000, "t2_ns": syn.at(0) + 2000, "t3_ns": syn.at(0) + 3000}
    rundir.append_line(run / rundir.CLOCKS, {"host": "here", **probe})
    for agent in ("local", "far.example"):
        syn.event(run, "agent_started", f"agent {agent} samples its host", -1.0, agent=agent)
    return run


def _level(t: float) -> int:
    return _LEVELS[min(int(t / _STEP_S), len(_LEVELS) - 1)]


def _served(number: int, level: int, worker: int) -> list[dict[str, Any]]:
    """Half of the step's users send one request after the other; with 40 of them each 25th fails."""
    rows: list[dict[str, Any]] = []
    length_s = (_TTFT_MS[level] + 9 * _GAP_MS[level]) / 1000
    for user in range(level // 2):
        for k in range(int(_STEP_S / length_s)):
            t = number * _STEP_S + length_s * (k + user / level)
            row = syn.request(t, _TTFT_MS[level] + (7 * k + 3 * user) % 11, [_GAP_MS[level]] * 9, worker=worker)
            if level == _LEVELS[-1] and (k + user) % 25 == 0:
                row |= {"outcome": "HTTP_ERROR", "status": 503, "error": "HTTP 503: overloaded"}
            rows.append(row | {"seq": len(rows), "prompt_tokens": 100 + 10 * (k % 3)})
    return rows


def _gpu(t: float, index: int) -> dict[str, Any]:
    busy = min(1.0, _level(t) / 16)
    return syn.gpu(t, index, util_pct=100 * busy, power_mw=round(100_000 + 200_000 * busy + 1000 * index))


def _server(t: float) -> dict[str, Any]:
    running = min(_level(t), 16)
    return syn.server(t, running=float(running), waiting=float(_level(t) - running), kv_usage_ratio=running / 20)


def made(folder: Path) -> dict[str, str]:
    """File of the golden report -> its content now."""
    built = build(write(folder / "run"), figures=False, ttft_protocol=True)
    summary = json.dumps(_rounded(built.summary), indent=1, ensure_ascii=False)
    page = re.sub(r"<style>.*?</style>", "", built.html.read_text(), flags=re.DOTALL)
    rows = re.sub(r"</(td|th)><", r" | <", re.sub(r"\s+", " ", page))
    lines = [
        " ".join(html.unescape(re.sub(r"<[^>]+>", " ", line)).split())
        for line in re.split(r"</(?:tr|p|h\d|li|div)>", rows)
    ]
    return {"summary.json": summary + "\n", "page.txt": "\n".join(line for line in lines if line) + "\n"}


def _rounded(value: Any) -> Any:
    """Nine digits: what machines agree on."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", ["summary.json", "page.txt"])
def test_the_report_of_a_fixed_run_is_what_it_was(now: dict[str, str], name: str) -> None:
    lines = (GOLDEN / name).read_text().splitlines(), now[name].splitlines()
    differ = list(difflib.unified_diff(*lines, "golden", "now", lineterm="", n=2))
    assert not differ, "\n".join([__doc__ or "", *differ[:80]])


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for file, content in made(Path(temporary)).items():
            (GOLDEN / file).write_text(content)
