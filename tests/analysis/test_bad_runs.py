"""Runs that tell little or tell nonsense: each format of their report says so in words, and none of them fails.

Damage to single files is in test_damage.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.analyse import Asked
from analysis.report.build import build
from loadgen import rundir
from loadgen.cli import main
from loadgen.shards import read_shard
from loadgen.slo import parse_slo
from tests.analysis import synthetic as syn

EVERY = tuple(rundir.REPORT_FORMATS)
SLO = Asked(slo=parse_slo("ttft_p99<1s,itl_p99<100ms,error_rate<2%"))


def requests(run: Path, count: int = 150, **changes: Any) -> None:
    syn.write_requests(run, [syn.request(5 + k / 10, **changes) for k in range(count)])


def truncated_shard(run: Path) -> None:
    requests(run)
    path = run / rundir.REQUESTS / "worker-0.arrow"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def missing_host(run: Path) -> None:
    requests(run)
    change_manifest(run, options={"agents": "local,gpu1"})
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in range(21)])
    syn.hello(run, "here")


def one_request(run: Path) -> None:
    requests(run, 1)


def all_failed(run: Path) -> None:
    rows = [
        syn.request(5 + k / 10, None, (), "HTTP_ERROR", end_s=5.05 + k / 10, error="HTTP 503: <b>full</b>", status=503)
        for k in range(100)
    ]
    syn.write_requests(run, rows)


def unknown_schema(run: Path) -> None:
    syn.write_requests(run, [syn.request(6.0)], schema="99")


def wide_clock(run: Path) -> None:
    requests(run)
    far = syn.Far(run, 100.0)
    far.probes(rtt_ms=30_000)
    far.table("gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    far.table("host", [syn.host(float(t)) for t in range(21)])


def no_steps(run: Path) -> None:
    requests(run)
    (run / rundir.STEPS).write_text("")


def killed(run: Path) -> None:
    requests(run)
    lines = (run / rundir.STEPS).read_text().splitlines(keepends=True)
    (run / rundir.STEPS).write_text("".join(lines[:-1]))
    change_manifest(run, status=rundir.RUNNING)


def absurd_times(run: Path) -> None:
    rows = [syn.request(5 + k / 10) for k in range(150)]
    rows[3] |= {"end_ns": syn.at(4.0)}
    rows[4] |= {"first_token_ns": 7}
    rows[5] |= {"intended_ns": -(2**62)}
    syn.write_requests(run, rows)


def absurd_telemetry(run: Path) -> None:
    requests(run)
    absurd = {"util_pct": 1e300, "mem_used_b": 2**62, "power_mw": -(2**40), "mem_total_b": 0}
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(k / 10, **absurd) for k in range(201)])
    syn.write_table(run, "here", "gpu_slow", [syn.slow(float(k), temp_c=-(2**20)) for k in range(21)])
    syn.write_table(run, "here", "server", [syn.server(float(k), kv_usage_ratio=-5.0, running=1e18) for k in range(21)])
    syn.write_table(run, "here", "host", [syn.host(float(t), 400.0) for t in range(21)])


def absurd_tokens(run: Path) -> None:
    requests(run, output_tokens=2**30, prompt_tokens=2**30, chunk_gaps_us=[0] * 9)


def absurd_model(run: Path) -> None:
    requests(run)
    change_manifest(run, model_config={"num_hidden_layers": "many"})


def half_a_surrogate(run: Path) -> None:
    requests(run)
    change_manifest(run, label="\ud800 | <script>", notes="\x00")


def change_manifest(run: Path, **values: object) -> None:
    manifest = json.loads((run / rundir.MANIFEST).read_text())
    (run / rundir.MANIFEST).write_text(json.dumps(manifest | values))


# What is wrong -> words that every report of it has.
CASES: list[tuple[Callable[[Path], None], list[str]]] = [
    (truncated_shard, ["requests/worker-0.arrow", "missing or damaged"]),
    (missing_host, ["missing or damaged: ", "1 of 2 hosts that were watched left nothing"]),
    (lambda run: None, ["no request of the window ended", "No step has a request"]),
    (one_request, ["1 requests are too few to bound every percentile", "Too few requests"]),
    (all_failed, ["all 100 requests failed", "100 of 100 requests (100 %)", "HTTP 503: <b>full</b>"]),
    (unknown_schema, ["missing or damaged: requests/worker-0.arrow"]),
    (wide_clock, ["more than half of the window", "samples' time is not known well enough"]),
    (requests, ["No GPU, host or server was watched"]),
    (no_steps, ["no step reached its level"]),
    (killed, ["The run is not complete", "the step has no end"]),
    (absurd_times, ["missing or damaged: requests/worker-0.arrow"]),
    (absurd_telemetry, []),
    (absurd_tokens, []),
    (absurd_model, ["missing or damaged: run.json", "model_config"]),
    (half_a_surrogate, []),
]


@pytest.mark.parametrize(("spoil", "words"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_report_says_what_is_wrong(tmp_path: Path, spoil: Callable[[Path], None], words: list[str]) -> None:
    run = syn.make(tmp_path / "run")
    spoil(run)
    built = build(run, figures=False, asked=SLO, formats=EVERY)
    report = run / rundir.REPORT
    assert sorted(path.name for path in built.paths) == sorted(rundir.REPORT_FORMATS.values())
    summary = json.loads((report / "summary.json").read_text(), parse_constant=pytest.fail)
    told = [entry["text"] for entry in summary["verdict"]]
    told += [caveat["text"] for entry in (summary, *summary["steps"]) for caveat in entry["caveats"]]
    told += [finding["text"] for finding in summary["damage"]]
    page = re.sub(r"<[^>]+>", "", (report / "report.html").read_text()).replace("&lt;", "<").replace("&gt;", ">")
    texts = {"json": "\n".join(told), "html": page.replace("&#39;", "'")}
    texts["md"] = re.sub(r"\\(.)", r"\1", (report / "report.md").read_text())
    for form, text in texts.items():
        assert [word for word in words if word not in text] == [], form
    assert "<script" not in (report / "report.html").read_text()
    assert not re.search(r"(?<!\\)<", (report / "report.md").read_text())
    steps = pd.read_csv(report / "tables" / "steps.csv")
    assert len(steps) == len(summary["steps"])


def test_the_command_writes_what_it_is_asked_for_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    truncated_shard(run)
    assert read_shard(run / rundir.REQUESTS / "worker-0.arrow")[1] is not None
    runner = CliRunner()
    first = runner.invoke(main, ["report", str(run), "--format", "md, JSON", "--slo", "ttft_p99<1s"])
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in (run / rundir.REPORT).iterdir()) == ["report.md", "summary.json"]
    assert [line.split("/")[-1] for line in first.output.splitlines()[-2:]] == ["summary.json", "report.md"]
    assert "SLO            ttft_p99<1s: met" in first.output
    runner.invoke(main, ["report", str(run), "--format", "csv"])
    assert {path.name for path in (run / rundir.REPORT).iterdir()} == {"report.md", "summary.json", "tables"}
    wrong = runner.invoke(main, ["report", str(run), "--format", "pdf", "--slo", "fast", "--model-config", "/nowhere"])
    assert wrong.exit_code == 2 and [line.split(":")[1] for line in wrong.output.splitlines()] == [
        " --format",
        " --slo",
        " --model-config",
    ]
