"""Live lines of agents on a terminal as a table that is drawn anew, elsewhere as a line a host.

`hosts` names the host of each agent, as the line's figures have it. What was not measured is a dash.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_HOST = ("host", "state", "busiest CPU", "load", "memory")
_GPU = ("host", "GPU", "util", "SM", "VRAM", "power", "temp", "clock")
_SERVER = ("running", "waiting", "KV cache")
_OK = "ok"

Line = Mapping[str, Any]
Hosts = Mapping[str, str]


class Screen:
    """Use as a context. A terminal is refreshed by each line, another output at most every `plain_every_s`."""

    def __init__(self, console: Console, plain_every_s: float) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._every_s = plain_every_s
        self._next_plain = 0.0

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, line: Line, hosts: Hosts) -> None:
        if self._live is not None:
            self._live.update(_tables(line, hosts), refresh=True)
        elif (now := time.monotonic()) >= self._next_plain:
            self._next_plain = now + self._every_s - 0.5  # lines are a second apart, and not to the millisecond
            for text in plain(line, hosts):
                self.say(text)


def _tables(line: Line, hosts: Hosts) -> Group:
    parts = [_table(_HOST, host_rows(line, hosts), words=2)]
    if line["gpus"]:
        parts.append(_table(_GPU, gpu_rows(line), words=1))
    if (cells := server_cells(line)) is not None:
        parts.append(_table(_SERVER, [cells], words=0))
    return Group(*parts)


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]], words: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number < words else "right", no_wrap=number != words - 1)
    for row in rows:
        table.add_row(*map(Text, row))
    table.add_row()
    return table


def plain(line: Line, hosts: Hosts) -> list[str]:
    """A line an agent, with the GPUs of its host, and one for the model server where there is one."""
    texts = []
    for name, state, *cells in host_rows(line, hosts):
        parts = [name, state]
        if state == _OK:
            parts += [f"{header} {cell}" for header, cell in zip(_HOST[2:], cells, strict=True)]
            for host, index, *figures in gpu_rows(line):
                if host == hosts[name]:
                    parts.append(f"GPU {index} " + " ".join(f"{h} {f}" for h, f in zip(_GPU[2:], figures, strict=True)))
        texts.append("  ".join(parts))
    if (served := server_cells(line)) is not None:
        texts.append("  ".join(["server", *(f"{h} {cell}" for h, cell in zip(_SERVER, served, strict=True))]))
    return texts


def host_rows(line: Line, hosts: Hosts) -> list[tuple[str, ...]]:
    """Cells of _HOST, a row an agent."""
    figures = {row["host"]: row for row in line["hosts"]}
    rows: list[tuple[str, ...]] = []
    for name, state in line["agents"].items():
        row = figures.get(hosts[name], {})
        free, total = row.get("mem_available_b"), row.get("mem_total_b")
        used = None if free is None or total is None else total - free
        rows.append((name, state, _unit(row.get("cpu_max_busy_pct"), "%"), _load(row.get("load1")), _size(used, total)))
    return rows


def gpu_rows(line: Line) -> list[tuple[str, ...]]:
    """Cells of _GPU, a row a GPU or MIG device."""
    return [
        (
            gpu["host"],
            str(gpu["index"]),
            _unit(gpu["util_pct"], "%"),
            _unit(gpu["sm_pct"], "%"),
            _size(gpu["vram_used_b"], gpu["vram_total_b"]),
            _unit(gpu["power_w"], "W"),
            _unit(gpu["temp_c"], "°C"),
            _unit(gpu["sm_mhz"], "MHz"),
        )
        for gpu in line["gpus"]
    ]


def server_cells(line: Line) -> tuple[str, ...] | None:
    """Cells of _SERVER; None where no model server tells anything."""
    server = line["server"]
    if all(value is None for value in server.values()):
        return None
    usage = server["kv_usage_ratio_max"]
    percent = None if usage is None else 100 * usage
    return _unit(server["running"], ""), _unit(server["waiting"], ""), _unit(percent, "%")


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f} {unit}".rstrip()


def _load(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _size(used_b: float | None, total_b: float | None) -> str:
    if used_b is None:
        return "-"
    return f"{used_b / 1e9:.1f}" + ("" if total_b is None else f"/{total_b / 1e9:.1f}") + " GB"
