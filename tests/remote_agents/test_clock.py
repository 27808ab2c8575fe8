from __future__ import annotations

import random

import numpy as np
import pytest

from remote_agents.clock import bound_at, fit_clock, fit_clocks, to_controller

SECOND = 1_000_000_000
START = 5_000 * SECOND

Probe = tuple[int, int, int, int]


def exchange(  # one probe of a link whose truth is known
    t0_ns: int, offset_ns: int, drift_ppm: float, out_ns: int, back_ns: int, think_ns: int = 20_000
) -> Probe:
    def agent(t_ns: int) -> int:
        return t_ns + offset_ns + round((t_ns - START) * drift_ppm / 1e6)

    arrived, answered = t0_ns + out_ns, t0_ns + out_ns + think_ns
    return t0_ns, agent(arrived), agent(answered), answered + back_ns


def probes(seconds: int, offset_ns: int, drift_ppm: float, asymmetry: float, seed: int) -> list[Probe]:
    """Bursts of 8 every 10 s; delays of 0.2 ms and up, one direction slower by a factor, some very late."""
    draw = random.Random(seed)
    got = []
    for burst_s in range(0, seconds + 1, 10):
        t0_ns = START + burst_s * SECOND
        for _ in range(8):
            out_ns = int(200_000 + draw.expovariate(1 / 300_000) + (20_000_000 if draw.random() < 0.1 else 0))
            back_ns = int((200_000 + draw.expovariate(1 / 300_000)) * asymmetry)
            got.append(exchange(t0_ns, offset_ns, drift_ppm, out_ns, back_ns))
            t0_ns += out_ns + back_ns + 100_000
    return got


def test_a_symmetric_probe_is_exact() -> None:
    fit = fit_clock("a", [exchange(START, 123_456_789, 0, 250_000, 250_000)])
    assert fit.offset_ns == 123_456_789
    assert (fit.drift_ppm, fit.probes) == (0, 1)
    assert 250_000 <= fit.bound_ns <= 250_001


@pytest.mark.parametrize("seconds", [0, 30, 120, 3600])
@pytest.mark.parametrize("offset_ns", [0, -7 * 86400 * SECOND, 3 * 86400 * SECOND + 17])
@pytest.mark.parametrize("drift_ppm", [0, 8, -25])
@pytest.mark.parametrize("asymmetry", [1, 5])
def test_the_error_is_within_the_bound(seconds: int, offset_ns: int, drift_ppm: float, asymmetry: float) -> None:
    for seed in range(3):
        fit = fit_clock("a", probes(seconds, offset_ns, drift_ppm, asymmetry, seed))
        truth_ns = START + np.arange(-2, seconds + 3, dtype=np.int64) * SECOND
        agent_ns = truth_ns + offset_ns + np.rint((truth_ns - START) * (drift_ppm / 1e6)).astype(np.int64)
        error_ns = np.abs(to_controller(fit, agent_ns) - truth_ns)
        assert (error_ns <= bound_at(fit, agent_ns)).all()
        assert fit.bound_ns < 15_000_000
        if seconds >= 120:
            assert abs(fit.drift_ppm - drift_ppm) < 25


def test_a_long_run_learns_the_drift() -> None:
    fit = fit_clock("a", probes(3600, 0, 20, 1, seed=1))
    assert fit.drift_ppm == pytest.approx(20, abs=0.2)
    agent_ns = np.array([START + 1805 * SECOND])
    assert bound_at(fit, agent_ns)[0] < 1_000_000


def test_the_bound_grows_with_the_distance_to_a_probe() -> None:
    fit = fit_clock("a", [exchange(START, 0, 0, 100_000, 100_000)])
    near, far = bound_at(fit, np.array([START, START + 1000 * SECOND]))
    assert far - near == pytest.approx(30_000_000, rel=0.01)  # 30 ppm of 1000 s


def test_one_bad_burst_does_not_spoil_its_neighbours() -> None:
    good = [exchange(START + n * 10 * SECOND, 5, 0, 100_000, 100_000) for n in range(10)]
    good[5] = exchange(START + 50 * SECOND, 5, 0, 100_000, 900_000_000)
    fit = fit_clock("a", good)
    assert abs(fit.offset_ns - 5) < 1_000
    assert bound_at(fit, np.array([START + 40 * SECOND]))[0] < 150_000
    assert bound_at(fit, np.array([START + 50 * SECOND]))[0] < 500_000


def test_hosts_are_fitted_apart() -> None:
    names = ("t0_ns", "t1_ns", "t2_ns", "t3_ns")
    lines = [
        {"host": host, **dict(zip(names, exchange(START + n, offset_ns, 0, 1000, 1000), strict=True))}
        for n in range(3)
        for host, offset_ns in (("a", 10_000), ("b", -10_000))
    ]
    fits = fit_clocks(lines)
    assert {host: (fit.host, fit.offset_ns, fit.probes) for host, fit in fits.items()} == {
        "a": ("a", 10_000, 3),
        "b": ("b", -10_000, 3),
    }
    assert fit_clocks([]) == {}


def test_a_drift_that_no_oscillator_has_is_cut_and_the_bound_says_so() -> None:
    steps = [exchange(START + n * 10 * SECOND, n * 1_000_000, 0, 100_000, 100_000) for n in range(10)]  # 100 ppm
    fit = fit_clock("a", steps)
    assert fit.drift_ppm == pytest.approx(30)
    assert fit.bound_ns > 3_000_000
    anchor, later = (fit.anchors[-1].t_agent_ns + after for after in (0, 1000 * SECOND))
    near, far = bound_at(fit, np.array([anchor, later]))
    assert far - near == pytest.approx(60_000_000, rel=0.01)  # 30 ppm of the clocks, and 30 of the line
