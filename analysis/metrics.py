"""The derived metrics: a table of what each one is, and the figures of a step or of a second.

Times are seconds since the run's start on the controller (clocks.py); figures are ms, bytes, watts as named.
CANCELLED requests are counted and are in nothing else but the in-flight mean. Not here: figures of GPUs and hosts
(gpus.py, hosts.py), what to make of a figure (checks.py), and how it looks (report/, plots/).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.clocks import seconds, start_ns
from analysis.gpus import Card, cards, gpu_figures, gpu_series, gpu_total
from analysis.hosts import host_figures
from analysis.intervals import mean_interval, percentile_bounds, rate_interval, share_interval
from analysis.join import Telemetry
from analysis.load import Run
from analysis.overlap import between, occupied, overlap_mean
from analysis.servers import server_figures, server_series
from analysis.stats import PERCENTILES, Floats, describe, percentile
from analysis.ttft_protocol import ttft_protocol
from analysis.windows import Window
from loadgen.histogram import quantile
from loadgen.record import Outcome

GIB = 2**30
# Equal parts of a window that the intervals of rates are made from.
RATE_PARTS = 1000
_LAG_STATS = {"p50": 0.5, "p99": 0.99, "max": 1.0}


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
    Metric("output tok/s", "1/s", "output tokens that arrived in the window / window", "OK, wherever they began"),
    Metric("delivered", "1/s", "requests sent in the window / window", "open model: all, cancelled ones too"),
    Metric(
        "dropped", "", "requests that were due, and not sent because too many were in flight", "open model: failures"
    ),
    Metric("in flight", "", "time-weighted mean of requests sent and not ended", "all, cancelled ones too"),
    Metric("percentile", "", "smallest value that p % of the sample do not exceed (inverted CDF)", "no interpolation"),
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


@dataclass(frozen=True)
class Requests:
    """`frame`: a row a request, on the controller's clock; `gap_*`: an element a chunk gap, `gap_row` its request.

    A gap's `gap_s` is the instant it ended, `gap_itl_ms` its length a token, `gap_tokens` the tokens it brought.
    Requests that are not `kept` had gaps, and only their summary was recorded.
    """

    frame: pd.DataFrame
    gap_row: NDArray[np.int64]
    gap_s: Floats
    gap_itl_ms: Floats
    gap_tokens: Floats


def derive(run: Run) -> Requests:
    """Latencies and instants of every request.

    The tokens of a request are spread evenly over its output events, which is exact for one token an event.
    """
    raw, zero = run.requests, start_ns(run)
    stamps = ("intended", "sent", "first_token", "last_token", "end")
    at = {name: seconds(raw[f"{name}_ns"], zero) for name in stamps}
    lengths = np.diff(run.gaps.offsets)
    outcome = raw["outcome"].fillna("").to_numpy(dtype=object)
    cancelled = outcome == Outcome.CANCELLED
    ok = outcome == Outcome.OK
    dropped = outcome == Outcome.DROPPED
    tokens, events = (_floats(raw[name]) for name in ("output_tokens", "output_events"))
    row = np.repeat(np.arange(len(raw)), lengths)
    kept = (lengths > 0) | raw["gap_max_us"].isna().to_numpy()
    chunks = np.where(np.isnan(at["first_token"]), 0, np.where(kept, lengths + 1, np.fmax(events, 1)))
    tokens = np.where(np.isnan(tokens), np.where(np.isnan(events), chunks, events), tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_chunk = np.where((chunks > 0) & (tokens > 0), tokens / chunks, 1.0)
        tpot = np.where((tokens > 1) & (chunks > 1), (at["last_token"] - at["first_token"]) / (tokens - 1), np.nan)
    frame = pd.DataFrame(
        {
            "intended_s": at["intended"],
            "sent_s": at["sent"],
            "begin_s": np.where(np.isnan(at["sent"]), at["intended"], at["sent"]),
            "first_token_s": at["first_token"],
            "last_token_s": at["last_token"],
            "end_s": np.where(dropped, at["intended"], at["end"]),
            "ttft_ms": _exact_ms(raw["first_token_ns"], raw["intended_ns"]),
            "e2e_ms": _exact_ms(raw["end_ns"], raw["intended_ns"]),
            "service_ms": _exact_ms(raw["end_ns"], raw["sent_ns"]),
            "tpot_ms": tpot * 1e3,
            "outcome": outcome,
            "ok": ok,
            "failed": ~ok & ~cancelled,
            "cancelled": cancelled,
            "dropped": dropped,
            "tokens": tokens,
            "chunks": chunks,
            "per_chunk": per_chunk,
            "kept": kept,
            # Plain inference has no tokens: nothing was to be counted.
            "uncounted": (raw["token_source"] == "events").to_numpy(dtype=bool, na_value=False),
            "server_times_us": raw["server_times_us"],
            "read_lag_ms": _floats(raw["read_lag_us"]) / 1e3,
            "send_lag_ms": _send_lag_ms(raw),
            "stamp_source": raw["stamp_source"],
            # A read of k output events is k - 1 gaps of 0 and one coalesced read.
            "shared": np.bincount(row[run.gaps.values == 0], minlength=len(raw))
            + np.nan_to_num(_floats(raw["coalesced_reads"])),
        }
    )
    elapsed = np.concatenate(([0], np.cumsum(run.gaps.values)))
    since_first = (elapsed[1:] - elapsed[run.gaps.offsets[:-1]][row]) / 1e6
    return Requests(
        frame=frame,
        gap_row=row,
        gap_s=at["first_token"][row] + since_first,
        gap_itl_ms=run.gaps.values / per_chunk[row] / 1e3,
        gap_tokens=per_chunk[row],
    )


def _exact_ms(later: pd.Series[int], earlier: pd.Series[int]) -> Floats:
    return np.asarray((later - earlier).to_numpy(dtype=np.float64, na_value=np.nan)) / 1e6


def _floats(column: pd.Series[int]) -> Floats:
    """NaN for null."""
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))


def _send_lag_ms(raw: pd.DataFrame) -> Floats:
    """How late the client sent: connecting is the network's and the server's time, and so is a first attempt."""
    connecting_us = sum(np.nan_to_num(_floats(raw[f"{phase}_us"])) for phase in ("dns", "connect", "tls"))
    late = np.fmax(_exact_ms(raw["sent_ns"], raw["intended_ns"]) - connecting_us / 1e3, 0)
    again = (raw["attempts"] > 1).to_numpy(dtype=bool, na_value=False) | raw["sent_ns"].isna().to_numpy()
    return np.asarray(np.where(again, np.nan, late))


def is_measured(frame: pd.DataFrame, name: str) -> bool:
    """Whether OK requests have that latency: plain inference has no TTFT, and then neither has a failure."""
    ok = frame["ok"].to_numpy()
    return not ok.any() or bool(frame.loc[ok, name].notna().any())


def latencies(frame: pd.DataFrame, name: str) -> Floats:
    """A latency, if it `is_measured`, of every request that was not cancelled.

    Failures are +infinity, OK requests without it are left out.
    """
    values: Floats = np.where(frame["failed"], np.inf, frame[name].to_numpy())[~frame["cancelled"].to_numpy()]
    return values[~np.isnan(values)]


def tokens_arrived(requests: Requests, edges: Floats) -> Floats:
    """Output tokens of OK requests that arrived in each bin between `edges`.

    Where only the gaps' summary was kept, the tokens after the first chunk are spread evenly up to the last one.
    """
    good = requests.frame[requests.frame["ok"]]
    gaps = requests.frame["ok"].to_numpy()[requests.gap_row]
    arrived = histogram(good["first_token_s"].to_numpy(), edges, good["per_chunk"].to_numpy())
    arrived += histogram(requests.gap_s[gaps], edges, requests.gap_tokens[gaps])
    first, last, tokens, per_chunk = (
        good.loc[~good["kept"], name].to_numpy() for name in ("first_token_s", "last_token_s", "tokens", "per_chunk")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (tokens - per_chunk) / (last - first)
    long = last > first
    spread = occupied(first[long], last[long], edges, rate[long]) * np.diff(edges)
    at_once = histogram(first[~long], edges, (tokens - per_chunk)[~long])
    return np.asarray(arrived + np.nan_to_num(spread) + at_once)


def histogram(values: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Sum of weights in each bin [edge, next edge); NaN values fall in none."""
    bins = np.searchsorted(edges, values, side="right")
    return np.asarray(np.bincount(bins, weights, minlength=edges.size + 1)[1 : edges.size], dtype=np.float64)


def step_figures(
    run: Run, requests: Requests, telemetry: Telemetry, gpus: Sequence[Card], window: Window
) -> dict[str, Any]:
    """Everything that is said of a step, but for its caveats: the entry of summary.json."""
    frame, edges = requests.frame, np.array([window.begin_s, window.end_s])
    intended = frame["intended_s"].to_numpy()
    chosen = between(intended, *edges)
    rows = np.flatnonzero(chosen)
    mine = frame.iloc[rows[np.argsort(intended[rows], kind="stable")]]
    ended = frame[between(frame["end_s"].to_numpy(), *edges)]
    outcomes = Counter(mine["outcome"])
    ok, cancelled = outcomes.pop(Outcome.OK, 0), outcomes.pop(Outcome.CANCELLED, 0)
    counted = len(mine) - cancelled
    good = mine[mine["ok"]]
    gaps = (chosen & frame["ok"].to_numpy())[requests.gap_row]
    gap_tokens = requests.gap_tokens[gaps]
    spread = not np.all(gap_tokens == 1.0)
    with_gaps = good[good["chunks"] > 1]
    read = mine[mine["kept"]]
    health = _during(run, run.health, window)
    loop_lag = _lag(_floats(health["loop_lag_p99_us"]) / 1e3, "p50", "p99")
    read_lag = _read_lag(run, mine, window)
    by_reads = read_lag["p99"] is not None
    measured = [(card, gpu_figures(card, edges)) for card in gpus]

    flying = in_flight(frame, edges)[0]
    parts = np.linspace(window.begin_s, window.end_s, RATE_PARTS + 1)
    has_tokens = good.empty or (good["tokens"] > 0).any()
    tokens = tokens_arrived(requests, parts) if has_tokens else np.zeros(0)
    of_ends = {
        name: histogram(ended["end_s"].to_numpy()[which], parts)
        for name, which in (
            ("qps", ended["ok"]),
            ("attempted_qps", ~ended["cancelled"]),
            ("failed_qps", ended["failed"]),
        )
    }

    return {
        "level": window.level,
        "unit": window.unit,
        "begin_s": window.begin_s,
        "end_s": window.end_s,
        "window_s": window.length_s,
        "requests": len(mine),
        "ok": ok,
        "errors": dict(sorted(outcomes.items())),
        "cancelled": cancelled,
        "dropped": outcomes[Outcome.DROPPED],
        "ended_after_window": int((~mine["cancelled"] & ~(mine["end_s"] < window.end_s)).sum()),
        "success_pct": 100 * ok / counted if counted else None,
        "qps": _rate(int(ended["ok"].sum()), window),
        "attempted_qps": _rate(int((~ended["cancelled"]).sum()), window),
        "failed_qps": _rate(int(ended["failed"].sum()), window),
        "output_tokens_per_s": _rate(float(tokens.sum()), window) if has_tokens else None,
        **{f"{name}_ci95": rate_interval(counts, window.length_s) for name, counts in of_ends.items()},
        "output_tokens_per_s_ci95": rate_interval(tokens, window.length_s),
        "success_pct_ci95": _percents(share_interval(mine.loc[~mine["cancelled"], "ok"].to_numpy(dtype=np.float64))),
        "rate": _rates(frame, window) if window.open else None,
        "in_flight_mean": flying,
        "little": _little(ended, window, float(flying)),
        "ttft_protocol": ttft_protocol(good),
        **_described("itl_ms", requests.gap_itl_ms[gaps], gap_tokens if spread else None),
        "itl_share": _share(with_gaps["kept"].sum(), len(with_gaps)),
        **_latency(mine, "ttft_ms"),
        **_latency(mine, "tpot_ms"),
        **_latency(mine, "e2e_ms"),
        **_latency(mine[~mine["dropped"]], "service_ms"),
        "server_times_ms": _server_times(run, good),
        "read_lag_ms": read_lag,
        "send_lag_ms": _lag(mine["send_lag_ms"].to_numpy(), *_LAG_STATS),
        "client_lag_ms": {name: (read_lag if by_reads else loop_lag)[name] for name in ("p50", "p99")},
        "client_lag_source": "read_lag" if by_reads else None if loop_lag["p99"] is None else "loop_lag",
        "loop_lag_ms": loop_lag,
        "loop_stall_ms": _lag(_floats(health["loop_lag_max_us"]) / 1e3, "max")["max"],
        "gc_pause_ms": _lag(_floats(health["gc_pause_max_us"]) / 1e3, "max")["max"],
        "worker_cpu_pct": _worker_cpu(health),
        "kernel_stamp_share": _share((mine["stamp_source"] == "kernel").sum(), mine["stamp_source"].notna().sum()),
        "coalesced_share": _share(min(read["shared"].sum(), read["chunks"].sum()), read["chunks"].sum()),
        "tokens_per_event": _share(good["tokens"].sum(), good["chunks"].sum()),
        "tokens_from_events_share": _share(good["uncounted"].sum(), len(good)),
        "simulator_late_share": _simulator_late(run, window),
        "gpus": [gpu for _, gpu in measured],
        "gpu_total": gpu_total([gpu for card, gpu in measured if card.counted]),
        "server": server_figures(telemetry.servers, edges),
        "hosts": host_figures(telemetry, edges),
    }


def _latency(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """The percentiles of a latency with their intervals, and those of the survivors; `rows` by intended instant."""
    values = latencies(rows, name) if is_measured(rows, name) else np.zeros(0)
    good = rows.loc[rows["ok"], name].dropna().to_numpy()
    return _described(name, values) | _described(f"{name}_ok", good)


def _described(name: str, values: Floats, weights: Floats | None = None) -> dict[str, Any]:
    """`name`: percentiles and mean; `name`_ci95: their intervals; `name`_effective: as how many requests they count.

    An interval is [null, null] where there is none. Weighted values have no interval of their mean.
    """
    bounds = percentile_bounds(values, weights)
    none = (None, None)
    within: dict[str, Any] = {f"p{p}": bounds[f"p{p}"][:2] if bounds else none for p in PERCENTILES}
    within["mean"] = (mean_interval(values) if weights is None else None) or none
    effective = {name: round(each.effective) for name, each in bounds.items()}
    return {name: describe(values, weights), f"{name}_ci95": within, f"{name}_effective": effective}


def _percents(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _little(ended: pd.DataFrame, window: Window, flying: float) -> dict[str, float] | None:
    """Little's law: requests in flight by the rate of ends and the mean time in flight, and what was measured / that.

    None when nothing that was sent ended in the window.
    """
    stayed = (ended["end_s"] - ended["begin_s"])[~ended["dropped"]]
    if not len(stayed) or not stayed.sum() > 0 or not window.length_s > 0:
        return None
    expected = float(stayed.sum()) / window.length_s
    return {
        "requests": len(stayed),
        "residence_ms": 1e3 * float(stayed.mean()),
        "in_flight": expected,
        "difference": flying / expected - 1,
    }


def _server_times(run: Run, good: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """What the server said of its own times, by the names of --server-time, ms; OK requests only."""
    asked = (run.manifest["options"] or {}).get("server_time")
    names = asked.split(",") if isinstance(asked, str) else []
    rows = [times for times in good["server_times_us"] if times is not None and len(times) == len(names)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names)) / 1e3
    return {name: describe(values[~np.isnan(values)]) for name, values in zip(names, table.T, strict=True)}


def _rate(count: float, window: Window) -> float | None:
    return count / window.length_s if window.length_s > 0 else None


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def in_flight(frame: pd.DataFrame, edges: Floats) -> Floats:
    """Time-weighted mean of requests sent and not ended in each bin between `edges`."""
    begin, end = frame["begin_s"].to_numpy(), frame["end_s"].to_numpy()
    there = ~frame["dropped"].to_numpy() & (begin < edges[-1]) & ~(end < edges[0])
    return occupied(begin[there], end[there], edges)


def _rates(frame: pd.DataFrame, window: Window) -> dict[str, float | None]:
    """Requests a second of the open model: asked for, due by the schedule, and sent, in the window."""
    due, sent = (
        int(between(frame[f"{name}_s"].to_numpy(), window.begin_s, window.end_s).sum()) for name in ("intended", "sent")
    )
    return {"asked": float(window.level), "due": _rate(due, window), "delivered": _rate(sent, window)}


def _during(run: Run, rows: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Rows of a second each, stamped at its end, that lie in the window by more than half."""
    middle = seconds(rows["t_ns"], start_ns(run)) - 0.5
    return rows[between(middle, window.begin_s, window.end_s)]


def _read_lag(run: Run, mine: pd.DataFrame, window: Window) -> dict[str, float | None]:
    """p50, p99 and max in ms over the reads of all workers; over each request's worst where reads were not counted."""
    rows = _during(run, run.histograms, window)
    rows = rows[rows["name"] == "read_lag"]
    if rows.empty:
        return _lag(mine.loc[~mine["cancelled"], "read_lag_ms"].to_numpy(), *_LAG_STATS)
    merged: Counter[int] = Counter()
    for bucket, count in zip(rows["bucket"].tolist(), rows["count"].tolist(), strict=True):
        merged[bucket] += count
    ranks = {stat: quantile(merged, share) for stat, share in _LAG_STATS.items()}
    return {stat: None if ns is None else ns / 1e6 for stat, ns in ranks.items()}


def _lag(values_ms: Floats, *stats: str) -> dict[str, float | None]:
    """The named ones of p50, p99 and max, without NaN; None each when there are no values."""
    values = values_ms[~np.isnan(values_ms)]
    return {stat: percentile(values, 100 * _LAG_STATS[stat]) for stat in stats}


def _worker_cpu(health: pd.DataFrame) -> float | None:
    """Share of one core that the busiest worker used, %."""
    busy = []
    for _, rows in health.dropna(subset=["t_ns", "cpu_us"]).groupby("worker"):
        time_us = (int(rows["t_ns"].iloc[-1]) - int(rows["t_ns"].iloc[0])) / 1e3
        if time_us > 0:
            busy.append(100 * (int(rows["cpu_us"].iloc[-1]) - int(rows["cpu_us"].iloc[0])) / time_us)
    return max(busy, default=None)


def _simulator_late(run: Run, window: Window) -> float | None:
    """Share of the simulator's tokens that it wrote more than 5 ms after they were due."""
    received_s = seconds(run.truth["received_ns"], start_ns(run))
    rows = run.truth[between(received_s, window.begin_s, window.end_s)]
    return _share(rows["late_tokens"].sum(), rows["emissions"].sum())


def bins_of(run: Run, requests: Requests, width_s: float) -> Floats:
    """Edges of bins of `width_s` from t = 0 to the end of the last request and step."""
    marks = seconds([line["t_ns"] for line in run.steps], start_ns(run))
    last = max([0.0, *marks, *requests.frame["end_s"].dropna()])
    return np.arange(math.ceil(last / width_s) + 1, dtype=np.float64) * width_s


def timeline(run: Run, requests: Requests, telemetry: Telemetry, width_s: float = 1.0) -> pd.DataFrame:
    """The run in bins of `width_s` from t = 0 to the last request's end; TTFT is of requests intended in the bin."""
    frame = requests.frame
    edges = bins_of(run, requests, width_s)
    bins = edges.size - 1
    out = pd.DataFrame({"t_s": edges[:-1]})
    out["users"] = _users(run, edges)
    out["in_flight"] = in_flight(frame, edges)
    out["due_qps"] = histogram(frame["intended_s"].to_numpy(), edges) / width_s
    out["qps"] = histogram(frame["end_s"].to_numpy()[frame["ok"]], edges) / width_s
    out["failed_qps"] = histogram(frame["end_s"].to_numpy()[frame["failed"]], edges) / width_s
    out["output_tokens_per_s"] = tokens_arrived(requests, edges) / width_s
    ttft = np.full((bins, 2), np.nan)
    counted = frame[~frame["cancelled"]]
    counted = counted if is_measured(counted, "ttft_ms") else counted[:0]
    for number, rows in counted.groupby((counted["intended_s"] // width_s).astype("Int64")):
        values = latencies(rows, "ttft_ms")
        if values.size and 0 <= int(number) < bins:
            ttft[int(number)] = [percentile(values, 50), percentile(values, 99)]
    out["ttft_p50_ms"], out["ttft_p99_ms"] = ttft.T
    for name, values in (gpu_series(cards(telemetry), edges) | server_series(telemetry.servers, edges)).items():
        out[name] = values
    return out


def _users(run: Run, edges: Floats) -> Floats:
    """Users of all workers: each worker's mean over the bin, summed; a worker that says nothing counts as 0."""
    total, known = np.zeros(edges.size - 1), np.zeros(edges.size - 1, bool)
    for _, rows in run.health.groupby("worker"):
        t = seconds(rows["t_ns"], start_ns(run))
        users, _ = overlap_mean(t, rows["users"].to_numpy(dtype=np.float64, na_value=np.nan), edges)
        total += np.nan_to_num(users)
        known |= ~np.isnan(users)
    return np.where(known, total, np.nan)
