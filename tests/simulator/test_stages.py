"""The way to the queue by a manual clock: who waits for whom, and what it costs the host."""

from __future__ import annotations

import random

from loadgen.simulator.stages import Passage, Stages

MS = 1_000_000


def test_without_stages_all_are_ready_at_once() -> None:
    assert Stages(0, 0, 8, 0).enter(7) == Passage(7, 7, 7, 7)


def test_each_stage_by_itself() -> None:
    assert Stages(5, 0, 1, 0).enter(100) == Passage(105, 105, 105, 105)
    assert Stages(0, 5, 1, 0).enter(100) == Passage(100, 100, 105, 105)
    io = Stages(0, 0, 1, 5)
    assert [io.enter(100) for _ in range(3)] == [Passage(100, 100, 100, 105)] * 3


def test_two_workers_serve_first_in_first_out() -> None:
    stages = Stages(1 * MS, 10 * MS, 2, 3 * MS)
    passages = [stages.enter(at_ms * MS) for at_ms in (0, 0, 4, 30)]
    assert [[time_ns // MS for time_ns in passage] for passage in passages] == [
        [1, 1, 11, 14],
        [1, 1, 11, 14],
        [5, 11, 21, 24],
        [31, 31, 41, 44],
    ]


def test_what_the_host_has_spent_by_now() -> None:
    stages = Stages(1 * MS, 10 * MS, 1, 3 * MS)
    stages.enter(0)  # on the CPU from 1 to 11, in I/O until 14
    stages.enter(0)  # from 11 to 21, until 24
    told = [
        (stages.cpu_ns(at * MS) // MS, stages.io_ns(at * MS) // MS, stages.at_work(at * MS)) for at in range(0, 26, 5)
    ]
    assert told == [
        (0, 0, (0, 0)),
        (4, 0, (1, 0)),
        (9, 0, (1, 0)),
        (14, 3, (1, 0)),
        (19, 3, (1, 0)),
        (20, 6, (0, 0)),
    ]
    assert stages.at_work(22 * MS) == (0, 0)  # all is settled by then


def test_counters_never_go_back() -> None:
    source = random.Random(1)
    stages = Stages(2 * MS, 3 * MS, 3, 5 * MS)
    now_ns, cpu_ns, io_ns = 0, 0, 0
    for _ in range(2000):
        now_ns += source.randrange(2 * MS)
        if source.random() < 0.7:
            stages.enter(now_ns)
        told = stages.cpu_ns(now_ns), stages.io_ns(now_ns)
        assert told >= (cpu_ns, io_ns) and told[1] >= io_ns
        cpu_ns, io_ns = told


def test_requests_come_over_a_link_one_after_the_other() -> None:
    stages = Stages(5 * MS, 0, 1, 0, link_ns_per_b=1000.0)
    passages = [stages.enter(at_ms * MS, size_b) for at_ms, size_b in ((0, 10_000), (0, 20_000), (50, 1_000))]
    assert [passage.ready_ns // MS for passage in passages] == [15, 35, 56]


def test_io_has_so_many_places() -> None:
    stages = Stages(0, 0, 1, 10 * MS, io_places=2)
    assert [stages.enter(0).ready_ns // MS for _ in range(5)] == [10, 10, 20, 20, 30]
    assert [stages.at_work(at * MS)[1] for at in (5, 15, 25, 35)] == [5, 3, 1, 0]
    assert stages.io_ns(40 * MS) == (10 + 10 + 20 + 20 + 30) * MS


def test_pressure_is_time_in_which_some_request_waited() -> None:
    stages = Stages(0, 10 * MS, 1, 5 * MS)
    for at_ms in (0, 4):  # the second waits from 4 to 10; I/O from 10 to 15 and from 20 to 25
        stages.enter(at_ms * MS)
    assert [stages.waiting_for_cpu(at * MS) for at in (3, 5, 12)] == [0, 1, 0]
    pressure = [stages.pressure_ns(at * MS) for at in (5, 12, 30)]
    stages.enter(50 * MS)
    pressure.append(stages.pressure_ns(100 * MS))
    assert [(cpu_ns // MS, io_ns // MS) for cpu_ns, io_ns in pressure] == [(1, 0), (6, 2), (6, 10), (6, 15)]


def test_the_workers_share_is_of_the_time_since_it_was_asked_last() -> None:
    stages = Stages(0, 10 * MS, 2, 0)
    for _ in range(3):
        stages.enter(0)
    assert [stages.workers_busy(at * MS) for at in (10, 20, 40)] == [1.0, 0.5, 0.0]
