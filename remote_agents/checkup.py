"""What works on the hosts that are to be watched: agents are started as a run does, sample a while, and go again."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from loadgen import rundir
from loadgen.errors import AgentError
from loadgen.shards import read_shard
from remote_agents.agent.sample import TABLES
from remote_agents.clock import ClockFit, fit_clocks
from remote_agents.collector import FLEET_S, Config, Fleet

NVML_S = 10.0  # without persistence mode the driver itself is started
SAMPLE_S = 2.5
_KEYS = {"gpu_uuid", "engine", "pid"}


@dataclass(frozen=True)
class Findings:
    """Of one host. `hello` is what its agent says of it; null clock: no probe came.

    By table: `rows` that came, how many a second of each GPU, engine or process (`hz`), and the `last` of them.
    """

    agent: str
    problem: AgentError | None
    started_s: float | None
    hello: dict[str, Any]
    rows: dict[str, int]
    hz: dict[str, float]
    last: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]
    clock: ClockFit | None


def examine(config: Config, sample_s: float = SAMPLE_S) -> list[Findings]:
    """One for each of the config's agents, in their order; its run directory is not used. Raises OSError."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        fleet = Fleet(replace(config, run_dir=run))
        began = time.monotonic()
        started: dict[str, float] = {}
        enough: float | None = None
        try:
            fleet.start()
            while enough is None or time.monotonic() < enough:
                time.sleep(0.05)
                fleet.flush()
                now = time.monotonic()
                for watch in fleet.watches:
                    if watch.hello:
                        started.setdefault(watch.agent, now - began)
                limit = FLEET_S if not fleet.settled else NVML_S
                if enough is None and (_are_ready(fleet) or now - began > limit):
                    enough = now + sample_s
        finally:
            fleet.end()
        events = rundir.read_lines(run / rundir.EVENTS)
        fits = fit_clocks(rundir.read_lines(run / rundir.CLOCKS))
        tables = {watch.agent: _tables(fleet.store.folder(watch.host)) for watch in fleet.watches}
        return [
            Findings(
                agent=watch.agent,
                problem=watch.problem,
                started_s=started.get(watch.agent),
                hello=watch.hello,
                rows={name: table.num_rows for name, table in tables[watch.agent].items()},
                hz={name: hz for name, table in tables[watch.agent].items() if (hz := _hz(table)) is not None},
                last={
                    name: table.slice(table.num_rows - 1).to_pylist()[0] for name, table in tables[watch.agent].items()
                },
                events=[event for event in events if event.get("agent") == watch.agent],
                clock=fits.get(watch.host),
            )
            for watch in fleet.watches
        ]


def _are_ready(fleet: Fleet) -> bool:
    """Whether no host is still starting its agent or its driver."""
    return fleet.settled and all(watch.hello.get("nvml", {}).get("state") != "starting" for watch in fleet.watches)


def _tables(folder: Path) -> dict[str, pa.Table]:
    """Those that have rows."""
    read = {name: read_shard(folder / f"{name}.arrow")[0] for name in TABLES if (folder / f"{name}.arrow").exists()}
    return {name: table for name, table in read.items() if table is not None and table.num_rows}


def _hz(table: pa.Table) -> float | None:
    """Rows a second of each thing that has rows of its own; None of a single one."""
    kinds = max((len(table[key].unique()) for key in _KEYS & set(table.column_names)), default=1)
    stamps = table["t0_mono_ns"].to_pylist()
    seconds = (max(stamps) - min(stamps)) / 1e9
    return (table.num_rows / kinds - 1) / seconds if seconds > 0 else None
