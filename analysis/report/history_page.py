"""The page of a label's history: one HTML file with its figure inside."""

from __future__ import annotations

from pathlib import Path

from analysis import history_tables as tables
from analysis.history import History
from analysis.plots import canvas
from analysis.plots import compare as plots
from analysis.report.embedded import Picture, embed
from analysis.report.templates import template

_CAPTION = "Every run (small), the mean of a point and its 95 % interval; red: differs from the point before"


def page(history: History) -> str:
    """The HTML page of a history."""
    with canvas.styled():
        picture = Picture("over-time", _CAPTION, embed(plots.over_time(history)))
    return template("history.html.j2").render(
        history=history,
        headline=tables.headline(history),
        points=tables.point_table(history),
        trends=tables.trend_table(history),
        marked=tables.MARKED,
        notes=tables.notes(history),
        picture=picture,
    )


def save_figures(history: History, folder: Path) -> None:
    """Write the figure as PNG and SVG. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with canvas.styled():
        canvas.save(plots.over_time(history), folder, "history")
