"""The page of how a system scales: one HTML file with its figure inside."""

from __future__ import annotations

import base64
import io

from analysis import scaling_tables
from analysis.plots import canvas
from analysis.plots import scaling as plots
from analysis.report.templates import template
from analysis.scaling_tables import Scaling

_DPI = 200  # twice what a page of this width shows


def page(scaling: Scaling) -> str:
    """The HTML page."""
    data = io.BytesIO()
    with canvas.styled():
        plots.scaling(scaling).savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return template("scaling.html.j2").render(
        runs=scaling["runs"],
        base=scaling["base"],
        simulated=scaling["simulated_gpu"],
        verdict=scaling_tables.verdict(scaling),
        remedy=scaling_tables.remedy(scaling),
        picture="data:image/png;base64," + base64.b64encode(data.getvalue()).decode(),
        peaks=scaling_tables.peak_table(scaling),
        losses=scaling_tables.loss_table(scaling),
        law=scaling_tables.law_text(scaling),
        warnings=scaling_tables.warnings_of(scaling),
        method=scaling_tables.METHOD,
    )
