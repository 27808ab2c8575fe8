"""Samples of all hosts on one clock: a frame for each kind, in seconds since the run's start, in figures' units.

Clocks are converted by clocks.py. Counters stay as they are. Not here: means over windows (overlap.py), and the figures
made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.clocks import HostClock, Placed, place, stamps_of
from analysis.load import Run
from remote_agents.agent import sample

# A server sample this old no longer says how full the KV cache was.
_KV_TOLERANCE_US = 3_000_000
_MIB = 2**20

# Column here -> column of the table, and its scale.
Columns = Mapping[str, tuple[str, float]]
_GPU: Columns = {
    "gpu_index": ("gpu_index", 1.0),
    "gi_id": ("gi_id", 1.0),
    "util_pct": ("util_pct", 1.0),
    "used_b": ("mem_used_b", 1.0),
    "total_b": ("mem_total_b", 1.0),
    "power_w": ("power_mw", 1e-3),
    "energy_j": ("energy_mj", 1e-3),
    **{f"{name}_pct": (f"gpm_{name}_pct", 1.0) for name in ("sm", "occ", "tensor", "dram")},
    **{f"pcie_{way}": (f"gpm_pcie_{way}_mibs", _MIB) for way in ("tx", "rx")},
    **{f"nvlink_{way}": (f"gpm_nvl_{way}_mibs", _MIB) for way in ("tx", "rx")},
}
_SLOW: Columns = {
    "power_avg_w": ("power_avg_mw", 1e-3),
    **{f"thr_{name}_ns": (f"thr_{name}_ns", 1.0) for name in ("sw_power", "hw_brake", "sw_therm", "hw_therm")},
    **{name: (name, 1.0) for name in ("sm_mhz", "temp_c", "pcie_tx_b", "pcie_rx_b")},
    **{f"nvl_{way}_b": (f"nvl_{way}_kib", 1024.0) for way in ("tx", "rx")},
}
_SERVER: Columns = {name: (name, 1.0) for name in ("running", "waiting", "kv_usage_ratio", "kv_pool_b")}


def _every_number(table: str) -> Columns:
    numbers = [column.name for column in sample.TABLES[table] if column.type != "string"]
    return {name: (name, 1.0) for name in numbers if not name.endswith("_mono_ns")}


@dataclass(frozen=True)
class Telemetry:
    """Samples of all hosts, each host's ascending in time; floats, NaN where not measured.

    All frames have host, begin_s and end_s (of the read), t_s (their middle) and bound_s, the limit of their error.
    `gpus`: gpu_uuid, gpu_index, gi_id, util_pct, used_b, effective_b, total_b, power_w, energy_j; and, as means from
    win_start_s to begin_s, sm_pct, occ_pct, tensor_pct, dram_pct, pcie_tx, pcie_rx, nvlink_tx, nvlink_rx (B/s).
    `utils`: gpu_uuid, util_pct, which is of begin_s to end_s.
    `slow`: gpu_uuid, power_avg_w, sm_mhz, temp_c, and counters: thr_…_ns, pcie_tx_b, pcie_rx_b, nvl_tx_b, nvl_rx_b.
    `servers`: engine, running, waiting, kv_usage_ratio, kv_pool_b, a row a scrape and engine.
    `hosts`, `agents`, `processes`: the columns of sample.TABLES.
    """

    gpus: pd.DataFrame
    utils: pd.DataFrame
    slow: pd.DataFrame
    servers: pd.DataFrame
    hosts: pd.DataFrame
    agents: pd.DataFrame
    processes: pd.DataFrame
    clocks: list[HostClock]
    problems: list[str]

    @property
    def simulated(self) -> bool:
        return any(clock.simulated for clock in self.clocks)


def telemetry(run: Run) -> Telemetry:
    """Samples of every host whose clock is the controller's, or tied to it."""
    placed, clocks, problems = place(run)
    servers = _samples("server", _SERVER, placed, "engine")
    gpus = _samples("gpu_fast", _GPU, placed, "gpu_uuid")
    return Telemetry(
        gpus=_with_effective(gpus, servers, {host.name: host.clock for host in run.hosts}),
        utils=_samples("gpu_util", {"util_pct": ("util_pct", 1.0)}, placed, "gpu_uuid"),
        slow=_samples("gpu_slow", _SLOW, placed, "gpu_uuid"),
        servers=servers,
        hosts=_samples("host", _every_number("host"), placed),
        agents=_samples("agent", _every_number("agent"), placed),
        processes=_samples("process", _every_number("process"), placed, "name"),
        clocks=clocks,
        problems=problems,
    )


def _samples(table: str, columns: Columns, placed: Sequence[Placed], *texts: str) -> pd.DataFrame:
    """The rows of all hosts; the frame has all columns without any."""
    frames = [_frame(table, columns, one, texts) for one in placed if len(one.host.tables.get(table, ()))]
    if frames:
        return pd.concat(frames, ignore_index=True)
    numbers = ["begin_s", "end_s", "t_s", "bound_s", *columns, *(["win_start_s"] if table == "gpu_fast" else [])]
    kinds = dict.fromkeys(("host", *texts), "str") | dict.fromkeys(numbers, "float64")
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def _frame(table: str, columns: Columns, placed: Placed, texts: Sequence[str]) -> pd.DataFrame:
    raw = placed.host.tables[table]
    t0, t1 = stamps_of(raw)
    values: dict[str, Any] = {"host": placed.host.name} | {name: raw[name].fillna("") for name in texts}
    values |= {"begin_s": placed.seconds(t0), "end_s": placed.seconds(t1), "t_s": placed.seconds(t0 + (t1 - t0) // 2)}
    values["bound_s"] = placed.bound_ns(table) / 1e9
    for name, (column, scale) in columns.items():
        values[name] = raw[column].to_numpy(dtype=np.float64, na_value=np.nan) * scale
    if table == "gpu_fast":
        start = raw["win_start_mono_ns"]
        start_s = placed.seconds(start.fillna(0).to_numpy(dtype=np.int64))
        values["win_start_s"] = np.where(start.notna(), start_s, np.nan)
    return pd.DataFrame(values).sort_values("t_s", ignore_index=True)


def _with_effective(gpus: pd.DataFrame, servers: pd.DataFrame, machines: dict[str, str]) -> pd.DataFrame:
    """`gpus` with effective_b: used - pool + usage * pool, from the engines that run on the same machine."""
    effective = np.full(len(gpus), np.nan)
    keys = ["kv_pool_b", "kv_usage_ratio"]
    for machine, mine in gpus.groupby(gpus["host"].map(machines)):
        engines = servers[servers["host"].map(machines) == machine]
        for rows, kv in _kv_by_gpu(mine, engines):
            left, right = (_by_microsecond(part) for part in (rows[["t_s"]], kv[["t_s", *keys]]))
            at = pd.merge_asof(left, right, on="t_us", direction="nearest", tolerance=_KV_TOLERANCE_US)
            empty = (at["kv_pool_b"] * (1 - at["kv_usage_ratio"])).to_numpy()
            effective[rows.index] = rows["used_b"].to_numpy() - empty
    return gpus.assign(effective_b=effective)


def is_divided(gpus: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of a GPU that is divided into MIG devices with rows of their own, or of one of these."""
    return gpus["gi_id"].notna().groupby([gpus["host"], gpus["gpu_index"]]).transform("any")


def _by_microsecond(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(t_us=(1e6 * frame["t_s"]).round().astype("int64")).drop(columns="t_s")


def _kv_by_gpu(gpus: pd.DataFrame, servers: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Each GPU's samples, and its KV cache over time (t_s, kv_usage_ratio, kv_pool_b).

    Engines belong to GPUs, or to the MIG devices of one, by order when there are as many; else every one is given the
    engines' mean.
    """
    known = servers[["engine", "t_s", "kv_usage_ratio", "kv_pool_b"]].dropna().sort_values("t_s")
    if known.empty:
        return
    whole = gpus[gpus["gi_id"].notna() | ~is_divided(gpus)]
    cards = [rows for _, rows in whole.groupby(["host", "gpu_index", "gi_id", "gpu_uuid"], dropna=False)]
    engines = sorted(known.groupby("engine"), key=lambda item: (len(str(item[0])), item[0]))
    if len(engines) == len(cards):
        yield from zip(cards, (rows.drop(columns="engine") for _, rows in engines), strict=True)
    else:
        mean = known.drop(columns="engine").groupby("t_s", as_index=False).mean()
        yield from ((card, mean) for card in cards)
