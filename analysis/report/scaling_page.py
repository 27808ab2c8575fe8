"""The page of how a system scales: one HTML file with its figure inside."""

from __future__ import annotations

from analysis import scaling_tables
from analysis.plots import canvas
from analysis.plots import scaling as plots
from analysis.report.embedded import Picture, embed
from analysis.report.templates import template
from analysis.scaling_tables import Scaling

_CAPTION = "Bars are 95 % intervals of the runs as they were; the dotted line is the ideal."


def page(scaling: Scaling) -> str:
    """The HTML page."""
    with canvas.styled():
        picture = Picture("over-cards", _CAPTION, embed(plots.scaling(scaling)))
    return template("scaling.html.j2").render(
        runs=scaling["runs"],
        base=scaling["base"],
        simulated=scaling["simulated_gpu"],
        verdict=scaling_tables.verdict(scaling),
        remedy=scaling_tables.remedy(scaling),
        picture=picture,
        peaks=scaling_tables.peak_table(scaling),
        losses=scaling_tables.loss_table(scaling),
        law=scaling_tables.law_text(scaling),
        warnings=scaling_tables.warnings_of(scaling),
        method=scaling_tables.METHOD,
    )
