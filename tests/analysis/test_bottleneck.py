"""Verdicts on real runs against the simulator with limits made on purpose, as recorded; and on what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.bottleneck import CLASSES, NEEDED, judge, judge_all

CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((Path(__file__).with_name("data") / "bottlenecks.json").read_text())
}


def verdict(case: dict[str, Any], number: int = -1) -> dict[str, Any]:
    found = judge(case["steps"][number], case["steps"], case["cards"])
    assert found is not None
    return found


def without(case: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return case | {"steps": [step | change(step) for step in case["steps"]]}


@pytest.mark.parametrize("name", CASES)
def test_what_was_made_is_what_is_said(name: str) -> None:
    assert verdict(CASES[name])["verdict"] == CASES[name]["truth"]


def test_every_class_was_made_three_times() -> None:
    truths = [case["truth"] for case in CASES.values()]
    assert all(truths.count(name) >= 3 for name in CLASSES)


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_has_evidence_a_second_guess_and_what_to_try(name: str) -> None:
    for number in range(len(CASES[name]["steps"])):
        found = verdict(CASES[name], number)
        assert found["verdict"] in CLASSES and 0 < found["confidence"] < 1
        assert found["runner_up"] != found["verdict"] and found["next"]
        assert len(found["evidence"]) >= 5
        for row in found["evidence"]:
            assert row["for"] in CLASSES and 0 <= row["strength"] <= 1 and row["text"]


def test_the_lightest_step_is_never_judged_with_confidence_to_be_at_a_limit() -> None:
    """There is none to compare it with."""
    for case in CASES.values():
        found = verdict(case, 0)
        assert found["verdict"] == "none" or found["confidence"] < 0.5, case["name"]


BLIND: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "server": lambda step: {"server": None},
    "hosts": lambda step: {"hosts": []},
    "GPUs": lambda step: {"gpus": []},
    "all of it": lambda step: {"server": None, "hosts": [], "gpus": []},
}


@pytest.mark.parametrize("blind", BLIND)
def test_what_was_not_measured_is_said_and_never_adds_confidence(blind: str) -> None:
    for case in CASES.values():
        seen, unseen = verdict(case), verdict(without(case, BLIND[blind]))
        if unseen["verdict"] == seen["verdict"]:
            assert unseen["confidence"] <= seen["confidence"], case["name"]
        assert any("not measured" in row["text"] for row in unseen["evidence"])


def test_without_the_servers_word_most_gpu_limits_are_still_found() -> None:
    gpu = ("compute", "memory_bandwidth", "power_thermal")
    cases = [case for case in CASES.values() if case["truth"] in gpu]
    right = [verdict(without(case, BLIND["server"]))["verdict"] == case["truth"] for case in cases]
    assert sum(right) >= 0.8 * len(right)


def test_no_growth_is_told_without_any_telemetry() -> None:
    """Whether there is a limit does not need an agent; only which one does."""
    for case in CASES.values():
        found = verdict(without(case, BLIND["all of it"]))
        assert (found["verdict"] == "none") == (case["truth"] == "none"), case["name"]


def test_a_step_without_throughput_or_load_has_no_verdict() -> None:
    case = CASES["batch-of-16"]
    step = case["steps"][-1]
    assert judge(step | {"qps": 0.0}, case["steps"]) is None
    assert judge(step | {"level": 0}, case["steps"]) is None
    assert judge(step | {"in_flight_mean": None, "server": None}, case["steps"]) is not None


def test_a_run_is_limited_by_what_limits_its_lightest_step() -> None:
    steps = [dict(step) for step in CASES["batch-of-16"]["steps"]]
    found = judge_all(steps, CASES["batch-of-16"]["cards"])
    assert found is not None
    assert (found["verdict"], found["level"], found["unit"]) == ("server_queue", 64, "users")
    assert [step["bottleneck"]["verdict"] for step in steps] == ["none", "none", "server_queue"]
    assert "of proportional growth" in found["text"]
    assert judge_all([dict(step) for step in CASES["light-h100"]["steps"]]) is None


def test_only_these_keys_are_read() -> None:
    for case in CASES.values():
        assert all(step.keys() == set(NEEDED) for step in case["steps"])


def host(core: float = 30.0, name: str = "server", **changes: Any) -> dict[str, Any]:
    quiet = dict.fromkeys(
        ("psi_cpu_some_pct", "psi_io_some_pct", "iowait_pct", "disk_busy_pct", "tcp_retrans_pct"), 0.0
    )
    figures = {"cpu_pct": 20.0, "busiest_cpu_pct": {"mean": core}, "procs_running": 1.0, "procs_blocked": 0.0}
    return {"host": name, "simulated": False, "server": None} | quiet | figures | changes


def gpu(busy: float = 60.0, tensor: float = 20.0, dram: float = 40.0, vram: float = 76.0) -> dict[str, Any]:
    shares = {"util_pct": busy, "sm_pct": busy, "tensor_pct": tensor, "dram_pct": dram, "vram_used_bytes": vram}
    figures = {name: {"mean": value, "max": value} for name, value in shares.items()}
    facts = {"host": "server", "uuid": "GPU-0", "simulated": False, "vram_total_bytes": 80.0, "sm_mhz": None}
    return figures | facts | {"throttled_share": {"power": 0.0, "heat": 0.0}}


def made(
    users: float, qps: float, running: float, waiting: float = 0.0, kv: float = 0.2, **more: Any
) -> dict[str, Any]:
    """A step of a server whose host and GPU are not full."""
    server = {"running": running, "waiting": waiting, "kv_usage_ratio": kv, "kv_usage_max": kv}
    lag = {"p50": 0.1, "p99": 0.2}
    return dict.fromkeys(NEEDED) | {
        "level": users,
        "unit": "users",
        "qps": qps,
        "qps_ci95": [0.98 * qps, 1.02 * qps],
        "in_flight_mean": users,
        "ttft_ms_ok": {"mean": 100.0},
        "e2e_ms_ok": {"mean": 1000.0},
        "send_lag_ms": lag,
        "client_lag_ms": lag,
        "client_on_time": True,
        "client_lag_limit_ms": 50.0,
        "worker_cpu_pct": 5.0,
        "kernel_stamp_share": 1.0,
        "simulator_late_share": 0.0,
        "gpus": [gpu()],
        "hosts": [host()],
        "server": server,
        **more,
    }


def due(rate: float, qps: float = 10.0, sent: float | None = None, **more: Any) -> dict[str, Any]:
    """Of the open model: 19 requests in flight, as many as may be; the rest is dropped."""
    rates = {"asked": rate, "due": rate, "delivered": qps if sent is None else sent}
    return made(rate, qps, 19, **{"in_flight_mean": 19.0, "unit": "requests/s", "rate": rates} | more)


CORE, GPUS = {"hosts": [host(100.0)]}, {"gpus": [gpu(vram=79.4)]}
WATCHED = {"hosts": [host(), host(99.0, "client")]}
BUSY_WORKER = {"hosts": [host(97.0)], "worker_cpu_pct": 97.0}
SHEDS = {"in_flight_http_error": 30.0}
CLIENT_BESIDE = {"hosts": [host(100.0), host(96.0, "client")], "worker_cpu_pct": 96.0}
IN_BATCH = [made(users, qps, qps, server={"running": qps}) for users, qps in ((10, 10.0), (20, 20.0), (80, 20.0))]
# Answers of 20 s in steps of 30 s: all succeed, and many of them later.
LONG_ANSWERS = [
    due(rate, qps, sent=rate, in_flight_mean=flying, success_pct=100.0, gpus=[gpu(90.0, 15.0, 60.0)])
    for rate, qps, flying in ((1.0, 0.44, 16.8), (4.0, 2.31, 69.6), (10.0, 6.67, 179.2))
]
# What was wrong once: the steps, what is said of the last one, and the least and the most confidence.
MISTAKEN: dict[str, tuple[list[dict[str, Any]], str, float, float]] = {
    "a batch that waits for neither GPU nor CPU": (
        [made(10, 10, 10), made(40, 10, 40, gpus=[gpu(busy=20.0)], hosts=[host(50.0)])],
        *("host_cpu", 0.05, 0.2),
    ),
    "a batch that waits for a full CPU": (
        [made(10, 10, 10), made(40, 10, 40, gpus=[gpu(busy=20.0)], hosts=[host(98.0)])],
        *("host_cpu", 0.9, 1.0),
    ),
    "dropped requests of the open model": ([due(10), due(20), due(40)], "memory_bandwidth", 0.3, 1.0),
    "a rate that is served": ([due(10), due(20, 20.0)], "none", 0.9, 1.0),
    "a step alone": ([made(100, 20, 99, gpus=[gpu(100.0, 70.0, 88.0)])], "none", 0.05, 0.49),
    "memory that is no cache's": (
        [made(10, 10, 10), made(20, 20, 20), made(40, 20, 20, 20, **GPUS)],
        *("server_queue", 0.9, 1.0),
    ),
    "a cache that was as full without a queue": (
        [made(10, 10, 10, kv=0.97), made(20, 20, 20, kv=0.97), made(40, 20, 20, 20, kv=0.97)],
        *("server_queue", 0.9, 1.0),
    ),
    "a cache that fills": (
        [made(10, 10, 10, kv=0.4), made(20, 20, 20, kv=0.8), made(40, 20, 20, 20, kv=0.97)],
        *("kv_capacity", 0.9, 1.0),
    ),
    "a host of the client that is watched": (
        [made(10, 10, 10, **WATCHED), made(40, 10, 10, **WATCHED)],
        *("network", 0.9, 1.0),
    ),
    "a worker on the host of the server": (
        [made(10, 10, 10), made(40, 10, 10, **BUSY_WORKER)],
        *("client", 0.9, 1.0),
    ),
    "a core that polls": ([made(10, 10, 10, **CORE), made(40, 10, 10, **CORE)], "network", 0.9, 1.0),
    "a core that tasks wait for": (
        [made(10, 10, 10, **CORE), made(40, 10, 10, hosts=[host(100.0, psi_cpu_some_pct=90.0)])],
        *("host_cpu", 0.9, 1.0),
    ),
    "a server that sheds load": ([made(10, 10, 10), made(40, 10, 10, **SHEDS)], "server_queue", 0.9, 1.0),
    "few refusals beside a full batch": (
        [made(10, 10, 10), made(20, 20, 20), made(100, 20, 20, 78.5, in_flight_http_error=1.5)],
        *("server_queue", 0.9, 1.0),
    ),
    "timeouts beside quick refusals": (
        [made(10, 10, 10), made(40, 10, 10, in_flight_http_error=0.045)],
        *("network", 0.9, 1.0),
    ),
    "answers of the open model that take long": (LONG_ANSWERS, "none", 0.9, 1.0),
    "a worker beside the server whose host is as busy": (
        [made(10, 10, 10), made(40, 10, 10, **CLIENT_BESIDE)],
        *("host_cpu", 0.9, 1.0),
    ),
    "a batch that is all that is told": (IN_BATCH, "server_queue", 0.05, 0.3),
    "a queue that is all that is told": (
        [made(10, 10, 10, server={"waiting": 0.0}), made(40, 10, 10, server={"waiting": 30.0})],
        *("server_queue", 0.5, 1.0),
    ),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_what_looks_like_another_limit_is_none(name: str) -> None:
    steps, said, least, most = MISTAKEN[name]
    found = judge(steps[-1], steps)
    assert found is not None and found["verdict"] == said, found
    assert least <= found["confidence"] <= most, found


@pytest.mark.parametrize(
    ("name", "told", "following"),
    [
        ("a batch that waits for neither GPU nor CPU", "what the batch waits for is not known", "CPU"),
        ("dropped requests of the open model", "40 requests/s were due, and 10 got through", "bandwidth"),
        ("a step alone", "no lighter step", "add a lighter and a heavier step"),
        ("a cache that was as full without a queue", "as at the lightest step", "--max-num-seqs"),
        ("a core that polls", "its busiest core was 100 % busy at the lightest step, too", "client beside"),
        ("a worker on the host of the server", "may be that of the load generator's worker", "--workers"),
        ("a server that sheds load", "30 requests in flight were answered by HTTP errors", "refuses requests"),
        ("few refusals beside a full batch", "78.5 requests are in the engine's queue", "--max-num-seqs"),
        ("answers of the open model that take long", "120 % of proportional growth", "raise the load"),
        ("a worker beside the server whose host is as busy", "busiest core 100 %, all CPUs 20 %", "front end"),
        ("a batch that is all that is told", "not measured: the server's requests waiting (", "--max-num-seqs"),
        ("a queue that is all that is told", "not measured: the server's requests running (", "--max-num-seqs"),
    ],
)
def test_the_evidence_says_why_and_what_to_try_fits_it(name: str, told: str, following: str) -> None:
    steps = MISTAKEN[name][0]
    found = judge(steps[-1], steps)
    assert found is not None and any(told in row["text"] for row in found["evidence"]), found["evidence"]
    assert following in found["next"]
    assert not any("requests running and waiting" in row["text"] for row in found["evidence"])


def test_the_lightest_of_several_steps_points_to_the_others() -> None:
    steps = MISTAKEN["a cache that fills"][0]
    found = judge(steps[0], steps)
    assert found is not None and found["confidence"] < 0.5 and "heavier steps" in found["next"]


def test_of_steps_that_are_all_past_a_limit_the_first_sure_one_tells_it() -> None:
    steps = [made(users, 20, 20, users - 20, kv=0.97) for users in (64.0, 128.0, 256.0)]
    found = judge_all(steps)
    assert found is not None and (found["verdict"], found["level"]) == ("kv_capacity", 128)
    assert steps[0]["bottleneck"]["confidence"] < 0.5 < found["confidence"]
    assert found["text"].endswith("it may be so at 64 users already, the lightest step")
    alone = judge_all(steps[:1])
    assert alone is not None and alone["level"] == 64 and alone["confidence"] < 0.5
    assert "already" not in alone["text"]


def test_what_may_limit_a_step_does_not_while_a_heavier_one_surely_grows() -> None:
    for name in ("far-away", "small-items"):
        steps = [dict(step) for step in CASES[name]["steps"]]
        assert judge_all(steps, CASES[name]["cards"]) is None
        assert steps[0]["bottleneck"]["verdict"] != "none"


@pytest.mark.parametrize(("waiting", "told"), [(0.0, True), (None, False)])
def test_that_nobody_waited_for_a_full_cache_is_said_where_it_was_measured(waiting: float | None, told: bool) -> None:
    steps = [made(users, 10, 10, kv=0.97) for users in (10, 40)]
    steps[0]["server"]["waiting"] = waiting
    found = judge(steps[1], steps)
    assert found is not None
    assert any("where nobody waited for it" in row["text"] for row in found["evidence"]) == told


@pytest.mark.parametrize("heavier", [1, 2])
def test_a_starved_client_of_the_open_model_is_known_without_a_lighter_step(heavier: int) -> None:
    """What was due and not sent waits there, and nowhere else."""
    starved = CASES["worker-by-rate"]["steps"][-1]
    steps = [
        starved | {"level": k * starved["level"], "rate": starved["rate"] | {"due": k * starved["rate"]["due"]}}
        for k in range(1, heavier + 1)
    ]
    found = judge_all(steps, CASES["worker-by-rate"]["cards"])
    assert found is not None and (found["verdict"], found["level"]) == ("client", starved["level"])
    assert found["confidence"] > 0.7 and "290 requests/s were due, and 215 got through" in found["text"]


def test_while_all_that_was_due_gets_through_a_rate_alone_stays_unsure() -> None:
    found = judge(LONG_ANSWERS[0], LONG_ANSWERS)
    assert found is not None and found["confidence"] < 0.5
