"""The only place where clocks are converted: everything becomes seconds since the run's start, on the controller.

t = 0 is the first step's ramp (the manifest's clock when there is none). Telemetry of a host that shares the
controller's boot needs no fit; any other host's is moved by remote_agents.clock, and carries that fit's bound.
Also here: overlap-weighted means of samples over windows, and the GPU and server series built on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Host, Run
from analysis.stats import Floats
from remote_agents.agent import sample
from remote_agents.clock import ClockFit, bound_at, fit_clocks, to_controller

# A window with fewer samples than this share of its length has no figure.
MIN_COVERAGE = 0.5
# A server sample this old no longer says how full the KV cache was.
_KV_TOLERANCE_S = 3.0
# A larger error than half a second blurs the timeline's bins.
_BLURRED_NS = 500_000_000


class HostClock(NamedTuple):
    """How a host's clock became the controller's: the fit (None: it is the same clock) and the worst error's bound."""

    host: str
    simulated: bool
    fit: ClockFit | None
    bound_ns: int


@dataclass(frozen=True)
class Telemetry:
    """Samples of all hosts, ascending in time; seconds since the run's start, floats, NaN where not measured.

    `gpus`: host, gpu_uuid, gpu_index, t_s, util_pct, used_b, effective_b, total_b, power_w, energy_j, a row a sample.
    `servers`: host, engine, t_s, running, waiting, kv_usage_ratio, kv_pool_b, a row a scrape and engine.
    `hosts`, `agents`: host, t_s and the numbers of sample.TABLES as they are, counters too, a row a sample.
    """

    gpus: pd.DataFrame
    servers: pd.DataFrame
    hosts: pd.DataFrame
    agents: pd.DataFrame
    clocks: list[HostClock]
    problems: list[str]

    @property
    def simulated(self) -> bool:
        return any(clock.simulated for clock in self.clocks)

    @property
    def serving(self) -> pd.DataFrame:
        """The GPUs that totals are made of: beside simulated GPUs, real ones of the same machine do not serve."""
        hosts = [clock.host for clock in self.clocks if clock.simulated == self.simulated]
        return self.gpus[self.gpus["host"].isin(hosts)]


def start_ns(run: Run) -> int:
    """The controller's monotonic clock at t = 0."""
    first = next((line for line in run.steps if line["what"] == "ramp"), None)
    return int(first["t_ns"] if first else run.manifest["clock"]["monotonic_ns"])


def seconds(times_ns: Any, zero_ns: int) -> Floats:
    """Seconds since `zero_ns` of a series of ns; NaN for null. Subtracts as integers, so nothing is rounded away."""
    shifted = pd.array(times_ns, dtype="Int64") - zero_ns
    return np.asarray(shifted.to_numpy(dtype=np.float64, na_value=np.nan)) / 1e9


def telemetry(run: Run) -> Telemetry:
    """GPU and server samples of every host on the controller's clock."""
    zero = start_ns(run)
    fits = fit_clocks(run.probes)
    clocks: list[HostClock] = []
    problems: list[str] = []
    gpus, servers, hosts, agents = [_NO_GPUS], [_NO_SERVERS], [_numbers("host")], [_numbers("agent")]
    for host in run.hosts:
        same = host.boot_id == (run.manifest["clock"].get("boot_id") or "")
        fit = None if same else fits.get(host.clock)
        if fit is None and not same:
            problems.append(f"telemetry of {host.name}: left out, no clock probes tie its clock to the controller's")
            continue
        servers.append(_server(host, fit, zero))
        gpus.append(_gpu(host, fit, zero))
        hosts.append(_numbers("host", host, fit, zero))
        agents.append(_numbers("agent", host, fit, zero))
        clocks.append(HostClock(host.name, host.simulated, fit, _worst_bound_ns(host, fit)))
        if clocks[-1].bound_ns > _BLURRED_NS:
            problems.append(f"telemetry of {host.name}: its time is known to {clocks[-1].bound_ns / 1e9:.1f} s only")
    machines = {host.name: host.clock for host in run.hosts}
    with_effective = _with_effective(_stack(gpus), _stack(servers), machines)
    return Telemetry(with_effective, _stack(servers), _stack(hosts), _stack(agents), clocks, problems)


def _worst_bound_ns(host: Host, fit: ClockFit | None) -> int:
    """The clock fit's bound and half the time that a read took, at their worst; of the server's, the fit's alone.

    A scrape takes as long as the server lets it wait, which says nothing of the other samples.
    """
    worst = 0
    for name, table in host.tables.items():
        t0, t1 = (table[stamp].to_numpy(dtype=np.int64) for stamp in ("t0_mono_ns", "t1_mono_ns"))
        if t0.size:
            bound = (t1 - t0) // 2 * (name != "server") + (bound_at(fit, t0) if fit else 0)
            worst = max(worst, int(bound.max()))
    return worst


def _stack(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _empty(names: str, numbers: str) -> pd.DataFrame:
    kinds = dict.fromkeys(names.split(), "str") | dict.fromkeys(numbers.split(), "float64")
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


_NO_SERVERS = _empty("host engine", "t_s running waiting kv_usage_ratio kv_pool_b")
_NO_GPUS = _empty("host gpu_uuid", "gpu_index t_s util_pct used_b effective_b total_b power_w energy_j")


def _middle(frame: pd.DataFrame, fit: ClockFit | None, zero_ns: int) -> Floats:
    """A read took from t0 to t1: its value is put in the middle."""
    t0, t1 = (frame[name].to_numpy(dtype=np.int64) for name in ("t0_mono_ns", "t1_mono_ns"))
    middle = t0 + (t1 - t0) // 2
    return np.asarray((to_controller(fit, middle) if fit else middle) - zero_ns, dtype=np.float64) / 1e9


def _numbers(table: str, host: Host | None = None, fit: ClockFit | None = None, zero_ns: int = 0) -> pd.DataFrame:
    """A table of numbers alone, as floats; empty without a host that has it."""
    names = [column.name for column in sample.TABLES[table] if not column.name.endswith("_mono_ns")]
    raw = host.tables.get(table) if host else None
    if host is None or raw is None or raw.empty:
        return _empty("host", " ".join(["t_s", *names]))
    values = {name: raw[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
    frame = pd.DataFrame({"host": host.name, "t_s": _middle(raw, fit, zero_ns)} | values)
    return frame.sort_values("t_s", ignore_index=True)


def _server(host: Host, fit: ClockFit | None, zero_ns: int) -> pd.DataFrame:
    raw = host.tables.get("server")
    if raw is None or raw.empty:
        return _NO_SERVERS
    names = ["running", "waiting", "kv_usage_ratio", "kv_pool_b"]
    values = {name: raw[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
    keys = {"host": host.name, "engine": raw["engine"].fillna(""), "t_s": _middle(raw, fit, zero_ns)}
    frame = pd.DataFrame(keys | values)
    return frame.sort_values("t_s", ignore_index=True)


def _gpu(host: Host, fit: ClockFit | None, zero_ns: int) -> pd.DataFrame:
    raw = host.tables.get("gpu_fast")
    if raw is None or raw.empty:
        return _NO_GPUS

    def column(name: str, scale: float = 1.0) -> Floats:
        return np.asarray(raw[name].to_numpy(dtype=np.float64, na_value=np.nan)) * scale

    return pd.DataFrame(
        {
            "host": host.name,
            "gpu_uuid": raw["gpu_uuid"],
            "gpu_index": column("gpu_index"),
            "t_s": _middle(raw, fit, zero_ns),
            "util_pct": column("util_pct"),
            "used_b": column("mem_used_b"),
            "effective_b": np.nan,
            "total_b": column("mem_total_b"),
            "power_w": column("power_mw", 1e-3),
            "energy_j": column("energy_mj", 1e-3),
        }
    ).sort_values("t_s", ignore_index=True)


def _with_effective(gpus: pd.DataFrame, servers: pd.DataFrame, machines: dict[str, str]) -> pd.DataFrame:
    """`gpus` with effective_b: used - pool + usage * pool, from the engines that run on the same machine."""
    effective = gpus["effective_b"].to_numpy(copy=True)
    for machine, mine in gpus.groupby(gpus["host"].map(machines)):
        engines = servers[servers["host"].map(machines) == machine]
        for rows, kv in _kv_by_gpu(mine, engines):
            at = pd.merge_asof(
                rows[["t_s"]],
                kv,
                on="t_s",
                direction="nearest",
                tolerance=_KV_TOLERANCE_S,  # type: ignore[arg-type]  # the stubs know no float keys
            )
            empty = (at["kv_pool_b"] * (1 - at["kv_usage_ratio"])).to_numpy()
            effective[rows.index] = rows["used_b"].to_numpy() - empty
    return gpus.assign(effective_b=effective)


def _kv_by_gpu(gpus: pd.DataFrame, servers: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Each GPU's samples, and its KV cache over time (t_s, kv_usage_ratio, kv_pool_b).

    Engines belong to GPUs by order when there are as many; else every GPU is given the engines' mean.
    """
    known = servers[["engine", "t_s", "kv_usage_ratio", "kv_pool_b"]].dropna()
    if known.empty:
        return
    cards = [rows for _, rows in gpus.groupby(["host", "gpu_index", "gpu_uuid"])]
    engines = sorted(known.groupby("engine"), key=lambda item: (len(str(item[0])), item[0]))
    if len(engines) == len(cards):
        yield from zip(cards, (rows.drop(columns="engine") for _, rows in engines), strict=True)
    else:
        mean = known.drop(columns="engine").groupby("t_s", as_index=False).mean()
        yield from ((card, mean) for card in cards)


def overlap_mean(t_s: Floats, values: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Time-weighted mean of samples in each bin between `edges`, and the share of the bin that samples cover.

    `t_s` ascending. A sample speaks for the time half-way to its neighbours, but at most one period to either side: a
    gap in the data is not covered. The period is the median of all gaps, or of five around where that is longer: a
    server that is asked less often has no gaps. The mean is NaN where coverage is below MIN_COVERAGE.
    """
    known = ~(np.isnan(values) | np.isnan(t_s))
    t, v = t_s[known], values[known]
    width = np.diff(edges)
    if t.size < 2:
        return np.full(width.size, np.nan), np.zeros(width.size)
    gaps = np.diff(t)
    reach = np.minimum(gaps / 2, _periods(gaps))
    left = t - np.concatenate((reach[:1], reach))
    right = t + np.concatenate((reach, reach[-1:]))
    knots = np.column_stack((left, right)).ravel()
    spans = right - left
    covered = _integral(knots, spans, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        coverage = np.where(width > 0, covered / width, 0.0)
        mean = np.clip(_integral(knots, spans * v, edges) / covered, v.min(), v.max())  # rounding must not leave them
    return np.where(coverage >= MIN_COVERAGE, mean, np.nan), coverage


def _periods(gaps: Floats) -> Floats:
    """How far apart samples are meant to be at each gap."""
    periods = np.full(gaps.size, np.median(gaps))
    long = np.flatnonzero(gaps > 2 * periods)
    around = np.pad(gaps, 2, constant_values=np.nan)[long[:, None] + np.arange(5)]
    periods[long] = np.maximum(periods[long], np.nanmedian(around, axis=1))
    return periods


def _integral(knots: Floats, areas: Floats, edges: Floats) -> Floats:
    """Area between edges of a function that is constant from knot 2i to knot 2i + 1 and 0 elsewhere."""
    cumulated = np.cumsum(np.column_stack((np.zeros(areas.size), areas)).ravel())
    return np.asarray(np.diff(np.interp(edges, knots, cumulated)))


def occupied(begin_s: Floats, end_s: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Mean number, or weight, of the intervals [begin, end] that are open in each bin between `edges`.

    NaN intervals do not count.
    """
    known = ~(np.isnan(begin_s) | np.isnan(end_s))
    each = np.ones(begin_s.size) if weights is None else weights
    area = _ramps(begin_s[known], each[known], edges) - _ramps(end_s[known], each[known], edges)
    width = np.diff(edges)
    return np.asarray(np.divide(np.diff(area), width, out=np.full(width.size, np.nan), where=width > 0))


def _ramps(starts: Floats, weights: Floats, at: Floats) -> Floats:
    """Sum over the starts of weight * max(0, at - start)."""
    order = np.argsort(starts)
    starts, weights = starts[order], weights[order]
    index = np.searchsorted(starts, at)
    slopes, heights = (np.concatenate(([0.0], np.cumsum(values)))[index] for values in (weights, weights * starts))
    return np.asarray(slopes * at - heights)


def between(t_s: Floats, begin_s: float, end_s: float) -> NDArray[np.bool_]:
    """Which instants lie in [begin, end)."""
    return (t_s >= begin_s) & (t_s < end_s)
