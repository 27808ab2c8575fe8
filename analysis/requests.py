"""What follows from the record of each request: its latencies and instants, in parts that fit in memory.

Seconds since the run's start on the controller, and ms. Not here: whom a figure counts (tally.py, step.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import damage
from analysis.clocks import seconds, start_ns
from analysis.damage import Damage
from analysis.load import Run, numbers_of
from analysis.shards import REQUESTS, read
from analysis.stats import Floats
from loadgen import rundir
from loadgen.record import Outcome

OUTCOMES = [str(outcome) for outcome in Outcome]
_COLUMNS = (
    *("intended_ns", "sent_ns", "first_token_ns", "last_token_ns", "end_ns", "outcome", "error", "attempts"),
    *("dns_us", "connect_us", "tls_us", "prompt_tokens", "output_tokens", "token_source", "output_events"),
    *("chunk_gaps_us", "gap_max_us", "read_lag_us", "coalesced_reads", "stamp_source"),
)
_GAPS = "chunk_gaps_us"
_SERVER_TIMES = "server_times_us"

# Is told the share of the bytes that are read.
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Requests:
    """`frame`: a row a request, on the controller's clock; `gap_*`: an element a chunk gap, `gap_row` its request.

    `first` is the ordinal of the first row in the run. A gap's `gap_s` is the instant it ended, `gap_itl_ms` its length
    a token. Requests that are not `kept` had gaps, and only their summary was recorded. What the server said of its own
    times is in columns named as `server_time`, ms.
    """

    first: int
    frame: pd.DataFrame
    gap_row: NDArray[np.int32]
    gap_s: Floats
    gap_itl_ms: Floats

    def tokens_of(self, gaps: NDArray[np.bool_]) -> Floats:
        """How many tokens each of these gaps brought."""
        return np.asarray(self.frame["per_chunk"].to_numpy()[self.gap_row[gaps]])


def server_time_names(run: Run) -> list[str]:
    """Those of --server-time."""
    asked = (run.manifest["options"] or {}).get("server_time")
    return asked.split(",") if isinstance(asked, str) else []


def server_time(name: str) -> str:
    """The column of a time that the server gave."""
    return f"server_time:{name}"


def parts(run: Run, expected: int, tell: Tell) -> Iterator[Requests]:
    """All requests of the run, which are `expected` to be so many; what is wrong with their shards is the run's damage.

    `tell` is told the share that is read.
    """
    zero, names = start_ns(run), server_time_names(run)
    columns = (*_COLUMNS, _SERVER_TIMES) if names else _COLUMNS
    first = counted = 0
    for _, table in read(run.shards, REQUESTS, damage.span(run.manifest), run.damage, columns):
        part = derive(table, zero, names, first)
        first += len(part.frame)
        counted += int((~part.frame["cancelled"]).sum())
        yield part
        tell(min(1.0, first / expected))
    recorded = (run.manifest["recorded"] or {}).get("requests")
    if damage.whole(recorded) and counted != recorded:  # a shard that was cut between two batches looks whole
        run.damage.append(Damage(rundir.REQUESTS, f"{counted} requests are here, and {recorded} were recorded"))


def derive(table: pa.Table, zero_ns: int, server_times: list[str], first: int = 0) -> Requests:
    """Latencies and instants of every request.

    The tokens of a request are spread evenly over its output events, which is exact for one token an event.
    """
    stamps = {name: _stamps(table[f"{name}_ns"]) for name in ("intended", "sent", "first_token", "last_token", "end")}
    at = {name: np.where(known, seconds(ns, zero_ns), np.nan) for name, (ns, known) in stamps.items()}
    gaps_us, lengths = _flat(table[_GAPS])
    code = pc.index_in(table["outcome"], value_set=pa.array(OUTCOMES)).to_numpy()
    ok, cancelled, dropped = (
        code == OUTCOMES.index(outcome) for outcome in (Outcome.OK, Outcome.CANCELLED, Outcome.DROPPED)
    )
    tokens, events = (numbers_of(table[name]) for name in ("output_tokens", "output_events"))
    row = np.repeat(np.arange(len(code), dtype=np.int32), lengths)
    kept = (lengths > 0) | table["gap_max_us"].is_null().to_numpy()
    chunks = np.where(np.isnan(at["first_token"]), 0, np.where(kept, lengths + 1, np.fmax(events, 1)))
    tokens = np.where(np.isnan(tokens), np.where(np.isnan(events), chunks, events), tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_chunk = np.where((chunks > 0) & (tokens > 0), tokens / chunks, 1.0)
        tpot = np.where((tokens > 1) & (chunks > 1), (at["last_token"] - at["first_token"]) / (tokens - 1), np.nan)
    columns = {
        "intended_s": at["intended"],
        "sent_s": at["sent"],
        "begin_s": np.where(np.isnan(at["sent"]), at["intended"], at["sent"]),
        "first_token_s": at["first_token"],
        "last_token_s": at["last_token"],
        "end_s": np.where(dropped, at["intended"], at["end"]),
        "ttft_ms": _exact_ms(stamps["first_token"], stamps["intended"]),
        "e2e_ms": _exact_ms(stamps["end"], stamps["intended"]),
        "service_ms": _exact_ms(stamps["end"], stamps["sent"]),
        "tpot_ms": tpot * 1e3,
        "outcome": pd.Categorical.from_codes(code, pd.Index(OUTCOMES)),
        "ok": ok,
        "failed": ~ok & ~cancelled,
        "cancelled": cancelled,
        "dropped": dropped,
        "tokens": tokens,
        "prompt_tokens": numbers_of(table["prompt_tokens"]),
        "chunks": chunks,
        "per_chunk": per_chunk,
        "kept": kept,
        # Plain inference has no tokens: nothing was to be counted.
        "uncounted": _is(table["token_source"], "events"),
        "read_lag_ms": numbers_of(table["read_lag_us"]) / 1e3,
        "send_lag_ms": _send_lag_ms(table, stamps["sent"], stamps["intended"]),
        "stamped": table["stamp_source"].is_valid().to_numpy(),
        "by_kernel": _is(table["stamp_source"], "kernel"),
        # A read of k output events is k - 1 gaps of 0 and one coalesced read.
        "shared": np.bincount(row[gaps_us == 0], minlength=len(code))
        + np.nan_to_num(numbers_of(table["coalesced_reads"])),
        "error": _categories(table["error"]),
    }
    columns |= _server_times(table, server_times)
    elapsed = np.concatenate(([0], np.cumsum(gaps_us)))
    offsets = np.cumsum(lengths) - lengths
    since_first = (elapsed[1:] - elapsed[offsets][row]) / 1e6
    return Requests(
        first=first,
        frame=pd.DataFrame(columns, copy=False),
        gap_row=row,
        gap_s=at["first_token"][row] + since_first,
        gap_itl_ms=gaps_us / per_chunk[row] / 1e3,
    )


def _stamps(column: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """0 where there is none, and where there is one."""
    return pc.fill_null(column, 0).to_numpy(), column.is_valid().to_numpy()


def _exact_ms(
    later: tuple[NDArray[np.int64], NDArray[np.bool_]], earlier: tuple[NDArray[np.int64], NDArray[np.bool_]]
) -> Floats:
    return np.where(later[1] & earlier[1], (later[0] - earlier[0]).astype(np.float64) / 1e6, np.nan)


def _is(column: Any, text: str) -> NDArray[np.bool_]:
    """Where the column has this text; null is another."""
    return np.asarray(pc.fill_null(pc.equal(column, text), False).to_numpy())


def _categories(column: Any) -> pd.Categorical:
    """Empty for null."""
    encoded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    return pd.Categorical.from_codes(encoded.indices.to_numpy(), pd.Index(encoded.dictionary.to_pylist(), dtype="str"))


def _flat(column: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The gaps of all requests end to end, and how many each one has."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = pc.list_flatten(column)
    return np.asarray(pc.fill_null(values, 0).to_numpy(), dtype=np.int64), lengths


def _send_lag_ms(
    table: pa.Table,
    sent: tuple[NDArray[np.int64], NDArray[np.bool_]],
    intended: tuple[NDArray[np.int64], NDArray[np.bool_]],
) -> Floats:
    """How late the client sent: connecting is the network's and the server's time, and so is a first attempt."""
    connecting_us = sum(np.nan_to_num(numbers_of(table[f"{phase}_us"])) for phase in ("dns", "connect", "tls"))
    late = np.fmax(_exact_ms(sent, intended) - connecting_us / 1e3, 0)
    again = (numbers_of(table["attempts"]) > 1) | ~sent[1]
    return np.asarray(np.where(again, np.nan, late))


def _server_times(table: pa.Table, names: list[str]) -> dict[str, Floats]:
    """A column a name; NaN where the server gave another number of times."""
    if not names:
        return {}
    lists = table[_SERVER_TIMES]
    whole = pc.fill_null(pc.equal(pc.list_value_length(lists), len(names)), False)
    times = np.full((table.num_rows, len(names)), np.nan)
    values = numbers_of(pc.list_flatten(lists.filter(whole)))
    times[whole.to_numpy()] = values.reshape(-1, len(names)) / 1e3
    return {server_time(name): times[:, number] for number, name in enumerate(names)}
