"""`loadgen agents`: what agents see, without a load. Parses, makes one call, and prints what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from loadgen.agents.passphrases import unlock
from loadgen.cli_options import EPILOG, Command, Names, with_options
from loadgen.cli_report import print_report
from loadgen.errors import AgentError, Interrupted, UsageError
from loadgen.option import Option, Reader
from loadgen.option_values import some_time
from loadgen.options import RUN_OPTIONS, Settings, parse_settings
from loadgen.watching import HOST_OPTIONS, WATCH_OPTIONS

_AGENTS, _AGENTS_FILE = HOST_OPTIONS
_DURATION = Option("duration", "TIME", None, "how long; default: until Ctrl-C")
_ENDPOINT = (
    Option("host", "URL", None, "the endpoint whose server runs there: its processes and metrics are looked for"),
    Option("api-key-env", "NAME", None, "environment variable that holds the key of the server's metrics"),
)
_FILE = _AGENTS_FILE._replace(help="hosts, one a line; with HOST those too")
_CHECK = (_FILE, *WATCH_OPTIONS, *_ENDPOINT)
_WATCH = (*(option for option in _CHECK if option.name != "agent-lease"), _DURATION)
_KEPT = tuple(option for option in RUN_OPTIONS if option.name in ("label", "notes", "runs-dir"))
_RECORD = (*_CHECK, _DURATION, *_KEPT)
_RECORDED = frozenset(option.key for option in (_AGENTS, *_RECORD))


def _hosts(command: Command) -> Command:
    """HOST arguments; without any, those of LOADGEN_AGENTS, or this machine."""
    return click.argument("hosts", metavar="[HOST]...", nargs=-1, envvar=_AGENTS.env, type=Names())(command)


@click.group()
def agents() -> None:
    """What agents see of hosts, without a load. HOST is local, or over SSH [user@]host[:port].

    \b
    loadgen agents check gpu1 gpu2          what can be watched there, and what stands in the way
    loadgen agents watch gpu1 gpu2          live figures; nothing is kept
    loadgen agents record gpu1 gpu2         a run directory of telemetry alone
    """


@agents.command(epilog=EPILOG)
@_hosts
@with_options(_CHECK)
@click.option("--require-gpu", is_flag=True, help="a host without a GPU is an error")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="output")
def check(hosts: tuple[str, ...], require_gpu: bool, form: str, **texts: Any) -> None:
    """Start an agent on each HOST as a run does, and say what it can see and what to do about the rest.

    \b
    loadgen agents check gpu1 admin@gpu2:2222
    loadgen agents check --agents-file hosts.txt --host http://gpu1:8000 --require-gpu
    loadgen agents check gpu1 --gpus 0,1 --format json
    """
    from rich.console import Console
    from rich.text import Text

    from loadgen.agents import check as checked
    from loadgen.agents.session import config_of
    from loadgen.doctor import Verdict
    from loadgen.doctor.show import show
    from remote_agents.checkup import examine

    settings, _ = _settings(hosts, texts)
    config = config_of(settings, Path())
    unlock(settings.watching)
    found = [(host, checked.checks(host, config, require_gpu)) for host in examine(config)]
    if form == "json":
        listed = [checked.as_json(*one) for one in found]
        whole = {"schema": checked.SCHEMA, "hosts": listed, "ok": all(one["ok"] for one in listed)}
        click.echo(json.dumps(whole, indent=1, ensure_ascii=False))
    else:
        console = Console()
        for number, (host, lines) in enumerate(found):
            console.print(Text("\n" * bool(number) + host.agent, style="bold"), soft_wrap=True)
            for line in lines:
                show(console, line)
    failed = [host.agent for host, lines in found if any(line.verdict is Verdict.FAILED for line in lines)]
    if failed:
        names = ", ".join(failed)
        raise AgentError(
            f"{len(failed)} of {len(found)} hosts cannot be watched as asked: {names}; what is above says why"
        )


@agents.command(epilog=EPILOG)
@_hosts
@with_options(_WATCH)
def watch(hosts: tuple[str, ...], **texts: Any) -> None:
    """Show live figures of each HOST, its GPUs and its model server. Ctrl-C ends it; nothing is kept.

    \b
    loadgen agents watch gpu1 gpu2
    loadgen agents watch local --host http://127.0.0.1:8000 --duration 30s
    """
    from rich.console import Console

    from loadgen.agents.watch import watch as watch_hosts

    settings, duration_s = _settings(hosts, texts)
    unlock(settings.watching)
    watch_hosts(settings, duration_s, Console())


@agents.command(epilog=EPILOG)
@_hosts
@with_options(_RECORD)
def record(hosts: tuple[str, ...], **texts: Any) -> None:
    """Record each HOST into a run directory without a load, and report. Ctrl-C ends it; what was recorded is kept.

    \b
    loadgen agents record gpu1 gpu2 --duration 60s --label idle
    loadgen agents record gpu1 --host http://gpu1:8000 --notes "somebody else's load"
    """
    from rich.console import Console

    from loadgen import rundir
    from loadgen.agents import record as recording
    from loadgen.agents.session import config_of

    settings, duration_s = _settings(hosts, texts)
    config_of(settings, Path())  # what is wrong with it is said before there is a directory
    unlock(settings.watching)
    directory = recording.prepare(settings, duration_s, _RECORDED)
    click.echo(f"run directory: {directory}", err=True)
    try:
        status = recording.record(directory, settings, duration_s, Console(stderr=True))
    finally:
        print_report(directory)
    if status == rundir.INTERRUPTED:
        raise Interrupted("interrupted; the report shows what was recorded")


def _settings(hosts: tuple[str, ...], texts: dict[str, Any]) -> tuple[Settings, float | None]:
    """Those of a run, as far as they are of agents, and the duration. Raises UsageError."""
    reader = Reader((_DURATION,), texts)
    duration_s = reader.take("duration", some_time, None)
    problems = list(reader.problems)
    try:
        settings = parse_settings({**texts, "agents": ",".join(hosts)}, simulated=False, steps_required=False)
    except UsageError as error:
        problems = [line.replace("--agents: ", "", 1) for line in str(error).splitlines()] + problems
    if not problems and not settings.watching.agents:
        problems = ["no host is named: give one, as local or gpu1"]
    if problems:
        raise UsageError("\n".join(problems))
    return settings, duration_s
