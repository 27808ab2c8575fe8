"""Distributions against exact figures of the same requests, however they are divided."""

import numpy as np
import pandas as pd
import pytest

from analysis.distributions import MAX_TIMES, Distributions
from analysis.stats import percentile
from tests.analysis.shapes import STEP_S, requests, spread, windows

STEPS = 4


def exact(frame: pd.DataFrame, metric: str, p: float) -> float | None:
    rows = frame[~frame["cancelled"]]
    return percentile(np.where(rows["failed"], np.inf, rows[f"{metric}_ms"]), p)


def inside(frame: pd.DataFrame, step: int) -> pd.DataFrame:
    window = windows(STEPS)[step]
    return frame[(frame["intended_s"] >= window.begin_s) & (frame["intended_s"] < window.end_s)]


def fed(frame: pd.DataFrame, parts: int, shuffled: bool = False) -> Distributions:
    found = Distributions(windows(STEPS), STEP_S * STEPS)
    order = np.random.default_rng(7).permutation(len(frame)) if shuffled else np.arange(len(frame))
    for rows in np.array_split(order, parts):
        found.add(frame.iloc[rows])
    return found


@pytest.mark.parametrize("metric", ["ttft", "e2e"])
@pytest.mark.parametrize("p", [1, 50, 90, 99])
def test_percentiles_of_a_step_are_within_one_per_cent_of_exact_ones(metric: str, p: int) -> None:
    frame = requests(STEPS, each=2000, failing=0.02)
    cdf = fed(frame, 1).cdf()
    for step in range(STEPS):
        rows = cdf[(cdf["metric"] == metric) & (cdf["step"] == step)]
        reached = rows[rows["share"] >= p / 100 - 1e-12]
        known = exact(inside(frame, step), metric, p)
        found = reached["latency_ms"].iloc[0] if len(reached) else np.inf
        assert found == known or found == pytest.approx(known, rel=0.0101), step


def test_parts_in_any_order_give_the_same_tables() -> None:
    frame = requests(STEPS, each=300)
    whole, parts = fed(frame, 1), fed(frame, 17, shuffled=True)
    for table in ("cdf", "heat", "over_time", "surface"):
        pd.testing.assert_frame_equal(getattr(whole, table)(), getattr(parts, table)())
        assert len(getattr(whole, table)()) > 0


def test_failures_keep_the_curve_below_one_and_cancelled_requests_are_in_nothing() -> None:
    frame = requests(STEPS)
    cdf = fed(frame, 1).cdf()
    for step in range(STEPS):
        rows = inside(frame, step)
        counted = rows[~rows["cancelled"]]
        last = cdf[(cdf["metric"] == "e2e") & (cdf["step"] == step)].iloc[-1]
        assert last["share"] == pytest.approx(1 - counted["failed"].mean())
    assert cdf.loc[cdf["metric"] == "ttft", "requests"].sum() == sum(
        inside(frame, step)["ok"].sum() for step in range(STEPS)
    )


def test_the_heat_map_has_every_request_at_its_time_and_latency_once() -> None:
    frame = requests(STEPS)
    found = fed(frame, 1)
    heat = found.heat()
    for metric in ("ttft", "e2e"):
        mine = heat[heat["metric"] == metric]
        finite = mine[np.isfinite(mine["high_ms"])]
        assert finite["requests"].sum() == frame["ok"].sum()
        assert mine.loc[np.isinf(mine["low_ms"]), "requests"].sum() == frame["failed"].sum()
        good = frame[frame["ok"]]
        for cell in finite.sample(40, random_state=3).itertuples():
            there = good["intended_s"].between(cell.t_s, cell.t_s + cell.width_s, inclusive="left")
            there &= good[f"{metric}_ms"].between(cell.low_ms, cell.high_ms, inclusive="left")
            assert there.sum() == cell.requests


def test_percentiles_over_time_are_those_of_the_requests_intended_then() -> None:
    frame = requests(STEPS, each=3000, failing=0.3)
    lines = fed(frame, 1).over_time()
    assert np.isinf(lines["p99_ms"]).any() and np.isfinite(lines["p99_ms"]).any()
    for row in lines[lines["metric"] == "ttft"].itertuples():
        rows = frame[frame["intended_s"].between(row.t_s, row.t_s + row.width_s, inclusive="left")]
        for p, found in ((50, row.p50_ms), (99, row.p99_ms)):
            known = exact(rows, "ttft", p)
            assert found == known or found == pytest.approx(known, rel=0.0101)


@pytest.mark.parametrize(("length_s", "width_s"), [(1.0, 0.01), (80.0, 1.0), (86_400.0, 1000.0), (0.0, 1e-5)])
def test_bins_of_time_are_round_and_few(length_s: float, width_s: float) -> None:
    found = Distributions([], length_s)
    assert found.width_s == pytest.approx(width_s) and length_s / found.width_s <= MAX_TIMES


def test_the_surface_is_the_percentile_of_prompts_of_that_length() -> None:
    frame = requests(STEPS, each=3000, failing=0.0)
    surface = fed(frame, 1).surface()
    assert set(surface["step"]) == set(range(STEPS))
    for cell in surface.itertuples():
        rows = inside(frame, cell.step)
        rows = rows[(rows["prompt_tokens"] >= cell.prompt_low) & (rows["prompt_tokens"] < cell.prompt_high)]
        assert cell.requests == (~rows["cancelled"]).sum()
        for p, found in ((50, cell.ttft_p50_ms), (99, cell.ttft_p99_ms)):
            assert found == pytest.approx(exact(rows, "ttft", p), rel=0.0101)


def test_prompts_that_are_alike_or_unknown_have_no_surface() -> None:
    frame = requests(STEPS)
    for tokens in (512.0, np.nan):
        assert fed(frame.assign(prompt_tokens=tokens), 1).surface().empty


def test_plain_inference_has_no_first_token_and_a_run_of_nothing_no_rows() -> None:
    plain = fed(requests(STEPS).assign(ttft_ms=np.nan), 1)
    assert set(plain.cdf()["metric"]) == set(plain.heat()["metric"]) == {"e2e"}
    assert plain.surface().empty
    nothing = fed(requests(STEPS)[:0], 1)
    assert all(getattr(nothing, table)().empty for table in ("cdf", "heat", "over_time", "surface"))


def test_a_step_whose_requests_all_failed_has_no_latency_but_its_failures() -> None:
    found = spread(STEPS, failing=1.0)
    assert set(found.cdf()["step"]) == {0, 1}
    assert np.isinf(found.surface().query("step > 1")["ttft_p50_ms"]).all()
    late = found.heat().query("t_s >= 40")
    assert len(late) and np.isinf(late["low_ms"]).all()


def test_memory_does_not_grow_with_requests() -> None:
    found = Distributions(windows(STEPS), STEP_S * STEPS)
    before = sum(value.nbytes for value in vars(found).values() if isinstance(value, np.ndarray))
    for seed in range(3):
        found.add(requests(STEPS, each=500, seed=seed))
    after = sum(value.nbytes for value in vars(found).values() if isinstance(value, np.ndarray))
    assert before == after < 20e6
