"""The study of comparisons: its pairs use runs as they say, and its rates are those of known sides."""

from __future__ import annotations

from benchmarks.compare_study import REPEATS, drawn, in_turn, rate, wilson
from tests.analysis.compared_runs import repeats

ALIKE = repeats("BASE", *(100 + (7 * k) % 5 for k in range(20))).runs
SLOWER = repeats("NEW", *(130 + (7 * k) % 5 for k in range(20))).runs


def test_sides_in_turn_use_each_run_once() -> None:
    pairs = in_turn(ALIKE, 0)
    assert [run.path.name for run in pairs[0][0]] == [f"BASE-{k}" for k in (0, 2, 4, 6, 8)]
    used = [run.path for pair in pairs for side in pair for run in side]
    assert len(pairs) == 2 and len(used) == len(set(used)) == 20
    splits = in_turn(ALIKE, 3)
    assert len(splits) == 6 and all(len({run.path for run in one + other}) == 2 * REPEATS for one, other in splits)


def test_rates_of_sides_that_are_known() -> None:
    assert rate(drawn(ALIKE, ALIKE, 5, 20, 1), "ttft_p95<+10%") == (0, 20)
    assert rate(drawn(ALIKE, SLOWER, 5, 20, 1), "ttft_p95<+10%") == (20, 20)
    assert str(rate(drawn(ALIKE, SLOWER, 5, 10, 1), "ttft_p95<+10%")) == "10 of 10: 100.0% (72.2% to 100.0%)"


def test_wilsons_interval() -> None:
    low, high = wilson(1, 20)
    assert 0.008 < low < 0.01 and 0.235 < high < 0.237
