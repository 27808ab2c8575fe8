from __future__ import annotations

from remote_agents.agent.pace import Meter, Pace


class ManualClock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def test_ticks_stay_on_their_deadlines_whatever_the_work_takes() -> None:
    clock = ManualClock()
    pace = Pace(100, clock, clock.sleep)
    woke = []
    for work_ns in (10, 99, 100, 0, 30):
        assert pace.wait() == 0
        woke.append(clock.now_ns)
        clock.now_ns += work_ns
    assert woke == [1000, 1100, 1200, 1300, 1400]
    assert pace.skipped == 0


def test_an_overrun_skips_ticks_and_makes_no_burst() -> None:
    clock = ManualClock()
    pace = Pace(100, clock, clock.sleep)
    pace.wait()
    clock.now_ns += 345
    pace.wait()
    assert (clock.now_ns, pace.skipped) == (1400, 3)
    pace.wait()
    assert (clock.now_ns, pace.skipped) == (1500, 3)


def test_lateness_is_that_of_the_wake_up() -> None:
    clock = ManualClock()
    pace = Pace(100, clock, lambda seconds: clock.sleep(seconds + 7e-9))
    assert [pace.wait(), pace.wait()] == [0, 7]
    assert pace.wait() == 7  # it does not add up


def test_the_meter_reports_each_second_once() -> None:
    meter = Meter()
    for late_us in range(100):
        meter.tick(late_us * 1000, skipped=3, nvml_ns=late_us * 2000)
    t0_ns, t1_ns, cpu_us, rss_b, ticks, overruns, late_us_p99, nvml_us_p99, *others = meter.row(1 << 20, 5)
    assert 0 < t0_ns <= t1_ns
    assert cpu_us > 0
    assert rss_b > 1 << 20
    assert (ticks, overruns, late_us_p99, nvml_us_p99, others) == (100, 3, 98, 196, [100, 1 << 20, 5])
    assert meter.row()[6:8] == [None, None]
