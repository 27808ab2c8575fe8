"""Comparisons with known answers: verdicts, what is refused, what is said, and every form of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from analysis.compare import compare
from analysis.compare_tables import gate_table, notes, verdict
from analysis.report.compare_page import page
from analysis.report.compare_texts import as_junit, as_markdown, as_text
from analysis.sides import RunSet, check, read_side
from loadgen.errors import Incomparable, UsageError
from loadgen.gates import parse_gates
from tests.analysis import synthetic as syn
from tests.analysis.compared_runs import member, repeats, side, step

BASE = (98.0, 100.0, 101.0, 99.0, 102.0)


def made(base: RunSet, new: RunSet, gates: str = "", allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    return compare(base, new, parse_gates(gates) if gates else (), allowed)


def scaled(factor: float) -> RunSet:
    return repeats("NEW", *(factor * value for value in BASE))


@pytest.mark.parametrize(
    ("factor", "gate", "expected"),
    [
        (1.0, "ttft_p95<+20%", "pass"),
        (1.3, "ttft_p95<+20%", "fail"),
        (1.2, "ttft_p95<+20%", "not known"),  # it is the limit itself
        (0.5, "ttft_p95<+0%", "pass"),
        (1.0, "ttft_p95<150ms", "pass"),
        (1.6, "ttft_p95<150ms", "fail"),
        (1.5, "ttft_p95<150ms", "not known"),
        (1.0, "error_rate<2%", "pass"),
        (1.0, "qps>-5%", "pass"),
        (1.0, "vram<+10%", "not known"),  # nobody measured it
        (1.3, "vram<+10%,ttft_p95<+20%", "fail"),
    ],
)
def test_verdicts_of_five_repeats_a_side(factor: float, gate: str, expected: str) -> None:
    found = made(repeats("BASE", *BASE), scaled(factor), gate)
    assert found["verdict"] == found["indication"] == expected and found["indicative"] is None


def test_the_effect_is_the_ratio_of_the_geometric_means_with_its_interval() -> None:
    found = made(repeats("BASE", *BASE), scaled(1.3))
    (effect,) = [entry for entry in found["effects"] if entry["figure"] == "ttft_p95"]
    low, high = effect["change_ci95"]
    assert effect["change"] == pytest.approx(30) and low < 30 < high and high - low < 8
    assert effect["differs"] and effect["direction"] == "worse" and effect["new"]["runs"] == [1.3 * v for v in BASE]
    (qps,) = [entry for entry in found["effects"] if entry["figure"] == "qps"]
    assert qps["change"] == pytest.approx(0) and not qps["differs"]


def test_one_run_a_side_is_indicative_and_says_why() -> None:
    found = made(repeats("BASE", 100.0), repeats("NEW", 150.0), "ttft_p95<+20%")
    assert (found["verdict"], found["indication"]) == ("indicative", "fail")
    assert "how much runs of one configuration differ among themselves is not known" in verdict(found)
    assert verdict(found).startswith("INDICATIVE, FAIL") and "--repeat 5" in verdict(found)
    mixed = made(repeats("BASE", *BASE), repeats("NEW", 101.0), "ttft_p95<+20%")
    assert mixed["verdict"] == "indicative" and mixed["indicative"].startswith("NEW has one run")


def test_failures_that_reach_a_percentile_are_a_shown_difference() -> None:
    infinite = made(repeats("BASE", *BASE), repeats("NEW", *["inf"] * 5), "ttft_p95<+20%")
    assert infinite["verdict"] == "fail" and infinite["gates"][0]["steps"][0]["value"] == "inf"
    one_of_five = made(repeats("BASE", *BASE), repeats("NEW", *BASE[:4], "inf"), "ttft_p95<+20%")
    assert one_of_five["verdict"] == "not known"
    both = made(repeats("BASE", "inf", "inf"), repeats("NEW", "inf", "inf"), "ttft_p95<+20%")
    assert both["gates"][0]["verdict"] == "not shown" and "both sides" in both["gates"][0]["steps"][0]["why"]


def test_gates_are_corrected_for_all_steps_together() -> None:
    levels = range(10, 110, 10)

    def ten(name: str, last: tuple[float, ...]) -> RunSet:
        others = [[step(level, BASE[(run + level) % 5]) for level in levels][:-1] for run in range(5)]
        return side(name, [[*steps, step(100, value)] for steps, value in zip(others, last, strict=True)])

    gate = "ttft_p95<+0%"
    alone = made(repeats("BASE", *BASE), repeats("NEW", *(1.02 * v for v in BASE)), gate)
    among = made(ten("BASE", BASE), ten("NEW", tuple(1.02 * v for v in BASE)), gate)
    p_alone, p_among = (found["gates"][0]["steps"][-1] for found in (alone, among))
    assert p_alone["p"] == pytest.approx(p_among["p"]) and p_among["p_adjusted"] == pytest.approx(10 * p_among["p"])
    assert alone["verdict"] == "fail" and among["verdict"] == "not known"


def test_what_is_not_shown_says_how_many_runs_would_decide() -> None:
    wide = (80.0, 125.0, 100.0, 90.0, 110.0)
    found = made(repeats("BASE", *wide), repeats("NEW", *wide), "ttft_p95<+20%")
    assert found["gates"][0]["verdict"] == "not shown"
    needed = found["gates"][0]["steps"][0]["runs_needed"]
    assert 6 <= needed <= 20 and f"about {needed} runs a side" in gate_table(found)[1][0][-1]


def test_no_errors_in_few_requests_are_not_taken_for_an_error_rate_of_0() -> None:
    few = [[step(10, requests=20)] for _ in range(2)]
    assert made(side("BASE", few), side("NEW", few), "error_rate<2%")["verdict"] == "not known"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"comparable": {"prompt_tokens": 64}}, "prompt_tokens"),
        ({"target": {"url": "u", "model": "other", "simulated": False, "simulator": None}}, "model"),
    ],
)
def test_runs_that_differ_in_a_key_are_refused_by_name_unless_it_is_allowed(changes: dict[str, Any], key: str) -> None:
    base = repeats("BASE", *BASE, comparable={"prompt_tokens": 32})
    new = repeats("NEW", *BASE, **({"comparable": {"prompt_tokens": 32}} | changes))
    with pytest.raises(Incomparable, match=f"{key} differs: BASE has .*, NEW has .*--allow {key}"):
        check(base, new, ())
    assert made(base, new, "ttft_p95<+20%", (key,))["verdict"] == "pass"


def test_other_steps_a_simulated_gpu_and_unfinished_runs_are_refused() -> None:
    base = repeats("BASE", *BASE)
    with pytest.raises(Incomparable, match="steps differs: BASE has 10 users, NEW has 20 users"):
        check(base, repeats("NEW", *BASE, level=20), ())
    simulated = {"url": None, "model": "m", "simulated": True, "simulator": {}}
    with pytest.raises(Incomparable, match="simulated differs"):
        check(base, repeats("NEW", *BASE, target=simulated), ())
    with pytest.raises(UsageError, match="never those of a real one"):
        check(base, repeats("NEW", *BASE, target=simulated), ("simulated",))
    with pytest.raises(Incomparable, match=r"NEW: NEW-0 is interrupted.*--allow status"):
        check(base, repeats("NEW", *BASE, status="interrupted"), ())
    with pytest.raises(UsageError, match="there is no such key; known are model, status, steps"):
        check(base, repeats("NEW", *BASE), ("colour",))
    with pytest.raises(UsageError, match="on both sides"):
        check(base, base, ())
    with pytest.raises(Incomparable, match="no step with a load"):
        check(base, side("NEW", [[step(0)]]), ("steps",))


def test_repeats_of_a_side_must_be_of_one_configuration_whatever_is_allowed() -> None:
    odd = member("BASE-x", [step(20)])
    with pytest.raises(Incomparable, match="steps differs: BASE BASE-0 has 10 users, BASE-x has 20 users"):
        check(RunSet("BASE", "", (*repeats("BASE", *BASE).runs, odd)), repeats("NEW", *BASE), ("steps",))


def test_allowed_steps_leave_those_that_both_have() -> None:
    base = side("BASE", [[step(10), step(20)]])
    new = side("NEW", [[step(20), step(40)]])
    found = made(base, new, allowed=("steps",))
    assert found["steps"] == ["20 users"] and found["left_out"] == ["10 users", "40 users"]
    assert any("only one side has 10 users, 40 users" in note for note in notes(found))
    with pytest.raises(Incomparable, match="no step in common"):
        made(base, side("NEW", [[step(40)]]), allowed=("steps",))


def test_the_environment_shows_what_differs_and_nothing_else() -> None:
    base = repeats("BASE", *BASE, versions={"vllm": "0.6", "python": "3.11"})
    new = repeats("NEW", *BASE, versions={"vllm": "0.7", "python": "3.11"}, options={"timeout": "9s", "seed": "3"})
    rows = [(fact["name"], fact["base"], fact["new"]) for fact in made(base, new)["environment"]]
    assert sorted(rows) == [("options.timeout", "–", "9s"), ("versions.vllm", "0.6", "0.7")]


def test_notes_say_what_may_mislead() -> None:
    base, late = repeats("BASE", 100.0, 101.0), side("NEW", [[step(10, client_on_time=False)]] * 2)
    told = " ".join(made(base, late)["notes"])
    assert "2 repeats on a side" in told and "made before those of the other" in told
    assert "NEW, 10 users: the client was late in 2 of 2 runs" in told


@pytest.fixture
def failed() -> dict[str, Any]:
    return made(repeats("BASE", *BASE), scaled(1.3), "ttft_p95<+20%,error_rate<2%,vram<+10%,ttft_p95<130ms")


def test_text_markdown_and_json(failed: dict[str, Any]) -> None:
    assert as_text(failed).startswith("FAIL: ttft_p95<+20% does not hold: at 10 users +30.0 %")
    told = as_markdown(failed)
    assert told.startswith("### Load test: FAIL\n") and told.count("<details>") == told.count("</details>") >= 3
    assert "| ttft_p95&lt;+20% | fail | +30.0 % |" in told
    assert json.loads(json.dumps(failed, allow_nan=False)) == failed


def test_junit_has_a_case_a_gate_and_step(failed: dict[str, Any]) -> None:
    suite = ElementTree.fromstring(as_junit(failed, strict=False)).find("testsuite")
    assert suite is not None and suite.attrib.items() >= {"tests": "4", "failures": "1", "errors": "1"}.items()
    kinds = [[child.tag for child in case] for case in suite.iter("testcase")]
    assert kinds == [["failure"], ["system-out"], ["error"], ["skipped"]]
    strict = ElementTree.fromstring(as_junit(failed, strict=True))
    assert strict.get("failures") == "2" and strict.get("skipped") == "0"


def test_the_page_holds_its_figures(failed: dict[str, Any]) -> None:
    html = page(failed)
    assert html.startswith("<!doctype html>") and html.count("data:image/png;base64,") == 2
    assert "ttft_p95&lt;+20%" in html and "+30.0 %" in html


def test_a_manifest_that_lacks_what_is_optional_is_compared_all_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = syn.make(tmp_path / name, (10,))
        syn.write_requests(run, [syn.request(0.06 * k, 100.0, seq=k) for k in range(300)])
        bare = {key: syn.manifest((10,))[key] for key in ("schema", "run_id", "status", "target", "plan", "clock")}
        (run / "run.json").write_text(json.dumps(bare | {"repeat": 7}))
    base, new = (read_side(side, str(tmp_path / name), tmp_path) for side, name in (("BASE", "a"), ("NEW", "b")))
    assert made(base, new, "ttft_p95<+20%")["verdict"] == "indicative"
    with pytest.raises(UsageError, match="not made by --repeat"):
        read_side("BASE", f"group:{tmp_path / 'a'}", tmp_path)
