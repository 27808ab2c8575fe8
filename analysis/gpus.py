"""Figures of GPUs: of each one over a step's window, of all together, and over time.

A figure is the mean over the time that each sample speaks for: the driver's own windows of utilisation, the two reads
that a GPM metric is between, the second that an average of power looks back, else half-way to the neighbours. Where too
little of a window is covered, or the samples' time is too uncertain for it, there is none. Seconds since the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.caveat import Caveat, caveat
from analysis.join import Telemetry, devices
from analysis.overlap import MAX_BLUR, MIN_COVERAGE, Spans, around, between, mean, quality, rate, within
from analysis.stats import Floats

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
# A GPU that ran kernels for less than this in every step serves nothing, %.
_IDLE_PCT = 3.0
# The driver's counters of PCIe bytes have so many bits.
_PCIE_WRAPS = 2.0**32


@dataclass(frozen=True)
class Card:
    """A GPU or MIG device, and its rows of Telemetry. `counted`: whether totals have it."""

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

    def during(self, edges: Floats) -> Card:
        """With the samples around a window only."""

        def near(rows: pd.DataFrame) -> pd.DataFrame:
            ends = (edges[0] - _MARGIN_S, edges[-1] + _MARGIN_S)
            return rows.iloc[slice(*np.searchsorted(rows["t_s"].to_numpy(), ends))]

        return replace(self, fast=near(self.fast), utils=near(self.utils), slow=near(self.slow))

    def spans(self, signal: str) -> Spans:
        """What a signal's values speak for; signals are named as the figures are."""
        fast, slow = self.fast, self.slow
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


def cards(telemetry: Telemetry) -> list[Card]:
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
    return found


def gpu_figures(card: Card, edges: Floats) -> dict[str, Any]:
    """The entry of a GPU for the window between the two `edges`."""
    card = card.during(edges)
    begin_s, end_s = float(edges[0]), float(edges[1])
    bound_s, coverage = (float(values[0, 0]) for values in quality([card.fast], edges))
    blurred = bound_s > MAX_BLUR * (end_s - begin_s)

    def figure(signal: str) -> dict[str, float] | None:
        spans = card.spans(signal)
        means, known = mean(spans, edges)
        if blurred or known[0] < MIN_COVERAGE:
            return None
        inside = between((spans.begin_s + spans.end_s) / 2, begin_s, end_s)
        return {"mean": float(means[0]), "max": float(spans.values[inside].max(initial=means[0]))}

    def grown(rows: pd.DataFrame, column: str, wraps_at: float = np.inf) -> float | None:
        return None if blurred else rate(rows["t_s"].to_numpy(), rows[column].to_numpy(), begin_s, end_s, wraps_at)

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
        "host": card.host,
        "uuid": card.uuid,
        "index": card.index,
        "gi_id": card.gi_id,
        "simulated": card.simulated,
        "coverage": coverage,
        "bound_ms": 1e3 * bound_s,
        "util_pct": figure("util_pct"),
        **{signal: figure(signal) for signal in (*GPM, *_POINTS)},
        "vram_total_bytes": card.total_b,
        "power_w": power,
        "power_limit_w": limit["mean"] if limit else None,
        "sm_mhz": clock["mean"] if clock else None,
        "temp_c": heat["max"] if heat else None,
        "throttled_share": {"power": held_back(_POWER), "heat": held_back(_HEAT)},
        "pcie_bytes_per_s": link("pcie", "pcie", _PCIE_WRAPS),
        "nvlink_bytes_per_s": link("nvlink", "nvl"),
    }


def gpu_total(gpus: Sequence[dict[str, Any]]) -> dict[str, float | None]:
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


def idle_gpus(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries, one each, of the GPUs that ran nothing in any of a summary's steps while others of them did.

    They stand beside those that serve. One whose utilisation is not known may serve.
    """
    found: dict[str, dict[str, Any]] = {}
    most: dict[str, float] = {}
    simulated = any(gpu["simulated"] for step in steps for gpu in step["gpus"])
    for gpu in (gpu for step in steps for gpu in step["gpus"] if gpu["simulated"] == simulated):
        for name in ("util_pct", "sm_pct"):
            if gpu[name]:
                found[gpu["uuid"]] = gpu
                most[gpu["uuid"]] = max(most.get(gpu["uuid"], 0.0), gpu[name]["mean"])
    idle = [gpu for uuid, gpu in found.items() if most[uuid] < _IDLE_PCT]
    return idle if len(idle) < len(found) else []


def idle_caveats(steps: Sequence[Mapping[str, Any]]) -> list[Caveat]:
    """Which GPUs were left out, and of what."""
    names: dict[str, list[str]] = {}
    for gpu in idle_gpus([step for step in steps if step["level"]]):
        names.setdefault(gpu["host"], []).append(f"{gpu['index']}")
    if not names:
        return []
    told = " and ".join(f"GPU {', '.join(numbers)} of {host}" for host, numbers in names.items())
    text = f"{told} ran nothing in any step: energy, MFU, MBU and what binds are of the other GPUs, sums are of all"
    return [caveat("idle_gpus", text, "if they should serve, look at how the server spreads its load over GPUs")]


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
