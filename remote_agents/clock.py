"""Four-stamp clock probes -> the offset, drift and error bound of an agent's clock against the controller's.

    controller   t0 ------------------> t3        offset = ((t1 - t0) + (t2 - t3)) / 2      agent minus controller
    agent              t1 ---> t2                  rtt    =  (t3 - t0) - (t2 - t1)           |error| <= rtt / 2

Of each burst the probe with the least rtt is kept as an anchor; a line through the anchors gives the drift once they
span a minute. Pure. Both clocks are CLOCK_MONOTONIC ns, each of its own host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BURST_GAP_NS = 1_000_000_000
MIN_DRIFT_SPAN_NS = 60_000_000_000
MAX_DRIFT_PPM = 30  # what two good oscillators differ by at worst: Huygens, NSDI 2018

Instants = npt.NDArray[np.int64]


class Anchor(NamedTuple):
    """The best probe of a burst: agent time, offset there, and how far the fit may be off at that time."""

    t_agent_ns: int
    offset_ns: int
    bound_ns: int


@dataclass(frozen=True)
class ClockFit:
    """offset(t) = offset_ns + drift_ppm / 1e6 * (t - t_ref_ns), agent minus controller, t on the agent's clock.

    `bound_ns` is the worst bound at an anchor; `bound_at` gives that of any instant.
    """

    host: str
    offset_ns: int
    drift_ppm: float
    bound_ns: int
    probes: int
    t_ref_ns: int
    anchors: tuple[Anchor, ...]


def fit_clocks(probes: Iterable[Mapping[str, Any]]) -> dict[str, ClockFit]:
    """Host -> fit, from the lines of clocks.jsonl."""
    stamps: dict[str, list[tuple[int, int, int, int]]] = {}
    for probe in probes:
        stamps.setdefault(probe["host"], []).append((probe["t0_ns"], probe["t1_ns"], probe["t2_ns"], probe["t3_ns"]))
    return {host: fit_clock(host, sorted(of_host)) for host, of_host in stamps.items()}


def fit_clock(host: str, probes: Sequence[tuple[int, int, int, int]]) -> ClockFit:
    """Fit (t0, t1, t2, t3) probes in order of t0; at least one."""
    best: list[tuple[int, int, int]] = []  # agent time, offset, rtt
    last_t0_ns = None
    for t0_ns, t1_ns, t2_ns, t3_ns in probes:
        point = ((t1_ns + t2_ns) // 2, ((t1_ns - t0_ns) + (t2_ns - t3_ns)) // 2, (t3_ns - t0_ns) - (t2_ns - t1_ns))
        if last_t0_ns is None or t0_ns - last_t0_ns > BURST_GAP_NS:
            best.append(point)
        elif point[2] < best[-1][2]:
            best[-1] = point
        last_t0_ns = t0_ns
    t_ref_ns, offset_ns, drift = _line(best)
    anchors = []
    for t_ns, measured_ns, rtt_ns in best:
        residual_ns = abs(measured_ns - offset_ns - round(drift * (t_ns - t_ref_ns)))
        anchors.append(Anchor(t_ns, measured_ns, rtt_ns // 2 + residual_ns + 1))
    worst_ns = max(anchor.bound_ns for anchor in anchors)
    return ClockFit(host, offset_ns, drift * 1e6, worst_ns, len(probes), t_ref_ns, tuple(anchors))


def _line(points: Sequence[tuple[int, int, int]]) -> tuple[int, int, float]:
    """(reference time, offset there, slope): least squares weighted by 1 / rtt², or the best of close points.

    A slope beyond MAX_DRIFT_PPM is bad luck with the delays: it is cut, and the residuals widen the bounds.
    """
    t_best_ns, offset_best_ns, _ = min(points, key=lambda point: point[2])
    if points[-1][0] - points[0][0] < MIN_DRIFT_SPAN_NS:
        return t_best_ns, offset_best_ns, 0.0
    weights = [1 / max(rtt_ns, 1) ** 2 for _, _, rtt_ns in points]
    times = [t_ns - t_best_ns for t_ns, _, _ in points]
    offsets = [offset_ns - offset_best_ns for _, offset_ns, _ in points]
    total = sum(weights)
    mean_t = sum(w * t for w, t in zip(weights, times, strict=True)) / total
    mean_offset = sum(w * o for w, o in zip(weights, offsets, strict=True)) / total
    spread = sum(w * (t - mean_t) ** 2 for w, t in zip(weights, times, strict=True))
    moved = sum(w * (t - mean_t) * (o - mean_offset) for w, t, o in zip(weights, times, offsets, strict=True))
    slope = min(max(moved / spread, -MAX_DRIFT_PPM / 1e6), MAX_DRIFT_PPM / 1e6)
    return t_best_ns, offset_best_ns + round(mean_offset - slope * mean_t), slope


def to_controller(fit: ClockFit, t_agent_ns: Instants) -> Instants:
    """Agent instants on the controller's clock."""
    drifted: Instants = np.rint((t_agent_ns - fit.t_ref_ns) * (fit.drift_ppm / 1e6)).astype(np.int64)
    return t_agent_ns - fit.offset_ns - drifted


def bound_at(fit: ClockFit, t_agent_ns: Instants) -> Instants:
    """How far `to_controller` may be off, in ns: rtt / 2 + residual of an anchor, and a share of the time to it.

    The share is what the drift may be off: the clocks' is MAX_DRIFT_PPM at most, and the fit has its own.
    """
    unknown = (MAX_DRIFT_PPM + abs(fit.drift_ppm)) / 1e6
    anchor_ns = np.array([anchor.t_agent_ns for anchor in fit.anchors], dtype=np.int64)
    base_ns = np.array([anchor.bound_ns for anchor in fit.anchors], dtype=np.int64)
    after = np.searchsorted(anchor_ns, t_agent_ns).clip(max=len(anchor_ns) - 1)
    before = (after - 1).clip(min=0)

    def from_anchor(index: npt.NDArray[np.intp]) -> Instants:
        grown: Instants = np.ceil(np.abs(t_agent_ns - anchor_ns[index]) * unknown).astype(np.int64)
        bound: Instants = base_ns[index] + grown
        return bound

    nearest: Instants = np.minimum(from_anchor(before), from_anchor(after))
    return nearest
