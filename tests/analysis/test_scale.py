"""Long runs: figures do not depend on how records are divided, and above the cap only percentiles are of a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis.analyse import Asked, analyse, summarise
from analysis.checks import step_caveats
from analysis.damage import span
from analysis.kept import Kept
from analysis.load import load
from analysis.overview import look
from analysis.requests import derive
from analysis.served import count
from analysis.shards import REQUESTS, read
from analysis.tally import Tally
from analysis.timeline import Seconds
from analysis.windows import Window
from loadgen.slo import parse_slo
from tests.analysis import synthetic as syn

WINDOW = Window(0, 10, "users", 0.0, 0.0, 5.0, 20.0, True)
SLO = parse_slo("ttft_p99<300ms")


def nobody(share: float) -> None:
    """Told how far it is."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4000 requests over 20 s of 1 to 30 tokens, of which some keep their gaps only in summary, fail or are cut."""
    run = syn.make(tmp_path_factory.mktemp("scale") / "run", options={"slo": "ttft_p99<300ms"})
    rng = np.random.default_rng(1)
    rows = []
    for k, (t, ttft, tokens) in enumerate(
        zip(np.sort(rng.uniform(0, 20, 4000)), rng.lognormal(5, 0.5, 4000), rng.integers(1, 31, 4000), strict=True)
    ):
        row = syn.request(float(t), float(ttft), rng.uniform(5, 40, tokens - 1).tolist(), prompt_tokens=int(ttft))
        if k % 7 == 0 and tokens > 1:
            row |= {"chunk_gaps_us": None, "gap_p50_us": 20_000, "gap_p99_us": 40_000, "gap_max_us": 40_000}
        if k % 50 == 0:
            row = syn.request(float(t), None, (), outcome="HTTP_ERROR", end_s=t + 0.1, error="HTTP 503: full")
        if k % 333 == 0:
            row |= {"outcome": "CANCELLED"}
        rows.append(row)
    for worker in (0, 1):
        syn.write_requests(run, rows[worker::2], worker)
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in range(21)])
    return run


def rows_of(run: Path) -> pa.Table:
    ours = load(run)
    return pa.concat_tables([part for _, part in read(ours.shards, REQUESTS, span(ours.manifest), [])])


def same(value: Any, other: Any) -> bool:
    """But for the last digits, which depend on the order of a sum."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    return bool(value == (pytest.approx(other, rel=1e-6, abs=1e-9) if isinstance(other, float) else other))


def test_figures_do_not_depend_on_how_rows_are_divided_into_shards_and_batches(run: Path, tmp_path: Path) -> None:
    table = rows_of(run)
    other = syn.make(tmp_path / "run", options={"slo": "ttft_p99<300ms"})
    syn.write_requests(other, table.to_pylist(), batch=7)
    syn.write_table(other, "here", "host", [syn.host(float(t)) for t in range(21)])
    here, there = (summarise(path)["steps"][0] for path in (run, other))
    assert here["requests"] > 2900 and here["errors"] and here["cancelled"] and 0 < here["itl_share"] < 1
    assert [key for key in here if not same(here[key], there[key])] == []


@pytest.mark.parametrize("rows", [1, 13, 300])
def test_parts_add_up_to_the_whole(run: Path, rows: int) -> None:
    table = rows_of(run).slice(0, 700).combine_chunks()

    def counted(length: int) -> tuple[Any, ...]:
        tally, seconds, kept = Tally(WINDOW, SLO, 1), Seconds(np.arange(26, dtype=np.float64)), Kept(1, [])
        for first in range(0, len(table), length):
            part = derive(table.slice(first, length), syn.ZERO_NS, [], first)
            for counts in (tally, seconds, kept):
                counts.add(part)
        figures, (gaps, _) = tally.figures(seconds.prompt_mean), tally.gaps()
        means = {name: values.tolist() for name, values in seconds.means(1).items()}
        return figures, means, tally.ramp.tolist(), gaps.tolist(), kept.frame().to_dict("list")

    for whole, cut in zip(counted(len(table)), counted(rows), strict=True):
        assert same(cut, whole) or same(repr(cut), repr(whole))


def test_above_the_cap_counts_are_exact_and_percentiles_within_their_intervals(run: Path) -> None:
    def served(**most: int) -> dict[str, Any]:
        ours = load(run)
        (step,) = count(ours, look(ours, nobody, **most), SLO, nobody).steps
        return step

    exact, part = served(), served(most=1000, most_gaps=10_000)
    assert (exact["kept_every"], part["kept_every"]) == (1, 4)
    assert 0 < part["itl_share"] < exact["itl_share"] / 2
    of_a_part = ("_ms", "_ci95", "_effective", "drift_pct", "steady", "kept_every", "itl_share", "ttft_protocol")
    exactly = [key for key in exact if not any(word in key for word in of_a_part)]
    assert {"requests", "qps", "goodput_qps", "output_tokens_per_s", "in_flight_mean", "errors"} <= set(exactly)
    assert [key for key in exactly if not same(part[key], exact[key])] == []
    for latency in ("ttft_ms", "e2e_ms", "tpot_ms", "itl_ms"):
        for stat in ("p50", "p90", "p95"):
            low, high = part[f"{latency}_ci95"][stat]
            assert low <= exact[latency][stat] <= high, (latency, stat)


def test_a_run_above_the_cap_says_so(run: Path) -> None:
    step = summarise(run)["steps"][0]
    (event,) = [
        one
        for one in step_caveats(step | {"kept_every": 4}, WINDOW, load(run).manifest, [])
        if one["code"] == "every_kth"
    ]
    assert "every 4th request" in event["text"] and "every_kth" not in [one["code"] for one in step["caveats"]]


def test_progress_rises_through_all_stages(run: Path) -> None:
    told: list[tuple[str, float]] = []
    analyse(run, Asked(progress=lambda stage, share: told.append((stage, share))))
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["first look", "requests", "telemetry", "figures"]
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
