"""The schedule of the open model: its law, its counts, its marks, and the shares of workers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loadgen.plan import Arrival, LoadPlan, open_plan
from loadgen.schedule import Mark, Schedule

S = 1_000_000_000
POISSON = Arrival("poisson")


def plan_of(
    *rates: float,
    arrival: Arrival = POISSON,
    duration_s: float | None = 10.0,
    requests: int | None = None,
    ramp_s: float = 0.0,
    seed: int = 0,
) -> LoadPlan:
    return open_plan(rates, duration_s, requests, 60.0, seed, arrival=arrival, ramp_s=ramp_s)


def offsets(plan: LoadPlan, worker: int = 0, workers: int = 1) -> NDArray[np.int64]:
    return np.concatenate(list(Schedule(plan).arrivals(worker, workers)))


def kolmogorov_smirnov(law: NDArray[np.float64]) -> float:
    """sqrt(n) x the greatest distance of a sample to its law; `law` is the law's distribution function at the sample.

    Above 1.95 once in 1000 samples of the law.
    """
    at = np.sort(law)
    n = len(at)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - at).max(), (at - steps[:-1]).max()) * math.sqrt(n))


def gamma_law(shape: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Regularised lower incomplete gamma function, by its series."""
    total = np.zeros_like(x)
    term = np.full_like(x, 1 / math.gamma(shape + 1))
    for n in range(1, 400):
        total += term
        term = term * x / (shape + n)
    return np.asarray(total * x**shape * np.exp(-x))


def test_constant() -> None:
    assert offsets(plan_of(10.0, 20.0, arrival=Arrival("constant"), duration_s=1.0)).tolist() == [
        *range(0, S, S // 10),
        *range(S, 2 * S, S // 20),
    ]


@pytest.mark.parametrize("cv", [None, 0.5, 1.5])
def test_gaps_follow_their_law(cv: float | None) -> None:
    arrival = POISSON if cv is None else Arrival("gamma", cv=cv)
    times = offsets(plan_of(20.0, arrival=arrival, duration_s=2000.0))
    gaps = np.diff(times) / S * 20.0
    shape = 1 / (cv or 1.0) ** 2
    assert kolmogorov_smirnov(gamma_law(shape, gaps * shape)) < 1.95
    assert kolmogorov_smirnov(gamma_law(1.0 if cv else 0.5, gaps)) > 10  # the test can tell
    assert abs(len(times) - 40_000) < 4 * (cv or 1.0) * math.sqrt(40_000)
    assert not np.any(np.diff(offsets(plan_of(20.0, arrival=arrival, seed=1))[:9]) == np.diff(times)[:8])


def test_a_poisson_process_stays_one_while_the_rate_ramps() -> None:
    """By the cumulative rate it is a process of rate 1 again."""
    times = offsets(plan_of(1000.0, 3000.0, duration_s=5.0, ramp_s=10.0)) / S
    ramp_up = np.minimum(times, 10.0)
    held = np.clip(times - 10.0, 0.0, 5.0)
    ramp = np.clip(times - 15.0, 0.0, 10.0)
    last = np.clip(times - 25.0, 0.0, 5.0)
    counted = 50.0 * ramp_up**2 + 1000.0 * held + 1000.0 * ramp + 100.0 * ramp**2 + 3000.0 * last
    assert kolmogorov_smirnov(1 - np.exp(-np.diff(counted))) < 1.95


def test_a_ramp_holds_as_many_as_its_area() -> None:
    plan = plan_of(100.0, 20.0, arrival=Arrival("constant"), duration_s=3.0, ramp_s=2.0)
    times = offsets(plan)
    edges = [mark.offset_ns for mark in Schedule(plan).marks]
    assert edges == [0, 2 * S, 5 * S, 5 * S, 7 * S, 10 * S]
    assert np.histogram(times, [0, 2 * S, 5 * S, 7 * S, 10 * S])[0].tolist() == [100, 300, 120, 60]
    assert np.all(np.diff(times) > 0)
    assert times[0] == 0


def test_marks() -> None:
    assert Schedule(plan_of(5.0, 20.0, duration_s=1.5)).marks == [
        *(Mark(0, "ramp", 0), Mark(0, "begin", 0), Mark(0, "end", 3 * S // 2)),
        *(Mark(1, "ramp", 3 * S // 2), Mark(1, "begin", 3 * S // 2), Mark(1, "end", 3 * S)),
    ]


@pytest.mark.parametrize("ramp_s", [0.0, 0.7])
@pytest.mark.parametrize("arrival", [POISSON, Arrival("constant"), Arrival("gamma", cv=1.5)])
def test_a_step_of_so_many_requests(arrival: Arrival, ramp_s: float) -> None:
    plan = plan_of(3000.0, 100.0, 9000.0, arrival=arrival, duration_s=None, requests=5000, ramp_s=ramp_s)
    times, marks = offsets(plan), Schedule(plan).marks
    for begin, end in zip(marks[1::3], marks[2::3], strict=True):
        assert np.sum((times >= begin.offset_ns) & (times < end.offset_ns)) == 5000
    assert times[-1] < marks[-1].offset_ns


def test_what_comes_first_ends_a_step() -> None:
    marks = Schedule(plan_of(1.0, 100.0, 2.0, arrival=Arrival("constant"), requests=50, duration_s=10.0)).marks
    assert [mark.offset_ns for mark in marks if mark.what == "end"] == [10 * S, int(10.5 * S), int(20.5 * S)]


def test_shares_are_the_whole_whatever_the_number_of_workers() -> None:
    plan = plan_of(700.0, 2500.0, ramp_s=1.0)
    whole = offsets(plan)
    for workers in (2, 3, 7):
        shares = [offsets(plan, worker, workers) for worker in range(workers)]
        for worker, share in enumerate(shares):
            assert np.array_equal(share, whole[worker::workers])
    assert np.array_equal(offsets(plan), whole)


def test_a_trace_comes_as_it_was_and_faster_and_again(tmp_path: Path) -> None:
    file = tmp_path / "times.txt"
    file.write_text("100.0\n100.5\n100.6\n103.0\n")
    arrival = Arrival("trace", trace=str(file))
    as_it_was = plan_of(arrival=arrival, duration_s=None)
    assert offsets(as_it_was) / S == pytest.approx([0.0, 0.5, 0.6, 3.0], abs=1e-8)
    assert Schedule(as_it_was).marks[-1].offset_ns == 4 * S  # after one more mean gap
    faster = plan_of(10.0, arrival=arrival, duration_s=0.8)
    assert offsets(faster) / S == pytest.approx([0, 0.05, 0.06, 0.3, 0.4, 0.45, 0.46, 0.7], abs=1e-8)


def test_a_day_needs_little_memory() -> None:
    blocks = Schedule(plan_of(10_000.0, duration_s=86_400.0)).arrivals(1, 2)
    assert max(len(next(blocks)) for _ in range(100)) < 5000
