"""Samples of all hosts on one clock: a frame for each kind, in seconds since the run's start, in figures' units.

Clocks are converted by clocks.py. Counters stay as they are. Not here: means over windows (overlap.py), and the figures
made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.clocks import HostClock, Placed, host_clocks, place
from analysis.damage import Damage
from analysis.growing import Growing
from analysis.load import NO_STAMP, Run, categories, samples
from analysis.memory import give_back
from remote_agents.agent import sample
from remote_agents.clock import Instants

# A server sample this old no longer says how full the KV cache was.
_KV_TOLERANCE_US = 3_000_000
_MIB = 2**20

_TIMES = ("begin_s", "end_s", "t_s", "bound_s")
_THREADS = 2

Tell = Callable[[float], None]
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
    "power_limit_w": ("power_limit_mw", 1e-3),
    **{f"thr_{name}_ns": (f"thr_{name}_ns", 1.0) for name in ("sw_power", "hw_brake", "sw_therm", "hw_therm")},
    **{name: (name, 1.0) for name in ("sm_mhz", "temp_c", "pcie_tx_b", "pcie_rx_b")},
    **{f"nvl_{way}_b": (f"nvl_{way}_kib", 1024.0) for way in ("tx", "rx")},
}


def _every_number(table: str) -> Columns:
    numbers = [column.name for column in sample.TABLES[table] if column.type != "string"]
    return {name: (name, 1.0) for name in numbers if not name.endswith("_mono_ns")}


# Table -> columns and texts. Those without columns are in no figure, but what is wrong with them is said.
_TABLES: dict[str, tuple[Columns, tuple[str, ...]]] = {
    "gpu_fast": (_GPU, ("gpu_uuid",)),
    "gpu_util": ({"util_pct": ("util_pct", 1.0)}, ("gpu_uuid",)),
    "gpu_slow": (_SLOW, ("gpu_uuid",)),
    "server": (_every_number("server"), ("engine",)),
    "host": (_every_number("host"), ()),
    "process": (_every_number("process"), ("name",)),
    "agent": (_every_number("agent"), ()),
    "gpu_process": ({}, ()),
    "dcgm": ({}, ()),
}


@dataclass(frozen=True)
class Telemetry:
    """Samples of all hosts; each host's, and of GPUs each device's, ascending in time; floats, NaN where not measured.

    All frames have host, begin_s and end_s (of the read), t_s (their middle) and bound_s, the limit of their error.
    `gpus`: gpu_uuid, gpu_index, gi_id, util_pct, used_b, effective_b, total_b, power_w, energy_j; and, as means from
    win_start_s to begin_s, sm_pct, occ_pct, tensor_pct, dram_pct, pcie_tx, pcie_rx, nvlink_tx, nvlink_rx (B/s).
    `utils`: gpu_uuid, util_pct, which is of begin_s to end_s.
    `slow`: gpu_uuid, power_avg_w, power_limit_w, sm_mhz, temp_c, and counters: thr_…_ns, pcie_tx_b, pcie_rx_b,
    nvl_tx_b, nvl_rx_b.
    `servers`, a row a scrape and engine, `hosts`, `agents`, `processes`: the columns of sample.TABLES.
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


def telemetry(run: Run, tell: Tell = lambda share: None) -> Telemetry:
    """Samples of every host whose clock is the controller's, or tied to it. `tell` is told the share that is read."""
    placed, problems = place(run)
    bounds: dict[str, list[Instants]] = {one.host.name: [] for one in placed}
    found = _frames(run, placed, bounds, tell)
    of_hosts = {name: np.concatenate([np.zeros(0, np.int64), *parts]) for name, parts in bounds.items()}
    return Telemetry(
        gpus=_with_effective(found["gpu_fast"], found["server"], {host.name: host.clock for host in run.hosts}),
        utils=found["gpu_util"],
        slow=found["gpu_slow"],
        servers=found["server"],
        hosts=found["host"],
        agents=found["agent"],
        processes=found["process"],
        clocks=host_clocks(run, placed, of_hosts, found["agent"]),
        problems=problems,
    )


def _frames(
    run: Run, placed: Sequence[Placed], bounds: dict[str, list[Instants]], tell: Tell
) -> dict[str, pd.DataFrame]:
    """The rows of all hosts, by table; a frame has all columns without any. `bounds` gets those of all samples."""
    jobs = [(table, one) for table in _TABLES for one in placed if table in one.host.files]
    sizes = [one.host.files[table].stat().st_size for table, one in jobs]
    found: dict[str, list[dict[str, Any]]] = {table: [] for table in _TABLES}
    read = 0
    with ThreadPoolExecutor(_THREADS) as threads:  # most of the work is Arrow's
        done = threads.map(lambda job: _columns(run, *job), jobs)
        for (table, one), size, (columns, bound_ns, damaged) in zip(jobs, sizes, done, strict=True):
            bounds[one.host.name].append(bound_ns)
            run.damage.extend(damaged)
            found[table] += [columns] if bound_ns.size else []
            read += size
            tell(read / sum(sizes))
    return {table: _frame(table, found.pop(table)) for table in _TABLES}


def _frame(table: str, hosts: list[dict[str, Any]]) -> pd.DataFrame:
    if hosts:
        names = list(hosts[0])
        return pd.DataFrame({name: _joined([each.pop(name) for each in hosts]) for name in names}, copy=False)
    columns, texts = _TABLES[table]
    numbers = [*_TIMES, *columns, *(["win_start_s"] if table == "gpu_fast" else [])]
    kinds = dict.fromkeys(("host", *texts), "str") | dict.fromkeys(numbers, "float64")
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def _columns(run: Run, table: str, placed: Placed) -> tuple[dict[str, Any], Instants, list[Damage]]:
    """Those of one host, in order: device by device, and in time; the bounds of its samples, and what is wrong."""
    columns, texts = _TABLES[table]
    window = ["win_start_mono_ns"] if table == "gpu_fast" else []
    words: dict[str, list[Any]] = {name: [] for name in texts}
    numbers: dict[str, Growing] = {}
    bounds = Growing(np.int64)
    damaged: list[Damage] = []
    wanted = [*texts, *window, *(column for column, _ in columns.values())]
    for raw in samples(run, placed.host, table, wanted, damaged):
        t0, t1 = raw["t0_mono_ns"], raw["t1_mono_ns"]
        bound_ns = placed.bound_ns(table, t0, t1)
        bounds.append(bound_ns)
        part = {"begin_s": placed.seconds(t0), "end_s": placed.seconds(t1), "t_s": placed.seconds(t0 + (t1 - t0) // 2)}
        part["bound_s"] = bound_ns / 1e9
        part |= {name: raw[column] * scale for name, (column, scale) in columns.items()}
        for start in (raw[name] for name in window):
            known = start != NO_STAMP
            part["win_start_s"] = np.where(known, placed.seconds(np.where(known, start, t0)), np.nan)
        for name, column in part.items():
            numbers.setdefault(name, Growing()).append(column)
        for name, mine in words.items():
            mine.append(raw[name])
    give_back()
    if not numbers:
        return {}, bounds.taken(), damaged
    t_s = numbers.pop("t_s").taken()
    order = np.argsort(t_s, kind="stable")
    told = {name: categories(words.pop(name)) for name in texts}
    if "gpu_uuid" in texts:
        order = order[np.argsort(told["gpu_uuid"].codes[order], kind="stable")]
    values: dict[str, Any] = {
        "host": pd.Categorical.from_codes(np.zeros(order.size, np.int8), pd.Index([placed.host.name]))
    }
    # One column after the other: no more than one is there twice.
    values |= {name: each.take(order) for name, each in told.items()}
    values["t_s"] = t_s.take(order)
    values |= {name: numbers.pop(name).taken().take(order) for name in list(numbers)}
    return values, bounds.taken(), damaged


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], pd.Categorical):
        return pd.api.types.union_categoricals(parts, sort_categories=True)
    return np.concatenate(parts)


class Device(NamedTuple):
    """A GPU or MIG device; `rows` is where its samples are."""

    host: str
    number: float
    gi_id: float
    uuid: str
    rows: slice


def devices(gpus: pd.DataFrame) -> list[Device]:
    """Of samples that are sorted by host and device."""
    if gpus.empty:
        return []
    keys = [gpus[name].cat.codes.to_numpy() for name in ("host", "gpu_uuid")]
    keys += [gpus[name].fillna(-1).to_numpy() for name in ("gpu_index", "gi_id")]
    changed = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(gpus)]
    found = []
    for begin, end in pairwise(edges):
        first = gpus.iloc[begin]
        key = (str(first["host"]), float(first["gpu_index"]), float(first["gi_id"]), str(first["gpu_uuid"]))
        found.append(Device(*key, slice(begin, end)))
    return sorted(found, key=lambda one: (one.host, one.number, np.nan_to_num(one.gi_id, nan=np.inf), one.uuid))


def _with_effective(gpus: pd.DataFrame, servers: pd.DataFrame, machines: dict[str, str]) -> pd.DataFrame:
    """`gpus` with effective_b: used - pool + usage * pool, from the engines that run on the same machine.

    A GPU with less in use than a pool holds none: all that it uses is effective.
    """
    effective = np.full(len(gpus), np.nan)
    keys = ["kv_pool_b", "kv_usage_ratio"]
    mine: dict[str, list[Device]] = {}
    for device in devices(gpus):
        mine.setdefault(machines[device.host], []).append(device)
    for machine, found in mine.items():
        engines = servers[servers["host"].map(machines) == machine]
        for device, kv in _kv_by_gpu(found, engines):
            rows = gpus[["t_s", "used_b"]].iloc[device.rows]
            left, right = (_by_microsecond(part) for part in (rows[["t_s"]], kv[["t_s", *keys]]))
            at = pd.merge_asof(left, right, on="t_us", direction="nearest", tolerance=_KV_TOLERANCE_US)
            empty = (at["kv_pool_b"] * (1 - at["kv_usage_ratio"])).to_numpy()
            used = rows["used_b"].to_numpy()
            effective[device.rows] = used - np.where(used < at["kv_pool_b"].to_numpy(), 0, empty)
    return gpus.assign(effective_b=effective)


def _by_microsecond(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(t_us=(1e6 * frame["t_s"]).round().astype("int64")).drop(columns="t_s")


def _kv_by_gpu(found: Sequence[Device], servers: pd.DataFrame) -> Iterator[tuple[Device, pd.DataFrame]]:
    """Each GPU, and its KV cache over time (t_s, kv_usage_ratio, kv_pool_b).

    Engines belong to GPUs, or to the MIG devices of one, by order when there are as many; else every one is given the
    engines' mean.
    """
    known = servers[["engine", "t_s", "kv_usage_ratio", "kv_pool_b"]].dropna().sort_values("t_s")
    if known.empty:
        return
    divided = {(one.host, one.number) for one in found if not np.isnan(one.gi_id)}
    whole = [one for one in found if not np.isnan(one.gi_id) or (one.host, one.number) not in divided]
    engines = sorted(known.groupby("engine"), key=lambda item: (len(str(item[0])), item[0]))
    if len(engines) == len(whole):
        yield from zip(whole, (rows.drop(columns="engine") for _, rows in engines), strict=True)
    else:
        mean = known.drop(columns="engine").groupby("t_s", as_index=False).mean()
        yield from ((one, mean) for one in whole)
