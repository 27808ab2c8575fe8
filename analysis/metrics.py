"""What each figure is: its unit, its formula, and whom it counts. Reports print this table; nothing is computed here.

Times are seconds since the run's start on the controller (clocks.py); figures are ms, bytes, watts as named. CANCELLED
requests are counted and are in nothing else but the in-flight mean.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Metric(NamedTuple):
    name: str
    unit: str
    formula: str
    counts: str


METRICS = (
    Metric("QPS", "1/s", "requests that ended in the window / window", "OK, wherever they began"),
    Metric("success", "%", "OK / (requests − cancelled)", "intended in the window"),
    Metric("TTFT", "ms", "first event that carries output − intended", "intended in the window; a failure is +∞"),
    Metric("E2E", "ms", "end − intended", "intended in the window; a failure is +∞"),
    Metric(
        "service time",
        "ms",
        "end − sent: without the time that a request waited to be sent",
        "intended in the window and sent; a failure is +∞",
    ),
    Metric("TPOT", "ms", "(last token − first token) / (output tokens − 1)", "as E2E; none for a single token"),
    Metric(
        "ITL",
        "ms",
        "gap between tokens; a chunk of k tokens spreads its gap over k",
        "all gaps of OK requests; in a long run, of every k-th request",
    ),
    Metric("…_ok", "ms", "the same without failures", "OK: the survivors only"),
    Metric(
        "goodput",
        "1/s",
        "good requests that ended in the window / window; good: OK, and each latency with an objective is below its "
        "limit, whatever the objective's percentile (of several limits the largest; ITL: the request's TPOT)",
        "good requests, wherever they began",
    ),
    Metric("good", "%", "good requests / (requests − cancelled)", "intended in the window"),
    Metric("prompt, output tokens", "", "mean tokens of a request, as the server's usage says", "OK"),
    Metric("prompt tok/s", "1/s", "prompt tokens of requests that ended in the window / window", "OK"),
    Metric(
        "resident tokens",
        "",
        "time-weighted mean of the tokens in the KV cache: prompt + output so far of each request between its first "
        "token and its end; output grows evenly from the first token to the last",
        "all; a request that the server gave no usage for counts with the mean prompt of the others",
    ),
    Metric("output tok/s", "1/s", "output tokens that arrived in the window / window", "OK, wherever they began"),
    Metric("delivered", "1/s", "requests sent in the window / window", "open model: all, cancelled ones too"),
    Metric(
        "dropped", "", "requests that were due, and not sent because too many were in flight", "open model: failures"
    ),
    Metric("in flight", "", "time-weighted mean of requests sent and not ended", "all, cancelled ones too"),
    Metric(
        "percentile",
        "",
        "smallest value that p % of the sample do not exceed (inverted CDF); no interpolation",
        "each request; in a run of more than 16 million every k-th",
    ),
    Metric(
        "95 % interval",
        "",
        "means and rates: batch means; percentiles: binomial bounds on ranks of the effective number of requests",
        "the same requests, in the order of their intended instants; “≥”: the upper bound is beyond the sample",
    ),
    Metric(
        "warm-up",
        "s",
        "share of the plan; more where MSER-5 on QPS or on mean E2E latency finds it, at most half of the step",
        "OK, by when they ended",
    ),
    Metric(
        "Little's law",
        "",
        "in flight = requests that ended in the window / window × their mean time from sent to end",
        "all that were sent, cancelled ones too",
    ),
    Metric("GPU util", "%", "share of time with a kernel running, mean over the window and the GPUs", "GPU samples"),
    Metric(
        "SM, tensor, DRAM",
        "%",
        "SMs at work, tensor cores at work, memory bandwidth in use: mean over the window (GPM; Hopper and later)",
        "GPU samples",
    ),
    Metric("throttled", "%", "growth of the driver's counters of time held back / time, by power and by heat", "GPU"),
    Metric("VRAM used", "GiB", "memory in use as the driver says, summed over the GPUs", "GPU samples"),
    Metric(
        "VRAM effective",
        "GiB",
        "used − KV pool + KV usage × KV pool: without the part of the pool that is reserved and empty",
        "GPU and server samples; none when the server does not tell its pool",
    ),
    Metric(
        "power",
        "W",
        "energy counter's difference / time, else mean of the driver's averages, else of the power samples",
        "summed over the GPUs",
    ),
    Metric(
        "read lag",
        "ms",
        "our read − the kernel's receipt",
        "all reads of requests that ended in the window; else the worst of each that was intended in it",
    ),
    Metric(
        "send lag",
        "ms",
        "sent − intended − the time that its connection took",
        "intended in the window; no second attempts",
    ),
    Metric("client lag", "ms", "read lag; without kernel stamps, lateness of the workers' event loops", "as read lag"),
)
