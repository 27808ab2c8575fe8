"""The steps of a run, driven by a manual clock."""

from __future__ import annotations

from typing import Any

from loadgen.plan import closed_plan
from loadgen.stepper import RAMP_TIMEOUT_S, Phase, Stepper

S = 1_000_000_000


def _stepper(
    levels: tuple[int, ...], duration_s: float | None, requests: int | None = None
) -> tuple[Stepper, list[Any]]:
    lines: list[dict[str, Any]] = []
    return Stepper(closed_plan(levels, duration_s, requests, 10.0, 0), lines.append), lines


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
    stepper.stop(2 * S, 10)
    assert stepper.phase is Phase.DONE
    assert [line["what"] for line in lines] == ["ramp", "begin", "end"]
