"""Figures of GPUs: of each one over a step's window, of all together, and over time.

A figure is the mean over the time that each sample speaks for: the driver's own windows of utilisation, the two reads
that a GPM metric is between, the second that an average of power looks back, else half-way to the neighbours. Where too
little of a window is covered, or the samples' time is too uncertain for it, there is none. Seconds since the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.join import Telemetry, devices
from analysis.overlap import MAX_BLUR, MIN_COVERAGE, Spans, around, between, mean, quality, rate, within
from analysis.serving import RAN, Gpu, idle_gpus
from analysis.stats import Floats
from analysis.windows import Window

GPM = ("sm_pct", "occ_pct", "tensor_pct", "dram_pct")
_LINKS = ("pcie", "nvlink")
_POINTS = {"vram_used_bytes": "used_b", "vram_effective_bytes": "effective_b"}
_POWER = ("thr_sw_power_ns", "thr_hw_brake_ns")
_HEAT = ("thr_sw_therm_ns", "thr_hw_therm_ns")
# The shortest window of the driver's utilisation, for a sample whose begin it does not tell.
_SHORTEST_S = 1 / 6
_AVERAGE_S = 1.0
# Samples this long before and after a window tell how far those in it reach.
_MARGIN_S = 60.0
# The driver's counters of PCIe bytes have so many bits.
_PCIE_WRAPS = 2.0**32


@dataclass(frozen=True)
class Card:
    """A GPU or MIG device, and its rows of Telemetry. `counted`: totals have it; `idle`: as idle_gpus says."""

    host: str
    uuid: str
    index: int
    gi_id: int | None
    simulated: bool
    counted: bool
    total_b: float
    fast: pd.DataFrame
    utils: pd.DataFrame
    slow: pd.DataFrame
    idle: bool = False

    def during(self, edges: Floats) -> Card:
        """With the samples around a window only."""

        def near(rows: pd.DataFrame) -> pd.DataFrame:
            ends = (edges[0] - _MARGIN_S, edges[-1] + _MARGIN_S)
            return rows.iloc[slice(*np.searchsorted(rows["t_s"].to_numpy(), ends))]

        return replace(self, fast=near(self.fast), utils=near(self.utils), slow=near(self.slow))

    def spans(self, signal: str) -> Spans:
        """What a signal's values speak for; signals are named as the figures are.

        An idle GPU holds no cache of the server's: all that it uses is effective.
        """
        fast, slow = self.fast, self.slow
        if self.idle and signal == "vram_effective_bytes":
            signal = "vram_used_bytes"
        if signal == "util_pct" and len(self.utils):
            begin, end = (self.utils[name].to_numpy() for name in ("begin_s", "end_s"))
            return within(np.where(begin < end, begin, end - _SHORTEST_S), end, self.utils["util_pct"].to_numpy())
        if signal in GPM or signal.startswith(_LINKS):
            return within(*(fast[name].to_numpy() for name in ("win_start_s", "begin_s", signal)))
        if signal == "power_avg_w" or (signal == "power_w" and not fast["power_w"].notna().any()):
            at = slow["begin_s"].to_numpy()
            return within(at - _AVERAGE_S, at, slow["power_avg_w"].to_numpy())
        rows = slow if signal in ("sm_mhz", "temp_c", "power_limit_w") else fast
        return around(rows["t_s"].to_numpy(), rows[_POINTS.get(signal, signal)].to_numpy())


def cards(telemetry: Telemetry, windows: Sequence[Window]) -> list[Card]:
    """All of them. Totals have no real GPU beside simulated ones, and no MIG device beside its GPU."""
    simulated = {clock.host: clock.simulated for clock in telemetry.clocks}
    there = devices(telemetry.gpus)
    watched = {(device.host, device.number) for device in there if np.isnan(device.gi_id)}
    utils, slow = (dict(list(rows.groupby(["host", "gpu_uuid"]))) for rows in (telemetry.utils, telemetry.slow))
    found = []
    for device in there:
        host, uuid, is_part = device.host, device.uuid, not np.isnan(device.gi_id)
        rows = telemetry.gpus.iloc[device.rows]
        found.append(
            Card(
                host=host,
                uuid=uuid,
                index=int(device.number),
                gi_id=int(device.gi_id) if is_part else None,
                simulated=simulated[host],
                counted=simulated[host] == telemetry.simulated and not (is_part and (host, device.number) in watched),
                total_b=float(rows["total_b"].max()),
                fast=rows,
                utils=utils.get((host, uuid), telemetry.utils[:0]),
                slow=slow.get((host, uuid), telemetry.slow[:0]),
            )
        )
    edges = [np.array([window.begin_s, window.end_s]) for window in windows]
    steps = [{"gpus": [_Watched(card, each).ran() for card in found]} for each in edges]
    idle = {gpu["uuid"] for gpu in idle_gpus(steps)}
    return [replace(card, idle=card.uuid in idle) for card in found]


class _Watched:
    """A GPU over the window between the two `edges`: the samples around it, and how well they cover it."""

    def __init__(self, card: Card, edges: Floats) -> None:
        self.card, self.edges = card.during(edges), edges
        self.begin_s, self.end_s = map(float, edges)
        self.bound_s, self.coverage = (float(values[0, 0]) for values in quality([self.card.fast], edges))
        self._blurred = self.bound_s > MAX_BLUR * (self.end_s - self.begin_s)

    def figure(self, signal: str) -> dict[str, float] | None:
        if self._blurred:
            return None
        spans = self.card.spans(signal)
        means, known = mean(spans, self.edges)
        if known[0] < MIN_COVERAGE:
            return None
        inside = between((spans.begin_s + spans.end_s) / 2, self.begin_s, self.end_s)
        return {"mean": float(means[0]), "max": float(spans.values[inside].max(initial=means[0]))}

    def grown(self, rows: pd.DataFrame, column: str, wraps_at: float = np.inf) -> float | None:
        if self._blurred:
            return None
        return rate(rows["t_s"].to_numpy(), rows[column].to_numpy(), self.begin_s, self.end_s, wraps_at)

    def ran(self) -> dict[str, Any]:
        """Of an entry which GPU it is, how well it was watched, and how busy it was."""
        return {
            **{name: getattr(self.card, name) for name in ("host", "uuid", "index", "gi_id", "simulated")},
            "coverage": self.coverage,
            "bound_ms": 1e3 * self.bound_s,
            **{signal: self.figure(signal) for signal in RAN},
        }


def gpu_figures(card: Card, edges: Floats) -> dict[str, Any]:
    """The entry of a GPU for the window between the two `edges`."""
    watched = _Watched(card, edges)
    card, figure, grown = watched.card, watched.figure, watched.grown

    def link(name: str, counter: str, wraps_at: float = np.inf) -> dict[str, float] | None:
        """Bytes a second: as GPM says, else as the counters do."""
        ways = {}
        for way in ("tx", "rx"):
            metered = figure(f"{name}_{way}")
            counted = grown(card.slow, f"{counter}_{way}_b", wraps_at) if metered is None else metered["mean"]
            if counted is None:
                return None
            ways[way] = counted
        return ways

    def held_back(counters: Sequence[str]) -> float | None:
        shares = [share for share in (grown(card.slow, counter) for counter in counters) if share is not None]
        return min(1.0, sum(shares) / 1e9) if shares else None

    power, average, energy_w = figure("power_w"), figure("power_avg_w"), grown(card.fast, "energy_j")
    mean_w = energy_w if energy_w is not None else average["mean"] if average else None
    if mean_w is not None:
        power = {"mean": mean_w, "max": power["max"] if power else mean_w}
    clock, heat, limit = figure("sm_mhz"), figure("temp_c"), figure("power_limit_w")
    return {
        **watched.ran(),
        **{signal: figure(signal) for signal in (*GPM, *_POINTS) if signal not in RAN},
        "vram_total_bytes": card.total_b,
        "power_w": power,
        "power_limit_w": limit["mean"] if limit else None,
        "sm_mhz": clock["mean"] if clock else None,
        "temp_c": heat["max"] if heat else None,
        "throttled_share": {"power": held_back(_POWER), "heat": held_back(_HEAT)},
        "pcie_bytes_per_s": link("pcie", "pcie", _PCIE_WRAPS),
        "nvlink_bytes_per_s": link("nvlink", "nvl"),
    }


def gpu_total(gpus: Sequence[Gpu]) -> dict[str, float | None]:
    """Over all entries: mean utilisation, sums of the rest; None where any GPU has no figure."""

    def means(name: str) -> list[float] | None:
        known = [gpu[name]["mean"] for gpu in gpus if gpu[name]]
        return known if known and len(known) == len(gpus) else None

    total: dict[str, float | None] = {
        name: sum(known) if (known := means(name)) else None
        for name in ("vram_used_bytes", "vram_effective_bytes", "power_w")
    }
    util = means("util_pct")
    return {"util_pct": sum(util) / len(util) if util else None} | total


_SERIES: dict[str, tuple[str, Callable[..., Floats]]] = {
    **{f"gpu_{name}": (name, np.mean) for name in ("util_pct", "sm_pct", "tensor_pct", "dram_pct")},
    "vram_used_b": ("vram_used_bytes", np.sum),
    "vram_effective_b": ("vram_effective_bytes", np.sum),
    "power_w": ("power_w", np.sum),
}


def gpu_series(found: Sequence[Card], edges: Floats) -> dict[str, Floats]:
    """Totals over time, in each bin between `edges`; NaN where a GPU has no figure.

    gpu_coverage is the least of the GPUs', gpu_bound_ms the worst.
    """
    counted = [card for card in found if card.counted]
    if not counted:
        return dict.fromkeys((*_SERIES, "gpu_coverage", "gpu_bound_ms"), np.full(edges.size - 1, np.nan))
    bounds, coverage = quality([card.fast for card in counted], edges)
    blurred = bounds > MAX_BLUR * np.diff(edges)
    series = {
        column: combine(np.where(blurred, np.nan, [mean(card.spans(signal), edges)[0] for card in counted]), axis=0)
        for column, (signal, combine) in _SERIES.items()
    }
    return series | {"gpu_coverage": coverage.min(axis=0), "gpu_bound_ms": 1e3 * bounds.max(axis=0)}
