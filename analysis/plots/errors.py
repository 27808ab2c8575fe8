"""What failed over time (failures.over_time), by how it ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    headroom,
    legend,
    panels,
    titled,
    value_axis,
)
from analysis.plots.marks import SHADED, label_steps, shade, time_axis
from analysis.windows import Window
from loadgen.record import Outcome

# Colour and hatch of each way to fail, the same in every report.
OUTCOME_LOOKS = {
    Outcome.HTTP_ERROR: (RED, ""),
    Outcome.TIMEOUT: (BLUE, ""),
    Outcome.CONNECT_ERROR: (ORANGE, ""),
    Outcome.RESET: (PINK, ""),
    Outcome.STREAM_ERROR: (GREEN, ""),
    Outcome.TRUNCATED: (SKY, ""),
    Outcome.MALFORMED: (BLACK, ""),
    Outcome.EMPTY: (RED, "//"),
    Outcome.TLS_ERROR: (BLUE, "//"),
    Outcome.DROPPED: (ORANGE, "//"),
}


def errors(frame: pd.DataFrame, width_s: float, windows: Sequence[Window], source: str) -> Figure | None:
    """Failed requests a second, stacked by outcome, in bins of `width_s`. None when nothing failed."""
    outcomes = [name for name in frame.columns if name != "t_s"]
    if not outcomes:
        return None
    figure, (axes,) = panels(1, 1, (9.6, 3.4))
    base = np.zeros(len(frame))
    for outcome in outcomes:
        color, hatch = OUTCOME_LOOKS[Outcome(outcome)]
        rate = frame[outcome].to_numpy() / width_s
        bars = axes.bar(frame["t_s"], rate, width_s, base, align="edge", label=outcome, color=color, hatch=hatch)
        for bar in bars:
            bar.set(edgecolor="white", linewidth=0.4, zorder=2)
        base += rate
    value_axis(axes, [pd.Series(base)], "failed requests/s")
    axes.set_title(titled("Failures", source))
    shade(axes, windows)
    headroom(axes, 0.2)
    label_steps(axes, windows)
    time_axis(axes, frame["t_s"].max() + width_s, SHADED)
    legend(axes, infinite=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
    return figure
