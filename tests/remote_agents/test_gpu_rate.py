"""How often GPUs are read, as a function of what NVML takes."""

from __future__ import annotations

from remote_agents.agent.gpu_rate import Rate

MS = 1_000_000


def periods(rate: Rate, cost_ms: float, ticks: int, start_ms: int = 0) -> list[int]:
    """The period in ms after each of so many ticks of one cost."""
    found = []
    now_ms = start_ms
    for _ in range(ticks):
        now_ms += rate.period_ns // MS
        rate.add(round(cost_ms * MS), now_ms * MS)
        found.append(rate.period_ns // MS)
    return found


def test_ten_dear_ticks_in_a_row_lengthen_the_period() -> None:
    rate = Rate(100 * MS)
    assert periods(rate, 20.1, 10) == [100] * 9 + [200]
    assert rate.add(20 * MS, 0) is False


def test_a_cheap_tick_between_dear_ones_starts_the_count_again() -> None:
    rate = Rate(100 * MS)
    for _ in range(20):
        assert periods(rate, 50, 9) == [100] * 9
        assert periods(rate, 20, 1) == [100]


def test_it_goes_no_further_than_a_second() -> None:
    rate = Rate(105 * MS)
    assert periods(rate, 900, 60)[9::10] == [200, 500, 1000, 1000, 1000, 1000]


def test_a_minute_that_would_be_cheap_at_the_shorter_period_brings_it_back_one_step() -> None:
    rate = Rate(100 * MS)
    periods(rate, 900, 20)
    assert rate.period_ns == 500 * MS
    cheap = periods(rate, 19.9, 300)
    assert cheap.index(200) == 120  # ticks of 500 ms: the first begins the minute
    assert rate.period_ns == 200 * MS  # 19.9 ms are dear for 100 ms
    assert periods(rate, 10, 1000)[-1] == 200
    assert 100 in periods(rate, 9.9, 302)


def test_one_tick_that_is_not_cheap_starts_the_minute_again() -> None:
    rate = Rate(100 * MS)
    periods(rate, 90, 10)
    assert rate.period_ns == 200 * MS
    assert set(periods(rate, 5, 290)) == {200}
    assert periods(rate, 30, 1, start_ms=58_000) == [200]
    assert set(periods(rate, 5, 290, start_ms=58_200)) == {200}
