"""Trends in words: the sentence of each, the table of those that changed, and the caveats of leaks.

Made of the entries of summary["trends"] (trends.py) alone; no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from analysis.caveat import Caveat, caveat
from analysis.tables import DASH, Summary, fine, unit_of

Figures = dict[str, Any]

NAMES = {
    "vram_used": "VRAM",
    "vram_effective": "effective VRAM",
    "rss": "RSS",
    "cgroup": "cgroup memory",
    "host_available": "available memory",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "e2e_p50": "E2E p50",
    "e2e_p99": "E2E p99",
    "qps": "QPS",
    "output_tokens_per_s": "output tokens/s",
    "running": "requests running",
    "waiting": "requests waiting",
}
# These are said to leak, when they went on so long.
_LEAKS = {"vram_used": "rising", "rss": "rising", "host_available": "falling"}
LEAK_S = 60.0
# What was seen in a shorter time may be a warm-up, and it is said how short that was.
_SHORT_S = 600.0
_GIB, _MIB = 2**30, 2**20


def name_of(trend: Figures) -> str:
    """ "VRAM of GPU 0 on sim-0"."""
    return NAMES[trend["signal"]] + (f" of {trend['where']}" if trend["where"] else "")


def sentence(trend: Figures, with_level: bool) -> str:
    """ "VRAM of GPU 0 on sim-0 grows by 1.20 GiB/h (1.10 to 1.30): full in 14 h (12 to 17)"."""
    name = name_of(trend) + (f" at {trend['level']:g} {trend['level_unit']}" if with_level else "")
    if trend["why"]:
        return f"{name}: unknown, {trend['why']}"
    by, within = _change(trend)
    if trend["verdict"] == "unknown":
        return f"{name}: unknown, {within} are both possible; measure longer"
    if trend["verdict"] == "none":
        low, high = trend["slope_per_h_ci95"]
        return f"{name}: too little to matter ({within})" if low * high > 0 else f"no trend in {name} ({within})"
    verb = {"rising": "grow", "falling": "fall"}[trend["verdict"]] + ("" if trend["unit"] == "requests" else "s")
    length_s = trend["end_s"] - trend["begin_s"]
    short = "" if length_s >= _SHORT_S or trend["unit"] != "B" else f"; seen over {_time(length_s / 3600)} only"
    return f"{name} {verb} by {by} ({within}){_until(trend)}{short}"


def _change(trend: Figures) -> tuple[str, str]:
    """Of memory what is gained in an hour; of the load what changed over the window, in % but for numbers of requests.

    Both without a sign where the verb has it.
    """
    value, (low, high) = trend["slope_per_h"], trend["slope_per_h_ci95"]
    hours = (trend["end_s"] - trend["begin_s"]) / 3600
    began = trend["at_end"] - value * hours
    if trend["unit"] == "B":
        (scale, unit), after = (_GIB, "GiB/h") if abs(value) >= 0.1 * _GIB else (_MIB, "MiB/h"), ""
    elif trend["unit"] == "requests" or began <= 0:
        scale, unit, after = 1 / hours, trend["unit"], f" in {_time(hours)}"
    else:
        scale, unit, after = began / hours / 100, "%", f" in {_time(hours)}"
    changed = trend["verdict"] in ("rising", "falling")
    if changed and value < 0:
        low, high = -high, -low
    ends = ["any" if end is None else fine(end / scale) for end in (low, high)]
    return f"{fine(abs(value) / scale)} {unit}{after}", " to ".join(ends) + ("" if changed else f" {unit}{after}")


def _until(trend: Figures) -> str:
    if trend["exhausted_in_h"] is None:
        return ""
    end = "none left" if trend["limit"] == 0 else "full"
    return f": {end} in {exhaustion(trend)}"


def exhaustion(trend: Figures) -> str:
    """ "14 h (12 to 17)"."""
    low, high = trend["exhausted_in_h_ci95"]
    unit, scale = _scale(trend["exhausted_in_h"])
    value = f"{trend['exhausted_in_h'] * scale:.3g} {unit}"
    return f"{value} ({low * scale:.3g} to {high * scale:.3g})"


def _scale(hours: float) -> tuple[str, float]:
    """The unit that a time is best told in, and how many of them an hour has."""
    if hours >= 48:
        return "days", 1 / 24
    return ("h", 1.0) if hours >= 1 else ("min", 60.0) if hours >= 1 / 30 else ("s", 3600.0)


def _time(hours: float) -> str:
    unit, scale = _scale(hours)
    return f"{hours * scale:.3g} {unit}"


def trend_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, as text, of what changed, then of what is not known; without what has no trend."""
    headers = [unit_of(summary), "signal", "verdict", "change", "95 %", "chance alone", "limit reached in", ""]
    rows = []
    for trend in sorted(summary["trends"], key=lambda trend: trend["verdict"] == "unknown"):
        if trend["verdict"] == "none":
            continue
        by, within = (DASH, DASH) if trend["why"] else _change(trend)
        rows.append(
            [
                f"{trend['level']:g}",
                name_of(trend),
                trend["verdict"],
                DASH if trend["verdict"] == "unknown" else by,
                within,
                DASH if trend["why"] else _chance(trend["p_value"]),
                DASH if trend["exhausted_in_h"] is None else exhaustion(trend),
                trend["why"],
            ]
        )
    return headers, rows


def _chance(p_value: float) -> str:
    return "< 0.1 %" if p_value < 0.001 else f"{100 * p_value:.1f} %"


def without_trend(summary: Summary) -> str:
    """ "No trend in VRAM (8), TTFT p50"; empty when nothing was looked at."""
    quiet = Counter(NAMES[trend["signal"]] for trend in summary["trends"] if trend["verdict"] == "none")
    return "No trend in " + ", ".join(n if k == 1 else f"{n} ({k})" for n, k in quiet.items()) if quiet else ""


def quiet_s(summary: Summary) -> float:
    """For how long each of them had no trend: of the one that was followed for the least time."""
    longest: dict[tuple[str, str], float] = {}
    for trend in summary["trends"]:
        if trend["verdict"] == "none":
            which = trend["signal"], trend["where"]
            longest[which] = max(trend["end_s"] - trend["begin_s"], longest.get(which, 0.0))
    return min(longest.values())


def leaks(trends: Sequence[Figures]) -> list[Caveat]:
    """A caveat for each kind of memory that ran short while the load stood still: of the place where it did fastest."""
    found = [
        trend
        for trend in trends
        if _LEAKS.get(trend["signal"]) == trend["verdict"] and trend["end_s"] - trend["begin_s"] >= LEAK_S
    ]
    caveats = []
    for signal in dict.fromkeys(trend["signal"] for trend in found):
        mine = [trend for trend in found if trend["signal"] == signal]
        worst = max(mine, key=lambda trend: abs(trend["slope_per_h"]))
        more = f"; {len(mine) - 1} more beside it" if len(mine) > 1 else ""
        caveats.append(caveat("leak", worst["text"] + more, _REMEDY))
    return caveats


_REMEDY = (
    "what grows while the load stands still is a leak or a cache without a bound: compare with a longer soak, and look "
    "for what each request leaves behind"
)
