"""Scaling over cards: runs of the simulator whose limits are known, and runs made so that one thing eats the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis import scaling_tables
from analysis.plots import canvas
from analysis.plots import scaling as plots
from analysis.report.scaling_page import page
from analysis.scaling import Asked, scaling
from loadgen.cli import main
from loadgen.errors import RunDirError, UsageError
from loadgen.slo import parse_slo
from tests.analysis import synthetic as syn

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "scaling_summaries.json").read_text()
)
ONE = 100.0  # requests/s of one card


def run(cards: int, each: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A run that is full from 10 users a card on, where each card does `each` times ONE; 10 tokens an answer."""
    steps = [
        step(cards, users, min(users / (10 * cards), 1.0) * cards * each * ONE, **changes) for users in _users(cards)
    ]
    target = {"url": "http://gpu1:8000", "model": "m", "simulated": False, "simulator": None}
    return {"run_id": f"run-{cards}", "status": "complete", "target": target, "simulated_gpu": False, "steps": steps}


def _users(cards: int) -> list[int]:
    return [5 * cards, 10 * cards, 20 * cards]


def step(cards: int, users: int, qps: float, **changes: Any) -> dict[str, Any]:
    utils = changes.pop("utils", [100.0] * cards)
    of_card = {"sm_mhz": 1980.0, "nvlink_bytes_per_s": None, "pcie_bytes_per_s": None} | changes.pop("of_card", {})
    gpus = [
        {"host": "here", "uuid": f"GPU-{k}", "index": k, "gi_id": None, "simulated": False, "sm_pct": None}
        | {"util_pct": {"mean": util}}
        | of_card
        for k, util in enumerate(utils)
    ]
    running = min(users, 10.0 * cards)
    return {
        "level": users,
        "unit": "users",
        "qps": qps,
        "qps_ci95": [0.98 * qps, 1.02 * qps],
        "output_tokens_per_s": 10 * qps,
        "output_tokens_per_s_ci95": [9.8 * qps, 10.2 * qps],
        "success_pct": 100.0,
        "in_flight_mean": float(users),
        "gpus": gpus,
        "server": {"running": running, "waiting": users - running, "kv_usage_ratio": 0.5, "kv_usage_max": 0.5},
        "client_on_time": True,
    } | changes


def last(*runs: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """The entry of the run with the most cards."""
    return dict(scaling(runs, Asked(**asked))["runs"][-1])


def test_replicas_that_share_nothing_scale_as_many_times_as_there_are() -> None:
    found = scaling(RECORDED["fed_alike"], Asked(slo=parse_slo("ttft_p99<200ms")))
    assert [entry["cards"] for entry in found["runs"]] == [1, 2, 4, 8]
    for entry in found["runs"]:
        assert entry["speedup"] == pytest.approx(entry["cards"], rel=0.02)
        assert entry["efficiency_low"] <= 1.0 <= entry["efficiency_high"]
        assert entry["saturated"] and entry["eaten_by"] in (None, "nothing")
        assert entry["max_qps_within_slo"] == pytest.approx(11.5 * entry["cards"], rel=0.1)
    assert found["usl"]["sigma"] == pytest.approx(0, abs=0.01) and found["usl"]["kappa"] == pytest.approx(0, abs=0.001)
    assert "8 cards do 8.05 times" in scaling_tables.verdict(found) and "nothing" in scaling_tables.verdict(found)


def test_a_front_end_that_is_the_limit_is_what_cards_wait_for() -> None:
    """It lets 50 requests/s through, and eight cards could do 92."""
    found = scaling(RECORDED["one_front_end"], Asked())
    entry = found["runs"][-1]
    assert entry["qps"] == pytest.approx(50, rel=0.02) and entry["efficiency"] == pytest.approx(50 / 92, rel=0.02)
    assert entry["eaten_by"] == "fed" and entry["factors"]["fed"] == pytest.approx(0.55, abs=0.02)
    assert entry["factors"]["work"] == pytest.approx(1, abs=0.02)
    assert "cards wait for work" in scaling_tables.verdict(found)
    assert "one fixed limit" in scaling_tables.law_text(found)  # and not the law that was fitted


def test_cards_that_get_less_than_others_are_the_balancers_doing() -> None:
    entry = last(run(1), run(4, each=0.7, utils=[100.0, 60.0, 60.0, 60.0]))
    assert entry["eaten_by"] == "balance"
    assert entry["factors"] == pytest.approx({"fed": 1, "balance": 0.7, "clock": 1, "work": 1})
    assert entry["util_pct"] == {"least": 60, "mean": 70, "most": 100}


def test_full_caches_beside_empty_ones_are_the_balancers_doing_too() -> None:
    server = {"running": 24.0, "waiting": 16.0, "kv_usage_ratio": 0.3, "kv_usage_max": 0.5}
    assert last(run(1), run(4, each=0.6, server=server))["eaten_by"] == "balance"


def test_links_that_carry_more_for_each_token_are_communication() -> None:
    ways = {"tx": 1e6, "rx": 1e6}
    alone = run(1, of_card={"nvlink_bytes_per_s": {"tx": 0.0, "rx": 0.0}})
    entry = last(alone, run(2, each=0.8, of_card={"nvlink_bytes_per_s": ways}))
    assert entry["eaten_by"] == "communication"
    assert entry["bytes_per_token"] == {"nvlink": pytest.approx(4e6 / 1600), "pcie": None}
    assert last(run(1), run(2, each=0.8))["eaten_by"] == "work"


def test_a_lower_clock_is_power_or_heat() -> None:
    assert last(run(1), run(8, each=0.75, of_card={"sm_mhz": 1485.0}))["eaten_by"] == "clock"


@pytest.mark.parametrize(
    ("of_last", "eater"),
    [
        ({"each": 0.7, "utils": [100.0, 60.0, 60.0, 60.0]}, "balance"),
        ({"each": 0.75, "of_card": {"sm_mhz": 1485.0}}, "clock"),
        ({"each": 0.6}, "work"),
    ],
)
@pytest.mark.parametrize("asked", [None, (1, 2, 4)])
def test_cards_beside_those_that_serve_change_nothing(
    of_last: dict[str, Any], eater: str, asked: tuple[int, ...] | None
) -> None:
    """One, two and four of the eight cards of a box."""
    runs = [run(1), run(2), run(4, **of_last)]
    alone = last(*runs, cards=asked)
    for cards, each in zip((1, 2, 4), runs, strict=True):
        for entry in each["steps"]:
            entry["gpus"] += [idle_card(k) for k in range(cards, 8)]
    entry = last(*runs, cards=asked)
    assert entry["eaten_by"] == eater
    told = ["cards that ran nothing (4) do not count: give --gpus if they should serve"]
    assert entry == alone | {"warnings": [] if asked else told}


def test_a_card_that_should_serve_and_gets_nothing_is_the_balancers_doing() -> None:
    four = run(4, each=0.75, utils=[100.0, 100.0, 100.0])
    for entry in four["steps"]:
        entry["gpus"].append(idle_card(3))
    entry = last(run(1), four, cards=(1, 4))
    assert entry["eaten_by"] == "balance" and entry["util_pct"]["least"] == 0
    assert entry["factors"] == pytest.approx({"fed": 1, "balance": 0.75, "clock": 1, "work": 1})


def idle_card(index: int) -> dict[str, Any]:
    card = step(1, 1, ONE)["gpus"][0]
    return dict(card) | {"uuid": f"GPU-{index}", "index": index, "util_pct": {"mean": 0.0}, "sm_mhz": 345.0}


def test_a_late_client_is_named_and_warned_of() -> None:
    entry = last(run(1), run(8, each=0.5, client_on_time=False))
    assert entry["eaten_by"] == "client" and "client" in " ".join(entry["warnings"])


def test_a_run_that_did_not_saturate_has_a_lower_bound() -> None:
    small = run(4, each=0.5)
    small["steps"] = small["steps"][:2]
    entry = last(run(1), small)
    assert entry["saturated"] is False and entry["eaten_by"] == "load"
    assert "lower bound" in " ".join(entry["warnings"])
    single = run(4, each=0.5)
    single["steps"] = single["steps"][2:]
    assert last(run(1), single)["saturated"] is None


def test_a_serial_share_is_recovered_by_the_law_and_between_two_runs() -> None:
    """Amdahl: a tenth of the work cannot be divided."""
    runs = [run(n, each=1 / (1 + 0.1 * (n - 1))) for n in (1, 2, 4, 8)]
    found = scaling(runs, Asked())
    law = found["usl"]
    assert law["sigma"] == pytest.approx(0.1, rel=0.05) and law["sigma_low"] <= 0.1 <= law["sigma_high"]
    assert [entry["serial_share"] for entry in found["runs"][1:]] == pytest.approx([0.1] * 3)
    assert scaling(runs[:2], Asked())["usl"] is None


def test_how_many_cards_there_were_can_be_said() -> None:
    bare = [run(1, utils=[]), run(2, utils=[])]
    with pytest.raises(UsageError, match="--gpus"):
        scaling(bare, Asked())
    found = scaling(bare, Asked(cards=(1, 2)))
    assert found["runs"][1]["efficiency"] == pytest.approx(1) and found["runs"][1]["factors"]["fed"] is None
    assert found["runs"][1]["cards_counted_by"] == "given"


def test_runs_that_cannot_be_set_side_by_side_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing scales"):
        scaling([run(2), run(2)], Asked())
    with pytest.raises(RunDirError, match="no step"):
        scaling([run(1), run(2) | {"steps": []}], Asked(cards=(1, 2)))
    open_model = run(2)
    for entry in open_model["steps"]:
        entry["unit"] = "requests/s"
    with pytest.raises(UsageError, match="one kind"):
        scaling([run(1), open_model], Asked())


def test_a_simulated_run_is_never_set_beside_a_real_one() -> None:
    with pytest.raises(UsageError, match="run-2 has simulated GPUs and run-1 has not"):
        scaling([run(1), run(2) | {"simulated_gpu": True}], Asked(cards=(1, 2)))


def test_what_differs_beside_the_cards_is_told() -> None:
    facts = ({"prompt_tokens": 32, "reuse": True}, {"prompt_tokens": 64, "reuse": True})
    found = scaling([run(1), run(2)], Asked(comparable=facts))
    assert found["warnings"] == ["the runs differ in prompt_tokens (32, 64): what they gain is not the cards' alone"]


@pytest.mark.parametrize("linked", [False, True])
def test_the_figure_and_the_page_are_whole(linked: bool) -> None:
    ways = {"nvlink_bytes_per_s": {"tx": 1e6, "rx": 2e6}, "pcie_bytes_per_s": {"tx": 1e5, "rx": 1e5}} if linked else {}
    found = scaling([run(n, each=1 - 0.05 * n, of_card=ways) for n in (1, 2, 4, 8)], Asked(slo=()))
    with canvas.styled():
        figure = plots.scaling(found)
        figure.draw_without_rendering()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "Speed-up" and ("links" in titles[3]) is linked
    html = page(found)
    assert html.count("<img") == 1 and "<script" not in html and "63.2" in html and 'src="http' not in html


def test_the_command_prints_a_table_and_json_and_says_what_is_wrong(tmp_path: Path) -> None:
    for cards in (1, 2):
        directory = syn.make(tmp_path / f"run-{cards}", (10, 20), 20.0)
        rate = 4 * cards
        rows = [syn.request(k / rate, seq=k) for k in range(40 * rate)]
        syn.write_requests(directory, rows, batch=500)
        gpus = [syn.gpu(k / 5, index) for k in range(205) for index in range(cards)]
        syn.write_table(directory, "here", "gpu_fast", gpus)
    runs = [str(tmp_path / f"run-{cards}") for cards in (1, 2)]
    told = CliRunner().invoke(main, ["scaling", *runs, "--format", "json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert [entry["cards"] for entry in found["runs"]] == [1, 2]
    assert found["runs"][1]["speedup"] == pytest.approx(2, rel=0.01)
    assert "2 cards do 2.00 times" in CliRunner().invoke(main, ["scaling", *runs]).output
    wrong = CliRunner().invoke(main, ["scaling", runs[0], "--gpus", "1,2"])
    assert wrong.exit_code == 2 and "two or more" in wrong.output and "2 number(s) for 1 run(s)" in wrong.output
    assert CliRunner().invoke(main, ["scaling", *runs, "--format", "html"]).exit_code == 2
    (tmp_path / "latest").symlink_to("run-1")
    twice = CliRunner().invoke(main, ["scaling", runs[0], str(tmp_path / "latest"), "--gpus", "1,2"])
    assert twice.exit_code == 2 and "run-1 is named twice" in twice.output
