"""Comparisons with known answers: verdicts, what is refused, what is said, and every form of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis.compare import compare
from analysis.compare_tables import gate_table, notes, verdict
from analysis.plots import compare as plots
from analysis.plots.canvas import RED
from analysis.report.compare_page import page
from analysis.report.compare_texts import as_junit, as_markdown, as_text
from analysis.sides import RunSet, check, levels, read_side
from loadgen.cli_compare import _raise_for
from loadgen.errors import GateFailed, Incomparable, UsageError
from loadgen.gates import parse_gates
from tests.analysis import synthetic as syn
from tests.analysis.compared_runs import hanging, member, repeats, side, step, unanswered

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
    beyond_all = {"ttft_ms_ci95": {"p95": [109.0, None]}}
    unsure = made(repeats("BASE", 100.0, 101.0), side("NEW", [[step(10, "inf", **beyond_all)]] * 2), "ttft_p95<+20%")
    told = unsure["gates"][0]["steps"][0]
    assert (
        told["verdict"] == "not shown"
        and told["why"] == "in 2 of 2 runs of NEW it is infinite; too few runs to be sure"
    )
    one_of_five = made(repeats("BASE", *BASE), repeats("NEW", *BASE[:4], "inf"), "ttft_p95<+20%")
    assert one_of_five["verdict"] == "not known"
    both = made(repeats("BASE", "inf", "inf"), repeats("NEW", "inf", "inf"), "ttft_p95<+20%")
    assert both["gates"][0]["verdict"] == "not shown" and "both sides" in both["gates"][0]["steps"][0]["why"]


@pytest.mark.parametrize("runs", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "gate",
    [
        "ttft_p95<+20%",
        "ttft_p95<1s",
        "e2e_p99<3s",  # the summary has no such figure where nothing was answered: it is infinite
        "itl_p95<+20%",
        "qps>-5%",
        "qps>10",
        "error_rate<2%",
        "ttft_p95<+20%,qps>-5%,e2e_p99<3s,itl_p95<1s,error_rate<2%",
    ],
)
def test_a_server_that_answers_nothing_fails_every_gate_however_many_runs_show_it(runs: int, gate: str) -> None:
    good = step(10, itl_ms={"p95": 10.0}, itl_ms_ci95={"p95": [9.5, 10.5]})
    found = made(side("BASE", [[good]] * runs), side("NEW", [[unanswered(10)]] * runs), gate)
    assert [one["verdict"] for one in found["gates"]] == ["fail"] * len(found["gates"])
    json.dumps(found, allow_nan=False)
    assert " inf " not in verdict(found)


def test_of_few_requests_none_answered_may_be_chance() -> None:
    """Of a rate it is not: that depends on the time without any."""
    few = unanswered(10, requests=7, ttft_ms={"p95": None}, ttft_ms_ci95={"p95": [None, None]})
    for gate, expected in (("ttft_p95<+20%", "not known"), ("qps>-5%", "fail")):
        assert made(repeats("BASE", 100.0), side("NEW", [[few]]), gate)["indication"] == expected


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("gate", ["ttft_p95<+20%", "ttft_p95<1s", "e2e_p99<3s", "qps>-5%", "qps>10", "error_rate<2%"])
def test_a_server_that_hangs_fails_every_gate_however_many_runs_show_it(runs: int, gate: str) -> None:
    found = made(side("BASE", [[step(10)]] * runs), side("NEW", [[hanging(10)]] * runs), gate)
    assert [one["verdict"] for one in found["gates"]] == ["fail"]
    few = made(side("BASE", [[step(10)]] * runs), side("NEW", [[hanging(10, users=3)]] * runs), "qps>-5%")
    assert few["indication"] == "fail"


def test_repeats_that_hang_are_not_left_out() -> None:
    good = step(10, e2e_ms={"p99": 500.0}, e2e_ms_ci95={"p99": [480.0, 520.0]})
    new = side("NEW", [[good], [good], *[[hanging(10)]] * 3])
    found = made(side("BASE", [[good]] * 5), new, "ttft_p95<+20%,e2e_p99<3s,error_rate<2%,qps>-5%")
    assert "pass" not in [gate["verdict"] for gate in found["gates"]]
    assert "at 10 users (in 3 of 5 runs of NEW it is infinite; too few runs to be sure)" in verdict(found)


def test_a_figure_that_some_runs_lack_leaves_its_gate_not_judged() -> None:
    lacking = step(10, ttft_ms={"p95": None})
    for base, new, where in ((0, 3, "NEW"), (3, 0, "BASE"), (2, 3, "NEW")):
        sides = [
            side(name, [[step(10)]] * (5 - lacks) + [[lacking]] * lacks)
            for name, lacks in (("BASE", base), ("NEW", new))
        ]
        (gate,) = made(sides[0], sides[1], "ttft_p95<+20%")["gates"]
        assert gate["verdict"] == "not measured"
        assert gate["steps"][0]["why"] == f"{where}: TTFT p95 was not measured in 3 of 5 runs"
    assert made(side("BASE", [[lacking]] * 5), repeats("NEW", *BASE), "ttft_p95<1s")["verdict"] == "pass"


def test_new_with_an_infinite_run_is_not_within_a_limit() -> None:
    """Were it one of twenty: what it is when it breaks has no limit."""
    base = repeats("BASE", *np.linspace(98, 102, 20))
    new = repeats("NEW", *np.linspace(98, 102, 19), "inf")
    for gate in ("ttft_p95<+20%", "ttft_p95<150ms"):
        (step_of,) = made(base, new, gate)["gates"][0]["steps"]
        assert step_of["verdict"] == "not shown" and step_of["new"] == pytest.approx(100, abs=0.5)
        assert step_of["why"] == "in 1 of 20 runs of NEW it is infinite; too few runs to be sure"
    assert made(new, base, "ttft_p95<+20%")["verdict"] == "pass"


@pytest.mark.parametrize(
    ("base", "new", "gate", "expected", "value"),
    [
        (BASE[:3], ("inf", "inf", 1000.0), "ttft_p95<+20%", "fail", "inf"),
        (BASE[:3], ("inf", "inf", 1000.0), "ttft_p95<500ms", "not known", "inf"),
        (BASE[:3], ("inf", "inf", 1000.0, 1001.0, 1002.0), "ttft_p95<500ms", "fail", 1002),
        ((*BASE[:4], "inf"), (1000.0, 1001.0, 1002.0, 1003.0, "inf"), "ttft_p95<+20%", "fail", 901),
        ((*BASE[:4], "inf"), (1000.0, 1001.0, 1002.0, 1003.0, 1004.0), "ttft_p95<+20%", "fail", 901),
    ],
)
def test_where_some_runs_are_infinite_the_others_count_too(
    base: tuple[float | str, ...], new: tuple[float | str, ...], gate: str, expected: str, value: float | str
) -> None:
    found = made(repeats("BASE", *base), repeats("NEW", *new), gate)
    (step_of,) = found["gates"][0]["steps"]
    assert found["verdict"] == expected
    assert step_of["value"] == (value if isinstance(value, str) else pytest.approx(value, abs=10))


def test_a_latency_of_0_beside_one_that_is_infinite_is_judged() -> None:
    none = step(10, itl_ms={"p50": 0.0}, itl_ms_ci95={"p50": [0.0, 0.0]})
    dead = unanswered(10, itl_ms={"p50": None}, itl_ms_ci95={"p50": [None, None]})
    found = made(side("BASE", [[none]] * 2), side("NEW", [[dead]] * 2), "itl_p50<+20%")
    assert found["verdict"] == "fail" and found["gates"][0]["steps"][0]["value"] == "inf"
    mixed = made(side("BASE", [[none]] * 2), side("NEW", [[none], [dead]]), "itl_p50<+20%")
    (effect,) = [one for one in mixed["effects"] if one["figure"] == "itl_p50"]
    assert mixed["verdict"] == "not known" and effect["new"]["value"] is None and effect["change"] is None
    json.dumps(mixed, allow_nan=False)


def test_bounds_agree_with_the_verdict() -> None:
    """One-sided, as the test is: what passes has its limit beyond them."""
    wide = {"success_pct": 99.1, "success_pct_ci95": [98.0, 99.7], "requests": 600}
    new = side("NEW", [[step(10, **wide | {"success_pct": pct})] for pct in (99.4, 98.6, 98.9)])
    (step_of,) = made(repeats("BASE", *BASE), new, "error_rate<2%")["gates"][0]["steps"]
    assert step_of["verdict"] == "pass" and step_of["value_bounds95"][1] < 2


def test_what_fails_alone_and_not_among_all_tests_says_so() -> None:
    slower = tuple(1.02 * value for value in BASE)
    sides = [
        side(name, [[step(10, a), step(20, b)] for a, b in zip(first, BASE, strict=True)])
        for name, first in (("BASE", BASE), ("NEW", slower))
    ]
    found = made(sides[0], sides[1], "ttft_p95<+0%")["gates"][0]["steps"][0]
    assert found["p"] < 0.05 < found["p_adjusted"] and "alone it would fail, but 2 tests" in found["why"]


@pytest.mark.parametrize(
    ("base", "new", "gates", "verdicts"),
    [
        ({}, {}, "ttft_p95<+20%,error_rate<2%", ["pass", "pass"]),
        ({}, {"ttft_ms": {"p95": 130.0}}, "ttft_p95<+20%", ["fail"]),
        ({}, {"ttft_ms": {"p95": None}}, "ttft_p95<+20%,error_rate<2%", ["not measured", "pass"]),
        ({}, {"ttft_ms": {"p95": None}}, "ttft_p95<1s", ["not measured"]),
        ({"ttft_ms": {"p95": None}}, {}, "ttft_p95<+20%,ttft_p95<1s", ["not measured", "pass"]),
        ({"tokens": {"output_mean": 9.0}}, {}, "output_tokens>-10%", ["not measured"]),
        ({}, {"ttft_ms": {"p95": 120.0}}, "ttft_p95<+20%", ["not shown"]),
        ({}, {"ttft_ms": {"p95": None}, "success_pct": 0.0, "ok": 0}, "ttft_p95<+20%,error_rate<2%", ["fail", "fail"]),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_the_exit_code_and_junit_agree(
    base: dict[str, Any], new: dict[str, Any], gates: str, verdicts: list[str], strict: bool
) -> None:
    """What is said of the second of two steps; the first is as good as that of BASE."""
    first = step(10, tokens={"output_mean": 9.0})
    sides = [side(name, [[first, step(20, **of)]] * 5) for name, of in (("BASE", base), ("NEW", new))]
    found = made(sides[0], sides[1], gates)
    assert [gate["verdict"] for gate in found["gates"]] == verdicts
    suite = ElementTree.fromstring(as_junit(found, strict))
    stopped = False
    try:
        _raise_for(found, strict)
    except GateFailed:
        stopped = True
    assert stopped == (int(suite.get("failures", 0)) + int(suite.get("errors", 0)) > 0)
    if "not measured" in verdicts:
        assert "cannot be judged at 20 users" in verdict(found)


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


def test_as_many_runs_as_are_said_to_be_needed_do_decide() -> None:
    """To fail, among the tests of all steps; a gate on NEW alone asks for runs of NEW, however many BASE has."""
    rng = np.random.default_rng(5)

    def runs(name: str, count: int, factor: float) -> RunSet:
        drawn = factor * 100 * np.exp(0.08 * rng.standard_normal((count, 4)))
        return side(name, [[step(10 * (k + 1), float(value)) for k, value in enumerate(run)] for run in drawn])

    def needed(found: dict[str, Any]) -> list[int]:
        return [one["runs_needed"] for one in found["gates"][0]["steps"] if one["runs_needed"]]

    gate, count = "ttft_p95<+20%", 40
    told = [n for _ in range(60) for n in needed(made(runs("BASE", 3, 1), runs("NEW", 3, 1.35), gate))]
    enough = int(np.median(told))
    failed = [
        one["verdict"] == "fail"
        for _ in range(count)
        for one in made(runs("BASE", enough, 1), runs("NEW", enough, 1.35), gate)["gates"][0]["steps"]
    ]
    assert np.mean(failed) >= 0.8
    absolute = made(repeats("BASE", 100.0), repeats("NEW", 90.0, 115.0, 100.0, 95.0, 105.0), "ttft_p95<108ms")
    assert needed(absolute) and min(needed(absolute)) > 5


def test_a_gate_on_new_alone_is_not_indicative_because_base_has_one_run() -> None:
    found = made(repeats("BASE", 100.0), repeats("NEW", *BASE), "ttft_p95<110ms")
    assert found["verdict"] == "pass" and any("BASE has one run" in note for note in found["notes"])
    both = made(repeats("BASE", 100.0), repeats("NEW", *BASE), "ttft_p95<110ms,qps>-5%")
    assert both["verdict"] == "indicative"


def test_goodput_by_other_objectives_is_not_compared() -> None:
    def of(name: str, objective: str) -> RunSet:
        made = side(name, [[step(10, goodput_qps=30.0 + k)] for k in range(3)])
        return RunSet(
            name, "", tuple(m._replace(summary=m.summary | {"slo": [{"text": objective}]}) for m in made.runs)
        )

    def figures(found: dict[str, Any]) -> set[str]:
        return {effect["figure"] for effect in found["effects"]}

    base, same, looser = of("BASE", "ttft_p99<1s"), of("NEW", "ttft_p99<1s"), of("NEW", "ttft_p99<10s")
    assert "goodput_qps" in figures(made(base, same, "goodput_qps>-50%"))
    assert (
        made(repeats("BASE", *BASE), same, "goodput_qps>10")["verdict"] == "pass"
    )  # BASE without objectives plays no part
    found = made(base, looser, "qps>-5%")
    assert (
        "goodput_qps" not in figures(found)
        and {"name": "slo", "base": "ttft_p99<1s", "new": "ttft_p99<10s"} in found["environment"]
    )
    assert any(note.startswith("slo differs: ttft_p99<1s and ttft_p99<10s") for note in found["notes"])
    with pytest.raises(Incomparable, match="slo differs: ttft_p99<1s and ttft_p99<10s: goodput_qps>-50%"):
        made(base, looser, "goodput_qps>-50%")


def test_shares_end_at_100_per_cent_and_so_do_their_changes() -> None:
    def some(name: str, *success: float) -> RunSet:
        of = [{"success_pct": pct, "success_pct_ci95": [max(pct - 30, 0), min(pct + 30, 100)]} for pct in success]
        return side(name, [[step(10, **one)] for one in of])

    found = made(some("BASE", 100.0, 2.0), some("NEW", 99.0, 0.0), "error_rate<2%")
    (effect,) = [one for one in found["effects"] if one["figure"] == "error_rate"]
    assert effect["new"]["ci95"] == found["gates"][0]["steps"][0]["value_bounds95"] == [0, 100]
    assert effect["change_ci95"] == [-100, 100]


def test_large_levels_keep_their_names() -> None:
    assert levels({"steps": [{"level": level, "unit": "/s"} for level in (1234567, 1234568, 0.5, 10.0, 10)]}) == [
        "1234567 /s",
        "1234568 /s",
        "0.5 /s",
        "10 /s",
        "10 /s #2",
    ]


def test_markdown_leaves_words_of_users_alone() -> None:
    model = "m`x`|<b>[l](http://e) \\| @all"
    told = as_markdown(
        made(
            *(repeats(name, *BASE, target={"url": "u", "model": model, "simulated": False}) for name in ("BASE", "NEW"))
        )
    )
    assert r"m\`x\`\|\<b\>\[l\](http://e) \\\|" in told and "@all" not in told


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1}',
        '{"schema": 1, "steps": null, "simulated_gpu": false, "damage": []}',
        "[]",
        "{",
        '{"schema": 1, "steps": [{"level": 1}], "simulated_gpu": false, "damage": []}',
    ],
)
def test_a_summary_that_is_none_is_made_again(tmp_path: Path, text: str) -> None:
    run = syn.make(tmp_path / "a", (10,))
    syn.write_requests(run, [syn.request(0.06 * k, 100.0, seq=k) for k in range(300)])
    (run / "report").mkdir()
    (run / "report" / "summary.json").write_text(text)
    (read,) = read_side("BASE", "a", tmp_path).runs
    assert levels(read.summary) == ["10 users"] and read.summary["steps"][0]["ok"] > 0


def test_what_is_infinite_is_in_the_pictures() -> None:
    """As an arrow at the edge, in the colour of what is worse."""
    found = made(repeats("BASE", *BASE), side("NEW", [[unanswered(10)]] * 5), "ttft_p95<+20%")
    figures = [plots.changes(found), plots.curves(found)]
    for figure in figures:
        assert figure is not None
        told = [text for axes in figure.axes for text in axes.texts if text.get_text().strip() in ("inf", "infinite")]
        assert told and {text.get_color() for text in told} == {RED}
        plt.close(figure)


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
    assert r"| ttft\_p95\<+20% | fail | +30.0 % |" in told
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
