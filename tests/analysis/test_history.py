"""The history of a label: its points, what changed between them, and trends with known answers."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.analyse import SCHEMA
from analysis.effects import Side, p_differs
from analysis.history import LEAST_POINTS, change_between, history, kendall_p
from analysis.history_tables import as_text, headline, point_table, trend_table
from analysis.report.history_page import page
from loadgen import rundir
from loadgen.errors import UsageError
from tests.analysis import synthetic as syn
from tests.analysis.compared_runs import hanging, step, unanswered


def saved(runs: Path, number: int, ttft_p95: float | str, levels: tuple[int, ...] = (10,), **changes: Any) -> Path:
    """A run that has its report already, so that nothing is analysed."""
    run = syn.make(
        runs / f"run-{number}", levels, created=f"2026-01-01T{number:02d}:00:00Z", label="nightly", **changes
    )
    steps = [step(level, ttft_p95, ok=1000, output_tokens_per_s=None, gpus=[]) for level in levels]
    about = {"run_id": run.name, "status": "complete", "target": {"model": "m"}, "slo": None}
    summary = {"schema": SCHEMA, "simulated_gpu": False, "steps": steps, "damage": []} | about
    (run / rundir.REPORT).mkdir()
    (run / rundir.REPORT / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Eight points, each slower than the one before; the last is two repeats; others that do not belong to them."""
    for number in range(7):
        saved(tmp_path, number, 100 * 1.2**number, source_revision=f"r{number // 4}")
    for number in (7, 8):
        saved(tmp_path, number, 100 * 1.2**7, repeat={"number": number - 6, "of": 2, "group": "run-7"})
    saved(tmp_path, 9, 100.0, status="interrupted")
    saved(tmp_path, 10, 100.0, scenario={"name": "other", "path": "other.py"}, comparable={"prompt_tokens": 9})
    (tmp_path / "run-10").rename(tmp_path / "run-0a")
    changed = json.loads((tmp_path / "run-0a" / "run.json").read_text()) | {"created": "2025-01-01T00:00:00Z"}
    (tmp_path / "run-0a" / "run.json").write_text(json.dumps(changed))
    summary = tmp_path / "run-0a" / "report" / "summary.json"
    summary.write_text(summary.read_text())  # younger than the manifest again
    return tmp_path


def test_points_are_runs_and_groups_of_repeats_in_their_order(runs: Path) -> None:
    found = history("nightly", runs, None)
    assert [point["runs"] for point in found["points"]] == [1] * 7 + [2]
    assert [point["figures"]["ttft_p95"]["value"] for point in found["points"]] == pytest.approx(
        [100 * 1.2**number for number in range(8)]
    )
    assert found["left_out"] == [{"name": "run-0a", "why": "prompt_tokens differs"}]
    assert found["points"][4]["changed"] == [{"name": "loadgen revision", "base": "r0", "new": "r1"}]


def test_a_trend_is_found_and_none_where_there_is_none(runs: Path) -> None:
    found = history("night*", runs, "10")
    trends = {trend["figure"]: trend for trend in found["trends"]}
    assert trends["ttft_p95"]["trend"] == "rises" and trends["qps"]["trend"] == "none shown"
    assert trends["ttft_p95"]["change"] == pytest.approx(100 * (1.2**7 - 1))
    assert all(point["figures"]["ttft_p95"]["differs"] for point in found["points"][1:])
    assert "TTFT p95 rises" in headline(found) and "rises" in as_text(found)


def test_words_and_page(runs: Path) -> None:
    found = history("nightly", runs, None)
    headers, rows = point_table(found)
    assert len(headers) == len(rows[0]) and len(rows) == 8 and "(+20.0 %)" in rows[1][headers.index("TTFT p95 ms")]
    assert len(trend_table(found)[1]) == len(found["trends"])
    assert page(found).count("data:image/png;base64,") == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_no_such_label_or_step_is_said_so(runs: Path) -> None:
    with pytest.raises(UsageError, match="no complete run"):
        history("weekly", runs, None)
    with pytest.raises(UsageError, match="--step 20: there is no such step in run-7; it has 10 users"):
        history("nightly", runs, "20")


def test_points_without_the_step_are_left_out_and_named(tmp_path: Path) -> None:
    for number, levels in enumerate([(10,), (10, 20), (20, 30), (20, 30)]):
        saved(tmp_path, number, 100.0, levels)
    found = history("nightly", tmp_path, None)
    assert found["step"] == "20 users" and [point["name"] for point in found["points"]] == ["run-1", "run-2", "run-3"]
    assert found["left_out"] == [{"name": "run-0", "why": "it has no step of 20 users"}]
    assert len(history("nightly", tmp_path, "30")["points"]) == 2
    saved(tmp_path, 4, 100.0, (40,))
    assert [point["name"] for point in history("nightly", tmp_path, None)["points"]] == ["run-4"]


def test_goodput_by_different_objectives_is_left_out(tmp_path: Path) -> None:
    def by(number: int, objective: str) -> None:
        path = saved(tmp_path, number, 100.0) / rundir.REPORT / "summary.json"
        summary = json.loads(path.read_text()) | {"slo": [{"text": objective}]}
        summary["steps"][0]["goodput_qps"] = 40.0
        path.write_text(json.dumps(summary))

    by(0, "ttft_p99<1s")
    by(1, "ttft_p99<1s")
    assert "goodput_qps" in history("nightly", tmp_path, None)["points"][-1]["figures"]
    by(2, "ttft_p99<2s")
    found = history("nightly", tmp_path, None)
    assert "goodput_qps" not in found["points"][-1]["figures"]
    assert [entry["name"] for entry in found["left_out"]] == ["goodput_qps"]


def test_changes_of_few_single_runs_are_not_marked(tmp_path: Path) -> None:
    for number in range(LEAST_POINTS - 1):
        saved(tmp_path, number, 100.0 * 1.2**number)
    found = history("nightly", tmp_path, None)
    assert "not marked" in found["indicative"] and found["indicative"] in as_text(found) and "not marked" in page(found)
    changes = [point["figures"]["ttft_p95"] for point in found["points"][1:]]
    assert all(change["change"] == pytest.approx(20) and change["differs"] is None for change in changes)
    assert "(+20.0 %)" not in as_text(found)
    assert {tuple(trend["change_ci95"]) for trend in found["trends"]} == {(None, None)}


@pytest.mark.parametrize("points", [LEAST_POINTS, 7, 12, 30])
def test_single_runs_that_differ_by_chance_are_rarely_marked_and_a_jump_is(points: int) -> None:
    """2 % from run to run, where the interval within a run reaches 1 %."""
    rng = np.random.default_rng(3)
    tried = 500

    def told(rise: float) -> float:
        """How often at a point from which on all are slower."""
        seen = 0
        for values in 0.02 * rng.standard_normal((tried, points)):
            logarithms = (values + rise * (np.arange(points) >= 3)).tolist()
            found = change_between([Side((v,), 0.0, ((v - 0.01, v + 0.01),)) for v in logarithms], 2, 3)
            assert found is not None
            p = p_differs(found)
            seen += p is not None and p < 0.05
        return seen / tried

    assert told(0.0) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / tried)
    assert told(0.3) > 0.9


@pytest.mark.parametrize("points", [8, 12, 16])
def test_one_odd_point_is_marked_and_hides_nothing(points: int, tmp_path: Path) -> None:
    """One night at a hundred times the latency; the last one is twice as slow."""
    values = (100 * np.random.default_rng(points).uniform(0.99, 1.01, points)).tolist()
    values[3], values[-1] = 10_000.0, 200.0
    for number, value in enumerate(values):
        saved(tmp_path, number, value)
    figures = [point["figures"]["ttft_p95"] for point in history("nightly", tmp_path, None)["points"]]
    assert [place for place, figure in enumerate(figures) if figure["differs"]] == [3, 4, points - 1]


def test_a_last_run_that_answers_nothing_is_marked(tmp_path: Path) -> None:
    """Alone among single runs, however few they are."""
    for number in range(3):
        saved(tmp_path, number, 100.0 + number)
    path = saved(tmp_path, 3, 100.0) / rundir.REPORT / "summary.json"
    for last in (unanswered(10), hanging(10)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": [last]}))
        found = history("nightly", tmp_path, None)["points"][-1]["figures"]
        assert found["ttft_p95"]["differs"] and found["ttft_p95"]["change"] == "inf"
        assert found["qps"]["differs"] and found["qps"]["change"] == -100


def test_a_percentile_that_failures_reach_now_and_then_is_no_change(tmp_path: Path) -> None:
    """Of single runs: how often it does is what differs from run to run."""
    for number in range(8):
        saved(tmp_path, number, "inf" if number % 2 else 100.0)
    figures = [point["figures"]["ttft_p95"] for point in history("nightly", tmp_path, None)["points"]]
    assert [figure["value"] for figure in figures[:2]] == [pytest.approx(100.0), "inf"]
    assert [figure["p"] for figure in figures] == [None] * 8


def test_a_figure_of_0_beside_one_that_is_infinite_has_a_history(tmp_path: Path) -> None:
    """A point of two repeats: gaps of 0 ms, read together, and no answer at all."""
    for number in range(4):
        repeat = {"number": number - 1, "of": 2, "group": "run-2"} if number > 1 else None
        path = saved(tmp_path, number, 100.0, repeat=repeat) / rundir.REPORT / "summary.json"
        steps = [step(10, itl_ms={"p50": 0.0}) if number < 3 else unanswered(10, itl_ms={"p50": None})]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": steps}))
    last = history("nightly", tmp_path, None)["points"][-1]["figures"]["itl_p50"]
    assert last["value"] is None and last["runs"] == [0.0, "inf"]


def test_runs_that_cannot_be_used_are_named_and_damage_is_told(tmp_path: Path) -> None:
    for number in range(5):
        saved(tmp_path, number, 100.0)

    def damaged(number: int, file: str) -> None:
        path = tmp_path / f"run-{number}" / rundir.REPORT / "summary.json"
        of = {"damage": [{"file": file, "text": "it is cut"}]}
        path.write_text(json.dumps(json.loads(path.read_text()) | of))

    damaged(0, "requests/worker-0.arrow")
    damaged(1, "steps.jsonl")
    damaged(2, "telemetry/local/host.arrow")
    damaged(4, "requests/worker-0.errors.jsonl")
    (tmp_path / "run-3" / rundir.MANIFEST).write_text("{")
    found = history("nightly", tmp_path, None)
    assert [point["name"] for point in found["points"]] == ["run-2", "run-4"]
    why = {entry["name"]: entry["why"] for entry in found["left_out"]}
    assert why["run-0"] == "requests/worker-0.arrow: it is cut" and why["run-1"] == "steps.jsonl: it is cut"
    assert why["run-3"].startswith("its label is not known: ") and "run.json is damaged" in why["run-3"]
    told = "files of run-2, run-4 are damaged: their reports say what was left out"
    assert found["notes"] == [told] and told in as_text(found) and told in page(found)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_kendalls_p_is_that_of_all_orders(size: int) -> None:
    def score(order: tuple[float, ...]) -> int:
        return sum((b > a) - (b < a) for a, b in itertools.combinations(order, 2))

    scores = [score(order) for order in itertools.permutations(range(size))]
    for order in list(itertools.permutations(range(size)))[:: size - 1]:
        extreme = sum(abs(other) >= abs(score(order)) for other in scores) / math.factorial(size)
        assert kendall_p([float(value) for value in order]) == pytest.approx(min(1, extreme))
    assert kendall_p([1.0, 2.0]) is None


def test_kendalls_p_of_many_points_is_made_at_once() -> None:
    began = time.process_time()
    rng = np.random.default_rng(1)
    shares = [kendall_p(rng.standard_normal(160).tolist()) for _ in range(100)]
    assert 0 <= sum(p is not None and p < 0.05 for p in shares) <= 12
    few, many = (kendall_p([*range(size - 8), *range(0, -8, -1)]) for size in (29, 30))
    assert few is not None and many is not None and 0.5 < few / many < 2  # exact, and as of a normal S
    assert time.process_time() - began < 2
