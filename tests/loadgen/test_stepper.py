"""The steps of a run, driven by a manual clock."""

from __future__ import annotations

from typing import Any

from loadgen.plan import Arrival, closed_plan, open_plan
from loadgen.stepper import LEAD_S, RAMP_TIMEOUT_S, ClosedStepper, OpenStepper, Phase

S = 1_000_000_000


def _stepper(
    levels: tuple[int, ...], duration_s: float | None, requests: int | None = None, ramp_s: float = 0.0
) -> tuple[ClosedStepper, list[Any]]:
    lines: list[dict[str, Any]] = []
    return ClosedStepper(closed_plan(levels, duration_s, requests, 10.0, 0, ramp_s=ramp_s), lines.append), lines


def test_ramp_hold_next_drain_done() -> None:
    stepper, lines = _stepper((10, 20), 5.0)
    stepper.advance(0, users=0, ended=0, in_flight=0)
    assert (stepper.phase, stepper.level) == (Phase.RAMP, 10)
    assert stepper.advance(1 * S, users=10, ended=0, in_flight=10) == 5.0
    assert stepper.phase is Phase.HOLD
    assert stepper.advance(5 * S, users=10, ended=7, in_flight=10) == 1.0
    assert stepper.advance(6 * S, users=10, ended=9, in_flight=10) == 0.0
    assert (stepper.phase, stepper.level) == (Phase.RAMP, 20)
    stepper.advance(7 * S, users=20, ended=9, in_flight=20)
    assert stepper.advance(12 * S, users=20, ended=30, in_flight=20) == 10.0
    assert stepper.phase is Phase.DRAIN
    assert stepper.advance(13 * S, users=20, ended=45, in_flight=5) == 9.0
    assert stepper.advance(14 * S, users=20, ended=50, in_flight=0) == 0.0
    assert stepper.phase is Phase.DONE
    marks = [(line["step"], line["what"], line["t_ns"] // S) for line in lines]
    assert marks == [
        *((0, "ramp", 0), (0, "begin", 1), (0, "end", 6)),
        *((1, "ramp", 6), (1, "begin", 7), (1, "end", 12)),
    ]


def test_step_ends_after_its_requests() -> None:
    stepper, _ = _stepper((10,), None, requests=100)
    stepper.advance(0, 10, 5, 10)
    assert stepper.phase is Phase.HOLD
    stepper.advance(1000 * S, 10, 104, 10)
    assert stepper.phase is Phase.HOLD
    stepper.advance(1001 * S, 10, 105, 10)
    assert stepper.phase is Phase.DRAIN


def test_users_that_never_come_do_not_hold_the_run_up() -> None:
    stepper, lines = _stepper((10,), 5.0)
    stepper.advance(0, 0, 0, 0)
    stepper.advance(int(RAMP_TIMEOUT_S * S), 7, 0, 7)
    assert stepper.phase is Phase.HOLD
    assert lines[-1] == {"step": 0, "level": 10, "unit": "users", "what": "begin", "t_ns": 30 * S, "users": 7}


def test_drain_has_an_end() -> None:
    stepper, _ = _stepper((1,), 1.0)
    for second in (0, 1):
        stepper.advance(second * S, 1, 0, 1)
    assert stepper.phase is Phase.DRAIN
    stepper.advance(11 * S, 1, 0, 1)
    assert stepper.phase is Phase.DONE


def test_stop_ends_the_step_that_holds() -> None:
    stepper, lines = _stepper((10, 20), 5.0)
    stepper.advance(0, 10, 0, 10)
    stepper.stop(2 * S, 10, 9)
    assert stepper.phase is Phase.DONE
    assert [line["what"] for line in lines] == ["ramp", "begin", "end"]


def test_users_come_and_go_over_the_ramp() -> None:
    stepper, lines = _stepper((100, 20), 5.0, ramp_s=4.0)
    assert stepper.advance(0, 0, 0, 0) == 1.0
    assert [stepper.users(second * S) for second in (0, 1, 2, 4)] == [1, 25, 50, 100]
    assert stepper.advance(3 * S, 75, 0, 75) == 1.0
    stepper.advance(4 * S, 100, 0, 100)
    assert stepper.phase is Phase.HOLD
    stepper.advance(9 * S, 100, 9, 100)
    assert (stepper.phase, stepper.level) == (Phase.RAMP, 20)
    assert [stepper.users(second * S) for second in (9, 10, 13)] == [100, 80, 20]
    stepper.advance(13 * S, 20, 9, 20)
    assert [(line["what"], line["t_ns"] // S) for line in lines] == [
        *(("ramp", 0), ("begin", 4), ("end", 9), ("ramp", 9), ("begin", 13)),
    ]


def _open_stepper(*, requests: int | None = None) -> tuple[OpenStepper, list[Any], list[int]]:
    lines: list[dict[str, Any]] = []
    starts: list[int] = []
    plan = open_plan(*((5.0, 20.0), 3.0, requests, 10.0, 0), arrival=Arrival("constant"), ramp_s=2.0, max_in_flight=50)
    return OpenStepper(plan, lines.append, starts.append), lines, starts


def test_the_open_model_follows_the_clock_once_its_users_are_there() -> None:
    stepper, lines, starts = _open_stepper()
    assert stepper.users(0) == 50
    assert stepper.advance(1 * S, users=49, ended=0, in_flight=0) == RAMP_TIMEOUT_S
    assert (stepper.phase, stepper.index, lines) == (Phase.RAMP, -1, [])
    assert stepper.advance(2 * S, users=50, ended=0, in_flight=0) == LEAD_S
    t0 = 2 * S + int(LEAD_S * S)
    assert starts == [t0]
    assert stepper.advance(t0, 50, 0, 0) == 2.0
    assert (stepper.phase, stepper.index, stepper.level) == (Phase.RAMP, 0, 5.0)
    assert stepper.advance(t0 + 4 * S, 50, 9, 3) == 1.0
    assert stepper.phase is Phase.HOLD
    assert stepper.advance(t0 + 6 * S, 50, 9, 4) == 1.0
    assert (stepper.phase, stepper.level) == (Phase.RAMP, 20.0)
    assert stepper.advance(t0 + 11 * S, 50, 80, 7) == 9.0
    assert stepper.phase is Phase.DRAIN
    stepper.advance(t0 + 12 * S, 50, 87, 0)
    assert stepper.phase is Phase.DONE
    assert [(line["step"], line["what"], (line["t_ns"] - t0) // S) for line in lines] == [
        *((0, "ramp", 0), (0, "begin", 2), (0, "end", 5)),
        *((1, "ramp", 5), (1, "begin", 7), (1, "end", 10)),
    ]
    assert lines[1] == {
        "step": 0,
        "level": 5.0,
        "unit": "requests/s",
        "what": "begin",
        "t_ns": t0 + 2 * S,
        "users": 3,
    }
    assert len(starts) == 1


def test_nothing_in_flight_is_believed_when_the_reports_are_fresh() -> None:
    stepper, _, _ = _open_stepper(requests=2)
    stepper.advance(0, 50, 0, 0)
    end = int((LEAD_S + 2.0 + 0.4 + 2.0 + 0.1) * S)
    assert stepper.advance(end + S // 100, 50, 3, 0) > 1.0
    assert stepper.phase is Phase.DRAIN
    stepper.advance(end + 2 * S, 50, 4, 0)
    assert stepper.phase is Phase.DONE


def test_the_open_model_stops_where_it_is() -> None:
    stepper, lines, _ = _open_stepper()
    stepper.advance(1, 50, 0, 0)
    stepper.advance(4 * S, 50, 0, 0)
    stepper.stop(5 * S, 50, 2)
    assert stepper.phase is Phase.DONE
    assert (lines[-1]["what"], lines[-1]["t_ns"], lines[-1]["users"]) == ("end", 5 * S, 2)
