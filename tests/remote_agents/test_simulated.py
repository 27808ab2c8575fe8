from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from conftest import Sent, Site, until

from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import engine
from loadgen.simulator.stages import Stages
from loadgen.simulator.telemetry import GpuMeter, render
from remote_agents.agent.pace import Meter
from remote_agents.agent.protocol import EVENT, SAMPLE
from remote_agents.agent.sample import SCHEMA, TABLES
from remote_agents.agent.simulated import poll, read_answer


def row(table: str, **values: Any) -> dict[str, Any]:
    known = {"int64": 5, "int32": 1, "float64": 0.5, "string": "SIM-GPU-0"}
    return {column.name: known[column.type] for column in TABLES[table]} | values


def answer(**changes: Any) -> str:
    host = {
        "host": "sim-0",
        "gpus": [{"index": number, "uuid": f"SIM-GPU-{number}", "name": "L4", "mem_total_b": 5} for number in range(2)],
        "gpu_fast": [row("gpu_fast", gpu_index=0), row("gpu_fast", gpu_uuid="SIM-GPU-1", util_pct=None)],
        "gpu_slow": [row("gpu_slow")],
        "host_counters": row("host", ctxt=None),
    }
    return json.dumps({"schema": SCHEMA, "simulated": True, "t_mono_ns": 5, "hosts": [host]} | changes)


def test_rows_come_out_in_column_order() -> None:
    tables = read_answer(200, answer().encode())["sim-0"]
    names = [column.name for column in TABLES["gpu_fast"]]
    places = [names.index(name) for name in ("gpu_uuid", "gpu_index", "util_pct")]
    found = [[values[place] for place in places] for values in tables["gpu_fast"]]
    assert found == [["SIM-GPU-0", 0, 0.5], ["SIM-GPU-1", 1, None]]
    assert {name: len(rows[0]) for name, rows in tables.items()} == {
        name: len(TABLES[name]) for name in ("gpu_fast", "gpu_slow", "host")
    }


def test_what_our_simulator_answers_is_read() -> None:
    replica: Replica[Sequence] = Replica(engine("L4", "8b", "bf16", 4))
    meter = GpuMeter(replica, 0)
    meter.advance(100_000_000)
    tables = read_answer(200, render([meter], [Stages(0, 0, 1, 0)], 8, 0, 100_000_000))["sim-0"]
    [slow] = tables["gpu_slow"]
    named = dict(zip([column.name for column in TABLES["gpu_slow"]], slow, strict=True))
    assert (named["gpu_index"], named["gi_id"], named["power_avg_mw"]) == (0, None, 16_000)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "", "status 404"),
        (200, "<html>", "Expecting value"),
        (200, answer(schema=1), f"its schema is 1, this agent reads {SCHEMA}"),
        (200, answer(hosts=[{"host": "sim-0"}]), "'gpu_fast' is missing"),
    ],
)
def test_what_is_no_answer_is_said(status: int, body: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_answer(status, body.encode())


def test_polling_goes_on_when_the_simulator_restarts(site: Site, sent: Sent) -> None:
    site.pages["/telemetry"] = (200, answer(), 0)
    hellos: list[dict[str, Any]] = []

    def announce(**facts: Any) -> None:
        hellos.append(facts)

    threading.Thread(target=poll, args=(site.url + "/telemetry", sent.outbox, Meter(), announce), daemon=True).start()
    until(lambda: len(site.asked) >= 12)
    site.pages["/telemetry"] = (503, "", 0)
    until(lambda: len(site.asked) >= 14)
    site.pages["/telemetry"] = (200, answer(), 0)
    until(lambda: len(site.asked) >= 16)
    frames = sent.frames()
    assert [frame.body["kind"] for frame in frames if frame.kind == EVENT] == ["simulator_lost", "simulator_back"]
    tables = [frame.body[0] for frame in frames if frame.kind == SAMPLE]
    assert tables[:4] == ["gpu_fast", "gpu_slow", "host", "gpu_fast"]
    assert tables.count("gpu_slow") == tables.count("host") == 2
    assert [(hello["host"], hello["simulated"], hello["gpus"][1]["name"]) for hello in hellos] == [
        ("sim-0", True, "L4")
    ]
