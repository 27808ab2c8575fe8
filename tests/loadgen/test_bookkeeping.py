"""Locust's statistics, filled batch by batch, are those that Locust makes of the same requests one by one.

Locust patches the process that imports it, so it runs in one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
from locust import User, events, stats
from locust.env import Environment
from locust.runners import LocalRunner
import random, time
from loadgen.locust_plugin import traps
from loadgen.locust_plugin.bookkeeping import Bookkeeping
from tests.loadgen.recorded import batched, recorded
traps.defuse()
environment = Environment(user_classes=[type("Nobody", (User,), {})])
runner = LocalRunner(environment)
METHODS = {"chat": "POST", "models": "GET"}
books = Bookkeeping(environment, METHODS)
chance = random.Random(5)
now = time.monotonic_ns()
def a_request(seq):
    outcome = chance.choices(["OK", "HTTP_ERROR", "DROPPED", "CANCELLED"], [90, 5, 3, 2])[0]
    took_ns = int(chance.lognormvariate(20, 2))
    return dict(seq=seq, outcome=outcome, scenario=chance.choice(["chat", "models"]), end_ns=now,
        intended_ns=now - took_ns, error=f"HTTP {chance.choice([500, 503])}" if outcome == "HTTP_ERROR" else None,
        bytes_in=None if outcome == "DROPPED" else chance.randrange(9000))
requests = [a_request(seq) for seq in range(3000)]
counted = [request for request in requests if request["outcome"] != "CANCELLED"]
def text(request):
    return ": ".join(filter(None, (request["outcome"], request["error"])))
"""

SAME_AS_LOCUSTS = """
for batch in batched(recorded(**request) for request in requests):
    books.add(batch)
single = stats.RequestStats()
for request in counted:
    name = request["scenario"]
    ms = None if request["outcome"] == "DROPPED" else (now - request["intended_ns"]) / 1e6
    single.log_request(METHODS[name], name, ms, request["bytes_in"] or 0)
    if request["outcome"] != "OK":
        single.log_error(METHODS[name], name, text(request))
mine = environment.stats
assert set(mine.entries) == set(single.entries) == {("chat", "POST"), ("models", "GET")}
for here, there in [(mine.total, single.total), *((mine.entries[key], single.entries[key]) for key in single.entries)]:
    for figure in ("num_requests", "num_none_requests", "num_failures", "total_content_length", "min_response_time",
                   "max_response_time"):
        assert getattr(here, figure) == getattr(there, figure), (figure, getattr(here, figure), getattr(there, figure))
    assert abs(here.total_response_time / there.total_response_time - 1) < 1e-9
    assert sum(here.response_times.values()) == sum(there.response_times.values())
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        here_ms, there_ms = here.get_response_time_percentile(share), there.get_response_time_percentile(share)
        assert abs(here_ms - there_ms) <= 0.01 * there_ms, "of three digits, the last"
    for per_second in ("num_reqs_per_sec", "num_fail_per_sec"):
        assert sum(getattr(here, per_second).values()) == sum(getattr(there, per_second).values())
    assert abs(here.last_request_timestamp - time.time()) < 5
    assert max(here.num_reqs_per_sec) == int(here.last_request_timestamp)
assert {key: error.occurrences for key, error in mine.errors.items()} == {
    key: error.occurrences for key, error in single.errors.items()}
assert {error.error for error in mine.errors.values()} == {"DROPPED", "HTTP_ERROR: HTTP 500", "HTTP_ERROR: HTTP 503"}
"""

REACHES_THE_MASTER = """
worker, master = environment, Environment(events=type(events)())
worker.events = type(events)()
stats.setup_distributed_stats_event_listeners(worker.events, worker.stats)
stats.setup_distributed_stats_event_listeners(master.events, master.stats)
for batch in batched(recorded(**request) for request in requests):
    books.add(batch)
    data = {}
    worker.events.report_to_master.fire(client_id="w", data=data)
    master.events.worker_report.fire(client_id="w", data=data)
assert master.stats.total.num_requests == len(counted)
assert master.stats.total.num_failures == sum(request["outcome"] != "OK" for request in counted)
assert sum(error.occurrences for error in master.stats.errors.values()) == master.stats.total.num_failures
"""

LISTENERS = """
told = []
def listener(**event):
    told.append(event)
    if len(told) == 7:
        raise RuntimeError("a listener that fails")
environment.events.request.add_listener(listener)
for batch in batched(recorded(**request) for request in requests):
    books.add(batch)
assert len(told) == len(counted) == environment.stats.total.num_requests, "Locust's own listener is not told again"
for event, request in zip(told, counted):
    assert (event["name"], event["request_type"]) == (request["scenario"], METHODS[request["scenario"]])
    assert event["response_length"] == (request["bytes_in"] or 0)
    assert (event["response_time"] is None) == (request["outcome"] == "DROPPED")
    assert (event["exception"] and str(event["exception"])) == (None if request["outcome"] == "OK" else text(request))
"""

NOBODY_IS_STOPPED = """
from locust.exception import StopUser
def listener(**event):
    raise StopUser
environment.events.request.add_listener(listener)
for batch in batched(recorded(**request) for request in requests):
    books.add(batch)
assert environment.stats.total.num_requests == len(counted)
"""


@pytest.mark.parametrize(
    "program",
    [SAME_AS_LOCUSTS, REACHES_THE_MASTER, LISTENERS, NOBODY_IS_STOPPED],
    ids=["same_as_locusts", "reaches_the_master", "listeners", "nobody_is_stopped"],
)
def test_bookkeeping(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", HEAD + program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
