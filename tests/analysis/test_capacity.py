"""The capacity plan of runs whose capacity is known: a server of 400 slots, 2 s, and 1 ms for each neighbour."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.capacity import Capacity, plan
from analysis.operating import forecast, usable_steps
from analysis.plan_tables import as_text
from analysis.sizing import Demand
from loadgen.errors import RunDirError, UsageError
from loadgen.slo import parse_slo

DATA = Path(__file__).parent / "data" / "capacity_summary.json"
SLOTS, ALONE_S, EACH_S = 400, 2.0, 0.001
MOST = SLOTS / (ALONE_S + EACH_S * SLOTS)
DEMAND = Demand(1000, parse_slo("ttft_p99<1s"), headroom=0.2, spare=1, gpu_hour=3.5)


def gpu(index: int, busy: float) -> dict[str, Any]:
    facts = {"host": "here", "uuid": f"GPU-{index}", "index": index, "gi_id": None, "simulated": False}
    return facts | {"util_pct": {"mean": busy, "max": busy}, "sm_pct": None}


def step(level: float, think_s: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A step of the known server, with 100 tokens an answer on two GPUs of 100 W and 0.5 J a token."""
    in_flight = level
    for _ in range(200):  # n + Z X(n) = N
        served = min(in_flight, SLOTS)
        in_flight = 0.5 * (in_flight + level - think_s * served / (ALONE_S + EACH_S * served))
    served = min(in_flight, SLOTS)
    qps = served / (ALONE_S + EACH_S * served)
    mean_ms = 1000 * in_flight / qps
    wait_ms = mean_ms - 1000 * (ALONE_S + EACH_S * served)
    stats = dict.fromkeys(("p50", "p90", "p95", "p99", "mean"), mean_ms)
    gpus = [gpu(k, 90.0) for k in range(2)]
    return {
        "level": level,
        "unit": "users",
        "qps": qps,
        "success_pct": 100.0,
        "in_flight_mean": in_flight,
        "output_tokens_per_s": 100 * qps,
        "ttft_ms": {"p99": 100 + wait_ms},
        "e2e_ms": stats,
        "e2e_ms_ok": stats,
        "gpus": gpus,
        "gpu_total": {"power_w": 200 + 0.5 * 100 * qps},
        "caveats": [],
    } | changes


def summary(steps: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    target = {"url": "http://gpu1:8000", "model": "m", "simulated": False}
    return {"run_id": "r", "status": "complete", "target": target, "simulated_gpu": False, "steps": steps} | changes


def known(levels: tuple[float, ...] = (50, 100, 200, 300, 500, 800), **changes: Any) -> dict[str, Any]:
    return summary([step(level, **changes) for level in levels])


def test_the_plan_of_a_known_server() -> None:
    made = plan(known(), DEMAND).plan
    assert made["fit"]["law"] == "batch"
    values = {name: entry["value"] for name, entry in made["fit"]["parameters"].items()}
    assert values == pytest.approx({"s0": ALONE_S, "s1": EACH_S, "c": SLOTS}, rel=0.05)
    assert made["knee"] == pytest.approx(SLOTS, rel=0.05) and made["knee_low"] < SLOTS < made["knee_high"]
    # TTFT is at 1 s when 0.9 s are waited: 150 users above the slots at MOST a second.
    true_level = SLOTS + 0.9 * MOST
    assert made["max_level_within_slo_low"] == 500 < true_level < made["max_level_within_slo_high"] == 800
    assert made["max_qps_within_slo"] == pytest.approx(MOST, rel=0.01)
    assert made["replicas"] == math.ceil(1000 / (0.8 * MOST)) + 1 == 9
    assert made["gpus"] == 18 and made["cost_per_hour"] == 63
    assert made["cost_per_million_output_tokens"] == pytest.approx(63 / (1000 * 100 * 3600 / 1e6))
    left = made["after_losing_one"]
    assert left["replicas"] == 8 and left["target_held"]
    assert left["max_qps_within_slo"] == pytest.approx(8 * MOST, rel=0.01)
    # Nine replicas at 111 requests/s each: 200 W, and 0.5 J for each of 100 tokens.
    assert made["power_w"] == pytest.approx(9 * 200 + 0.5 * 100 * 1000, rel=0.01)
    assert made["kwh_per_hour"] == pytest.approx(made["power_w"] / 1000)
    assert made["j_per_output_token"] == pytest.approx(made["power_w"] / 100_000)
    assert made["warnings"] == []


def test_every_figure_is_within_its_interval() -> None:
    for run in (known(), json.loads(DATA.read_text())):
        made = plan(run, replace(DEMAND, gpus_per_replica=2)).plan
        names = [name.removesuffix("_low") for name in made if name.endswith("_low")]
        assert {"knee", "max_qps_within_slo", "replicas", "gpus", "cost_per_hour", "j_per_output_token"} <= {*names}
        for name in names:
            value, low, high = (made[name + end] for end in ("", "_low", "_high"))
            assert value is None or (low <= value and (high is None or value <= high)), name


def test_the_measured_step_of_5000_users_is_foretold_by_those_up_to_1000() -> None:
    """A run of the simulator: four replicas of 128 slots, so it is full from 512 users on."""
    steps, _ = usable_steps(json.loads(DATA.read_text()))
    below, measured = [step for step in steps if step.level <= 1000], steps[-1]
    assert measured.level == 5000
    found = forecast(below, measured, "users")
    assert found is not None
    assert abs(found["qps_error_pct"]) < 10 and abs(found["e2e_p50_error_pct"]) < 10
    assert found["qps_low"] < measured.qps < found["qps_high"]
    slots = plan(json.loads(DATA.read_text()), DEMAND).plan["fit"]["parameters"]["c"]
    assert slots["value_low"] < 512 < slots["value_high"]


def test_a_run_without_a_limit_has_no_knee_and_what_lies_beyond_is_flagged() -> None:
    made = plan(known((25, 50, 100, 200)), DEMAND).plan
    assert made["knee"] is None and made["knee_low"] <= 200 and made["knee_high"] is None
    assert made["slo_extrapolated"] and made["slo_bound_by"] is None
    assert made["max_level_within_slo_low"] == 200 < made["max_level_within_slo"] <= 400
    assert made["max_qps_within_slo_low"] == pytest.approx(200 / 2.2, rel=0.03)
    assert any("extrapolated" in warning for warning in made["warnings"])
    assert any("knee was not reached" in warning for warning in made["warnings"])


def test_think_time_is_measured_and_users_are_more_than_what_is_in_flight() -> None:
    made = plan(known((100, 300, 500, 700, 1000, 1500), think_s=2.0), DEMAND)
    assert made.working.think_s == pytest.approx(2.0, rel=0.01)
    assert made.plan["knee_in_flight"] == pytest.approx(SLOTS, rel=0.05)
    assert made.plan["knee"] == pytest.approx(SLOTS + 2 * MOST, rel=0.05)
    assert made.plan["check"]["qps_error_pct"] == pytest.approx(0, abs=2)


def open_steps() -> list[dict[str, Any]]:
    """Rates of which the last is more than the server holds: its queue grows."""
    found = []
    for rate in (20.0, 60.0, 100.0, 140.0, 160.0):
        in_flight = ALONE_S * rate / (1 - EACH_S * rate)
        entry = step(in_flight)
        found.append(entry | {"level": rate, "unit": "requests/s", "qps": min(rate, entry["qps"])})
    return [*found[:-1], step(900.0) | {"level": 180.0, "unit": "requests/s"}]


def test_a_run_of_the_open_model_is_planned_in_rates() -> None:
    made = plan(summary(open_steps()), DEMAND).plan
    assert made["unit"] == "requests/s"
    assert made["max_level_within_slo_low"] == 140 and made["max_level_within_slo_high"] == 180
    assert 140 <= made["max_qps_within_slo"] <= MOST * 1.01
    assert made["knee_qps"] == pytest.approx(MOST, rel=0.1)
    assert made["knee"] == pytest.approx(made["knee_qps"], rel=0.01)


def test_an_slo_that_never_held_gives_no_plan_and_says_so() -> None:
    made = plan(known(), replace(DEMAND, slo=parse_slo("ttft_p99<50ms"))).plan
    names = ("max_qps_within_slo", "replicas", "gpus", "cost_per_hour", "after_losing_one")
    assert [made[name] for name in names] == [None] * 5
    assert made["replicas_low"] >= 1000 / (0.8 * step(50)["qps"])
    assert any("does not hold at the lowest step" in warning for warning in made["warnings"])
    assert "No plan" in as_text(made)


def test_failures_break_an_objective_between_the_steps_around_them() -> None:
    run = known()
    run["steps"][3] |= {"success_pct": 97.0, "ttft_ms": {"p99": "inf"}}
    made = plan(run, replace(DEMAND, slo=parse_slo("error_rate<2%,ttft_p99<1s"))).plan
    objectives = {entry["objective"]: entry for entry in made["objectives"]}
    assert 200 < objectives["error_rate<2%"]["max_level"] < 300
    assert objectives["ttft_p99<1s"]["max_level"] == 200
    assert made["slo_bound_by"] == "ttft_p99<1s" and made["steps"][3]["slo_figures"]["ttft_p99"] == "inf"
    assert any("holds again" in warning for warning in made["warnings"])


HUNG = {"qps": 0.0, "success_pct": None, "output_tokens_per_s": 0.0, "resident_tokens_mean": 0.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"success_pct": 50.0, "ttft_ms": {"p99": "inf"}},
        {"success_pct": 0.0, "qps": 0.0, "ttft_ms": {"p99": None}},
        HUNG | {"ttft_ms": {"p99": None}},
    ],
)
@pytest.mark.parametrize("slo", ["ttft_p99<1s", "error_rate<2%"])
def test_a_step_that_tells_no_capacity_breaks_an_objective(changes: dict[str, Any], slo: str) -> None:
    steps = [step(level) for level in (50, 100, 200)]
    made = plan(summary([*steps, step(400, **changes)]), replace(DEMAND, slo=parse_slo(slo))).plan
    assert made["slo_bound_by"] == slo and not made["slo_extrapolated"]
    assert made["max_level_within_slo"] == pytest.approx(200, rel=0.05) and made["max_level_within_slo_high"] == 400
    assert made["max_qps_within_slo"] == pytest.approx(steps[-1]["qps"], rel=0.05)
    assert made["fit"]["steps"] == 3 and any("of 400" in warning for warning in made["warnings"])


def test_a_step_that_tells_no_capacity_holds_nothing_and_the_curve_ends_before_it() -> None:
    steps = [step(level) for level in (50, 100, 200)]
    made = plan(summary([*steps, step(400, qps=0.0)]), DEMAND).plan
    assert made["slo_extrapolated"] and made["slo_bound_by"] is None
    assert made["max_level_within_slo"] == 200 and made["max_level_within_slo_high"] is None
    assert made["max_qps_within_slo"] == pytest.approx(steps[-1]["qps"])


def test_a_lowest_step_that_failed_is_within_no_objective_though_heavier_ones_are() -> None:
    run = known()
    run["steps"][0] |= {"success_pct": 50.0}
    made = plan(run, replace(DEMAND, slo=parse_slo("error_rate<2%"))).plan
    assert made["max_level_within_slo"] is None and made["max_level_within_slo_high"] == 50
    warnings = "\n".join(made["warnings"])
    assert "breaks at 50 users and holds again at 100, 200" in warnings and "lowest step of 50 users" in warnings


def test_intervals_of_the_steps_widen_that_of_the_load() -> None:
    run = known()
    run["steps"][4] |= {"ttft_ms_ci95": {"p99": [600.0, 1200.0]}, "qps_ci95": [150.0, 180.0]}
    made = plan(run, DEMAND).plan
    assert made["max_level_within_slo_low"] == 300
    for short in run["steps"][:2]:  # too few requests to tell that less than 1 % of them fail
        short |= {"success_pct_ci95": [95.0, 100.0]}
    held = plan(run, replace(DEMAND, slo=(*DEMAND.slo, *parse_slo("error_rate<1%")))).plan
    assert held["max_level_within_slo_low"] == 300
    run["steps"][5] |= {"ttft_ms_ci95": {"p99": [900.0, "inf"]}}
    made = plan(run, DEMAND).plan
    assert made["max_level_within_slo_high"] is None and made["max_qps_within_slo_high"] > 1.03 * MOST


def test_the_luckiest_step_of_a_plateau_is_not_the_capacity() -> None:
    run = known(tuple(range(50, 1600, 50)))
    noise = np.random.default_rng(3).normal(1, 0.04, len(run["steps"]))
    for entry, factor in zip(run["steps"], noise, strict=True):
        entry["qps"] *= factor
    made = plan(run, replace(DEMAND, slo=parse_slo("ttft_p99<5s"))).plan
    assert made["max_qps_within_slo"] == pytest.approx(MOST, rel=0.03)
    assert made["max_qps_within_slo_low"] < MOST < made["max_qps_within_slo_high"]
    assert made["max_qps_within_slo"] < max(entry["qps"] for entry in run["steps"])


def test_what_a_load_holds_is_not_less_because_more_load_brings_less() -> None:
    steps = [step(level) for level in (50, 100, 200)]
    qps = steps[-1]["qps"]
    for entry in steps:
        entry["qps_ci95"] = [0.98 * entry["qps"], 1.02 * entry["qps"]]
    steps.append(step(400, qps=0.5 * qps, success_pct=95.0, qps_ci95=[0.49 * qps, 0.51 * qps]))
    made = plan(summary(steps), replace(DEMAND, slo=parse_slo("error_rate<2%"))).plan
    assert made["max_qps_within_slo"] == pytest.approx(qps)


def test_too_few_steps_have_no_curve_but_a_plan() -> None:
    made = plan(known((100, 800)), DEMAND).plan
    assert made["fit"] is None and made["knee"] is None and "at least 3" in made["fit_refused"]
    assert made["replicas"] is not None and made["replicas_low"] <= made["replicas"] <= made["replicas_high"]
    assert "No curve" in as_text(made)


def test_doubts_of_the_run_become_warnings() -> None:
    run = known() | {"simulated_gpu": True, "status": "aborted"}
    run["steps"][1]["caveats"] = [{"code": "client_late", "text": "late", "remedy": ""}]
    run["steps"][2]["caveats"] = [{"code": "few_requests", "text": "too few", "remedy": ""}]
    run["steps"][5]["caveats"] = [{"code": "littles_law", "text": "by Little's law it were 7", "remedy": ""}]
    run["steps"].append(step(900, success_pct=40.0))
    text = "\n".join(plan(run, DEMAND).plan["warnings"])
    for part in (
        "simulated GPU",
        "aborted",
        "client was late at 100",
        "at 200 users: too few",
        "at 800 users: by Little's law",
        "of 900 has 40",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("steps", "demand", "error", "says"),
    [
        ([], DEMAND, RunDirError, "no step to plan with"),
        ([step(10, qps=0.0)], DEMAND, RunDirError, "no request that succeeded within its window"),
        ([step(10, success_pct=None)], DEMAND, RunDirError, "successful requests"),
        ([step(10) | {"level": 0}], DEMAND, RunDirError, "no load"),
        ([step(10, ttft_ms={"p99": None})], DEMAND, UsageError, "ttft_p99 was not measured"),
        ([step(10)], replace(DEMAND, slo=parse_slo("itl_p99<1s")), UsageError, "itl_p99 was not measured"),
        ([step(10)], replace(DEMAND, gpus_per_replica=3), UsageError, "3 does not divide the 2 GPUs"),
    ],
)
def test_what_cannot_be_planned_is_said(
    steps: list[dict[str, Any]], demand: Demand, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        plan(summary(steps), demand)


@pytest.mark.parametrize("each", [1, 2])
def test_gpus_of_a_replica_divide_what_the_run_held(each: int) -> None:
    made = plan(known(), replace(DEMAND, gpus_per_replica=each)).plan
    assert made["replicas_measured"] == 2 // each
    assert made["replica_max_qps"] == pytest.approx(MOST * each / 2, rel=0.01)
    assert made["gpus"] == each * made["replicas"]


def test_gpus_that_ran_nothing_are_in_no_replica() -> None:
    """Two of eight serve; nor are the parts of one GPU two."""
    run = known()
    for entry in run["steps"]:
        parts = [gpu(0, 90.0) | {"uuid": f"MIG-{part}", "gi_id": part} for part in (1, 2)]
        entry["gpus"] = [*entry["gpus"], *parts, *(gpu(k, 0.2) for k in range(2, 8))]
    for each in (None, 1):
        demand = replace(DEMAND, gpus_per_replica=each)
        made, alone = plan(run, demand).plan, plan(known(), demand).plan
        told = made["assumptions"]
        assert made | {"assumptions": None} == alone | {"assumptions": None}
        assert [text for text in told if text not in alone["assumptions"]] == [
            "GPUs that ran nothing in the run (6) are of no replica."
        ]


def test_a_replica_may_have_gpus_that_ran_nothing() -> None:
    """A node of eight is rented as a whole, and two serve."""
    run = known()
    for entry in run["steps"]:
        entry["gpus"] = [*entry["gpus"], *(gpu(k, 0.2) for k in range(2, 8))]
    made = plan(run, replace(DEMAND, gpus_per_replica=8)).plan
    assert (made["gpus_seen"], made["replicas_measured"]) == (8, 1)
    with pytest.raises(UsageError, match="9 does not divide the 8 GPUs"):
        plan(run, replace(DEMAND, gpus_per_replica=9))


def test_without_gpus_the_plan_has_replicas_alone() -> None:
    run = known()
    for entry in run["steps"]:
        entry |= {"gpus": [], "gpu_total": None}
    made = plan(run, DEMAND).plan
    assert made["replicas"] == 9 and made["gpus"] is None and made["power_w"] is None
    assert any("no GPU was seen" in warning for warning in made["warnings"])


def drawn(levels: tuple[float, ...] = (50, 100, 200, 300, 500, 800)) -> Capacity:
    return plan(known(levels), replace(DEMAND, slo=parse_slo("ttft_p99<1s,e2e_p95<3s,error_rate<2%")))


def test_every_key_is_documented() -> None:
    documented = (Path(__file__).resolve().parents[2] / "docs" / "capacity.md").read_text()
    made = plan(known(), DEMAND).plan
    fit, check, left, first = made["fit"], made["check"], made["after_losing_one"], made["steps"][0]
    ends = ("_low", "_high")
    for key in (*made, *fit, *left, *first):
        assert key.endswith(ends) or f"`{key}`" in documented, key
    assert check["qps_error_pct"] is not None


def test_the_documented_prediction_is_that_of_the_stored_run() -> None:
    documented = (Path(__file__).resolve().parents[2] / "docs" / "capacity.md").read_text()
    steps, _ = usable_steps(json.loads(DATA.read_text()))
    found = forecast(steps[:-1], steps[-1], "users")
    assert found is not None
    assert f"| QPS | {found['qps']:.1f} | {found['qps_low']:.1f} to {found['qps_high']:.1f} |" in documented
    assert f"| E2E p50 | {found['e2e_p50_ms']:,.0f} ms |" in documented
