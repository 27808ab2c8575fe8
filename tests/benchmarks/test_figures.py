"""The benchmarks' figures, by known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import engine, figures
from benchmarks.figures import PROBES, Window

MS = 1_000_000


def _log(*rows: dict[str, int | str]) -> pd.DataFrame:
    full = {"id": "a", "outcome": "ok", "t_read": 0, "t_arrived": 1, "t_first": 0, "t_last": 0, "n_sent": 0}
    return pd.DataFrame([full | row for row in rows])


def _records(*rows: dict[str, int | str | bool]) -> pd.DataFrame:
    return pd.DataFrame([{"id": "a", "ok": True, "tokens": 3, **row} for row in rows])


def test_tokens_of_a_request_lie_evenly_and_the_window_takes_its_beginning_but_not_its_end() -> None:
    log = _log({"t_first": 100, "t_last": 190, "n_sent": 10}, {"t_first": 150, "t_last": 150, "n_sent": 1})
    assert figures.tokens_sent(log, Window(0, 1000)) == 11
    assert figures.tokens_sent(log, Window(100, 150)) == 5
    assert figures.tokens_sent(log, Window(150, 190)) == 5
    assert figures.tokens_sent(log, Window(191, 1000)) == 0
    never = _log({"t_first": 0}, {"t_first": 100, "t_last": 0, "n_sent": 4})
    assert figures.tokens_sent(never, Window(0, 1000)) == 0


def test_the_ideal_is_that_of_the_issue() -> None:
    assert figures.ideal_tokens_per_s(5000, 100, 200, 50) == pytest.approx(97_087, abs=1)


def test_the_steady_window_begins_after_the_probes_and_the_lead() -> None:
    log = _log(*({"t_read": number} for number in range(PROBES + 5)))
    window = figures.steady_window(log, 2.0, 3.0)
    assert window == (PROBES + 2_000_000_000, PROBES + 5_000_000_000)
    assert window.seconds == 3.0
    with pytest.raises(RuntimeError, match="did not load it"):
        figures.steady_window(log[:PROBES], 2.0, 3.0)


def test_times_are_of_requests_that_were_due_in_the_window() -> None:
    log = _log(
        {"id": "in", "t_arrived": 10 * MS, "t_first": 210 * MS, "t_last": 310 * MS, "n_sent": 3},
        {"id": "late", "t_arrived": 10 * MS, "t_first": 900 * MS, "t_last": 999 * MS, "n_sent": 3},
    )
    records = _records(
        {"id": "in", "due_ns": 9 * MS, "first_ns": 214 * MS, "last_ns": 316 * MS},
        {"id": "late", "due_ns": 500 * MS, "first_ns": 999 * MS, "last_ns": 1200 * MS},
    )
    times = figures.times_of(records, log, Window(0, 100 * MS))
    assert times["ttft_p50"] == times["ttft_p99"] == pytest.approx(205)
    assert times["true_ttft_p50"] == times["true_ttft_p99"] == pytest.approx(200)
    assert (times["itl_mean"], times["true_itl_mean"]) == pytest.approx((51, 50))


def test_requests_that_only_one_side_knows_are_told() -> None:
    log = _log({"id": "a"}, {"id": "b"}, {"id": ""})
    assert figures.accounted(_records({"id": "a"}, {"id": "b"}), log, log) == "2 of 2"
    assert figures.accounted(_records({"id": "a"}, {"id": "x"}), log, log) == "1 of 2, 1 not in the log"
    assert figures.accounted(_records({"id": "a"}, {"id": "b"}), log, log[:1]) == "1 of 1"


def test_times_at_the_read_are_stamps_and_lags() -> None:
    stamps = np.full(10_000, 200.0)
    read = figures.read_time(stamps, np.array([0.0, 100.0]), np.array([3.0, 1.0]))
    assert set(read) == {200.0, 300.0}
    assert read.mean() == pytest.approx(225, abs=3)


def test_kolmogorov_smirnov_tells_equal_from_different() -> None:
    random = np.random.default_rng(1)
    schedule, same = random.exponential(1.0, 5000), random.exponential(1.0, 5000)
    other = random.exponential(1.1, 5000)
    distance, share = figures.kolmogorov_smirnov(schedule, schedule)
    assert (distance, share) == (0.0, 1.0)
    assert figures.kolmogorov_smirnov(schedule, same)[1] > 0.05
    assert figures.kolmogorov_smirnov(schedule, other)[1] < 0.01
    # Published: D = 1.36 / sqrt(n/2) is exceeded by 5 % of equal pairs of n.
    one = np.arange(10_000, dtype=float)
    assert figures.kolmogorov_smirnov(one, one + 192.3)[1] == pytest.approx(0.05, abs=0.003)


def test_a_table_is_markdown_with_digits_that_matter() -> None:
    rows = [{"a": "x", "b": 97_086.4, "c": 3}, {"a": "y", "b": 0.1234}, {"b": float("nan"), "c": 1234}]
    assert figures.table([("a", "name"), ("b", "value"), ("c", "n")], rows).splitlines() == [
        "| name | value  | n     |",
        "|------|--------|-------|",
        "| x    | 97,086 | 3     |",
        "| y    | 0.123  | -     |",
        "| -    | -      | 1,234 |",
    ]


def test_results_of_one_scenario_replace_its_own_only(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    engine.write("plain", "\nold\n", results)
    engine.write("streams-5000", "\nfirst\n", results)
    engine.write("plain", "\nnew\n", results)
    text = results.read_text()
    assert text.startswith("# Results of `make bench`\n")
    assert text.endswith("## streams-5000\n\nfirst\n\n## plain\n\nnew\n")
