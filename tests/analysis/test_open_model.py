"""Steps of the open model with known answers: rates, lateness, what was dropped, and latency beside service time."""

from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import analyse, summarise
from analysis.report.build import build
from analysis.runs import list_runs, runs_table
from analysis.tables import step_table
from tests.analysis import synthetic as syn


def figures(run: Path) -> dict[str, Any]:
    (step,) = summarise(run)["steps"]
    return dict(step)


def codes(entry: dict[str, Any]) -> list[str]:
    return [caveat["code"] for caveat in entry["caveats"]]


def make(folder: Path, rate: float = 100.0, arrival: str = "constant") -> Path:
    """One step of 20 s, of which [5, 20) is measured."""
    return syn.make(folder / "run", (rate,), unit="requests/s", plan=syn.open_model((rate,), arrival))


def served(due_s: float, sent_s: float | None = None, service_s: float = 0.05) -> dict[str, Any]:
    """A plain answer; sent when it was due unless said otherwise."""
    sent_s = due_s if sent_s is None else sent_s
    return syn.request(due_s, None, (), sent_ns=syn.at(sent_s), end_s=sent_s + service_s)


def dropped(due_s: float) -> dict[str, Any]:
    nothing = dict.fromkeys(("sent_ns", "attempts", "read_lag_us", "stamp_source"))
    return syn.request(due_s, None, (), "DROPPED", end_s=due_s, **nothing)


def test_what_was_due_while_the_server_was_frozen_shows_it_and_the_service_time_does_not(tmp_path: Path) -> None:
    """100 requests/s of 50 ms; those due in [10, 11) s could be sent at 11 s only."""
    run = make(tmp_path)
    due = [5 + k / 100 for k in range(1500)]
    syn.write_requests(run, [served(t, 11.0 if 10 <= t < 11 else t) for t in due])
    step = figures(run)
    # 1400 took 50 ms, the others 60, 70 … 1050 ms.
    known = {"p50": 50, "p90": 50, "p95": 300, "p99": 900, "mean": (1400 * 50 + 100 * 555) / 1500}
    assert step["e2e_ms"] == pytest.approx(known)
    assert step["service_ms"] == pytest.approx(dict.fromkeys(known, 50))
    assert step["send_lag_ms"] == pytest.approx({"p50": 0, "p99": 850, "max": 1000})
    assert step["send_lag_limit_ms"] == 2 and step["client_on_time"] is False
    assert codes(step) == ["client_late", "few_independent"]  # one freeze is one event, however many waited
    assert "sent late: p99 850.0 ms" in step["caveats"][0]["text"]
    assert step["rate"] == pytest.approx({"asked": 100, "due": 100, "delivered": 100})


def test_the_time_of_connecting_is_not_the_clients_lateness(tmp_path: Path) -> None:
    run = make(tmp_path)
    rows = [served(5 + k / 100, 5.031 + k / 100) | {"connect_us": 20_000, "tls_us": 10_000} for k in range(1500)]
    rows[0] |= {"attempts": 2, "sent_ns": syn.at(6.0)}
    syn.write_requests(run, rows)
    step = figures(run)
    assert step["send_lag_ms"] == pytest.approx(dict.fromkeys(("p50", "p99", "max"), 1.0))
    assert step["client_on_time"] is True and step["e2e_ms"]["p50"] == pytest.approx(81)


def test_dropped_requests_are_failures_that_were_never_in_flight(tmp_path: Path) -> None:
    run = make(tmp_path)
    due = [5 + k / 100 for k in range(1500)]
    syn.write_requests(run, [dropped(t) if 10 <= t < 11 else served(t) for t in due])
    step = figures(run)
    assert (step["requests"], step["ok"], step["dropped"], step["errors"]) == (1500, 1400, 100, {"DROPPED": 100})
    assert step["rate"] == pytest.approx({"asked": 100, "due": 100, "delivered": 1400 / 15})
    assert step["in_flight_mean"] == pytest.approx((1400 * 0.05 - 0.1) / 15)  # the window cuts the last four
    assert (step["e2e_ms"]["p90"], step["e2e_ms"]["p95"]) == (pytest.approx(50), "inf")
    assert step["service_ms"]["p99"] == pytest.approx(50)  # of what was sent
    assert step["ended_after_window"] == 5
    assert codes(step) == ["load_not_delivered", "dropped", "few_independent"]
    assert "100 of 1500" in step["caveats"][1]["text"] and "--max-in-flight" in step["caveats"][1]["remedy"]


@pytest.mark.parametrize(("arrival", "caveats"), [("poisson", []), ("constant", ["load_not_delivered"])])
def test_fewer_arrivals_than_asked_for_may_be_chance(tmp_path: Path, arrival: str, caveats: list[str]) -> None:
    run = make(tmp_path, 20.0, arrival)
    syn.write_requests(run, [served(5 + k / 16) for k in range(240)])  # 16 requests/s
    assert [code for code in codes(figures(run)) if code != "few_requests"] == caveats


def test_the_report_speaks_of_rates(tmp_path: Path) -> None:
    rates = (0.5, 100.0)
    run = syn.make(tmp_path / "run", rates, unit="requests/s", plan=syn.open_model(rates))
    syn.write_requests(run, [served(k * 2) for k in range(10)] + [served(20 + k / 100) for k in range(2000)])
    syn.write_health(run, [syn.health(float(t)) for t in range(1, 41)])
    syn.step(run, 2, 1000.0, "ramp", 40.0, "requests/s")
    built = build(run)
    headers, rows = step_table(built.summary)
    assert [row[0] for row in rows] == ["0.5", "100"] and headers[0] == "requests/s"
    cells = dict(zip(headers, rows[1], strict=True))
    assert (cells["sent /s"], cells["dropped"], cells["service p99 ms"]) == ("100", "0", "50.0")
    assert "the step of 1000 requests/s never" in built.summary["caveats"][0]["text"]
    assert built.steps["asked_rate"].tolist() == [0.5, 100] and built.steps["dropped"].tolist() == [0, 0]
    page = built.html.read_text()
    assert "<th>requests/s</th>" in page and "<th>users</th>" not in page
    figure = (run / "report" / "figures" / "qps_vs_concurrency.svg").read_text()
    assert "asked for" in figure and "delivered (sent)" in figure and "concurrent users" not in figure
    headers, rows = runs_table(list_runs(tmp_path))
    assert dict(zip(headers, rows[0], strict=True))["load"] == "0.5,100 requests/s"


def test_the_timeline_has_what_was_due(tmp_path: Path) -> None:
    run = make(tmp_path)
    syn.write_requests(run, [served(5.0), served(5.5, 6.5), dropped(5.9)])
    seconds = analyse(run).timeline
    assert seconds["due_qps"].tolist()[4:8] == [0, 3, 0, 0]
    assert seconds["qps"].tolist()[4:8] == [0, 1, 1, 0] and seconds["failed_qps"][5] == 1
