"""What an efficiency below 1 was lost to: factors, each that of a run / that of the run with the fewest cards. Pure.

    fed        utilisation of the busiest card, times the requests that a card works on where none wait for one
    balance    mean use / that of the most used card: below 1 the others get less
    clock      mean SM clock, by utilisation: below 1 power or heat
    work       what is left of the efficiency: below 1 a busy card gets less done

Use is utilisation; or how full KV caches are, where they are clearly less even: a card with few requests is busy too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.ranges import Range

# An efficiency that may be this high has lost nothing that is worth a name.
GOOD = 0.95
# Links carry more a token than with fewer cards where it is so many times as much.
MORE = 1.2
# KV caches are taken to be unevenly full where their mean is less than this share of the fullest: they scatter.
UNEVEN = 0.8
# Requests wait for a card where they are more than this share of those that cards work on.
QUEUED = 0.1
LINKS = ("nvlink", "pcie")

Figures = dict[str, Any]
Factors = dict[str, float | None]


def utilisations(figures: Figures) -> list[float]:
    """Of each card that told it, %."""
    return [float(gpu["util_pct"]["mean"]) for gpu in figures["gpus"] if gpu["util_pct"]]


def traffic(figures: Figures, link: str) -> float | None:
    """Bytes over a link, both ways of all cards, for an output token; None where a card does not tell."""
    found = [gpu[f"{link}_bytes_per_s"] for gpu in figures["gpus"]]
    tokens = figures["output_tokens_per_s"]
    return None if not found or None in found or not tokens else sum(way["tx"] + way["rx"] for way in found) / tokens


def factors(figures: Figures, first: Figures, efficiency: float | None, times: float) -> Factors:
    """Their product is the efficiency; None where one was not measured, whose part is then in `work`.

    `times` is by how much there are more cards.
    """

    def against(of: Callable[[Figures], float | None]) -> float | None:
        mine, others = of(figures), of(first)
        return mine / others if mine is not None and others else None

    known = {"fed": against(_busiest), "balance": against(_balance), "clock": against(_clock)}
    batch = against(_running)
    if known["fed"] and batch and not _queued(figures):
        known["fed"] *= min(batch / times, 1.0)
    rest = efficiency if known["fed"] is not None else None
    for factor in known.values():
        rest = rest if rest is None or not factor else rest / factor
    return known | {"work": rest}


def _busiest(figures: Figures) -> float | None:
    utils = utilisations(figures)
    return max(utils) if utils else None


def _running(figures: Figures) -> float | None:
    return (figures["server"] or {}).get("running")


def _queued(figures: Figures) -> bool:
    server = figures["server"] or {}
    return bool((server.get("waiting") or 0.0) > QUEUED * (server.get("running") or 0.0))


def _balance(figures: Figures) -> float | None:
    utils, server = utilisations(figures), figures["server"] or {}
    most = max(utils, default=0.0)
    shares = [float(np.mean(utils)) / most] if most else []
    if server.get("kv_usage_max") and (kv := server["kv_usage_ratio"] / server["kv_usage_max"]) < UNEVEN:
        shares.append(kv)
    return min(shares, default=None)


def _clock(figures: Figures) -> float | None:
    """Of the work that is done: a card that does none has a low one."""
    clocks = [(gpu["sm_mhz"], gpu["util_pct"]) for gpu in figures["gpus"] if gpu["sm_mhz"]]
    if not clocks:
        return None
    utils = [util["mean"] for _, util in clocks if util]
    weights = utils if len(utils) == len(clocks) and any(utils) else None
    return float(np.average([mhz for mhz, _ in clocks], weights=weights))


def eaten_by(figures: Figures, first: Figures, efficiency: Range, lost: Factors, saturated: bool | None) -> str:
    """What took most of what is missing: "nothing", "load" (too little of it), "client", "unknown", or a factor.

    A busy card that gets less done is "communication" where the links carry more a token than with fewer cards.
    """
    best = efficiency.value if efficiency.high is None else efficiency.high
    if best is None or best >= GOOD:
        return "unknown" if best is None else "nothing"
    if not saturated:
        return "load"
    if figures.get("client_on_time") is False:
        return "client"
    known = {name: factor for name, factor in lost.items() if factor}
    if not known:
        return "unknown"
    most = min(known, key=lambda name: known[name])
    return "communication" if most == "work" and _talks_more(figures, first) else most


def _talks_more(figures: Figures, first: Figures) -> bool:
    pairs = [(traffic(figures, link), traffic(first, link)) for link in LINKS]
    return any(now is not None and before is not None and now > MORE * before for now, before in pairs)
