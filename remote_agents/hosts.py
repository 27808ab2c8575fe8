"""Which hosts a run watches, and what each agent reads of the server there. Pure, but for a file; speaks no clock.

local, none                      this host, no host
[USER@]HOST[:PORT]               over SSH; HOST may be a name of ssh's configuration
[USER@][ADDRESS][:PORT]          an IPv6 address, in brackets
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LOCAL = "local"
NONE = "none"

# What a shell would read, or ssh would take for an option: these names reach ProxyCommand and ssh's command line.
_HOST = re.compile(r"(?!-)[^\s,/@'`\"$\\;&<>|(){}\[\]\x00-\x1f]+")
_USER = re.compile(r"(?!-)[^\s,'`\"$;&<>|(){}\x00-\x1f]+(?<!\\)")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Agent:
    """`name` is as it was given; user and port are None where ssh's configuration is to say them."""

    name: str
    user: str | None
    host: str
    port: int | None


def parse_agent(text: str) -> Agent:
    """Raises ValueError with what is wrong, as the end of a sentence that names the agent."""
    if text in (LOCAL, NONE):
        return Agent(text, None, text, None)
    user, at, place = text.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ValueError(f"has no user's name before the @: {user!r}")
    if place.startswith("["):
        host, closed, rest = place[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or not _is_address(host, 6):
            raise ValueError("has no IPv6 address in its brackets: write it as [::1] or [::1]:22")
        port = rest[1:] if rest else None
    elif _is_address(place, 6):
        host, port = place, None
    else:
        host, colon, after = place.partition(":")
        port = after if colon else None
    if not _HOST.fullmatch(host):
        raise ValueError("is no host: write HOST, USER@HOST or USER@HOST:PORT, an IPv6 address in [brackets]")
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"has no port after the colon: {port!r}; ports are 1 to 65535")
    return Agent(text, user if at else None, host, int(port) if port else None)


def check_agents(names: Sequence[str]) -> list[str]:
    """One sentence a problem; empty when the names can be used."""
    problems = []
    for name in names:
        try:
            parse_agent(name)
        except ValueError as error:
            problems.append(f"agent {name!r} {error}")
    if NONE in names and len(set(names)) > 1:
        problems.append(f"agent {NONE!r} cannot be combined with others: give it alone, or leave it out")
    return problems


def read_agents_file(path: Path) -> tuple[list[str], list[str]]:
    """The names in a file of one host a line, with # comments, and what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        return [], [f"the hosts in {path} cannot be read ({reason}): name a file with one host a line"]
    numbers: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        name = re.sub(r"(^|\s)#.*", "", line).strip()
        if not name:
            continue
        found = check_agents([name])
        if name in numbers:
            found = [f"agent {name!r} is named again, first in line {numbers[name]}: leave one out"]
        problems += [f"{path}, line {number}: {problem}" for problem in found]
        numbers.setdefault(name, number)
    names = list(numbers)
    if not names:
        problems.append(f"{path} names no host: write one a line")
    if NONE in names and len(names) > 1:
        problems += [f"{path}: {problem}" for problem in check_agents(names) if problem.startswith(f"agent {NONE!r} ")]
    return names, problems


def metrics_urls(agents: Sequence[str], endpoint_url: str | None, given_url: str | None) -> dict[str, str | None]:
    """Agent -> where it reads the server's metrics, None for not at all: each server is read once, and from near by.

    A given loopback URL is meant on each host, another is read by the first agent. Without one, each SSH host is
    taken to run a server on the endpoint's port; where there are none, this host reads the endpoint's own /metrics.
    """
    if given_url is not None:
        everywhere = _is_loopback(given_url)
        return {agent: given_url if everywhere or not index else None for index, agent in enumerate(agents)}
    port = server_port(endpoint_url)
    if endpoint_url is None or port is None:
        return dict.fromkeys(agents)
    if set(agents) <= {LOCAL}:
        return dict.fromkeys(agents, endpoint_url.rstrip("/") + "/metrics")
    there = f"{urlsplit(endpoint_url).scheme}://127.0.0.1:{port}/metrics"
    return {agent: None if agent == LOCAL else there for agent in agents}


def server_port(endpoint_url: str | None) -> int | None:
    """The port that the endpoint's server listens on, as far as its URL tells."""
    try:
        parts = urlsplit(endpoint_url or "")
        return parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
