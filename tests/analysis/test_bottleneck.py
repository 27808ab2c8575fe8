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
