"""Whether a step's requests were answered, and what that makes of its latencies and its error rate. No clock.

Of requests none of which was answered, every latency is infinite, and the error rate is 100 %.
"""

from __future__ import annotations

import math
from typing import Any

Step = dict[str, Any]


def hung(step: Step) -> bool:
    """Requests were in flight, but none that was due in the window ended, no other ended well in it, no token came.

    The server hangs, or an answer takes longer than the step: both look alike.
    """
    if step["success_pct"] is not None:
        return False
    came = any(_number(step[name]) > 0 for name in ("qps", "output_tokens_per_s"))
    streamed = step["resident_tokens_mean"] is None or step["resident_tokens_mean"] > 0  # None: of unknown prompts
    return _number(step["in_flight_mean"]) > 0 and not came and not streamed


def unanswered(step: Step) -> bool:
    """All requests of the step failed, or it hung."""
    return step["success_pct"] == 0 or hung(step)


def latency_ms(step: Step, metric: str, stat: str) -> float | None:
    """Infinite where failures reach it; None where it was not measured."""
    value = _number((step.get(f"{metric}_ms") or {}).get(stat))
    if math.isnan(value):
        return math.inf if unanswered(step) else None
    return value


def error_pct(step: Step) -> float | None:
    """The share of requests that failed; None where it was not measured."""
    if step["success_pct"] is None:
        return 100.0 if hung(step) else None
    return float(100 - step["success_pct"])


def _number(value: float | str | None) -> float:
    """Summaries have "inf" for what is infinite."""
    return math.nan if value is None else float(value)
