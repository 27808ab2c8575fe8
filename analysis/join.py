"""The only place where clocks are converted: everything becomes seconds since the run's start, on the controller.

t = 0 is the first step's ramp (the manifest's clock when there is none). Telemetry of a host that shares the
controller's boot needs no fit; any other host's is moved by remote_agents.clock, and carries that fit's bound.
Also here: overlap-weighted means of samples over windows, and the GPU and server series built on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Host, Run
from analysis.stats import Floats

# A window with fewer samples than this share of its length has no figure.
MIN_COVERAGE = 0.5
# A server sample this old no longer says how full the KV cache was.
_KV_TOLERANCE_S = 3.0


class HostClock(NamedTuple):
    """How a host's clock became the controller's: `offset_ns` was subtracted; `bound_ns` is the error's bound."""

    host: str
    simulated: bool
    offset_ns: int
    bound_ns: int


@dataclass(frozen=True)
class Telemetry:
    """`gpus`: a row a sample (host, gpu_uuid, gpu_index, t_s, util_pct, used_b, effective_b, total_b, power_w, energy_j).

    `servers`: a row a scrape and engine (host, engine, t_s, running, waiting, kv_usage_ratio, kv_pool_b). Times are
    seconds since the run's start; values are float, NaN where not measured.
    """

    gpus: pd.DataFrame
    servers: pd.DataFrame
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
    for line in run.steps:
        if line.get("what") == "ramp":
            return int(line["t_ns"])
    return int(run.manifest["clock"]["monotonic_ns"])


def seconds(times_ns: Any, zero_ns: int) -> Floats:
    """Seconds since `zero_ns` of a series of ns; NaN for null. Subtracts as integers, so nothing is rounded away."""
    shifted = pd.array(times_ns, dtype="Int64") - zero_ns
    return np.asarray(shifted.to_numpy(dtype=np.float64, na_value=np.nan)) / 1e9


def telemetry(run: Run) -> Telemetry:
    """GPU and server samples of every host on the controller's clock."""
    zero = start_ns(run)
    clocks: list[HostClock] = []
    problems: list[str] = []
    gpus, servers = [_NO_GPUS], [_NO_SERVERS]
    for host in run.hosts:
        clock = _clock(host, run)
        if clock is None:
            problems.append(f"telemetry of {host.name}: left out, no clock probes tie its clock to the controller's")
            continue
        clocks.append(clock)
        server = _server(host, zero + clock.offset_ns)
        servers.append(server)
        gpus.append(_gpu(host, zero + clock.offset_ns, server))
    return Telemetry(_stack(gpus), _stack(servers), clocks, problems)


def _clock(host: Host, run: Run) -> HostClock | None:
    if host.boot_id == run.manifest["clock"].get("boot_id", ""):
        return HostClock(host.name, host.simulated, 0, 0)
    return None


def _stack(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


_NO_SERVERS = pd.DataFrame(
    {
        "host": pd.Series(dtype=str),
        "engine": pd.Series(dtype=str),
        **{n: pd.Series(dtype=float) for n in ("t_s", "running", "waiting", "kv_usage_ratio", "kv_pool_b")},
    }
)
_NO_GPUS = pd.DataFrame(
    {
        "host": pd.Series(dtype=str),
        "gpu_uuid": pd.Series(dtype=str),
        "gpu_index": pd.Series(dtype=float),
        **{
            n: pd.Series(dtype=float)
            for n in ("t_s", "util_pct", "used_b", "effective_b", "total_b", "power_w", "energy_j")
        },
    }
)


def _middle(frame: pd.DataFrame, zero_ns: int) -> Floats:
    """A read took from t0 to t1: its value is put in the middle."""
    return (seconds(frame["t0_mono_ns"], zero_ns) + seconds(frame["t1_mono_ns"], zero_ns)) / 2


def _server(host: Host, zero_ns: int) -> pd.DataFrame:
    raw = host.tables.get("server")
    if raw is None or raw.empty:
        return _NO_SERVERS
    names = ["running", "waiting", "kv_usage_ratio", "kv_pool_b"]
    values = {name: raw[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
    frame = pd.DataFrame({"host": host.name, "engine": raw["engine"].fillna(""), "t_s": _middle(raw, zero_ns)} | values)
    return frame.sort_values("t_s", ignore_index=True)


def _gpu(host: Host, zero_ns: int, server: pd.DataFrame) -> pd.DataFrame:
    raw = host.tables.get("gpu_fast")
    if raw is None or raw.empty:
        return _NO_GPUS

    def column(name: str, scale: float = 1.0) -> Floats:
        return np.asarray(raw[name].to_numpy(dtype=np.float64, na_value=np.nan)) * scale

    frame = pd.DataFrame(
        {
            "host": host.name,
            "gpu_uuid": raw["gpu_uuid"],
            "gpu_index": column("gpu_index"),
            "t_s": _middle(raw, zero_ns),
            "util_pct": column("util_pct"),
            "used_b": column("mem_used_b"),
            "effective_b": np.nan,
            "total_b": column("mem_total_b"),
            "power_w": column("power_mw", 1e-3),
            "energy_j": column("energy_mj", 1e-3),
        }
    ).sort_values("t_s", ignore_index=True)
    for uuid, kv in _kv_of(frame, server).items():
        mine = frame["gpu_uuid"] == uuid
        at = pd.merge_asof(frame.loc[mine, ["t_s"]], kv, on="t_s", direction="nearest", tolerance=_KV_TOLERANCE_S)
        free = (at["kv_pool_b"] * (1 - at["kv_usage_ratio"])).to_numpy()
        frame.loc[mine, "effective_b"] = frame.loc[mine, "used_b"] - free
    return frame


def _kv_of(gpus: pd.DataFrame, server: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each GPU's KV cache over time (t_s, kv_usage_ratio, kv_pool_b).

    Engines belong to GPUs by order when there are as many; else every GPU is given the engines' mean.
    """
    known = server.dropna(subset=["t_s", "kv_usage_ratio", "kv_pool_b"])[["engine", "t_s", "kv_usage_ratio", "kv_pool_b"]]
    if known.empty:
        return {}
    uuids = gpus.drop_duplicates("gpu_uuid").sort_values("gpu_index")["gpu_uuid"]
    engines = sorted(known["engine"].unique(), key=lambda name: (len(name), name))
    if len(engines) == len(uuids):
        return {
            uuid: known.loc[known["engine"] == engine].drop(columns="engine")
            for uuid, engine in zip(uuids, engines, strict=True)
        }
    mean = known.drop(columns="engine").groupby("t_s", as_index=False).mean()
    return dict.fromkeys(uuids, mean)


def overlap_mean(t_s: Floats, values: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Time-weighted mean of samples in each bin between `edges`, and the share of the bin that samples cover.

    `t_s` ascending. A sample speaks for the time half-way to its neighbours, but at most one median period to either
    side: a gap in the data is not covered. The mean is NaN where coverage is below MIN_COVERAGE.
    """
    known = ~(np.isnan(values) | np.isnan(t_s))
    t, v = t_s[known], values[known]
    width = np.diff(edges)
    if t.size < 2:
        return np.full(width.size, np.nan), np.zeros(width.size)
    gaps = np.diff(t)
    reach = np.minimum(gaps / 2, np.median(gaps))
    left = t - np.concatenate((reach[:1], reach))
    right = t + np.concatenate((reach, reach[-1:]))
    knots = np.column_stack((left, right)).ravel()
    spans = right - left
    covered = _integral(knots, spans, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        coverage = np.where(width > 0, covered / width, 0.0)
        mean = _integral(knots, spans * v, edges) / covered
    return np.where(coverage >= MIN_COVERAGE, mean, np.nan), coverage


def _integral(knots: Floats, areas: Floats, edges: Floats) -> Floats:
    """Area between edges of a function that is constant from knot 2i to knot 2i + 1 and 0 elsewhere."""
    cumulated = np.cumsum(np.column_stack((np.zeros(areas.size), areas)).ravel())
    return np.diff(np.interp(edges, knots, cumulated))


def occupied(begin_s: Floats, end_s: Floats, edges: Floats) -> Floats:
    """Mean number of intervals [begin, end] that are open in each bin between `edges`; NaN intervals do not count."""
    known = ~(np.isnan(begin_s) | np.isnan(end_s))
    area = _ramps(np.sort(begin_s[known]), edges) - _ramps(np.sort(end_s[known]), edges)
    width = np.diff(edges)
    return np.divide(np.diff(area), width, out=np.full(width.size, np.nan), where=width > 0)


def _ramps(starts: Floats, at: Floats) -> Floats:
    """Sum over the sorted starts of max(0, at - start)."""
    index = np.searchsorted(starts, at)
    return index * at - np.concatenate(([0.0], np.cumsum(starts)))[index]


def between(t_s: Floats, begin_s: float, end_s: float) -> NDArray[np.bool_]:
    """Which instants lie in [begin, end)."""
    return (t_s >= begin_s) & (t_s < end_s)
