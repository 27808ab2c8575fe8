"""The dispatcher of the open model, in real time: order, completeness, never early, drops, killed users.

It needs a process of its own, since gevent does; how late it wakes users is printed, not asserted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_PROGRAM = """
import json, sys, time
import gevent
import numpy as np
from loadgen.arrivals import Arrivals
from loadgen.plan import Arrival, open_plan
from loadgen.schedule import Schedule

users, rate, seconds, service_s, killed, held_s = json.loads(sys.argv[1])
blocks = lambda: Schedule(
    open_plan((rate,), seconds, None, 60.0, 0, arrival=Arrival("poisson"))
).arrivals()
sent, dropped, woken, greenlets = [], [], [], []
arrivals = Arrivals(dropped.append)

def user(number):
    while True:
        due = arrivals.next()
        sent.append((due, time.monotonic_ns()))
        woken.append(number)
        gevent.sleep(service_s)

greenlets = [gevent.spawn(user, number) for number in range(users)]
gevent.sleep(0.05)
gevent.killall(greenlets[:killed])
t0 = time.monotonic_ns() + 50_000_000
arrivals.start(t0, blocks())
if held_s:
    gevent.sleep(0.1)
    time.sleep(held_s)
gevent.sleep(0.1 + seconds + 2 * service_s)
arrivals.stop()
expected = (np.concatenate(list(blocks())) + t0).tolist()
late = [now - due for due, now in sent]
print(json.dumps({
    "in_order": [due for due, _ in sent] == sorted(due for due, _ in sent),
    "complete": sorted([due for due, _ in sent] + dropped) == expected,
    "earliest_ns": min(late),
    "late_us": [round(float(q) / 1e3, 1) for q in np.percentile(late, [50, 90, 99, 100])],
    "sent": len(sent), "dropped": len(dropped), "users": sorted(set(woken)),
}))
"""


def drive(
    *, users: int, rate: float, seconds: float = 1.0, service_s: float = 0.0, killed: int = 0, held_s: float = 0.0
) -> dict[str, Any]:
    arguments = json.dumps([users, rate, seconds, service_s, killed, held_s])
    done = subprocess.run([sys.executable, "-c", _PROGRAM, arguments], capture_output=True, text=True, check=True)
    assert not done.stderr
    return dict(json.loads(done.stdout))


def test_every_arrival_once_in_order_and_never_early() -> None:
    run = drive(users=2000, rate=2000.0, seconds=2.0, service_s=0.01)
    sys.stdout.write(f"lateness at 2000/s, p50 p90 p99 max in us: {run['late_us']}\n")
    assert run["in_order"]
    assert run["complete"]
    assert run["earliest_ns"] >= 0
    assert run["dropped"] == 0


def test_what_finds_nobody_is_dropped() -> None:
    run = drive(users=2, rate=200.0, service_s=0.1)
    assert run["complete"]
    assert 2 <= run["sent"] <= 26
    assert run["dropped"] > 100


def test_the_user_that_waited_least_is_taken() -> None:
    """So that few connections are used, and kept warm."""
    run = drive(users=100, rate=50.0)
    assert run["complete"]
    assert len(run["users"]) < 50


def test_killed_users_are_not_woken() -> None:
    run = drive(users=20, rate=200.0, service_s=0.005, killed=15)
    assert run["complete"]
    assert set(run["users"]) <= set(range(15, 20))


def test_a_loop_that_was_held_up_sends_all_that_was_due() -> None:
    run = drive(users=500, rate=500.0, held_s=0.3)
    assert run["complete"]
    assert run["in_order"]
    assert run["dropped"] == 0
    assert run["late_us"][-1] > 100_000
