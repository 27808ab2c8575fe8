"""What other tools would print for the same records: where a name is the same and its definition is not. No clock.

Their values are computed of the figures of one step, the one with the highest QPS; where these do not allow it there is
none. Definitions are those of vLLM's `bench serve`, AIPerf 0.13 (and GenAI-Perf), GuideLLM 0.8 and inference-perf of
2026. All of them leave failures out of latencies, and none leaves the begin of a run out by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from analysis import tables
from analysis.tables import Summary, at, fine, text
from analysis.windows import RATE

Step = dict[str, Any]


class Definition(NamedTuple):
    """`ours` and `theirs` give a figure of a step, in `unit`; `theirs` is None where a step does not tell it."""

    tool: str
    name: str
    formula: str
    differs: str
    unit: str
    ours: Callable[[Step], float | None]
    theirs: Callable[[Step], float | None]


def _figure(*path: str) -> Callable[[Step], float | None]:
    def read(step: Step) -> float | None:
        value = at(step, path)
        return None if value is None else float(value)

    return read


def _nothing(_: Step) -> float | None:
    return None


def _if_closed(read: Callable[[Step], float | None]) -> Callable[[Step], float | None]:
    """In the closed model a request is sent when it is due, so counting from either is the same."""
    return lambda step: None if step["unit"] == RATE else read(step)


def _chunk_gap(step: Step) -> float | None:
    """A chunk of k tokens spreads its gap over k, so the mean gap is k times the mean time between tokens."""
    itl, tokens = at(step, ("itl_ms", "mean")), step["tokens_per_event"]
    return None if itl is None or tokens is None else float(itl * tokens)


def _whole_per_token(step: Step) -> float | None:
    """The mean of quotients is that of the means where answers are of one length."""
    whole, tokens = at(step, ("service_ms_ok", "mean")), at(step, ("tokens", "output_mean"))
    return None if whole is None or not tokens else float(whole / tokens)


_TTFT_P99, _TTFT_OK_P99 = _figure("ttft_ms", "p99"), _figure("ttft_ms_ok", "p99")
_E2E_P99, _SERVICE_OK_P99 = _figure("e2e_ms", "p99"), _figure("service_ms_ok", "p99")
_ITL, _TPOT, _TPOT_OK = _figure("itl_ms", "mean"), _figure("tpot_ms", "mean"), _figure("tpot_ms_ok", "mean")
_SENT = "counts from the send, not from when it was due; failures are left out"
_WHOLE_RUN = "the whole run with its begin and end, not a step's measuring window"

DEFINITIONS = (
    Definition(
        "vLLM bench serve",
        "TTFT p99",
        "first chunk with choices − send",
        f"{_SENT}; of a chat the chunk that only names the role counts too",
        "ms",
        _TTFT_P99,
        _if_closed(_TTFT_OK_P99),
    ),
    Definition(
        "vLLM bench serve",
        "TPOT mean",
        "(latency − TTFT) / (output tokens − 1)",
        "failures are left out",
        "ms",
        _TPOT,
        _TPOT_OK,
    ),
    Definition(
        "vLLM bench serve",
        "ITL mean",
        "gap between chunks",
        "a chunk of k tokens is one gap; ours spreads it over k",
        "ms",
        _ITL,
        _chunk_gap,
    ),
    Definition("vLLM bench serve", "E2EL p99", "last chunk − send", _SENT, "ms", _E2E_P99, _SERVICE_OK_P99),
    Definition("vLLM bench serve", "request throughput", "OK / duration", _WHOLE_RUN, "1/s", _figure("qps"), _nothing),
    Definition(
        "AIPerf, GenAI-Perf",
        "TTFT p99",
        "first chunk that is not empty − start",
        _SENT,
        "ms",
        _TTFT_P99,
        _if_closed(_TTFT_OK_P99),
    ),
    Definition(
        "AIPerf, GenAI-Perf",
        "inter token latency mean",
        "(latency − TTFT) / (output tokens − 1)",
        "one figure a request: our TPOT of OK requests; single gaps are its inter chunk latency",
        "ms",
        _ITL,
        _TPOT_OK,
    ),
    Definition(
        "AIPerf",
        "inter chunk latency mean",
        "gap between chunks",
        "a chunk of k tokens is one gap",
        "ms",
        _ITL,
        _chunk_gap,
    ),
    Definition(
        "AIPerf, GenAI-Perf", "request latency p99", "last chunk − start", _SENT, "ms", _E2E_P99, _SERVICE_OK_P99
    ),
    Definition(
        "GuideLLM",
        "time per output token mean",
        "(last token − start) / output tokens",
        "includes the first token: with it the wait and the prefill",
        "ms",
        _TPOT,
        _whole_per_token,
    ),
    Definition(
        "GuideLLM",
        "inter token latency mean",
        "(last token − first token) / (output tokens − 1)",
        "one figure a request: our TPOT of OK requests",
        "ms",
        _ITL,
        _TPOT_OK,
    ),
    Definition("GuideLLM", "request latency p99", "end − start", _SENT, "ms", _E2E_P99, _SERVICE_OK_P99),
    Definition(
        "inference-perf",
        "normalized time per output token mean",
        "latency / output tokens",
        "includes the first token; of OK requests",
        "ms",
        _TPOT,
        _whole_per_token,
    ),
    Definition(
        "inference-perf",
        "time per output token mean",
        "(last token − first token) / (output tokens − 1)",
        "failures are left out",
        "ms",
        _TPOT,
        _TPOT_OK,
    ),
)


def reconciliation_table(summary: Summary) -> tuple[list[str], list[list[str]], str]:
    """Headers, rows as text, and which step they are of; no rows without a step that has successful requests."""
    step = tables.peak(summary)
    headers = ["tool", "its name", "its definition", "what differs", "unit", "our figure", "by its definition"]
    if step is None:
        return headers, [], ""
    rows = [
        [
            each.tool,
            each.name,
            each.formula,
            each.differs,
            each.unit,
            _shown(each.ours, step),
            _shown(each.theirs, step),
        ]
        for each in DEFINITIONS
    ]
    return headers, rows, f"{step['level']} {step['unit']}"


def _shown(read: Callable[[Step], float | None], step: Step) -> str:
    return text(read(step), fine)
