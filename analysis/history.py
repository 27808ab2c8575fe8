"""The runs of a label over time: a point a run, or a group of repeats, each figure at one step, and whether it trends.

Two points of repeats are compared as two sides of a comparison are. A run alone does not tell how much runs differ
among themselves: there the error is made of how far neighbouring points are apart, by their median absolute deviation,
which a few odd points do not change; with few points there is none.
Over all points a trend is Kendall's test on their order: five points are the fewest that can show one. No clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from analysis import effects
from analysis.compare import GOODPUT, figure_of
from analysis.compared import COMPARED, bounded, is_ratio, side_of, value_of
from analysis.effects import ALPHA, Estimate, Ranked, Side
from analysis.environment import differences
from analysis.judgement import change
from analysis.ranks import centre
from analysis.report.saved import summary_of
from analysis.runs import DAMAGED, RunRow, list_runs
from analysis.sides import Member, RunSet, damaged, differing, group_of, levels, manifests, objectives, steps_of
from analysis.slopes import score_variance
from loadgen import rundir
from loadgen.errors import UsageError

# 1  first version
SCHEMA = 1
# The fewest points whose differences tell how much points of one run differ among themselves.
LEAST_POINTS = 6
# The median absolute deviation by this is the standard deviation of a normal distribution.
_NORMAL_MAD = 1.4826
# From so many points on Kendall's test takes S for normal; with fewer it is exact.
NORMAL_FROM = 30

History = dict[str, Any]


def history(pattern: str, runs_dir: Path, step: str | None) -> History:
    """For JSON: every point with its figures at `step` ("100 users"), trends.

    `pattern` is a label, or one with * and ?. Complete runs count; of these the ones that are comparable to the last,
    and have the step: by default that of the last point which most points have, of several the highest. Those whose
    requests or steps are damaged are left out.

    Raises UsageError when no run fits, or none has the step.
    """
    found = [item for item in manifests(runs_dir) if fnmatchcase(str(item[1]["label"] or ""), pattern)]
    members = [
        Member(path, manifest, summary_of(path)) for path, manifest in found if manifest["status"] == rundir.COMPLETE
    ]
    reasons = {row.run_id: f"its label is not known: {row.problem}" for row in _unreadable(runs_dir)}
    reasons |= {member.path.name: why for member in members if (why := _useless(member))}
    points = _points(member for member in members if member.path.name not in reasons)
    if not points:
        lost = "".join(f"\n{name}: {why}" for name, why in reasons.items())
        raise UsageError(
            f"no complete run in {runs_dir} has the label {pattern!r}: see loadgen runs, or --runs-dir{lost}"
        )
    reasons |= {point.name: differing(point.runs[0], points[-1].runs[0]) for point in points}
    comparable = [point for point in points if not reasons[point.name]]
    at = _step(comparable, step)
    reasons |= {point.name: f"it has no step of {at}" for point in comparable if at not in _steps(point)}
    kept = [point for point in points if not reasons[point.name]]
    mixed = len({objectives(member.summary) for point in kept for member in point.runs} - {None}) > 1
    if mixed:
        reasons[GOODPUT] = "the reports counted it by different objectives: make them again with one --slo"
    sides = {
        name: [side_of(steps_of(point, at), name, logarithms=is_ratio(name)) for point in kept]
        for name, figure in COMPARED.items()
        if figure.shown and _known(kept, at, name) and not (name == GOODPUT and mixed)
    }
    entries = [_entry(point, at, list(sides)) for point in kept]
    for place, entry in enumerate(entries[1:], start=1):
        entry["changed"] = [fact._asdict() for fact in differences(kept[place - 1], kept[place])]
        for name, figure in entry["figures"].items():
            figure |= _change(sides[name], place - 1, place, name)
    changes = [figure for entry in entries for figure in entry["figures"].values() if figure["p"] is not None]
    for figure, p in zip(changes, effects.benjamini_hochberg([figure["p"] for figure in changes]), strict=True):
        figure |= {"p_adjusted": p, "differs": p <= ALPHA}
    return {
        "schema": SCHEMA,
        "label": pattern,
        "step": at,
        "simulated_gpu": any(bool(member.summary["simulated_gpu"]) for point in kept for member in point.runs),
        "points": entries,
        "indicative": _why_indicative(kept),
        "notes": damaged(member for point in kept for member in point.runs),
        "trends": _trends(sides),
        "left_out": [{"name": name, "why": why} for name, why in reasons.items() if why],
    }


def _unreadable(runs_dir: Path) -> list[RunRow]:
    return [row for row in list_runs(runs_dir) if row.status == DAMAGED]


def _useless(member: Member) -> str | None:
    """Why a run has no figures to show: records of its requests are lost, or its steps are."""
    for finding in member.summary["damage"]:
        folder, _, name = finding["file"].partition("/")
        if folder in (rundir.REQUESTS, rundir.STEPS) and not name.endswith(".errors.jsonl"):  # those are but examples
            return f"{finding['file']}: {finding['text']}"
    return None if any(one["level"] for one in member.summary["steps"]) else "it has no step with a load"


def _points(members: Iterable[Member]) -> list[RunSet]:
    """Runs of one group together, in the order of their first runs."""
    groups: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda member: (str(member.manifest["created"]), member.path.name)):
        groups.setdefault(group_of(member.manifest) or member.path.name, []).append(member)
    return [RunSet(name, name, tuple(runs)) for name, runs in groups.items()]


def _steps(point: RunSet) -> list[str]:
    """The steps that all runs of a point have."""
    first, *others = (levels(member.summary) for member in point.runs)
    return [name for name in first if all(name in other for other in others)]


def _step(points: Sequence[RunSet], asked: str | None) -> str:
    """Of the last point's; the first of equal ones from the end."""
    names = _steps(points[-1])
    if asked is not None:
        names, known = [name for name in names if asked in (name, name.split()[0])], names
        if not names:
            raise UsageError(f"--step {asked}: there is no such step in {points[-1].name}; it has {', '.join(known)}")
    if not names:
        raise UsageError(f"the runs of {points[-1].name} have no step in common: give them a label of their own")
    return max(reversed(names), key=lambda name: sum(name in _steps(point) for point in points))


def _known(points: Sequence[RunSet], step: str, name: str) -> bool:
    return any(value_of(one, name) is not None for point in points for one in steps_of(point, step))


def _entry(point: RunSet, step: str, names: Sequence[str]) -> dict[str, Any]:
    manifest = point.runs[0].manifest
    unknown: dict[str, Any] = {"change": None, "change_ci95": [None, None], "p": None, "p_adjusted": None}
    return {
        "name": point.name,
        "created": manifest["created"],
        "label": manifest["label"],
        "model": manifest["target"].get("model"),
        "revision": manifest["source_revision"],
        "runs": len(point.runs),
        "changed": [],
        "figures": {name: figure_of(point, step, name) | unknown | {"differs": None} for name in names},
    }


def _change(sides: Sequence[Side], before: int, after: int, name: str) -> dict[str, Any]:
    """Of a figure from one point to another: how far, its interval and p; null where those are not known."""
    estimate = effects.difference(sides[before], sides[after])
    if estimate is None:
        return {"change": None, "change_ci95": [None, None], "p": None}
    sure = change_between(sides, before, after)
    ratio = is_ratio(name)
    ends = effects.interval(sure)
    if not ratio:
        ends = bounded(name, ends, change=True)
    return {
        "change": change(estimate.value, ratio),
        "change_ci95": [change(end, ratio) for end in ends],
        "p": effects.p_differs(sure) if sure else None,
    }


def change_between(sides: Sequence[Side], before: int, after: int) -> Estimate | Ranked | None:
    """One point's figure less another's, with an error that has what differs from run to run in it.

    None where that is not known: a point is a single run, and there are too few points.
    """
    found = effects.difference(sides[before], sides[after])
    one, other = sides[before], sides[after]
    if min(len(one.values), len(other.values)) > 1:
        return found
    if not isinstance(found, Estimate):  # failures reach a percentile in one run, and in the next one not
        return found if one.silent or other.silent else None
    known = [side for side in sides if side.values and all(map(math.isfinite, side.values))]
    if len(known) < LEAST_POINTS:
        return None
    # Differences of neighbours in standard errors of their own; about their median, for a steady drift is no noise.
    apart = np.array([(centre(b.values) - centre(a.values)) / _of_runs(a, b) for a, b in pairwise(known)])
    spread = _NORMAL_MAD * float(np.median(abs(apart - np.median(apart)))) * _of_runs(one, other)
    error = max(spread, math.hypot(one.least_error, other.least_error))
    below, above = (max(error, within) if math.isfinite(within) else error for within in (found.below, found.above))
    freedom = apart.size / 2 - 0.25  # by simulation: from six points on 5 % and 1 % are no less than false alarms are
    return Estimate(found.value, below, above, freedom) if min(below, above) > 0 else None


def _of_runs(one: Side, other: Side) -> float:
    """The standard error of a difference of means, for a standard deviation of 1 between runs."""
    return math.sqrt(1 / len(one.values) + 1 / len(other.values))


def _why_indicative(points: Sequence[RunSet]) -> str | None:
    """Why changes of some points cannot be told from chance."""
    if len(points) < 2 or len(points) >= LEAST_POINTS or all(len(point.runs) > 1 for point in points):
        return None
    return (
        f"how much runs of one configuration differ among themselves is not known with single runs at fewer than "
        f"{LEAST_POINTS} points, so their changes are indicative and not marked: repeat with loadgen run --repeat 5"
    )


def _trends(sides: dict[str, list[Side]]) -> list[dict[str, Any]]:
    """Of each figure; of those that are said to trend a share of 5 % may not (Benjamini-Hochberg)."""
    trends = [_trend(name, [side for side in every if side.values]) for name, every in sides.items()]
    known = [trend for trend in trends if trend["p"] is not None]
    for trend, p in zip(known, effects.benjamini_hochberg([trend["p"] for trend in known]), strict=True):
        trend |= {"p_adjusted": p, "trend": trend["trend"] if p <= ALPHA else "none shown"}
    return trends


def _trend(name: str, known: Sequence[Side]) -> dict[str, Any]:
    """Of a figure over all points that have it: Kendall's p, and the change from the first to the last."""
    means = [centre(side.values) for side in known]
    p = kendall_p(means)
    of_ends = _change(known, 0, len(known) - 1, name) if len(known) > 1 else dict.fromkeys(("change", "change_ci95"))
    return {
        "figure": name,
        "title": COMPARED[name].title,
        "unit": COMPARED[name].unit,
        "relative": is_ratio(name),
        "points": len(known),
        "change": of_ends["change"],
        "change_ci95": of_ends["change_ci95"] or [None, None],
        "p": p,
        "p_adjusted": None,
        "trend": None if p is None else "rises" if _score(means) > 0 else "falls",
    }


def _score(values: Sequence[float]) -> int:
    """Kendall's S: pairs that go up less pairs that go down."""
    order = np.array(values)
    return int(np.triu((order > order[:, None]).astype(int) - (order < order[:, None])).sum())


def kendall_p(values: Sequence[float]) -> float | None:
    """Two-sided: how often an order at random has as large an S. None for fewer than three values."""
    n = len(values)
    if n < 3:
        return None
    score = abs(_score(values))
    if n >= NORMAL_FROM:
        deviation = math.sqrt(score_variance(np.array(values)))
        return math.erfc(max(score - 1, 0) / deviation / math.sqrt(2)) if deviation else 1.0
    most = (n * (n - 1) // 2 - score) // 2
    return min(1.0, 2 * _orders_up_to(n)[most] / math.factorial(n))


@cache
def _orders_up_to(n: int) -> tuple[int, ...]:
    """How many orders of n values have so many inversions or fewer."""
    orders = [1]
    for size in range(2, n + 1):
        sums = [0, *accumulate(orders)]
        last = len(orders)
        orders = [sums[min(k + 1, last)] - sums[max(k - size + 1, 0)] for k in range(last + size - 1)]
    return tuple(accumulate(orders))
