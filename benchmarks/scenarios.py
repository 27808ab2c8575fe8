"""What is measured: a function a scenario, which yields a row a client.

Every run has a fresh server. Throughput and the truth come from its log, CPU time from the kernel, reported times from
the client's own records; figures.py puts them together.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import clients, figures, peers, reference
from benchmarks.clients import CHAT, PREDICT, TOKENS, Cores, Load, Result, Runner
from benchmarks.figures import Row, Window
from benchmarks.processes import Client
from benchmarks.reference import Server

TTFT_MS, ITL_MS = 200.0, 50.0
FREEZE_S = 1.0
KS_SAMPLE = 1000
FLOOR, WORKER, ALL, LOCUST, GUIDELLM, AIPERF = "floor", "worker", "all", "locust", "guidellm", "aiperf"
RUNNERS: dict[str, tuple[str, Runner]] = {
    FLOOR: ("C floor (epoll)", clients.floor),
    WORKER: ("loadgen, its worker", clients.ours_worker),
    ALL: ("loadgen, all of it", clients.ours_all),
    "aiohttp": ("aiohttp", clients.aiohttp),
    "uvloop": ("aiohttp + uvloop", clients.aiohttp_uvloop),
    LOCUST: ("Locust FastHttpUser", clients.locust),
    GUIDELLM: ("GuideLLM", clients.guidellm),
    AIPERF: ("AIPerf", clients.aiperf),
}
HEAVY = (GUIDELLM, AIPERF)

Columns = Sequence[tuple[str, str]]
TTFT: Columns = (
    ("ttft_p50", "TTFT p50 ms"),
    ("true_ttft_p50", "true"),
    ("ttft_p99", "TTFT p99 ms"),
    ("true_ttft_p99", "true"),
)
STREAMS: Columns = (
    ("client", "client"),
    ("tokens_s", "tokens/s"),
    ("ideal", "of ideal"),
    ("cpu_us", "CPU us/token"),
    ("floors", "x floor"),
    ("core", "of a core"),
    *TTFT,
    ("itl_mean", "ITL mean ms"),
    ("true_itl_mean", "true"),
    ("accounted", "accounted for"),
    ("note", "note"),
)
PLAIN: Columns = (
    ("client", "client"),
    ("requests_s", "requests/s"),
    ("locusts", "x Locust"),
    ("cpu_us", "CPU us/request"),
    ("core", "of a core"),
    ("accounted", "accounted for"),
    ("note", "note"),
)
OPEN: Columns = (
    ("client", "client"),
    ("requests_s", "requests/s"),
    ("late_p50", "send lateness p50 ms"),
    ("late_p99", "p99"),
    ("late_max", "max"),
    ("dropped", "dropped"),
    ("sent_ks", "sent gaps: KS distance"),
    ("sent_p", "p of 1,000"),
    ("arrived_ks", "arrived gaps: KS distance"),
    ("arrived_p", "p of 1,000"),
    ("cpu_us", "CPU us/request"),
    ("accounted", "accounted for"),
    ("note", "note"),
)
FREEZE: Columns = (
    ("client", "client"),
    ("due", "due in the freeze"),
    ("shown", "with all of what was left of it"),
    ("error_p50", "beyond that, p50 ms"),
    ("error_max", "max"),
    ("latency_p50", "their latency p50 ms"),
    ("latency_max", "max"),
    ("service_p50", "their service time p50 ms"),
    ("service_max", "max"),
    ("calm_p99", "latency p99 ms of the others"),
    ("note", "note"),
)
OVERLOAD: Columns = (
    ("client", "times taken"),
    *TTFT,
    ("lag_p50", "read lag p50 ms"),
    ("lag_p99", "p99"),
    ("ideal", "tokens of ideal"),
    ("note", "the certificate says"),
)


@dataclass(frozen=True)
class Bench:
    """What all scenarios share. `clients` are those wanted, of RUNNERS; `scale` is a share of users and rates."""

    binaries: reference.Binaries
    certificate: reference.Certificate
    folder: Path
    cores: Cores
    measured_s: float
    clients: tuple[str, ...]
    scale: float = 1.0

    @contextmanager
    def serving(self, *options: str | float, secure: bool = False) -> Iterator[tuple[Server, Path]]:
        """A fresh server, pinned, and a folder for its client."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        tls = self.certificate if secure else None
        with Server(self.binaries.server, folder / "log.csv", *options, tls=tls, core=self.cores.server) as server:
            if not server.realtime:
                print("  the server has no real-time priority: it is late when others work", file=sys.stderr)
            yield server, folder

    def users(self, count: int) -> int:
        return max(round(count * self.scale), 1)

    def run(self, name: str, load: Load) -> Result:
        return RUNNERS[name][1](load, self.cores, self.binaries)


class Measured(NamedTuple):
    result: Result
    log: pd.DataFrame
    window: Window
    row: Row


class Scenario(NamedTuple):
    title: str
    columns: Columns
    rows: Callable[[Bench], Iterable[Row]]


def measure(
    bench: Bench,
    name: str,
    path: str,
    *options: str | float,
    users: int = 0,
    rate: float | None = None,
    secure: bool = False,
    meanwhile: Callable[[Server, Load], AbstractContextManager[object]] = lambda *_: nullcontext(),
) -> Measured:
    """One client against a fresh server: the cost of it, and which of its requests the log has too."""
    with bench.serving(*options, secure=secure) as (server, folder):
        tls = bench.certificate if secure else None
        load = Load(folder, server, users, path, bench.measured_s, rate, tls)
        with meanwhile(server, load):
            result = bench.run(name, load)
        log = server.stop()
    if result.said.get("by_ordinal"):
        log["id"] = log["seq"].astype(str)
    window = figures.steady_window(log, load.lead_s, load.measured_s)
    return Measured(result, log, window, _accounting(result, log, window))


def _accounting(result: Result, log: pd.DataFrame, window: Window) -> Row:
    cpu_s = result.cpu_s(window)
    row: Row = {"cpu_s": cpu_s, "core": f"{cpu_s / window.seconds:.0%}"}
    if result.records is not None:
        records, asked = result.records, window.of(log, "t_arrived")
        if result.run:  # ours has a record of every request, also of those that it cut, and of those never sent
            records, asked = records[records["sent_ns"].notna()], log
        row["accounted"] = figures.accounted(records, log, asked)
    return row


def each(bench: Bench, names: Sequence[str], row_of: Callable[[str], Row]) -> Iterator[Row]:
    """A row a client that is wanted; one that cannot be measured says why."""
    for name in names:
        if name in bench.clients:
            title, _ = RUNNERS[name]
            print(f"  {title} …", file=sys.stderr)
            try:
                yield {"client": title, **row_of(name)}
            except (RuntimeError, OSError, LookupError, ValueError, peers.NotInstalled) as error:
                # A peer's new version may write its results otherwise; the others' rows stay.
                yield {"client": title, "note": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def streams(bench: Bench, count: int, secure: bool = False) -> list[Row]:
    """Streams of 100 tokens: throughput, cost, and reported times against the log."""
    users = bench.users(count)
    ideal = figures.ideal_tokens_per_s(users, TOKENS, TTFT_MS, ITL_MS)

    def row_of(name: str) -> Row:
        options = ("--ttft-ms", TTFT_MS, "--itl-ms", ITL_MS)
        result, log, window, row = measure(bench, name, CHAT, *options, users=users, secure=secure)
        tokens = figures.tokens_sent(log, window)
        row |= {"tokens_s": tokens / window.seconds, "ideal": f"{tokens / window.seconds / ideal:.1%}"}
        row["cpu_us"] = row["cpu_s"] / tokens * 1e6
        if result.records is None:
            return {**row, **result.said, **figures.truth_of(window.of(log, "t_arrived"))}
        return {**row, **figures.times_of(result.records, log, window)}

    # The floor client speaks no TLS, and each of Locust's users would load the certificates anew.
    skipped = (FLOOR, LOCUST, *HEAVY) if secure else ()
    rows = list(each(bench, [name for name in RUNNERS if name not in skipped], row_of))
    return _compared(rows, "cpu_us", FLOOR, "floors")


def plain(bench: Bench) -> list[Row]:
    """JSON answers after 0 ms: requests a second."""

    def row_of(name: str) -> Row:
        _, log, window, row = measure(bench, name, PREDICT, users=bench.users(100))
        requests = len(window.of(log, "t_end"))
        return {**row, "requests_s": requests / window.seconds, "cpu_us": row["cpu_s"] / max(requests, 1) * 1e6}

    rows = list(each(bench, [name for name in RUNNERS if name not in HEAVY], row_of))
    return _compared(rows, "requests_s", LOCUST, "locusts")


def _compared(rows: list[Row], key: str, name: str, ratio: str) -> list[Row]:
    """The rows with `key` as a multiple of that client's, where both were measured."""
    bases = [row[key] for row in rows if row["client"] == RUNNERS[name][0] and key in row]
    return [row | ({ratio: row[key] / bases[0]} if bases and key in row else {}) for row in rows]


def open_model(bench: Bench) -> Iterator[Row]:
    """2,000 arrivals a second, Poisson: how late they are sent, and whether their gaps are still the schedule's."""

    def row_of(name: str) -> Row:
        result, log, window, row = measure(bench, name, PREDICT, rate=2000 * bench.scale)
        assert result.records is not None
        due = window.of(result.records, "due_ns")
        sent = due[due["sent_ns"].notna()]
        late_ms = (sent["sent_ns"] - sent["due_ns"]) / 1e6
        p50, p99, worst = figures.percentiles(late_ms, 50, 99, 100)
        schedule = _gaps(due["due_ns"])
        arrived = window.of(log, "t_arrived")["t_arrived"]
        return {
            **row,
            "requests_s": len(arrived) / window.seconds,
            "cpu_us": row["cpu_s"] / max(len(arrived), 1) * 1e6,
            "late_p50": p50,
            "late_p99": p99,
            "late_max": worst,
            **_as_scheduled("sent", _gaps(sent["sent_ns"]), schedule),
            **_as_scheduled("arrived", _gaps(arrived), schedule),
            "dropped": int((result.records["outcome"] == "DROPPED").sum()),
        }

    return each(bench, [WORKER, ALL], row_of)


def _as_scheduled(name: str, gaps: npt.NDArray[Any], schedule: npt.NDArray[Any]) -> Row:
    """Kolmogorov-Smirnov: the distance by all gaps, the probability by a sample of them (README.md says why)."""
    sample = np.random.default_rng(0).choice(gaps, min(KS_SAMPLE, gaps.size), replace=False)
    distance, _ = figures.kolmogorov_smirnov(gaps, schedule)
    _, probability = figures.kolmogorov_smirnov(sample, schedule)
    return {f"{name}_ks": distance, f"{name}_p": probability}


def _gaps(instants: pd.Series[int]) -> npt.NDArray[Any]:
    return np.diff(np.sort(instants.to_numpy())).astype(float)


def freeze(bench: Bench) -> Iterator[Row]:
    """The same, and the server stands still for a second: what was due then has to show what was left of it."""

    def row_of(name: str) -> Row:
        instants: list[int] = []
        result, _, window, _ = measure(
            bench,
            name,
            PREDICT,
            rate=2000 * bench.scale,
            meanwhile=lambda server, load: _frozen(server, load.lead_s + load.measured_s / 2, instants),
        )
        assert result.records is not None
        if len(instants) < 2:
            raise RuntimeError("the load did not begin in time to be frozen")
        records, stopped = window.of(result.records, "due_ns"), Window(*instants)
        latency, service = ((records["end_ns"] - records[column]) / 1e6 for column in ("due_ns", "sent_ns"))
        inside = (records["due_ns"] >= stopped.begin_ns) & (records["due_ns"] < stopped.end_ns)
        left = (stopped.end_ns - records["due_ns"]) / 1e6
        beyond = (latency - left)[inside]
        after = records["due_ns"] >= stopped.end_ns + 1e9
        return {
            "due": int(inside.sum()),
            "shown": int((beyond >= 0).sum()),
            **_spread("error", beyond),
            **_spread("latency", latency[inside]),
            **_spread("service", service[inside]),
            "calm_p99": figures.percentiles(latency[after | (records["due_ns"] < stopped.begin_ns - 1e9)], 99)[0],
        }

    return each(bench, [WORKER], row_of)


def _spread(name: str, values: pd.Series[float]) -> Row:
    p50, worst = figures.percentiles(values.dropna(), 50, 100)
    return {f"{name}_p50": p50, f"{name}_max": worst}


@contextmanager
def _frozen(server: Server, after_s: float, instants: list[int]) -> Iterator[None]:
    """Stops the server for a second, so long after its load began; `instants` gets when it stopped and went on."""

    def stop_and_go() -> None:
        try:
            server.wait_for_requests(figures.PROBES)
        except OSError:
            return  # whoever should have loaded it says why
        time.sleep(after_s)
        server.send_signal(signal.SIGSTOP)
        instants.append(time.time_ns())
        time.sleep(FREEZE_S)
        instants.append(time.time_ns())  # before: afterwards the server has this core
        server.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def overload(bench: Bench) -> Iterator[Row]:
    """5,000 streams while a busy loop takes half of the worker's core: stamps stay true, times taken late do not."""
    users = bench.users(5000)
    by_read: Row = {}

    def row_of(name: str) -> Row:
        seconds = bench.measured_s + 120  # whatever becomes of us, it ends
        busy = [sys.executable, "-c", f"import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"]
        with Client(busy, bench.cores.client, bench.folder / "busy.out"):
            measured = measure(bench, name, CHAT, "--ttft-ms", TTFT_MS, "--itl-ms", ITL_MS, users=users)
        result, log, window, _ = measured
        assert result.records is not None
        assert result.run is not None
        times = figures.times_of(result.records, log, window)
        tokens_s = figures.tokens_sent(log, window) / window.seconds
        ideal = figures.ideal_tokens_per_s(users, TOKENS, TTFT_MS, ITL_MS)
        values, counts = clients.lags(result.run, window)
        due = window.of(result.records[result.records["ok"]], "due_ns")
        read_ms = figures.read_time(((due["first_ns"] - due["due_ns"]) / 1e6).to_numpy(), values, counts)
        by_read.update({key: times[key] for key in ("true_ttft_p50", "true_ttft_p99")})
        by_read.update(zip(("ttft_p50", "ttft_p99"), figures.percentiles(read_ms, 50, 99), strict=True))
        lag_p50, lag_p99 = figures.percentiles(np.repeat(values, counts), 50, 99)
        lag = {"lag_p50": lag_p50, "lag_p99": lag_p99}
        return {**times, **lag, "ideal": f"{tokens_s / ideal:.1%}", "note": _certificate(result.run)}

    for row in each(bench, [WORKER], row_of):
        yield {**row, "client": "by the kernel's stamps"}
        yield {**by_read, "client": "at the read"}


def _certificate(run: Path) -> str:
    """The caveats that the run's own report ships with its numbers."""
    summary = json.loads((run / "report/summary.json").read_text())
    caveats = [*(caveat for step in summary["steps"] for caveat in step["caveats"]), *summary["caveats"]]
    return "; ".join(caveat["text"] for caveat in caveats) or "nothing"


SCENARIOS = {
    "streams-5000": Scenario(
        "5,000 streams of 100 tokens, the first after 200 ms, the others 50 ms apart",
        STREAMS,
        lambda bench: streams(bench, 5000),
    ),
    "streams-1000": Scenario("1,000 such streams", STREAMS, lambda bench: streams(bench, 1000)),
    "tls-1000": Scenario("1,000 such streams through TLS 1.3", STREAMS, lambda bench: streams(bench, 1000, True)),
    "plain": Scenario("Plain JSON, 100 users, 0 ms of service time", PLAIN, plain),
    "open": Scenario("Open model: 2,000 requests/s, Poisson", OPEN, open_model),
    "freeze": Scenario("Open model: the server stands still for 1 s", FREEZE, freeze),
    "overload": Scenario("5,000 streams while a busy loop takes half of the worker's core", OVERLOAD, overload),
}
