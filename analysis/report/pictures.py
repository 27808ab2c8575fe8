"""Which figures a report has, in which order and with which words; each is drawn by a function of plots/.

A figure without data is left out. Bins of time are seconds since the run's start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import clocks, host_tables, tables
from analysis.analyse import Analysed
from analysis.plots import bounds, concurrency, distributions, energy, errors, gpus, timeline, trends
from analysis.report.artists import Artists, Job
from analysis.report.embedded import Picture, data_url

_CAPTIONS = {
    "qps_vs_concurrency": "Requests and output tokens a second in each step's measuring window, by when they ended; "
    "bands: 95 % intervals.",
    "latency_vs_concurrency": "Percentiles of requests that were intended in the window; failures count as infinite. "
    "Bands are 95 % intervals; dotted upwards: too few independent requests for an upper end.",
    "itl_vs_concurrency": "Left: every gap between two tokens of successful requests. Right: each request's mean time "
    "per token after the first; failures count as infinite. Bands are 95 % intervals.",
    "throughput_latency": "Each step is a point, labelled with its level: what more load brings, and what it costs.",
    "latency_cdf": "The share of the requests intended in each step's window that took so long or less, darker for "
    "later steps. Failures never arrive: a curve that stays below 100 % shows their share.",
    "latency_heat": "All requests of the run by when they were intended and how long they took, darker where there "
    "are more; lines: p50 and p99 of each bin; crosses: some of the bin failed, and count as infinite.",
    "prompt_surface": "Time to first token of the requests intended in each step's window, by the prompt tokens that "
    "the server counted; failures of unknown length are not in it. Hatched: read with care.",
    "vram_vs_concurrency": "Means of each window. Effective VRAM leaves out what the server reserved for its KV cache "
    "and does not use; predicted: what the model of memory expects, with the level at which the cache is full; bands: "
    "lowest to highest card.",
    "gpu_vs_concurrency": "Means of each step's window, of each GPU up to four, else their median and range; clocks "
    "and temperature from samples a second apart, held back from the driver's counters.",
    "energy_vs_concurrency": "Mean power of all GPUs by output tokens a second and by successful requests a second: "
    "idle power and failed work are in it.",
    "queue_vs_concurrency": "What the model server says of itself: sums over its engines; KV usage is their mean.",
    "host_vs_concurrency": "Means of each window; pressure is the share of time in which some task waited for a CPU.",
    "client_vs_concurrency": "Whether the client was on time: above a dotted line the step carries a caveat.",
    "timeline": "The whole run; TTFT is that of requests intended in the bin, QPS that of those that ended in it; "
    "numbers mark events.",
    "trends": "What rose, fell or jumped while the load stood still: the signal, its fitted line (median of slopes), "
    "and the 95 % interval of the slope.",
    "errors": "Failed requests of the whole run by how they ended, at the time of their end.",
}
# What these show is the simulator's model when the target is simulated.
_MODELLED = ("timeline", *(f"{what}_vs_concurrency" for what in ("vram", "gpu", "energy", "queue")))


def draw(
    artists: Artists, folder: Path, summary: dict[str, Any], steps: pd.DataFrame, analysed: Analysed
) -> Callable[[], list[Picture]]:
    """Begin to save each figure that there are data for, as PNG and SVG; what is returned waits for them.

    `summary` and `steps` have the steps to show.
    """
    windows, over_time, spread = analysed.windows, analysed.over_time, analysed.distributions
    events = [(at_s, str(event.get("kind", ""))) for at_s, event in clocks.events(analysed.run)]
    source = tables.gpu_source(summary)
    slo = summary["slo"] or ()
    of_gpus, bins = host_tables.gpus_frame(summary), spread.over_time()
    jobs: dict[str, Job] = {
        "qps_vs_concurrency": (concurrency.qps_vs_concurrency, steps),
        "latency_vs_concurrency": (concurrency.latency_vs_concurrency, steps, slo),
        "throughput_latency": (concurrency.throughput_latency, steps, slo),
        "itl_vs_concurrency": (concurrency.itl_vs_concurrency, steps, slo),
        "latency_cdf": (distributions.latency_cdf, spread.cdf(), source),
        "latency_heat": (distributions.latency_heat, spread.heat(), bins, windows, spread.length_s, source),
        "prompt_surface": (distributions.prompt_surface, spread.surface(), source),
        "vram_vs_concurrency": (gpus.vram_vs_concurrency, steps, of_gpus, summary["vram"]),
        "gpu_vs_concurrency": (gpus.gpu_vs_concurrency, steps, of_gpus),
        "energy_vs_concurrency": (energy.energy_vs_concurrency, steps),
        "queue_vs_concurrency": (bounds.queue_vs_concurrency, steps),
        "host_vs_concurrency": (bounds.host_vs_concurrency, steps, host_tables.hosts_frame(summary)),
        "client_vs_concurrency": (bounds.client_vs_concurrency, steps),
        "timeline": (timeline.timeline, over_time.timeline, over_time.width_s, windows, events, source),
        "trends": (trends.trends, analysed.trends, source),
        "errors": (errors.errors, over_time.failures, over_time.failures_width_s, windows, source),
    }
    drawn = artists.draw(folder, jobs)

    def finished() -> list[Picture]:
        there, pictures = drawn(), []
        for name in (name for name in jobs if name in there):
            source_of = data_url((folder / f"{name}.svg").read_bytes(), "svg+xml")
            caption = _CAPTIONS[name]
            if summary["simulated_gpu"] and name in _MODELLED:
                caption += " GPU and server figures: simulated GPU."
            pictures.append(Picture(name, caption, source_of))
        return pictures

    return finished
