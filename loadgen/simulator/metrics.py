"""/metrics: the replicas' state as Prometheus text under vLLM's names, and the simulator's own lateness.

One `engine` label a replica, as vLLM has for its data-parallel ranks. Histograms are in seconds. No clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from loadgen.simulator.model import Replica
from loadgen.simulator.profiles import BLOCK_SIZE, GPU_MEMORY_UTILISATION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# vLLM's buckets
TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
E2E_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
LATENESS_BOUNDS = (0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.007, 0.01, 0.02, 0.05, 0.1, 0.5)


class Histogram:
    """Counts by upper bound, in the unit of the bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        below = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {below}\n'
        yield f"{name}_sum{{{labels}}} {self.total}\n{name}_count{{{labels}}} {below}\n"


class ReplicaMetrics:
    """What the server, not the model, counts for one replica."""

    def __init__(self) -> None:
        self.ttft_s = Histogram(TTFT_BOUNDS)
        self.e2e_s = Histogram(E2E_BOUNDS)
        self.lateness_s = Histogram(LATENESS_BOUNDS)
        self.late_emissions = 0


# name, type, help, value
_SIMPLE: tuple[tuple[str, str, str, Callable[[Replica[Any], ReplicaMetrics], float]], ...] = (
    ("vllm:num_requests_running", "gauge", "Requests with a slot.", lambda r, m: r.running),
    ("vllm:num_requests_waiting", "gauge", "Requests in the queue.", lambda r, m: len(r.queue)),
    (
        "vllm:kv_cache_usage_perc",
        "gauge",
        "Share of the KV blocks in use, 0 to 1.",
        lambda r, m: 1 - r.pool.free / r.pool.blocks,
    ),
    ("vllm:num_preemptions_total", "counter", "Sequences put back for want of a KV block.", lambda r, m: r.preemptions),
    ("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.", lambda r, m: r.prefix_queries),
    ("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found.", lambda r, m: r.prefix_hits),
    ("vllm:prompt_tokens_total", "counter", "Prompt tokens, cached ones too.", lambda r, m: r.prompt_tokens),
    ("vllm:generation_tokens_total", "counter", "Tokens generated.", lambda r, m: r.generated_tokens),
    ("simulator_predictions_total", "counter", "Items of /predict computed.", lambda r, m: r.predicted),
    (
        "simulator_emissions_total",
        "counter",
        "Writes of a token, or of an answer that is not streamed.",
        lambda r, m: m.lateness_s.count,
    ),
    (
        "simulator_late_emissions_total",
        "counter",
        "Emissions written more than 5 ms after the model's instant.",
        lambda r, m: m.late_emissions,
    ),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[ReplicaMetrics], Histogram]], ...] = (
    ("vllm:time_to_first_token_seconds", "Request arrived to first token out.", lambda m: m.ttft_s),
    ("vllm:e2e_request_latency_seconds", "Request arrived to last token out.", lambda m: m.e2e_s),
    ("simulator_emission_lateness_seconds", "Write of an emission after the model's instant.", lambda m: m.lateness_s),
)


def render(replicas: Sequence[Replica[Any]], metrics: Sequence[ReplicaMetrics]) -> bytes:
    """The exposition: a metric's values of all replicas follow its header."""
    engine = replicas[0].engine
    labels = [f'engine="{index}",model_name="{engine.model.name}"' for index in range(len(replicas))]
    lines: list[str] = []
    for name, kind, text, value in _SIMPLE:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")
        rows = zip(labels, replicas, metrics, strict=True)
        lines += [f"{name}{{{label}}} {value(replica, metric)}\n" for label, replica, metric in rows]
    lines.append("# HELP vllm:request_success_total Requests ended.\n# TYPE vllm:request_success_total counter\n")
    for label, replica in zip(labels, replicas, strict=True):
        for reason, count in (("length", replica.finished - replica.predicted), ("abort", replica.cancelled)):
            lines.append(f'vllm:request_success_total{{{label},finished_reason="{reason}"}} {count}\n')
    lines.append("# HELP vllm:cache_config_info The KV cache's size.\n# TYPE vllm:cache_config_info gauge\n")
    info = (
        f'block_size="{BLOCK_SIZE}",cache_dtype="auto",gpu_memory_utilization="{GPU_MEMORY_UTILISATION}",'
        f'num_gpu_blocks="{engine.blocks}",kv_cache_memory_bytes="{engine.blocks * engine.block_b}"'
    )
    lines += [f"vllm:cache_config_info{{{label},{info}}} 1\n" for label in labels]
    for name, text, histogram in _HISTOGRAMS:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} histogram\n")
        for label, metric in zip(labels, metrics, strict=True):
            lines += histogram(metric).lines(name, label)
    return "".join(lines).encode()
