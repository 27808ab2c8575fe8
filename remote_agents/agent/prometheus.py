"""Prometheus pages: one is read again and again and timed, what is wrong with it is said once, and its lines are read.

Prometheus and OpenMetrics text, exemplars and a page that comes as a JSON string included. What a series means is
server_metrics.py's and dcgm.py's. Stamps are CLOCK_MONOTONIC ns: before the request, and when the answer began.
"""

import http.client
import json
import math
import re
import socket
from typing import Container, Dict, Iterator, NamedTuple, Optional, Set, Tuple

from remote_agents.agent.fetch import FETCH_ERRORS, Answer, Fetcher
from remote_agents.agent.outbox import Outbox

SLOW_PAUSE_NS = 5_000_000_000
USELESS_PAUSE_NS = 60_000_000_000

_LABELS = r'[^"}]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"}]*)*'
_LINE = re.compile(r"[^{\s]+\s*(?:\{(" + _LABELS + r")\})?\s*(\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"([^"\\]*(?:\\.[^"\\]*)*)"')
_OTHER_BEGINNINGS = {"<": "a web page", "{": "JSON", "[": "JSON", '"': "JSON"}
_ESCAPED = re.compile(r"\\(.)")


class Page(NamedTuple):
    text: str
    size_b: int
    t0_ns: int
    t1_ns: int
    took_us: int  # to its end
    cost_us: int  # of rendering it, as seen from here: until it began, without the network's round trip


class Source(NamedTuple):
    """A page, and what is said when it gives nothing."""

    url: str
    token: Optional[str]
    kind: str  # of the event when there are figures; `no_<kind>` when there are none
    name: str
    remedy: str
    key_remedy: str


class Unreadable(Exception):
    """Why there is no page, and how long the server is better left alone."""

    def __init__(self, reason: str, pause_ns: int = 0) -> None:
        super().__init__(reason)
        self.pause_ns = pause_ns


class Reader:
    """Says each problem of a source once, until there are figures again."""

    def __init__(self, source: Source, outbox: Outbox, timeout_s: float = 5.0) -> None:
        self.pause_ns = 0  # how long to wait beyond the usual before the next read
        self._source = source
        self._fetcher = Fetcher(source.url, source.token, timeout_s)
        self._outbox = outbox
        self._found = False  # ever
        self._said: Set[str] = set()

    def read(self) -> Optional[Page]:
        self.pause_ns = 0
        try:
            return self._read()
        except Unreadable as problem:
            self._refuse(str(problem), problem.pause_ns)
            return None

    def refuse(self, reason: str, remedy: str) -> None:
        """There are no figures in what was read."""
        self._refuse(f"{reason}: {remedy}", USELESS_PAUSE_NS)

    def accept(self) -> bool:
        """There are figures in what was read; whether that is news."""
        is_news = bool(self._said) or not self._found
        self._found = True
        self._said.clear()
        return is_news

    def _refuse(self, reason: str, pause_ns: int) -> None:
        # A server that has had its page is only restarting or overloaded.
        self.pause_ns = min(pause_ns, SLOW_PAUSE_NS) if self._found else pause_ns
        if reason not in self._said:
            self._said.add(reason)
            source = self._source
            self._outbox.event(f"no_{source.kind}", f"no {source.name} at {source.url}: {reason}")

    def _read(self) -> Page:
        try:
            return self._page(self._fetcher.fetch())
        except socket.timeout:
            limit_s = self._fetcher.timeout_s
            raise Unreadable(f"no whole answer within {limit_s:g} s", SLOW_PAUSE_NS) from None
        except ConnectionError as error:
            raise Unreadable(f"it cannot be reached ({error.strerror or error})") from error
        except http.client.HTTPException as error:
            raise Unreadable(f"its answer cannot be used ({error or type(error).__name__})", SLOW_PAUSE_NS) from error
        except FETCH_ERRORS as error:
            raise Unreadable(f"it cannot be reached ({error})") from error

    def _page(self, answer: Answer) -> Page:
        status, source = answer.status, self._source
        if status in (401, 403):
            asks = "refuses the key" if source.token else "asks for a key"
            raise Unreadable(f"it {asks} (status {status}): {source.key_remedy}", USELESS_PAUSE_NS)
        if status >= 500:
            raise Unreadable(f"status {status}")
        if status != 200:
            raise Unreadable(f"status {status}: {source.remedy}", USELESS_PAUSE_NS)
        text = answer.body.decode(errors="replace")
        try:
            text = unquoted(text)
        except ValueError:
            pass  # said below
        what = _OTHER_BEGINNINGS.get(text.lstrip()[:1])
        if what is not None:
            raise Unreadable(f"it is {what}, no Prometheus text: {source.remedy}", USELESS_PAUSE_NS)
        took_ns = answer.end_ns - answer.t0_ns
        cost_ns = max(0, answer.t1_ns - answer.t0_ns - answer.round_trip_ns)
        return Page(text, len(answer.body), answer.t0_ns, answer.t1_ns, took_ns // 1000, cost_ns // 1000)


def samples(text: str, wanted: Container[str]) -> Iterator[Tuple[str, Dict[str, str], float]]:
    """(name without `_total`, labels, value) of the wanted series of a page that have a number. Raises ValueError."""
    for line in unquoted(text).split("\n"):
        name = line.partition("{")[0].partition(" ")[0]
        name = name[: -len("_total")] if name.endswith("_total") else name
        parts = _LINE.match(line) if name in wanted else None
        if parts is None:
            continue
        try:
            value = float(parts.group(2))
        except ValueError:
            continue
        if math.isfinite(value):
            yield name, _labels(parts.group(1) or ""), value


def count_series(text: str) -> int:
    """How many names there are on a page."""
    return len({line.partition("{")[0].partition(" ")[0] for line in text.split("\n") if line and line[0] != "#"})


def unquoted(text: str) -> str:
    """The page itself where it comes as a JSON string, as llama.cpp once sent it. Raises ValueError."""
    return str(json.loads(text)) if text.startswith('"') else text


def _labels(text: str) -> Dict[str, str]:
    found = dict(_LABEL.findall(text))
    if "\\" in text:
        found = {name: _ESCAPED.sub(lambda it: "\n" if it[1] == "n" else it[1], value) for name, value in found.items()}
    return found
