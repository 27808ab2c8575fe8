"""GPU and host rows of our simulator instead of NVML: the same tables, read over HTTP ten times a second.

    GET <telemetry_url> -> {"schema": 1, "simulated": true, "t_mono_ns": …,
                            "hosts": [{"host": …, "gpus": [facts, …], "gpu_fast": [row, …], "gpu_slow": [row, …],
                                       "host_counters": row}]}

A row is an object with exactly the table's columns; facts are what gpu_facts finds out of a card, as far as there are
any. Every tenth answer gives gpu_slow and host rows too. The simulator runs on this host, so its stamps are this host's
CLOCK_MONOTONIC.
"""

import json
from typing import Any, Callable, Dict, List, Set

from remote_agents.agent.fetch import FETCH_ERRORS, Fetcher
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import FAST_NS, SLOW_EVERY, Meter, Pace
from remote_agents.agent.sample import SCHEMA, TABLES


def poll(url: str, outbox: Outbox, meter: Meter, announce: Callable[..., None]) -> None:
    """Thread body, never returns; `announce(host=…, …)` sends the HELLO of a simulated host."""
    fetcher = Fetcher(url, timeout_s=2.0)
    pace = Pace(FAST_NS)
    known: Set[str] = set()
    answers = 0
    answering = True
    while True:
        late_ns = pace.wait()
        try:
            status, body = fetcher.get()
            hosts = read_answer(status, body)
        except (*FETCH_ERRORS, ValueError) as error:
            if answering:
                outbox.event("simulator_lost", f"the simulator's telemetry at {url} cannot be read: {error}")
            answering = False
            continue
        if not answering:
            outbox.event("simulator_back", f"the simulator's telemetry at {url} is read again")
        answering = True
        for name, tables in hosts.items():
            if name not in known:
                known.add(name)
                announce(host=name, simulated=True, gpus=read_gpus(body, name), nvml={"state": "simulated"})
            for table, rows in tables.items():
                if table == "gpu_fast" or answers % SLOW_EVERY == 0:
                    outbox.sample(table, rows, name)
        answers += 1
        meter.tick(late_ns, pace.skipped)


def read_answer(status: int, body: bytes) -> Dict[str, Dict[str, List[List[Any]]]]:
    """Host -> table -> rows in column order. Raises ValueError with what is wrong."""
    if status != 200:
        raise ValueError(f"status {status}")
    answer = json.loads(body.decode())
    if answer.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {answer.get('schema')!r}, this agent reads {SCHEMA}")
    try:
        return {
            host["host"]: {
                "gpu_fast": [_row("gpu_fast", row) for row in host["gpu_fast"]],
                "gpu_slow": [_row("gpu_slow", row) for row in host["gpu_slow"]],
                "host": [_row("host", host["host_counters"])],
            }
            for host in answer["hosts"]
        }
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error


def _row(table: str, row: Dict[str, Any]) -> List[Any]:
    return [row[column.name] for column in TABLES[table]]


def read_gpus(body: bytes, name: str) -> List[Dict[str, Any]]:
    """Facts of the GPUs of that host, of an answer that read_answer has read."""
    hosts = json.loads(body.decode())["hosts"]
    return [gpu for host in hosts if host["host"] == name for gpu in host.get("gpus", ())]
