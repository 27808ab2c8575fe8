"""Growth and pile-ups with known answers: the knee of a law, where requests are, and what a pause of users is not."""

from __future__ import annotations

from typing import Any

import pytest

from analysis import pileup
from analysis.pileup import CLIENT, OUTSIDE, RUNNING, WAITING

KNEE = 40.0


def step(users: float, qps: float | None = None, **changes: Any) -> dict[str, Any]:
    """Of a server whose requests take 1 + users / KNEE seconds."""
    rate = users / (1 + users / KNEE) if qps is None else qps
    return {
        "level": users,
        "rate": None,
        "qps": rate,
        "qps_ci95": [0.98 * rate, 1.02 * rate],
        "in_flight_mean": users,
        "send_lag_ms": {"p50": None},
        "ttft_ms_ok": {"mean": None},
        "e2e_ms_ok": {"mean": None},
        "server": {"running": users, "waiting": 0.0},
    } | changes


@pytest.mark.parametrize("lighter", [1, 10, 30])
def test_half_of_proportional_growth_is_the_knee_whatever_it_is_compared_with(lighter: float) -> None:
    found = pileup.growth(step(KNEE), [step(lighter)])
    assert found is not None
    assert found.elasticity == pytest.approx(0.5)
    assert found.probability == pytest.approx(0.5)


def test_the_next_lighter_step_counts_and_doubt_comes_from_the_intervals() -> None:
    steps = [step(users) for users in (10.0, 20.0, 100.0)]
    lighter = pileup.lighter_than(steps[2], [steps[1], steps[2], steps[0], step(90.0), step(0.0)])
    assert [other["level"] for other in lighter] == [10, 20]
    found = pileup.growth(steps[2], lighter)
    assert found is not None and (found.since, found.times_load) == (20, 5)
    assert found.probability > 0.95
    vague = pileup.growth(steps[2] | {"qps_ci95": [1.0, 60.0]}, lighter)
    assert vague is not None and 0.5 < vague.probability < 0.95
    assert pileup.growth(steps[0], []) is None


def test_in_the_open_model_load_is_what_is_in_flight() -> None:
    rates = [
        step(10, 10.0, rate={"due": 10.0, "delivered": 10.0}, in_flight_mean=5.0),
        step(20, 15.0, rate={"due": 20.0, "delivered": 20.0}, in_flight_mean=100.0),
    ]
    found = pileup.growth(rates[1], rates[:1])
    assert found is not None and found.elasticity == pytest.approx(0.5 / 19)


def test_a_pile_up_is_what_a_place_holds_beyond_what_it_needed() -> None:
    light = step(10, 10.0, in_flight_mean=10.0, server={"running": 8.0, "waiting": 0.0})
    heavy = step(100, 20.0, in_flight_mean=90.0, server={"running": 16.0, "waiting": 60.0})
    found = pileup.pile_up(heavy, [light])
    assert found is not None and found.known and found.baseline == 10
    assert found.requests == {CLIENT: 10, OUTSIDE: 14, WAITING: 60, RUNNING: 16}
    assert found.total == pytest.approx(10 + 10 + 60)
    assert found.shares == pytest.approx({CLIENT: 10 / 80, OUTSIDE: 10 / 80, WAITING: 60 / 80, RUNNING: 0})


def test_a_pause_between_requests_is_no_delay_of_the_client() -> None:
    light = step(10, 5.0, in_flight_mean=2.0, server={"running": 2.0, "waiting": 0.0})
    heavy = step(40, 15.0, in_flight_mean=16.0, server={"running": 16.0, "waiting": 0.0})
    found = pileup.pile_up(heavy, [light])
    assert found is not None and found.shares == pytest.approx({CLIENT: 0, OUTSIDE: 0, WAITING: 0, RUNNING: 1})


def test_in_the_open_model_what_waits_at_the_client_is_no_pause() -> None:
    late = {"rate": {"due": 40.0, "delivered": 20.0}, "send_lag_ms": {"p50": 5000.0}, "in_flight_mean": 10.0}
    steps = [step(rate, 20.0, **late) for rate in (40, 80)]
    for lighter in ([], steps[:1]):
        found = pileup.pile_up(steps[1], lighter)
        assert found is not None and found.requests[CLIENT] == pytest.approx(100)
        assert found.shares[CLIENT] == pytest.approx(1 if lighter else 100 / 110)


def test_without_the_servers_word_the_first_token_divides_the_time() -> None:
    told = {"server": None, "ttft_ms_ok": {"mean": 300.0}, "e2e_ms_ok": {"mean": 1000.0}}
    found = pileup.pile_up(step(10, **told), [])
    assert found is not None and not found.known
    assert found.requests == pytest.approx({CLIENT: 0, pileup.BEFORE: 3, pileup.AFTER: 7})
    found = pileup.pile_up(step(10, server=None), [])
    assert found is not None and found.requests == {CLIENT: 0, pileup.SERVED: 10}
    assert pileup.pile_up(step(10, in_flight_mean=None), []) is None


def test_whether_a_larger_batch_brings_more() -> None:
    full = [step(users, min(users, 16.0), server={"running": min(users, 16.0)}) for users in (8.0, 16.0, 64.0)]
    assert pileup.batch_elasticity(full[2], full[:2]) == pytest.approx(1)
    assert pileup.batch_elasticity(full[2], full[1:2]) is None


def test_a_queue_alone_is_known_beside_what_is_served() -> None:
    """As Triton's count of pending requests tells it."""
    found = pileup.pile_up(step(40, server={"waiting": 30.0, "running": None}), [])
    assert found is not None and found.known
    assert found.requests == {CLIENT: 0, WAITING: 30, pileup.SERVED: 10}


def test_a_batch_alone_is_known_beside_all_that_is_not_in_it() -> None:
    """It may be queued or on the way: the server does not tell."""
    found = pileup.pile_up(step(80, server={"running": 20.0}), [])
    assert found is not None and found.known
    assert found.requests == {CLIENT: 0, pileup.BEFORE: 60, RUNNING: 20}


@pytest.mark.parametrize("qps", [5.0, 20.0])
@pytest.mark.parametrize(
    ("delivered", "success_pct", "sure"),
    [(20.0, 100.0, 0), (18.5, 92.5, 0), (17.0, 100.0, 0.5), (20.0, 85.0, 0.5), (10.0, 50.0, 1), (10.0, None, 1)],
)
def test_of_what_was_due_in_the_open_model_less_got_through_whatever_ended_meanwhile(
    qps: float, delivered: float, success_pct: float | None, sure: float
) -> None:
    asked = step(20, qps, rate={"due": 20.0, "delivered": delivered}, success_pct=success_pct)
    assert pileup.stuck(asked) == pytest.approx(sure)
    assert pileup.stuck(asked | {"rate": None}) == 0


def test_what_does_not_end_has_not_got_through_where_each_answer_takes_longer() -> None:
    """Twice what the server can do: nothing fails, and the queue grows as long as the step lasts."""
    asked = step(20, 10.0, rate={"due": 20.0, "delivered": 20.0}, success_pct=100.0)
    for drift, through in ((None, 1.0), ([-3.0, 4.0], 1.0), ([80.0, 120.0], 0.5)):
        assert pileup.got_through(asked | {"drift_pct": {"qps": None, "e2e": drift}}) == through


def test_without_a_lighter_step_all_that_is_in_flight_counts() -> None:
    steps = [step(users, 10.0, in_flight_mean=19.0, server={"running": 15.0, "waiting": 0.0}) for users in (19, 30)]
    found = pileup.pile_up(steps[1], ())
    assert found is not None
    assert found.shares == pytest.approx({CLIENT: 0, OUTSIDE: 4 / 19, WAITING: 0, RUNNING: 15 / 19})
