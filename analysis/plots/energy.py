"""Energy over the level: what a token and a request cost. Takes tables.steps_frame."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import GREEN, PINK, level_axis, line, panels, titled, value_axis
from analysis.plots.concurrency import HALF, SIZE

_PANELS = (
    ("j_per_output_token", "Energy of an output token", "J per output token", GREEN, "D", "-"),
    ("j_per_request", "Energy of a request", "J per successful request", PINK, "s", "--"),
)


def energy_vs_concurrency(steps: pd.DataFrame) -> Figure | None:
    """J per output token and per request, of all GPUs of the run. None when power was not measured."""
    shown = [panel for panel in _PANELS if not steps.empty and steps[panel[0]].notna().any()]
    if not shown:
        return None
    figure, places = panels(1, len(shown), SIZE if len(shown) == 2 else HALF)
    for axes, (column, title, unit, color, marker, style) in zip(places, shown, strict=True):
        value_axis(axes, [steps[column]], unit, log=True)
        line(axes, steps["level"], steps[column], title, color=color, marker=marker, linestyle=style)
        level_axis(axes, steps["level"], steps["unit"].iloc[0])
        axes.set_title(titled(title, steps["gpu_source"].iloc[0]))
    return figure
