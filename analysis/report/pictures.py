"""Which figures a report has, in which order and with which words; each is drawn by a function of plots/.

A figure without data is left out. Bins of time are seconds since the run's start.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import host_tables, tables
from analysis.plots import bounds, canvas, concurrency, timeline
from analysis.windows import Window

_CAPTIONS = {
    "qps_vs_concurrency": "Requests and output tokens a second in each step's measuring window; bands: 95 % intervals.",
    "latency_vs_concurrency": "Percentiles of requests that were intended in the window; failures count as infinite. "
    "Bands are 95 % intervals; dotted: too few independent requests for an upper end.",
    "throughput_latency": "Each step is a point, labelled with its level: what more load brings, and what it costs.",
    "gpu_vs_concurrency": "Effective VRAM leaves out what the server reserved for its KV cache and does not use.",
    "queue_vs_concurrency": "What the model server says of itself: sums over its engines; KV usage is their mean.",
    "host_vs_concurrency": "Means of each window; pressure is the share of time in which some task waited for a CPU.",
    "client_vs_concurrency": "Whether the client was on time: above a dotted line the step carries a caveat.",
    "timeline": "The whole run; TTFT is that of requests intended in the bin.",
    "errors": "Failed requests of the whole run by how they ended, at the time of their end.",
}
# What these show is the simulator's model when the target is simulated.
_MODELLED = ("gpu_vs_concurrency", "queue_vs_concurrency", "timeline")


class Picture(NamedTuple):
    """`source` is a data URL."""

    name: str
    caption: str
    source: str


class OverTime(NamedTuple):
    """The timeline and the failures in bins of so many seconds."""

    timeline: pd.DataFrame
    width_s: float
    failures: pd.DataFrame
    failures_width_s: float


def draw(
    folder: Path, summary: dict[str, Any], steps: pd.DataFrame, over_time: OverTime, windows: list[Window]
) -> list[Picture]:
    """Save each figure that there are data for, as PNG and SVG."""
    pictures = []
    source = tables.gpu_source(summary)
    with canvas.styled():
        figures = {
            "qps_vs_concurrency": concurrency.qps_vs_concurrency(steps),
            "latency_vs_concurrency": concurrency.latency_vs_concurrency(steps),
            "throughput_latency": concurrency.throughput_latency(steps),
            "gpu_vs_concurrency": concurrency.gpu_vs_concurrency(steps, host_tables.gpus_frame(summary)),
            "queue_vs_concurrency": bounds.queue_vs_concurrency(steps),
            "host_vs_concurrency": bounds.host_vs_concurrency(steps, host_tables.hosts_frame(summary)),
            "client_vs_concurrency": bounds.client_vs_concurrency(steps),
            "timeline": timeline.timeline(over_time.timeline, over_time.width_s, windows, source),
            "errors": timeline.errors(over_time.failures, over_time.failures_width_s, windows, source),
        }
        for name, figure in figures.items():
            if figure is not None:
                canvas.save(figure, folder, name)
                data = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
                caption = _CAPTIONS[name]
                if summary["simulated_gpu"] and name in _MODELLED:
                    caption += " GPU and server figures: simulated GPU."
                pictures.append(Picture(name, caption, f"data:image/svg+xml;base64,{data}"))
    return pictures
