"""Which hosts a run watches, and how: these options, checked, and what the collector is told of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen import option_values as values
from loadgen.errors import UsageError
from loadgen.option import Option, Reader
from loadgen.plan import parse_duration
from remote_agents.hosts import NONE, check_agents, read_agents_file
from remote_agents.metrics_map import read_metrics_map

HOST_OPTIONS = (
    Option("agents", "HOSTS", "local", "hosts to watch: local, none, or over SSH [user@]host[:port],…"),
    Option("agents-file", "FILE", None, "hosts to watch, one a line; with --agents those too"),
)
WATCH_OPTIONS = (
    Option("ssh-config", "FILE", None, "instead of ~/.ssh/config"),
    Option("accept-new-host-keys", None, None, "trust hosts that ssh does not know yet, and remember their keys"),
    Option("agent-lease", "TIME", "120s", "how long an agent outlives its SSH link, keeping samples; 0s: not at all"),
    Option("agent-dir", "DIR", None, "put agents into this folder of their hosts, which forbid code from memory"),
    Option("gpus", "0,1", None, "GPUs to watch, by index or UUID; default: all"),
    Option("metrics-url", "URL", None, "the server's Prometheus metrics, as its host sees it; default: its /metrics"),
    Option("metrics-map", "FILE", None, "TOML: which series of a server of your own mean what"),
    Option("dcgm-url", "URL", None, "an existing dcgm-exporter to read too, as its host sees it"),
)


@dataclass(frozen=True)
class Watching:
    """`agents` are as given, without `none`; `metrics_rows` are what metrics_map says."""

    agents: tuple[str, ...]
    ssh_config: str | None
    accept_new_host_keys: bool
    lease_s: float
    agent_dir: str | None
    gpus: tuple[str, ...] | None
    metrics_url: str | None
    metrics_map: str | None
    metrics_rows: tuple[Any, ...]
    dcgm_url: str | None

    def texts(self) -> dict[str, Any]:
        """Option texts by key; None is not given."""
        return {
            "agents": ",".join(self.agents) or NONE,
            "ssh_config": self.ssh_config,
            "accept_new_host_keys": "true" if self.accept_new_host_keys else None,
            "agent_lease": values.time_text(self.lease_s),
            "agent_dir": self.agent_dir,
            "gpus": ",".join(self.gpus) if self.gpus is not None else None,
            "metrics_url": self.metrics_url,
            "metrics_map": self.metrics_map,
            "dcgm_url": self.dcgm_url,
        }

    def config(self) -> dict[str, Any]:
        """Of remote_agents.collector.Config, what these options say."""
        return {
            "agents": list(self.agents),
            "ssh_config": self.ssh_config,
            "accept_new_host_keys": self.accept_new_host_keys,
            "lease_s": self.lease_s,
            "agent_dir": self.agent_dir,
            "gpus": list(self.gpus) if self.gpus is not None else None,
            "metrics_url": self.metrics_url,
            "metrics_map": list(self.metrics_rows),
            "dcgm_url": self.dcgm_url,
        }


def read_watching(reader: Reader) -> Watching:
    """Takes HOST_OPTIONS and WATCH_OPTIONS."""
    take = reader.take
    nobody: tuple[str, ...] = ()
    no_map: tuple[str | None, tuple[Any, ...]] = (None, ())
    listed = take("agents_file", _agents_file, nobody)
    given = take("agents", _agents, nobody) if not listed or reader.given("agents") else nobody
    path, rows = take("metrics_map", _metrics_map, no_map)
    return Watching(
        agents=tuple(dict.fromkeys(given + listed)),
        ssh_config=take("ssh_config", _file, None),
        accept_new_host_keys=take("accept_new_host_keys", values.switch, False),
        lease_s=take("agent_lease", parse_duration, 0.0),
        agent_dir=take("agent_dir", _folder, None),
        gpus=take("gpus", values.names, None),
        metrics_url=take("metrics_url", values.url, None),
        metrics_map=path,
        metrics_rows=rows,
        dcgm_url=take("dcgm_url", values.url, None),
    )


def _agents(text: str) -> tuple[str, ...]:
    names = values.names(text)
    if problems := check_agents(names):
        raise UsageError("\n".join(problems))
    return tuple(dict.fromkeys(name for name in names if name != NONE))


def _agents_file(text: str) -> tuple[str, ...]:
    names, problems = read_agents_file(Path(text))
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(name for name in names if name != NONE)


def _file(text: str) -> str:
    path = Path(text).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no file {text!r}")
    return str(path.resolve())


def _folder(text: str) -> str:
    if not re.fullmatch(r"(~/|/)[A-Za-z0-9._/+-]+", text):  # a shell of the host reads it
        raise UsageError(f"{text!r} is no absolute path of letters, digits and ._+-: name another")
    return text


def _metrics_map(text: str) -> tuple[str | None, tuple[Any, ...]]:
    path = _file(text)
    rows, problems = read_metrics_map(Path(path))
    if problems:
        raise UsageError("\n".join(problems))
    return path, tuple(rows)
