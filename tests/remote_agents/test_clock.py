"""The truth is within the stated bound, at every instant, of links and clocks whose truth is known."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_agents.clock import (
    MAX_DRIFT_PPM,
    ClockFit,
    TimeOfDay,
    bound_at,
    clock_check,
    fit_clock,
    fit_clocks,
    to_controller,
)

SECOND = 1_000_000_000
MS = 1_000_000
START = 5_000 * SECOND
THINK_NS = 20_000

Stamps = tuple[int, int, int, int]
Floats = Any

thoroughly = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@dataclass(frozen=True)
class Link:
    """A link and the clock at its end: delays in ms, rates in ppm, times in s of the controller since START.

    The clock's rate swings by `swing_ppm` around its drift. It is asleep for `asleep_s` from `at_s` on, which stops
    it, and runs `slew_ppm` faster for a minute from then on. Late by chance: the tail of a delay is heavy.
    """

    seconds: float = 120.0
    offset_s: float = 0.0
    drift_ppm: float = 0.0
    swing_ppm: float = 0.0
    swing_s: float = 600.0
    out_ms: float = 0.3
    back_ms: float = 0.3
    jitter_ms: float = 0.0
    stalls: float = 0.0
    at_s: float = 0.0
    asleep_s: float = 0.0
    slew_ppm: float = 0.0
    seed: int = 0

    def agent_ns(self, t_ns: Floats) -> Floats:
        """The agent's clock at instants of the controller's."""
        t = np.asarray(t_ns - START, dtype=np.float64)
        since = t - self.at_s * SECOND
        swing = (
            self.swing_ppm * self.swing_s * SECOND / (2 * np.pi) * (1 - np.cos(2 * np.pi * t / SECOND / self.swing_s))
        )
        moved = (self.drift_ppm * t + swing + self.slew_ppm * np.clip(since, 0, 60 * SECOND)) / 1e6
        moved -= np.clip(since, 0, self.asleep_s * SECOND)
        return t_ns + round(self.offset_s * SECOND) + np.floor(moved).astype(np.int64)

    def probes(self) -> list[Stamps]:
        """Bursts of 8 every 10 s, 16 at both ends; one that is not answered within a second ends its burst."""
        draw = np.random.default_rng(self.seed)
        got = []
        bursts = [*np.arange(0, self.seconds, 10.0), self.seconds]
        for number, burst_s in enumerate(bursts):
            t0 = START + round(burst_s * SECOND)
            stalled = draw.random() < self.stalls
            for _ in range(16 if number in (0, len(bursts) - 1) else 8):
                late = self.jitter_ms * np.minimum(draw.pareto(1.5, 2), 100) + (250 if stalled else 0)
                out, back = (np.array([self.out_ms, self.back_ms]) + late) * MS
                arrived = t0 + int(out)
                woken = START + round((self.at_s + self.asleep_s) * SECOND)
                if START + self.at_s * SECOND <= arrived < woken:
                    arrived = woken
                answered = arrived + THINK_NS
                t3 = answered + int(back)
                if t3 - t0 > SECOND:
                    break
                got.append((t0, int(self.agent_ns(arrived)), int(self.agent_ns(answered)), t3))
                t0 = t3 + 50_000
        return got

    def instants(self, beyond_s: float) -> Floats:
        """Of the controller, from before the first probe until after the last one; none while the agent slept."""
        t = np.arange(-beyond_s, self.seconds + beyond_s, 0.05)
        asleep = (t > self.at_s) & (t < self.at_s + self.asleep_s)
        return START + np.rint(t[~asleep] * SECOND).astype(np.int64)


def check(link: Link, causal: bool = False, from_s: float = 0, beyond_s: float = 10) -> tuple[ClockFit, float]:
    """The fit of the link's probes, and its worst bound in ms from then to the last one; the truth is in the bounds."""
    fit = fit_clock("a", link.probes(), causal)
    assert fit is not None
    truth = link.instants(beyond_s)
    there = link.agent_ns(truth)
    error, bound = np.abs(to_controller(fit, there) - truth), bound_at(fit, there)
    assert (error <= bound).all(), (link, (error - bound).max())
    inside = (truth >= START + from_s * SECOND) & (truth <= START + link.seconds * SECOND)
    return fit, bound[inside].max(initial=0) / MS


links = st.builds(
    Link,
    seconds=st.floats(30, 3600),
    offset_s=st.floats(-1e5, 1e5),
    drift_ppm=st.floats(-50, 50),
    swing_ppm=st.floats(-20, 20),
    swing_s=st.floats(60, 7200),
    out_ms=st.floats(0, 40),
    back_ms=st.floats(0, 40),
    jitter_ms=st.sampled_from([0.0, 0.01, 0.3, 5.0]),
    stalls=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)


@thoroughly
@given(links, st.booleans())
def test_the_truth_is_within_the_bound_at_every_instant(link: Link, causal: bool) -> None:
    fit, _ = check(link, causal)
    assert fit.steps == ()


@thoroughly
@given(links, st.booleans())
def test_a_loopback_is_known_to_a_millisecond_at_every_instant(link: Link, causal: bool) -> None:
    near = replace(link, out_ms=0.3, back_ms=0.4, jitter_ms=0.01, stalls=0)
    # Forward alone, the first minute knows no drift: ten seconds of it make a millisecond more.
    assert check(near, causal, from_s=80 if causal else 0)[1] <= 1


@pytest.mark.parametrize("causal", [False, True])
def test_an_hour_of_a_bad_oscillator_is_known_to_a_millisecond(causal: bool) -> None:
    soak = Link(seconds=3600, drift_ppm=50, out_ms=0.25, back_ms=0.35, jitter_ms=0.02)
    fit, bound_ms = check(soak, causal, from_s=80 if causal else 0)
    assert fit.drift_ppm == pytest.approx(50, abs=0.1) and bound_ms < (0.85 if not causal else 1)


@thoroughly
@given(links, st.floats(0.2, 0.8), st.sampled_from([(7.0, 0.0), (0.0, 500.0), (0.0, -500.0)]))
def test_sleep_and_a_fast_slew_keep_the_bound_true_and_are_reported(
    link: Link, where: float, how: tuple[float, float]
) -> None:
    """As long as a probe's rtt is less than the 4 ms that the slew adds to the drift from one burst to the next."""
    asleep_s, slew_ppm = how
    link = replace(link, seconds=link.seconds + 300, out_ms=link.out_ms / 40, back_ms=link.back_ms / 40, stalls=0)
    link = replace(link, jitter_ms=min(link.jitter_ms, 0.3), asleep_s=asleep_s, slew_ppm=slew_ppm)
    link = replace(link, at_s=60 + where * (link.seconds - 200))
    fit, _ = check(link)
    (step,) = fit.steps
    size_s = -asleep_s + slew_ppm * 60e-6
    assert step.size_ns / SECOND == pytest.approx(size_s, abs=0.01)
    around = link.agent_ns(np.array([START + round(link.at_s * SECOND)]))[0]
    assert abs(step.t_agent_ns - around) < 75 * SECOND


def test_a_rate_that_changes_by_more_than_oscillators_wander_is_no_step() -> None:
    fit, bound_ms = check(Link(seconds=1200, drift_ppm=-10, swing_ppm=80, swing_s=1200))
    assert fit.steps == () and bound_ms < 1


def test_a_drift_that_no_oscillator_has_is_reported_as_a_step_and_the_bound_holds() -> None:
    fit, _ = check(Link(drift_ppm=300, out_ms=0.05, back_ms=0.05), beyond_s=0)
    assert len(fit.steps) == 1 and fit.steps[0].size_ns == pytest.approx(300e-6 * 120 * SECOND, rel=0.2)


def test_probes_in_any_order_of_an_agent_that_was_started_again_after_a_reboot() -> None:
    before, after = Link(offset_s=90_000), Link(offset_s=-4_900)
    later = [(t0 + 200 * SECOND, t1, t2, t3 + 200 * SECOND) for t0, t1, t2, t3 in after.probes()]
    fit = fit_clock("a", [*later[::-1], *before.probes()])
    assert fit is not None and len(fit.steps) == 1
    truth = before.instants(beyond_s=-1)
    for link, back_ns in ((before, 0), (after, 200 * SECOND)):
        there = link.agent_ns(truth)
        assert (np.abs(to_controller(fit, there) - back_ns - truth) <= bound_at(fit, there)).all()
        assert bound_at(fit, there).max() < 2 * MS


def exchange(t0_ns: int, offset_ns: int, out_ns: int, back_ns: int) -> Stamps:
    arrived, answered = t0_ns + out_ns, t0_ns + out_ns + THINK_NS
    return t0_ns, arrived + offset_ns, answered + offset_ns, answered + back_ns


def fitted(*probes: Stamps) -> ClockFit:
    fit = fit_clock("a", probes)
    assert fit is not None
    return fit


def test_a_symmetric_probe_is_exact() -> None:
    fit = fitted(exchange(START, 123_456_789, 250_000, 250_000))
    assert (fit.offset_ns, fit.drift_ppm, fit.probes, fit.steps) == (123_456_789, 0, 1, ())
    assert 250_000 <= fit.bound_ns <= 250_004


def test_the_bound_grows_with_the_distance_to_a_probe() -> None:
    fit = fitted(exchange(START, 0, 100_000, 100_000))
    near, far = bound_at(fit, np.array([START, START + 1000 * SECOND]))
    assert far - near == pytest.approx(MAX_DRIFT_PPM * 1_000_000, rel=0.01)  # 100 ppm of 1000 s


def test_one_bad_burst_does_not_spoil_its_neighbours() -> None:
    good = [exchange(START + n * 10 * SECOND, 5, 100_000, 100_000) for n in range(10)]
    good[5] = exchange(START + 50 * SECOND, 5, 100_000, 900_000_000)
    fit = fitted(*good)
    assert abs(fit.offset_ns - 5) < 1_000
    assert bound_at(fit, np.array([START + 40 * SECOND]))[0] < 150_000
    assert bound_at(fit, np.array([START + 50 * SECOND]))[0] < 1_000_000


def test_hosts_are_fitted_apart() -> None:
    names = ("t0_ns", "t1_ns", "t2_ns", "t3_ns")
    lines = [
        {"host": host, **dict(zip(names, exchange(START + n, offset_ns, 1000, 1000), strict=True))}
        for n in range(3)
        for host, offset_ns in (("a", 10_000), ("b", -10_000))
    ]
    fits = fit_clocks(lines)
    assert {host: (fit.host, fit.offset_ns, fit.probes) for host, fit in fits.items()} == {
        "a": ("a", 10_000, 3),
        "b": ("b", -10_000, 3),
    }
    assert fit_clocks([]) == {}


@pytest.mark.parametrize("stamps", [(10, 5, 5, 9), (10, 7, 6, 12), (10, 5, 5_000_000, 20)])
def test_a_probe_that_cannot_be_true_is_left_out(stamps: Stamps) -> None:
    assert fit_clock("a", [stamps]) is None
    good = exchange(START, 7, 1000, 1000)
    assert fitted(stamps, good).offset_ns == 7


def test_a_day_of_probes_is_fitted_in_less_than_a_second() -> None:
    probes = Link(seconds=86_400, drift_ppm=20, jitter_ms=0.1).probes()
    begin = time.process_time()
    fit = fitted(*probes)
    assert time.process_time() - begin < 1
    assert fit.probes > 69_000 and fit.drift_ppm == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize(
    ("ahead_ms", "maxerrors_ms", "differ"), [(0.0, (20, 5), False), (24.0, (20, 5), False), (40.0, (20, 5), True)]
)
def test_two_times_of_day_that_claim_to_be_right_are_held_against_the_probes(
    ahead_ms: float, maxerrors_ms: tuple[int, int], differ: bool
) -> None:
    """The agent's time of day is ahead of the controller's by so much; the monotonic clocks are hours apart."""
    fit = fitted(exchange(START, 9_000 * SECOND, 100_000, 100_000))
    day = 1_700_000_000 * SECOND
    ours = TimeOfDay(day, START - 60 * SECOND, maxerrors_ms[0] * MS)
    theirs = TimeOfDay(day + 61 * SECOND + round(ahead_ms * MS), START + 9_001 * SECOND, maxerrors_ms[1] * MS)
    checked = clock_check(fit, ours, theirs)
    assert checked is not None
    assert checked[0] == pytest.approx(ahead_ms * MS, abs=100)
    assert checked[1] == pytest.approx(26.2 * MS, abs=0.1 * MS)
    assert (abs(checked[0]) > checked[1]) == differ


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_time_of_day_that_is_not_synchronised_tests_nothing(lacking: int) -> None:
    fit = fitted(exchange(START, 0, 100_000, 100_000))
    pair = [TimeOfDay(START, START, None if number == lacking else MS) for number in (0, 1)]
    assert clock_check(fit, *pair) is None
