"""Checks before a run, each with what was found and a remedy: `loadgen doctor`, and the quick ones of every run.

    check.py     Check, Case, the loop        network.py   name, connects, TLS
    endpoint.py  key, models, metrics         chat.py      a streamed chat and the options it honours
    machine.py   limits, room, clock, agents  show.py      the text on a terminal

docs/doctor.md explains every check; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator

from loadgen.doctor import chat, endpoint, machine, network
from loadgen.doctor.check import Case, Check, Row, Verdict, as_json, examine, raise_for
from loadgen.errors import LoadgenError, RunDirError, TargetError
from loadgen.options import Settings

__all__ = ["CHECKS", "Check", "Verdict", "as_json", "diagnose", "find_model", "quick_checks", "raise_for"]

_ENDPOINT = (
    Row("credentials", endpoint.credentials, (), True, TargetError),
    Row("name", network.name, (), True, TargetError),
    Row("connect", network.connect, ("name",), True, TargetError),
    Row("TLS", network.tls, ("connect",), True, TargetError),
    Row("key", endpoint.key, ("credentials", "TLS"), True, TargetError),
    Row("model", endpoint.model, ("key",), True, TargetError),
    Row("streamed chat", chat.streamed_chat, ("model",), False, TargetError),
    Row("usage", chat.usage, ("streamed chat",), False, TargetError),
    Row("max_tokens", chat.max_tokens, ("streamed chat",), False, TargetError),
    Row("max_completion_tokens", chat.max_completion_tokens, ("streamed chat",), False, TargetError),
    Row("ignore_eos", chat.ignore_eos, ("streamed chat",), False, TargetError),
    Row("end of stream", chat.end_of_stream, ("streamed chat",), False, TargetError),
    Row("tokens per event", chat.tokens_per_event, ("streamed chat",), False, TargetError),
    Row("keep-alive", chat.keep_alive, ("streamed chat",), False, TargetError),
    Row("server metrics", endpoint.server_metrics, ("credentials", "TLS"), False, TargetError),
)
_NO_ENDPOINT = Row("endpoint", endpoint.none_given, (), False, TargetError)
_MACHINE = (
    Row("agents", machine.agents, (), False, LoadgenError),
    Row("open files", machine.open_files, (), True, LoadgenError),
    Row("local ports", machine.local_ports, (), False, LoadgenError),
    Row("memory", machine.memory, (), False, LoadgenError),
    Row("disk", machine.disk, (), True, LoadgenError),
    Row("runs directory", machine.runs_directory, (), True, RunDirError),
    Row("CPUs", machine.cpus, (), False, LoadgenError),
    Row("clock", machine.clock, (), False, LoadgenError),
    Row("versions", machine.versions, (), False, LoadgenError),
)
CHECKS = _ENDPOINT + _MACHINE


def diagnose(settings: Settings) -> Iterator[Check]:
    """Every check as soon as it is made; `settings.workers` is a number. Without a host those of this machine only."""
    with Case(settings) as case:
        yield from examine(case, _rows(settings))


def quick_checks(settings: Settings) -> tuple[list[Check], str | None]:
    """Those that a run begins with, and the model that it asks for: the given one, else the first that is listed.

    `settings.workers` is a number. `raise_for` ends the run for a failed check.
    """
    with Case(settings) as case:
        return list(examine(case, [row for row in _rows(settings) if row.quick])), case.model


def _rows(settings: Settings) -> tuple[Row, ...]:
    return (_NO_ENDPOINT, *_MACHINE) if settings.host is None else CHECKS


def find_model(settings: Settings) -> str | None:
    """The model to ask for: the given one, else the first that the endpoint lists; None when it lists none.

    Raises TargetError when the endpoint cannot be reached, or refuses the key.
    """
    with Case(settings) as case:
        raise_for(examine(case, [row for row in _ENDPOINT if row.quick]))
        return case.model
