"""How far the trends of analysis/slopes.py can be trusted: noise that has none, and a slope that is known under it.

    python -m benchmarks.trend_study            prints the tables
    python -m benchmarks.trend_study --write    and writes RESULTS-trends.md

Noise is an AR(1) process of standard normal values with the autocorrelation phi from one part of the window to the
next; a trend adds so many of its standard deviations over the window.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.slopes import jumps, slope
from analysis.trends import SURE
from benchmarks.interval_coverage import ar1

RESULTS = Path(__file__).with_name("RESULTS-trends.md")
PHIS = (0.0, 0.5, 0.8, 0.9, 0.95)
SIZES = (30, 60, 120, 200)
SERIES = 2000
# The trend that is to be found, in standard deviations of the noise over the window.
RISE = 4.0


class Cell(NamedTuple):
    """Shares: of intervals that hold the true slope; of trends told where there is none, at 5 % and as reports tell
    them; of jumps told where there is none; of trends found that are there.
    """

    covered: float
    false_5: float
    false_told: float
    jumped: float
    found: float


def study_of(count: int, n: int, phi: float, seed: int) -> Cell:
    """Of so many series of n values."""
    rng = np.random.default_rng(seed)
    t = np.arange(n, dtype=np.float64)
    rise = RISE * t / (n - 1)
    hits = []
    for noise in ar1(count, n, phi, rng):
        flat, risen = slope(t, noise, 0.0), slope(t, noise + rise, 0.0)
        hits.append(
            (
                flat.low <= 0 <= flat.high,
                flat.p_value < 0.05,
                flat.p_value < SURE and not flat.low <= 0 <= flat.high,
                bool(jumps(noise)),
                risen.p_value < SURE and risen.low > 0,
            )
        )
    return Cell(*(float(share) for share in np.mean(hits, axis=0)))


def study(count: int) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield "| values | phi | interval holds the slope | false at p < 0.05 | false as told | false jumps | found |"
    yield "|---|---|---|---|---|---|---|"
    for n in SIZES:
        for phi in PHIS:
            cell = study_of(count, n, phi, seed=n + round(1000 * phi))
            yield f"| {n} | {phi:g} | " + " | ".join(f"{100 * share:.1f}" for share in cell) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=SERIES, help="how many series a row")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    lines = []
    for line in study(options.series):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        RESULTS.write_text(_HEAD.format(series=options.series, sure=SURE, rise=RISE) + "\n".join(lines) + "\n")


_HEAD = """# Trends: false alarms, coverage and power

{series} series a row, each an AR(1) process with the autocorrelation phi from one value to the next; shares in %.
"false as told": a trend in pure noise by the rule of the reports (p < {sure:g}, and the interval without 0), before it
is asked whether it is large enough to matter. "found": by the same rule, with a rise of {rise:g} standard deviations
over the window. The window of a step has 30 to 200 values; one of 100 s or more, of what is sampled often, has 200.

`python -m benchmarks.trend_study --series {series} --write`

"""

if __name__ == "__main__":
    main()
