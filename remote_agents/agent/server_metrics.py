"""The model server's own figures in the columns of table `server`, once a second: the scraping thread.

What a series means is server_series.py's, how a page is read prometheus.py's. Rendering the page costs the server time,
so each scrape is timed, and a page that costs it 10 ms again and again is asked for less often. A row per engine
(data-parallel rank), an engine without that label is "". Stamps are CLOCK_MONOTONIC ns: before the request, and when
the answer began.
"""

import time
from typing import Any, Dict, List, Optional, Sequence

from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import SLOW_NS, Pace
from remote_agents.agent.prometheus import Page, Reader, Source, count_series
from remote_agents.agent.sample import TABLES
from remote_agents.agent.server_series import METRICS, SERIES, Series, known_series, mapped_series, server_values

SLOW_RENDER_US = 10_000
SLOW_IN_A_ROW = 5
BACKED_OFF_NS = 5_000_000_000

KIND = "server_metrics"
_REMEDY = (
    "switch metrics on (llama.cpp: --metrics, SGLang: --enable-metrics), say where they are with --metrics-url, "
    "or which series mean what with --metrics-map"
)
_KEY_REMEDY = "--api-key-env names the variable that has it"


def rows(values: Dict[str, Dict[str, float]], page: Page) -> List[List[Any]]:
    """Rows of table `server`."""
    stamps = {"t0_mono_ns": page.t0_ns, "t1_mono_ns": page.t1_ns, "render_us": page.took_us, "page_b": page.size_b}
    table = []
    for engine in sorted(values):
        row: Dict[str, Any] = dict(values[engine], engine=engine, **stamps)
        cells = [(row.get(column.name), column.type) for column in TABLES["server"]]
        table.append([int(cell) if kind == "int64" and cell is not None else cell for cell, kind in cells])
    return table


def scrape(
    url: str,
    token: Optional[str],
    mapping: Sequence[Sequence[Any]],
    outbox: Outbox,
    period_ns: int = SLOW_NS,
    backed_off_ns: int = BACKED_OFF_NS,
) -> None:
    """Thread body, never returns. `mapping`: rows (column, name, (label, value) or None, sum|max, scale)."""
    mapped = mapped_series(mapping)
    known = known_series((*mapped, *SERIES))
    reader = Reader(Source(url, token, KIND, "server metrics", _REMEDY, _KEY_REMEDY), outbox)
    pace = Pace(period_ns)
    slow = 0
    backed_off = False
    while True:
        pace.wait()
        page = reader.read()
        values = server_values(page.text, known) if page else {}
        if page and values:
            if reader.accept():
                outbox.event(KIND, f"server metrics found at {url}: " + _what_is_there(values, page.text, mapped))
            outbox.sample("server", rows(values, page))
            is_slow = page.cost_us > SLOW_RENDER_US
            slow = slow + 1 if is_slow != backed_off else 0
            if slow >= SLOW_IN_A_ROW:
                backed_off, slow = is_slow, 0
                text = "take more than 10 ms: read every 5 s" if is_slow else "are fast again: read every second"
                outbox.event(KIND, "server metrics " + text, render_us=page.cost_us)
                pace = Pace(backed_off_ns if backed_off else period_ns)
                pace.wait()
        elif page:
            reader.refuse(f"none of its {count_series(page.text)} series is known", _REMEDY)
        if reader.pause_ns:
            time.sleep(reader.pause_ns / 1e9)


def _what_is_there(values: Dict[str, Dict[str, float]], text: str, mapped: Sequence[Series]) -> str:
    there = {column for engine in values.values() for column in engine}
    found = ", ".join(column for column in METRICS if column in there)
    missing = ", ".join(column for column in METRICS if column not in there)
    by_mapping = {column for engine in server_values(text, known_series(mapped)).values() for column in engine}
    unseen = ", ".join(f"{series.name} ({series.column})" for series in mapped if series.column not in by_mapping)
    said = found + (f"; without {missing}" if missing else "")
    return said + (f"; of the mapping, not on the page: {unseen}" if unseen else "")
