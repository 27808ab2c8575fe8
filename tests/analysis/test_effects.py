"""Effects: known quantiles, corrections by hand, and how often a gate is wrong on runs whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analysis import effects, ranks
from analysis.effects import Estimate, Level, Ranked, Side


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
    assert isinstance(estimate, Estimate)
    low, high = estimate.interval()
    assert low is not None and high is not None
    # Down: as far as NEW goes down and BASE up; up: the other way round (MOVER).
    assert low == pytest.approx(math.log(1.3) - math.hypot(math.log(130 / 120), math.log(106 / 100)), rel=1e-6)
    assert high == pytest.approx(math.log(1.3) + math.hypot(math.log(145 / 130), math.log(100 / 95)), rel=1e-6)
    assert estimate.p_above(0) < 0.01 < 0.05 < estimate.p_above(math.log(1.25))


def test_an_end_that_is_not_known_decides_nothing() -> None:
    estimate = effects.difference(Side((1.0,), within=((0.9, 1.1),)), Side((9.0,), within=((None, 9.1),)))
    assert isinstance(estimate, Estimate) and estimate.interval()[0] is None
    assert estimate.p_above(0) == 0.5 and estimate.p_below(10) < 0.01


@pytest.mark.parametrize("count", range(1, 6))
def test_infinite_runs_are_counted_as_fisher_does(count: int) -> None:
    """Where the others are alike."""
    new = Side((math.inf,) * count + (1.0,) * (5 - count))
    estimate = effects.difference(Side((1.0,) * 5), new)
    assert isinstance(estimate, Ranked)
    # Of all ways to lay `count` infinite runs on ten places, those with all of them in NEW.
    ways = list(itertools.combinations(range(10), count))
    assert estimate.p_above(0.0) == pytest.approx(sum(all(p < 5 for p in way) for way in ways) / len(ways))
    assert effects.interval(estimate) == (None, None) and estimate.p_below(0.0) == 1


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize(("before", "after"), [(1, 5), (1, 4), (5, 2), (4, 5)])
def test_infinite_runs_of_both_sides_are_counted_as_fisher_does(before: int, after: int, infinite: float) -> None:
    base, new = (Side((infinite,) * count + (1.0,) * (5 - count)) for count in (before, after))
    estimate = effects.difference(base, new)
    assert isinstance(estimate, Ranked)
    ways = list(itertools.combinations(range(10), before + after))
    as_far = [sum(place < 5 for place in way) >= max(before, after) for way in ways]
    assert effects.p_differs(estimate) == pytest.approx(min(1, 2 * sum(as_far) / len(ways)))
    assert (estimate.p_above(0.0) < estimate.p_below(0.0)) == ((infinite > 0) == (after > before))


def test_runs_that_are_all_infinite_alike_say_nothing() -> None:
    assert effects.difference(Side((math.inf, math.inf)), Side((math.inf,))) is None
    assert effects.difference(Side((-math.inf,)), Side((-math.inf,))) is None
    assert effects.difference(Side(()), Side((1.0,))) is None


@pytest.mark.parametrize(
    ("base", "new", "p"),
    [
        ((1.0, 1.1, 0.9), (math.inf, math.inf, 3.0), 1 / 20),  # all of NEW beyond all of BASE
        ((1.0, 1.1, 0.9, 1.0, math.inf), (3.0, 3.1, 3.0, 2.9, math.inf), 6 / 252),  # as many are infinite
        ((1.0, 1.1, 0.9, 1.0, math.inf), (3.0, 3.1, 3.2, 3.3, 3.4), 10 / 252),  # none of NEW is
        ((-math.inf, -math.inf), (math.inf, math.inf), 1 / 6),
        ((math.inf, 1.0), (-math.inf, 1.0), 1.0),
    ],
)
def test_infinite_runs_and_finite_ones_are_judged_by_their_order(
    base: tuple[float, ...], new: tuple[float, ...], p: float
) -> None:
    estimate = effects.difference(Side(base), Side(new))
    assert isinstance(estimate, Ranked) and estimate.p_above(0.2) == pytest.approx(p)
    turned = effects.difference(Side(new), Side(base))
    assert isinstance(turned, Ranked) and turned.p_below(-0.2) == pytest.approx(p)


def test_smirnovs_p_is_that_of_all_ways_to_deal_the_runs_out() -> None:
    rng = np.random.default_rng(4)
    for m, n in itertools.product((1, 2, 4), (1, 3, 4)):
        pool = rng.choice([-math.inf, 1.0, 2.0, 3.0, math.inf], m + n).tolist()

        def apart(lower: set[int], pool: list[float] = pool, m: int = m, n: int = n) -> int:
            own = [value for place, value in enumerate(pool) if place in lower]
            others = [value for place, value in enumerate(pool) if place not in lower]
            return max(n * sum(v <= x for v in own) - m * sum(v <= x for v in others) for x in pool)

        ways = [apart(set(way)) >= apart(set(range(m))) for way in itertools.combinations(range(m + n), m)]
        assert ranks.smirnov_p(pool[:m], pool[m:]) == pytest.approx(np.mean(ways))
    assert ranks.smirnov_p([1.0] * 60, [2.0] * 60) == pytest.approx(1 / math.comb(120, 60))


@pytest.mark.parametrize("repeats", [3, 5])
@pytest.mark.parametrize("broken", [0.05, 0.3])
def test_runs_that_break_by_chance_rarely_fail_a_gate_and_slower_ones_do(repeats: int, broken: float) -> None:
    """The limit is no change, where false alarms are most likely."""
    rng = np.random.default_rng(11)
    tried = 600

    def told(shift: float) -> float:
        seen = 0
        for _ in range(tried):
            sides = [0.02 * rng.standard_normal(repeats), shift + 0.02 * rng.standard_normal(repeats)]
            for values in sides:
                values[rng.random(repeats) < broken] = math.inf
            estimate = effects.difference(*(Side(tuple(values.tolist())) for values in sides))
            seen += estimate is not None and estimate.p_above(0.0) <= effects.ALPHA
        return seen / tried

    assert told(0.0) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / tried)
    assert told(math.log(2)) >= {(3, 0.05): 0.8, (5, 0.05): 0.9, (3, 0.3): 0.25, (5, 0.3): 0.45}[repeats, broken]


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
    assert isinstance(unsure, Ranked)
    assert effects.p_differs(unsure) == pytest.approx(min(1, 2 / math.comb(2 * runs, runs)))


def test_what_the_other_side_may_be_as_well_is_not_certain() -> None:
    """Of BASE the interval reaches to infinity too; and a rate that is 0 may be as low as the other's."""
    up = effects.difference(Side((9.0,), within=((3.0, math.inf),)), Side((math.inf,), within=((math.inf, None),)))
    assert isinstance(up, Ranked) and up.p_above(0.0) == 0.5
    for low, p in ((-4.0, 0.5), (-1.0, 0.0)):
        none = Side((-math.inf,), within=((-math.inf, -2.0),))
        down = effects.difference(Side((0.0,), within=((low, 1.0),)), none)
        assert isinstance(down, Ranked) and down.p_below(0.0) == p


def test_sides_that_cross_are_not_beyond_a_limit_that_their_medians_keep() -> None:
    """Half of BASE never answers, and NEW is a little slower: Smirnov's test rejects either way."""
    base, new = Side((0.0,) * 6 + (math.inf,) * 6), Side((0.06,) * 12)
    found = effects.difference(base, new)
    assert isinstance(found, Ranked) and found.p_above(0.05) == 1 and found.p_below(0.05) < 0.05


def test_a_low_end_that_is_finite_makes_no_infinite_run_certain() -> None:
    base = Side((1.0, 1.05), within=((0.9, 1.1),) * 2)
    found = effects.difference(base, Side((math.inf,) * 2, within=((1.2, math.inf),) * 2))
    assert isinstance(found, Ranked) and found.p_above(0.05) == pytest.approx(1 / 6)


def test_a_figure_is_held_against_a_limit_by_itself() -> None:
    known = effects.level(Side((10.0, 11.0, 9.0, 10.0, 10.0)))
    assert known is not None and known.p_below(12.0) < 0.01 < known.p_above(12.0)
    for runs in (1, 2, 4, 5):
        sure = effects.level(Side((math.inf,) * runs, within=((math.inf, None),) * runs))
        unsure = effects.level(Side((math.inf,) * runs, within=((11.0, None),) * runs))
        assert sure is not None and sure.p_above(12.0) == 0 and sure.p_below(12.0) == 1
        assert unsure is not None and unsure.p_above(12.0) == 1 / 2**runs
    ends = ((math.inf, None), (12.5, 14.0))
    mixed = effects.level(Side((math.inf, 13.0, 11.0), within=(*ends, (10.0, 12.0))))
    assert isinstance(mixed, Level) and mixed.p_above(12.0) == 0.5 and mixed.value == 13.0
    beyond = effects.level(Side((math.inf, 13.0, 13.0), within=(*ends, (12.5, 14.0))))
    assert isinstance(beyond, Level) and beyond.p_above(12.0) == 1 / 8  # not as certain


def test_runs_that_agree_exactly_are_not_taken_for_certain() -> None:
    least = Side((5.0,) * 5, least_error=0.01)
    estimate = effects.difference(least, least)
    assert isinstance(estimate, Estimate) and estimate.below == pytest.approx(math.hypot(0.01, 0.01))
    assert Estimate(1.0, 0.0, 0.0, 4.0).p_above(0.0) == 0.0
