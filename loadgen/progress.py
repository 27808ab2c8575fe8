"""What a user sees while a run goes on: a live table on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

_PLAIN_EVERY_S = 5.0
_COLUMNS = ("step", "phase", "users", "QPS", "TTFT p50", "p99", "lag p99", "errors", "queue", "GPU", "VRAM")


class Progress:
    """Use as a context; `show` takes the master's live lines. Writes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=2) if self._console.is_terminal else None
        self._last_plain = -_PLAIN_EVERY_S
        self._last_key: tuple[Any, ...] = ()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def show(self, line: dict[str, Any]) -> None:
        cells = _cells(line)
        telemetry = line["telemetry"]
        simulated = "simulated GPU" if telemetry.get("simulated") and telemetry.get("gpus") else ""
        if self._live is not None:
            table = Table(
                *_COLUMNS, box=None, padding=(0, 1, 0, 0), pad_edge=False, caption=simulated, caption_justify="right"
            )
            table.add_row(*cells)
            self._live.update(table)
            return
        key = (line["step"], line["phase"])
        now = time.monotonic()
        if key != self._last_key or now - self._last_plain >= _PLAIN_EVERY_S:
            self._last_key, self._last_plain = key, now
            figures = [f"{name} {cell}" for name, cell in zip(_COLUMNS, cells, strict=True)]
            self.say("  ".join([*figures, f"({simulated})"] if simulated else figures))


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    telemetry = line["telemetry"]
    gpus = telemetry.get("gpus") or []
    server = telemetry.get("server") or {}
    utils = [gpu["util_pct"] for gpu in gpus if gpu.get("util_pct") is not None]
    used = [gpu["vram_used_b"] for gpu in gpus if gpu.get("vram_used_b") is not None]
    total = [gpu["vram_total_b"] for gpu in gpus if gpu.get("vram_total_b") is not None]
    level = f"/{line['level']:g}" if line["level"] is not None else ""
    return (
        f"{max(line['step'] + 1, 0)}/{line['steps']}" if line["steps"] else "-",
        line["phase"],
        f"{line['users']}" if _is_open(line) else f"{line['users']}{level}",
        f"{line['qps']:.0f}{level}" if _is_open(line) else f"{line['qps']:.1f}",
        _ms(line["ttft_p50_ms"]),
        _ms(line["ttft_p99_ms"]),
        _lag(line),
        str(line["failed"]),
        f"{server['waiting']:.0f}" if server.get("waiting") is not None else "-",
        f"{sum(utils) / len(utils):.0f} %" if utils else "-",
        f"{sum(used) / 1e9:.0f}/{sum(total) / 1e9:.0f} GB" if used else "-",
    )


def _is_open(line: dict[str, Any]) -> bool:
    """In the open model the level is a rate, and users are those that happen to be busy."""
    return bool(line["unit"] != "users")


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 999.5 else f"{value / 1000:.3g} s"


def _lag(line: dict[str, Any]) -> str:
    """How late this side was: its reads and, in the open model, its sends after them."""
    lags = [line["read_lag_p99_ms"], line["send_lag_p99_ms"]] if _is_open(line) else [line["read_lag_p99_ms"]]
    return "/".join("-" if lag is None else f"{lag:.1f}" for lag in lags) + " ms" if any(lags) else "-"
