"""How often the 95 % intervals of analysis/intervals.py hold the truth: series whose mean and percentiles are known.

    python -m benchmarks.interval_coverage            prints the table
    python -m benchmarks.interval_coverage --write    and writes RESULTS-intervals.md

A series is latencies of requests one after the other: exp(sigma x), x an AR(1) process of standard normal values with
the autocorrelation phi from one to the next. Failures, where there are some, are +infinity and come in bursts as the
longest latencies do.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from analysis.intervals import mean_interval, percentile_bounds
from analysis.stats import PERCENTILES, Floats

RESULTS = Path(__file__).with_name("RESULTS-intervals.md")
SIGMA = 0.5
PHIS = (0.0, 0.5, 0.8, 0.9, 0.95)
SIZES = (300, 1000, 3000, 10_000)
SERIES = 2000


class Cell(NamedTuple):
    """Of the intervals of one figure: the share that holds the truth, of those that were given, and how many were.

    `open` is the share of those given without an upper bound.
    """

    covered: float
    given: float
    open: float


def series(count: int, n: int, phi: float, sigma: float, rng: np.random.Generator) -> Floats:
    """`count` series of n latencies, ms; the median is 100."""
    return np.asarray(100 * np.exp(sigma * ar1(count, n, phi, rng)))


def ar1(count: int, n: int, phi: float, rng: np.random.Generator) -> Floats:
    """`count` series of n standard normal values with the autocorrelation phi from one to the next."""
    noise = rng.standard_normal((n, count))
    noise[1:] *= math.sqrt(1 - phi * phi)
    for before, now in pairwise(noise):
        now += phi * before
    return np.asarray(noise.T)


def coverage(count: int, n: int, phi: float, seed: int, sigma: float = SIGMA, failed: float = 0.0) -> dict[str, Cell]:
    """Cells of the mean (without failures) and of each percentile; the longest `failed` share of latencies failed."""
    normal = NormalDist()
    limit = 100 * math.exp(sigma * normal.inv_cdf(1 - failed)) if failed else math.inf
    truth = {f"p{p}": 100 * math.exp(sigma * normal.inv_cdf(p / 100)) for p in PERCENTILES}
    truth = {name: math.inf if value >= limit else value for name, value in truth.items()}
    mean = 100 * math.exp(sigma * sigma / 2)
    hits: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in ("mean", *truth)}
    for values in series(count, n, phi, sigma, np.random.default_rng(seed)):
        if (interval := mean_interval(values)) is not None:
            hits["mean"].append((_holds(interval, mean), True, False))
        for name, (low, high, _) in percentile_bounds(np.where(values < limit, values, np.inf)).items():
            if low is not None or high is not None:
                hits[name].append((_holds((low, high), truth[name]), True, high is None))
    return {name: _cell(found, count) for name, found in hits.items()}


def _holds(interval: tuple[float | None, float | None], truth: float) -> bool:
    low, high = interval
    return (low is None or low <= truth) and (high is None or truth <= high)


def _cell(found: list[tuple[bool, bool, bool]], count: int) -> Cell:
    if not found:
        return Cell(math.nan, 0.0, math.nan)
    covered, given, unbounded = np.array(found, dtype=float).sum(axis=0)
    return Cell(covered / given, given / count, unbounded / given)


def study(count: int) -> Iterator[str]:
    """The table in Markdown, line by line."""
    names = ("mean", *(f"p{p}" for p in PERCENTILES))
    yield "| n | phi | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for n in SIZES:
        for phi in PHIS:
            cells = coverage(count, n, phi, seed=n + round(1000 * phi))
            yield f"| {n} | {phi:g} | " + " | ".join(_text(cells[name]) for name in names) + " |"


def _text(cell: Cell) -> str:
    if not cell.given:
        return "-"
    notes = [f"given {cell.given:.0%}"] if cell.given < 0.995 else []
    notes += [f"open {cell.open:.0%}"] if cell.open > 0.005 else []
    return f"{100 * cell.covered:.1f}" + (f" ({', '.join(notes)})" if notes else "")


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
        RESULTS.write_text(_HEAD.format(series=options.series, sigma=SIGMA) + "\n".join(lines) + "\n")


_HEAD = """# Coverage of the 95 % intervals

How often, in %, an interval holds the truth: {series} series a row of n log-normal latencies (sigma {sigma}), an AR(1)
process under the logarithm with autocorrelation phi from one request to the next. "given": the share of series for
which there was an interval at all: with too few independent values there is none. "open": of those, the share without
an upper bound, because it lies beyond the sample.

`python -m benchmarks.interval_coverage --series {series} --write`

"""

if __name__ == "__main__":
    main()
