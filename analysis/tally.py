"""What is counted of a window, request by request: exact, however many there are, and in parts of any size.

Whom a figure counts: latencies are those of requests intended in the window, rates those of what ended, or arrived, in
it. Percentiles are not here (step.py), nor what was sampled beside the load.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.flow import Resident, histogram, in_flight, resident, tokens_arrived
from analysis.intervals import rate_interval
from analysis.kept import LATENCIES
from analysis.lag import ramp_bins
from analysis.objectives import Objectives, good, limits_of
from analysis.overlap import between
from analysis.requests import Requests
from analysis.stats import Floats
from analysis.windows import Window
from loadgen.record import Outcome

# Equal parts of a window that the intervals of rates are made from.
RATE_PARTS = 1000
_ENDED = ("qps", "attempted_qps", "failed_qps", "goodput_qps")


class Tally:
    """Counts of a window; `ramp` is the mean in flight in the bins of lag.ramp_bins."""

    def __init__(self, window: Window, objectives: Objectives | None, gap_stride: int) -> None:
        self.window = window
        self._objectives = objectives
        self._gap_stride = gap_stride
        self._edges = np.array([window.begin_s, window.end_s])
        self._parts = np.linspace(window.begin_s, window.end_s, RATE_PARTS + 1)
        self._ended = {name: np.zeros(RATE_PARTS) for name in _ENDED}
        self._tokens = np.zeros(RATE_PARTS)
        self._flying = np.zeros(2)  # all, and those that an HTTP error was the answer to
        self._resident = Resident(np.zeros(1), np.zeros(1))
        self._sums: Counter[str] = Counter()
        self._gaps: list[Floats] = []
        self._gap_tokens: list[Floats] = []
        self.outcomes: Counter[str] = Counter()
        self.ramp = np.zeros(ramp_bins(window).size - 1)

    def add(self, requests: Requests) -> None:
        frame = requests.frame
        ramp = ramp_bins(self.window)
        intended, begin, end = (frame[f"{name}_s"].to_numpy() for name in ("intended", "begin", "end"))
        first_s, last_s = np.minimum(intended, begin).min(), np.fmax(intended, end).max()
        if first_s > max(self.window.end_s, ramp[-1]) or last_s < min(self.window.begin_s, ramp[0]):
            return
        self.ramp += in_flight(frame, ramp)
        is_mine, ended = (between(at_s, *self._edges) for at_s in (intended, end))
        of_http = frame[(frame["outcome"] == Outcome.HTTP_ERROR).to_numpy()]
        self._flying += np.nan_to_num([in_flight(some, self._edges)[0] for some in (frame, of_http)])
        there = resident(frame, self._edges)
        self._resident = Resident(*(a + np.nan_to_num(b) for a, b in zip(self._resident, there, strict=True)))
        self._tokens += tokens_arrived(requests, self._parts)
        self._add_ended(frame[ended])
        self._add_intended(frame[is_mine])
        self._sums["sent"] += int(between(frame["sent_s"].to_numpy(), *self._edges).sum())
        self._add_gaps(requests, is_mine & frame["ok"].to_numpy())

    def _add_ended(self, ended: pd.DataFrame) -> None:
        end, ok = ended["end_s"].to_numpy(), ended["ok"].to_numpy()
        which = {"qps": ok, "attempted_qps": ~ended["cancelled"].to_numpy(), "failed_qps": ended["failed"].to_numpy()}
        if self._objectives is not None:
            which["goodput_qps"] = good(ended, self._objectives)
        for name, mask in which.items():
            self._ended[name] += histogram(end[mask], self._parts)
        sent = ~ended["dropped"].to_numpy()
        prompts = ended["prompt_tokens"].to_numpy()[ok]
        self._sums += Counter(
            {
                "left": int(sent.sum()),
                "stayed_s": float((end - ended["begin_s"].to_numpy())[sent].sum()),
                "prompts_ended": int((~np.isnan(prompts)).sum()),
                "prompt_tokens_ended": float(np.nansum(prompts)),
            }
        )

    def _add_intended(self, mine: pd.DataFrame) -> None:
        self.outcomes += Counter({str(name): int(n) for name, n in mine["outcome"].value_counts().items() if n})
        ok, kept, chunks = (mine[name].to_numpy() for name in ("ok", "kept", "chunks"))
        shared, tokens, prompts = (mine[name].to_numpy() for name in ("shared", "tokens", "prompt_tokens"))
        self._sums += Counter(
            {
                "ended_after": int((~mine["cancelled"] & ~(mine["end_s"] < self.window.end_s)).sum()),
                "stamped": int(mine["stamped"].sum()),
                "by_kernel": int(mine["by_kernel"].sum()),
                "shared": float(shared[kept].sum()),
                "read_chunks": float(chunks[kept].sum()),
                "chunks": float(chunks[ok].sum()),
                "tokens": float(tokens[ok].sum()),
                "uncounted": int(mine["uncounted"].to_numpy()[ok].sum()),
                "prompts": int((~np.isnan(prompts[ok])).sum()),
                "prompt_tokens": float(np.nansum(prompts[ok])),
                "with_tokens": int((tokens[ok] > 0).sum()),
                **{f"with_{name}": int((~np.isnan(mine[name].to_numpy()[ok])).sum()) for name in LATENCIES},
            }
        )
        if self._objectives is not None:
            self._sums["good"] += int(good(mine, self._objectives).sum())

    def _add_gaps(self, requests: Requests, chosen: NDArray[np.bool_]) -> None:
        number = requests.first + np.arange(chosen.size)
        with_gaps = chosen & (requests.frame["chunks"].to_numpy() > 1)
        read = chosen & requests.frame["kept"].to_numpy() & (number % self._gap_stride == 0)
        self._sums["with_gaps"] += int(with_gaps.sum())
        self._sums["gaps_read"] += int((with_gaps & read).sum())
        mine = read[requests.gap_row]
        self._gaps.append(requests.gap_itl_ms[mine])
        tokens = requests.tokens_of(mine)
        self._gap_tokens.append(tokens if (tokens != 1.0).any() else np.ones(1))

    def gaps(self) -> tuple[Floats, Floats | None]:
        """The gaps between tokens, and how many tokens each one brought, None where it is always one. Empties this."""
        values, tokens = self._gaps, self._gap_tokens
        self._gaps, self._gap_tokens = [], []
        weights = None
        if any((each != 1.0).any() for each in tokens):
            whole = [np.broadcast_to(each, gaps.size) for each, gaps in zip(tokens, values, strict=True)]
            weights = np.concatenate(whole)
        return np.concatenate([np.zeros(0), *values]), weights

    def figures(self, prompt: float | None) -> dict[str, Any]:
        """The keys of a step that are counts, shares, means and rates; `prompt` is the mean of the run's prompts."""
        sums, window, outcomes = self._sums, self.window, Counter(self.outcomes)
        requests = outcomes.total()
        ok, cancelled = outcomes.pop(Outcome.OK, 0), outcomes.pop(Outcome.CANCELLED, 0)
        counted = requests - cancelled
        flying, of_http = self._flying.tolist() if window.length_s > 0 else (np.nan, np.nan)
        has_tokens = not ok or sums["with_tokens"] > 0
        tokens = self._tokens if has_tokens else np.zeros(0)
        return {
            "requests": requests,
            "ok": ok,
            "errors": dict(sorted(outcomes.items())),
            "cancelled": cancelled,
            "dropped": outcomes[Outcome.DROPPED],
            "ended_after_window": sums["ended_after"],
            "success_pct": 100 * ok / counted if counted else None,
            **{name: self._rate(float(self._ended[name].sum())) for name in _ENDED[:3]},
            "output_tokens_per_s": self._rate(float(tokens.sum())) if has_tokens else None,
            **{f"{name}_ci95": rate_interval(self._ended[name], window.length_s) for name in _ENDED[:3]},
            "output_tokens_per_s_ci95": rate_interval(tokens, window.length_s, max(1.0, sums["tokens"] / max(ok, 1))),
            **self._goodput(ok, counted),
            "rate": self._rates(requests) if window.open else None,
            "tokens": {
                "prompt_mean": share(sums["prompt_tokens"], sums["prompts"]),
                "output_mean": share(sums["tokens"], ok) if sums["with_tokens"] else None,
                "prompt_per_s": self._rate(sums["prompt_tokens_ended"]) if sums["prompts_ended"] else None,
            },
            "in_flight_mean": flying,
            "in_flight_http_error": of_http,
            "resident_tokens_mean": float(self._resident.mean(prompt)[0]) if window.length_s > 0 else np.nan,
            "little": self._little(flying),
            "itl_share": share(sums["gaps_read"], sums["with_gaps"]),
            "kernel_stamp_share": share(sums["by_kernel"], sums["stamped"]),
            "coalesced_share": share(min(sums["shared"], sums["read_chunks"]), sums["read_chunks"]),
            "tokens_per_event": share(sums["tokens"], sums["chunks"]),
            "tokens_from_events_share": share(sums["uncounted"], ok),
        }

    def _rate(self, count: float) -> float | None:
        return count / self.window.length_s if self.window.length_s > 0 else None

    def _goodput(self, ok: int, counted: int) -> dict[str, Any]:
        """None each without objectives, and where OK requests do not have a latency that has one."""
        latencies = limits_of(self._objectives or ())
        if self._objectives is None or (ok and not all(self._sums[f"with_{name}"] for name in latencies)):
            return dict.fromkeys(("goodput_qps", "goodput_qps_ci95", "good_pct"))
        counts = self._ended["goodput_qps"]
        return {
            "goodput_qps": self._rate(float(counts.sum())),
            "goodput_qps_ci95": rate_interval(counts, self.window.length_s),
            "good_pct": 100 * self._sums["good"] / counted if counted else None,
        }

    def _rates(self, due: int) -> dict[str, float | None]:
        """Requests a second of the open model: asked for, due by the schedule, and sent, in the window."""
        rates = {"due": self._rate(due), "delivered": self._rate(self._sums["sent"])}
        return {"asked": float(self.window.level)} | rates

    def _little(self, flying: float) -> dict[str, float] | None:
        """Little's law: in flight by the rate of ends and the mean time in flight, and what was measured / that.

        None when nothing that was sent ended in the window.
        """
        left, stayed_s = self._sums["left"], self._sums["stayed_s"]
        if not left or not stayed_s > 0 or not self.window.length_s > 0:
            return None
        expected = stayed_s / self.window.length_s
        return {
            "requests": left,
            "residence_ms": 1e3 * stayed_s / left,
            "in_flight": expected,
            "difference": flying / expected - 1,
        }


def share(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None
