"""Effects: known quantiles, corrections by hand, and how often a gate is wrong on runs whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analysis import effects
from analysis.effects import Estimate, Side


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [
        (12.7062047, 1, 0.025),
        (2.30600414, 8, 0.025),
        (5.04130545, 8, 0.0005),
        (1.95996398, math.inf, 0.025),
        (0, 3, 0.5),
    ],
)
def test_students_t_has_the_tails_of_its_tables(t: float, freedom: float, tail: float) -> None:
    assert float(effects.t_tail(t, freedom)) == pytest.approx(tail, rel=1e-4)
    assert float(effects.t_tail(-t, freedom)) == pytest.approx(1 - tail, rel=1e-4)


def test_quantiles_turn_tails_round() -> None:
    for freedom in (1.0, 2.0, 5.5, 8.0, 200.0):
        assert float(effects.t_tail(effects.student_quantile(freedom), freedom)) == pytest.approx(0.025, rel=1e-6)


def test_corrections_as_by_hand() -> None:
    assert effects.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert effects.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert effects.holm([0.9, 0.8]) == [1.0, 1.0] and effects.holm([]) == []


def test_welch_on_an_example_worked_by_hand() -> None:
    # Variances 2.5 and 10 of 5 values each: error sqrt(0.5 + 2), freedom 2.5² / ((0.25 + 4) / 4).
    estimate = effects.welch(np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 4, 6, 8, 10]))
    assert estimate.value == 3 and estimate.below == estimate.above == pytest.approx(math.sqrt(2.5))
    assert estimate.freedom == pytest.approx(6.25 / (4.25 / 4))
    low, high = estimate.interval()
    assert low is not None and high is not None and (low + high) / 2 == pytest.approx(3)
    assert estimate.p_above(0) + estimate.p_below(0) == pytest.approx(1)


@pytest.mark.parametrize("spread", [0.02, 0.08])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_gate_of_five_repeats_is_wrong_in_5_per_cent_at_most_and_finds_20_per_cent(spread: float, steps: int) -> None:
    """Log-normal run-level figures; the limit is no change, where false alarms are most likely."""
    rng = np.random.default_rng(7)
    draws = 4000

    def alarms(shift: float) -> float:
        base, new = (spread * rng.standard_normal((draws, steps, 5)) for _ in range(2))
        value, error, freedom = effects.welch_of(base, new + math.log(shift))
        p = effects.t_tail(value / error, freedom)
        smallest = p.min(axis=1) * steps  # Holm: any fails when the smallest does
        return float((smallest <= effects.ALPHA).mean())

    assert alarms(1.0) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert alarms(1.2) >= 0.9


def test_one_run_a_side_takes_the_intervals_within_the_runs() -> None:
    base = Side((math.log(100),), within=((math.log(95), math.log(106)),))
    new = Side((math.log(130),), within=((math.log(120), math.log(145)),))
    estimate = effects.difference(base, new)
    assert estimate is not None
    low, high = estimate.interval()
    assert low is not None and high is not None
    # Down: as far as NEW goes down and BASE up; up: the other way round (MOVER).
    assert low == pytest.approx(math.log(1.3) - math.hypot(math.log(130 / 120), math.log(106 / 100)), rel=1e-6)
    assert high == pytest.approx(math.log(1.3) + math.hypot(math.log(145 / 130), math.log(100 / 95)), rel=1e-6)
    assert estimate.p_above(0) < 0.01 < 0.05 < estimate.p_above(math.log(1.25))


def test_an_end_that_is_not_known_decides_nothing() -> None:
    estimate = effects.difference(Side((1.0,), within=((0.9, 1.1),)), Side((9.0,), within=((None, 9.1),)))
    assert estimate is not None and estimate.interval()[0] is None
    assert estimate.p_above(0) == 0.5 and estimate.p_below(10) < 0.01


@pytest.mark.parametrize("count", range(1, 6))
def test_infinite_runs_are_counted_as_fisher_does(count: int) -> None:
    new = Side((math.inf,) * count + (1.0,) * (5 - count))
    estimate = effects.difference(Side((1.0,) * 5), new)
    assert estimate is not None
    # Of all ways to lay `count` infinite runs on ten places, those with all of them in NEW.
    ways = list(itertools.combinations(range(10), count))
    assert estimate.p_above(5.0) == pytest.approx(sum(all(p < 5 for p in way) for way in ways) / len(ways))
    assert estimate.interval() == (None, None) and estimate.p_below(5.0) == 1


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize(("before", "after"), [(1, 5), (1, 4), (5, 2), (4, 5)])
def test_infinite_runs_of_both_sides_are_counted_as_fisher_does(before: int, after: int, infinite: float) -> None:
    base, new = (Side((infinite,) * count + (1.0,) * (5 - count)) for count in (before, after))
    estimate = effects.difference(base, new)
    assert estimate is not None and estimate.value == (infinite if after > before else -infinite)
    ways = list(itertools.combinations(range(10), before + after))
    as_far = [sum(place < 5 for place in way) >= max(before, after) for way in ways]
    assert estimate.p_differs() == pytest.approx(min(1, 2 * sum(as_far) / len(ways)))


def test_as_many_infinite_runs_on_both_sides_say_nothing() -> None:
    assert effects.difference(Side((math.inf, 1.0)), Side((math.inf, 2.0))) is None
    assert effects.difference(Side((math.inf, 1.0)), Side((-math.inf, 1.0))) is None
    assert effects.difference(Side(()), Side((1.0,))) is None


@pytest.mark.parametrize("runs", [1, 2, 3, 5])
@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_all_runs_surely_infinite_are_certain_however_many_they_are(runs: int, infinite: float) -> None:
    """Minus infinity is the logarithm of a rate of 0."""
    sure = Side((infinite,) * runs, within=((infinite, infinite),) * runs)
    finite = Side((1.0,) * runs, 0.01, ((0.9, 1.1),) * runs)
    worse, better = effects.difference(finite, sure), effects.difference(sure, finite)
    assert worse is not None and better is not None
    p = [(one.p_above(5.0), one.p_below(-5.0)) for one in (worse, better)]
    assert p == ([(0.0, 1.0), (1.0, 0.0)] if infinite > 0 else [(1.0, 0.0), (0.0, 1.0)])
    unsure = effects.difference(finite, Side((infinite,) * runs, within=((None, None),) * runs))
    assert unsure is not None and unsure.p_differs() == min(1, 2 / math.comb(2 * runs, runs))


def test_a_figure_is_held_against_a_limit_by_itself() -> None:
    known = effects.level(Side((10.0, 11.0, 9.0, 10.0, 10.0)), 12.0)
    assert known is not None and known.p_below(12.0) < 0.01 < known.p_above(12.0)
    for runs in (1, 2, 4, 5):
        sure = effects.level(Side((math.inf,) * runs, within=((math.inf, None),) * runs), 12.0)
        unsure = effects.level(Side((math.inf,) * runs, within=((11.0, None),) * runs), 12.0)
        assert sure is not None and sure.p_above(12.0) == 0 and sure.p_below(12.0) == 1
        assert unsure is not None and unsure.p_above(12.0) == 1 / 2**runs
    mixed = effects.level(Side((math.inf, 13.0, 11.0), within=((math.inf, None), (12.5, 14.0), (10.0, 12.0))), 12.0)
    assert mixed is not None and mixed.p_above(12.0) == 0.5


def test_runs_that_agree_exactly_are_not_taken_for_certain() -> None:
    least = Side((5.0,) * 5, least_error=0.01)
    estimate = effects.difference(least, least)
    assert estimate is not None and estimate.below == pytest.approx(math.hypot(0.01, 0.01))
    assert Estimate(1.0, 0.0, 0.0, 4.0).p_above(0.0) == 0.0
