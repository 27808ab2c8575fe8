"""The runs of a label over time: a point a run, or a group of repeats, each figure at one step, and whether it trends.

A point is compared with the one before as two sides of a comparison are; over all points a trend is Kendall's test on
their order, exact, so that five points are the fewest that can show one. No clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from analysis import effects
from analysis.compare import figure_of
from analysis.compared import COMPARED, is_ratio, side_of, value_of
from analysis.effects import ALPHA
from analysis.environment import differences
from analysis.judgement import change
from analysis.report.saved import summary_of
from analysis.sides import Member, RunSet, differing, group_of, levels, manifests, steps_of
from loadgen import rundir
from loadgen.errors import UsageError

# 1  first version
SCHEMA = 1

History = dict[str, Any]


def history(pattern: str, runs_dir: Path, step: str | None) -> History:
    """For JSON: every point with its figures at `step` ("100 users"; None: the highest that all points have), trends.

    `pattern` is a label, or one with * and ?. Complete runs count; of these the ones that are comparable to the last.

    Raises UsageError when no run fits, or none has the step.
    """
    found = [item for item in manifests(runs_dir) if fnmatchcase(str(item[1]["label"] or ""), pattern)]
    members = [
        Member(path, manifest, summary_of(path)) for path, manifest in found if manifest["status"] == rundir.COMPLETE
    ]
    members = [member for member in members if any(one["level"] for one in member.summary["steps"])]
    if not members:
        raise UsageError(f"no complete run in {runs_dir} has the label {pattern!r}: see loadgen runs, or --runs-dir")
    points = _points(members)
    reasons: dict[str, str] = {point.name: differing(point.runs[0], points[-1].runs[0]) for point in points}
    kept = [point for point in points if not reasons[point.name]]
    at = _step(kept, step)
    names = [name for name, figure in COMPARED.items() if figure.shown and _known(kept, at, name)]
    entries = [_entry(point, at, names) for point in kept]
    for before, after, entry in zip(kept, kept[1:], entries[1:], strict=False):
        entry["changed"] = [fact._asdict() for fact in differences(before, after)]
        _compare(before, after, at, entry["figures"])
    changes = [figure for entry in entries for figure in entry["figures"].values() if figure["p"] is not None]
    for figure, p in zip(changes, effects.benjamini_hochberg([figure["p"] for figure in changes]), strict=True):
        figure |= {"p_adjusted": p, "differs": p <= ALPHA}
    return {
        "schema": SCHEMA,
        "label": pattern,
        "step": at,
        "simulated_gpu": any(bool(member.summary["simulated_gpu"]) for point in kept for member in point.runs),
        "points": entries,
        "trends": _trends(kept, at, names),
        "left_out": [{"name": name, "why": why} for name, why in reasons.items() if why],
    }


def _points(members: Iterable[Member]) -> list[RunSet]:
    """Runs of one group together, in the order of their first runs."""
    groups: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda member: (str(member.manifest["created"]), member.path.name)):
        groups.setdefault(group_of(member.manifest) or member.path.name, []).append(member)
    return [RunSet(name, name, tuple(runs)) for name, runs in groups.items()]


def _step(points: Sequence[RunSet], asked: str | None) -> str:
    common = [
        name
        for name in levels(points[-1].runs[0].summary)
        if all(name in levels(member.summary) for point in points for member in point.runs)
    ]
    if asked is None:
        return common[-1]
    fitting = [name for name in common if asked in (name, name.split()[0])]
    if not fitting:
        raise UsageError(f"--step {asked}: there is no such step in all of these runs; they have {', '.join(common)}")
    return fitting[0]


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


def _compare(before: RunSet, after: RunSet, step: str, figures: dict[str, dict[str, Any]]) -> None:
    """Each figure of a point against that of the point before."""
    for name, figure in figures.items():
        ratio = is_ratio(name)
        sides = [side_of(steps_of(point, step), name, logarithms=ratio) for point in (before, after)]
        if (estimate := effects.difference(*sides)) is not None:
            ends = estimate.interval()
            figure["change"] = change(estimate.value, ratio)
            figure["change_ci95"] = [change(end, ratio) for end in ends]
            figure["p"] = estimate.p_differs() if estimate.infinite is not None or ends != (None, None) else None


def _trends(points: Sequence[RunSet], step: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each figure; of those that are said to trend a share of 5 % may not (Benjamini-Hochberg)."""
    trends = [_trend(points, step, name) for name in names]
    known = [trend for trend in trends if trend["p"] is not None]
    for trend, p in zip(known, effects.benjamini_hochberg([trend["p"] for trend in known]), strict=True):
        trend |= {"p_adjusted": p, "trend": trend["trend"] if p <= ALPHA else "none shown"}
    return trends


def _trend(points: Sequence[RunSet], step: str, name: str) -> dict[str, Any]:
    """Of a figure over all points that have it: Kendall's p, and the change from the first to the last."""
    ratio = is_ratio(name)
    known = [side for point in points if (side := side_of(steps_of(point, step), name, logarithms=ratio)).values]
    means = [math.fsum(side.values) / len(side.values) for side in known]
    p = kendall_p(means)
    estimate = effects.difference(known[0], known[-1]) if len(known) > 1 else None
    ends = estimate.interval() if estimate else (None, None)
    return {
        "figure": name,
        "title": COMPARED[name].title,
        "unit": COMPARED[name].unit,
        "relative": ratio,
        "points": len(known),
        "change": change(estimate.value, ratio) if estimate else None,
        "change_ci95": [change(end, ratio) for end in ends],
        "p": p,
        "p_adjusted": None,
        "trend": None if p is None else "rises" if _score(means) > 0 else "falls",
    }


def _score(values: Sequence[float]) -> int:
    """Kendall's S: pairs that go up less pairs that go down."""
    return sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])


def kendall_p(values: Sequence[float]) -> float | None:
    """Two-sided, exact: how often an order at random has as large an S. None for fewer than three values."""
    n = len(values)
    if n < 3:
        return None
    orders = [1]  # how many orders of the first values have so many inversions
    for size in range(2, n + 1):
        longer = [0] * (len(orders) + size - 1)
        for inversions, count in enumerate(orders):
            for place in range(size):
                longer[inversions + place] += count
        orders = longer
    pairs = n * (n - 1) // 2
    most = (pairs - abs(_score(values))) // 2
    return min(1.0, 2 * sum(orders[: most + 1]) / math.factorial(n))
