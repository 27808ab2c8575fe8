"""The history of a label as words and rows. Pure, made of it alone."""

from __future__ import annotations

from typing import Any

from analysis.compare_tables import amount, changed, probability
from analysis.compared import COMPARED, is_ratio
from analysis.history import History
from analysis.plan_tables import aligned, between
from analysis.tables import DASH

_MAIN = (
    "qps",
    "output_tokens_per_s",
    "ttft_p50",
    "ttft_p95",
    "itl_p95",
    "e2e_p95",
    "error_rate",
    "vram",
    "j_per_output_token",
)
# Changes of a point that are named; the others are counted.
_NAMED = 4
MARKED = (
    "A change in brackets: against the point before, where it is more than chance (Benjamini-Hochberg: 5 % of those "
    "shown may be none). A single run is held against how far neighbouring points mostly are apart."
)


def headline(history: History) -> str:
    """The whole history in a sentence."""
    points, runs = len(history["points"]), sum(point["runs"] for point in history["points"])
    trends = [
        f"{trend['title']} {trend['trend']}" for trend in history["trends"] if trend["trend"] in ("rises", "falls")
    ]
    told = f"{history['label']}: {points} {'point' if points == 1 else 'points'} of {runs} runs, at {history['step']}. "
    if points < 5:
        return told + "A trend takes five points at least."
    return told + (f"Over all of them {', '.join(trends)}." if trends else "No figure has a trend.")


def point_table(history: History) -> tuple[list[str], list[list[str]]]:
    """A row a point; a figure that differs from the point before has its change beside it."""
    names = [name for name in _MAIN if any(name in point["figures"] for point in history["points"])]
    headers = [
        "point",
        "run",
        "made",
        "runs",
        "revision",
        "model",
        *(_header(name) for name in names),
        "what changed before",
    ]
    rows = []
    for number, point in enumerate(history["points"], start=1):
        cells = [_cell(name, point["figures"][name]) for name in names]
        about = [point["name"], str(point["created"])[:16].replace("T", " "), str(point["runs"])]
        rows.append(
            [str(number), *about, point["revision"] or DASH, point["model"] or DASH, *cells, _changes(point["changed"])]
        )
    return headers, rows


def trend_table(history: History) -> tuple[list[str], list[list[str]]]:
    """A row a figure: from the first point to the last, and whether it trends."""
    rows = [
        [
            trend["title"],
            str(trend["points"]),
            changed(trend, trend["change"]),
            between([changed(trend, end) for end in trend["change_ci95"]]),
            probability(trend["p_adjusted"]),
            trend["trend"] or "too few points",
        ]
        for trend in history["trends"]
    ]
    return ["figure", "points", "first to last", "95 %", "p (Kendall, BH)", "trend"], rows


def notes(history: History) -> list[str]:
    """What a reader should know of the points."""
    return [*([history["indicative"]] if history["indicative"] else []), *history["notes"]]


def as_text(history: History) -> str:
    lines = [
        headline(history),
        "",
        *aligned(*point_table(history), words=0),
        "",
        *aligned(*trend_table(history), words=1),
    ]
    lines += ["", MARKED, *(f"note: {note}" for note in notes(history))]
    lines += [f"left out: {entry['name']}: {entry['why']}" for entry in history["left_out"]]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _header(name: str) -> str:
    figure = COMPARED[name]
    return figure.title if figure.unit == "/s" else f"{figure.title} {figure.unit}"


def _cell(name: str, figure: dict[str, Any]) -> str:
    told = amount(name, figure["value"])
    if not figure["differs"]:
        return told
    return f"{told} ({changed({'relative': is_ratio(name), 'unit': COMPARED[name].unit}, figure['change'])})"


def _changes(facts: list[dict[str, Any]]) -> str:
    told = [f"{fact['name']}: {fact['base']} -> {fact['new']}" for fact in facts[:_NAMED]]
    more = f" and {len(facts) - _NAMED} more" if len(facts) > _NAMED else ""
    return ("; ".join(told) + more) if told else DASH
